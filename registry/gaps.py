"""How far each subgroup is from everyone else, under champion and challenger. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from registry.comparison import (
    HeldOutScores,
    Paired,
    count_patients,
    draw_counts,
    explain_shortage,
    measure_both,
)
from registry.decisions import GatePolicy

OTHERS = "others"
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A subgroup's distance from everyone else under both models; ``widening`` is challenger minus champion.

    ``low`` and ``high`` bound the widening, all subgroups of the attribute together. None with a
    ``reason`` where the attribute has no two subgroups that can be judged.
    """

    cohort: str
    metric: str
    attribute: str
    value: str
    champion: float | None
    challenger: float | None
    widening: float | None
    low: float | None
    high: float | None
    patients: int
    reason: str = ""


def compare_gaps(held_out: HeldOutScores, attribute: str, policy: GatePolicy) -> tuple[Gap, ...]:
    """Compare how far each subgroup of an attribute is from everyone else under both models.

    Values with too few patients are joined (see ``group_values``). An attribute with one value has no
    gap. One that is missing, or of which fewer than two groups can be judged, gives one gap with the reason.
    """
    if attribute not in held_out.subgroups:
        return (_no_gap(held_out, attribute, policy, "the cohort has no such attribute"),)
    values = held_out.subgroups[attribute]
    if len(np.unique(values)) < 2:
        return ()
    groups = group_values(held_out, values, policy)
    if len(groups) < 2:
        short = [value for value in np.unique(values) if explain_shortage(held_out, values == value, policy)]
        shortest = min(short, key=lambda value: count_patients(held_out, values == value))
        # said without its counts: they may be of very few patients, and a decision is read far and wide
        shortage = (
            f"{shortest} has too few patients; needed are {policy.minimum_patients}, and "
            f"{policy.minimum_each_class} with and without the finding"
        )
        return (_no_gap(held_out, attribute, policy, shortage),)
    counts = draw_counts(held_out, policy)
    shown = dict(list(groups.items())[:1]) if len(groups) == 2 else groups  # of two, each mirrors the other
    return tuple(
        _gap(held_out, attribute, value, rows, counts=counts, policy=policy, groups=len(shown))
        for value, rows in shown.items()
    )


def group_values(held_out: HeldOutScores, values: NDArray[np.str_], policy: GatePolicy) -> dict[str, Mask]:
    """Join values that are too rare to judge: into "others", and those, if still too rare, to the smallest group.

    Nobody is left out. Fewer than two groups mean that the attribute cannot be judged.
    """
    masks = {str(value): values == value for value in np.unique(values)}
    groups = {value: rows for value, rows in masks.items() if not explain_shortage(held_out, rows, policy)}
    rest = [value for value in masks if value not in groups]
    pool = np.isin(values, rest)
    if rest and not explain_shortage(held_out, pool, policy):
        groups[f"{OTHERS} ({', '.join(rest)})"] = pool
    elif rest and len(groups) > 1:
        smallest = min(groups, key=lambda value: int(groups[value].sum()))
        groups[f"{smallest} with {', '.join(rest)}"] = groups.pop(smallest) | pool
    return groups


def _gap(  # noqa: PLR0913 - a subgroup, its place and the rules
    held_out: HeldOutScores,
    attribute: str,
    value: str,
    rows: Mask,
    *,
    counts: NDArray[np.float64],
    policy: GatePolicy,
    groups: int,
) -> Gap:
    inside, outside = (measure_both(held_out, policy.metric, side, counts) for side in (rows, ~rows))
    champion, challenger = _distance(inside, outside, "champion"), _distance(inside, outside, "challenger")
    widening = challenger[0] - champion[0]
    fewest = min(inside.champion.patients, outside.champion.patients)
    share = (1 - policy.level) / 2 / groups
    reach = float(t.ppf(1 - share, max(fewest - 1, 1)) * np.nanstd(challenger[1] - champion[1], ddof=1))
    return Gap(
        cohort=held_out.name,
        metric=policy.metric,
        attribute=attribute,
        value=value,
        champion=champion[0],
        challenger=challenger[0],
        widening=widening,
        low=widening - reach,
        high=widening + reach,
        patients=count_patients(held_out, rows)[0],
    )


def _no_gap(held_out: HeldOutScores, attribute: str, policy: GatePolicy, reason: str) -> Gap:
    return Gap(
        cohort=held_out.name,
        metric=policy.metric,
        attribute=attribute,
        value="",
        champion=None,
        challenger=None,
        widening=None,
        low=None,
        high=None,
        patients=len(np.unique(held_out.patients)),
        reason=reason,
    )


def _distance(inside: Paired, outside: Paired, side: str) -> tuple[float, NDArray[np.float64]]:
    a, b = getattr(inside, side), getattr(outside, side)
    return abs(float(a.value) - float(b.value)), np.abs(a.replicates - b.replicates)
