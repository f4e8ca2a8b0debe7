"""The least effect that counts, learned from how much the reference differs from itself."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from monitor.cohorts import Cohort
from monitor.policies import DriftPolicy

REPEATS = 40

Measure = Callable[[Cohort, Cohort], Mapping[str, float]]


def calibrate_effects(
    reference: Cohort,
    measure: Measure,
    *,
    patients: int,
    policy: DriftPolicy,
    generator: np.random.Generator,
    repeats: int = REPEATS,
) -> dict[str, float]:
    """Give the least effect that counts as a change, by comparison.

    Stretches of the reference, consecutive in time and with as many patients as a window, are measured against the
    rest of it. The least effect is the ``policy.effect_quantile`` of what they show, as an order statistic that one
    more stretch stays below with at least that probability (the largest where there are too few), and never less
    than ``policy.minimum_effect``. So what differs between one week and the next all the time, or what only a
    huge n makes certain, is no change.

    Args:
        reference: the cohort that windows are compared with.
        measure: effects by comparison of (rest, stretch); a comparison that cannot be made is left out.
        patients: of a typical window; at most half of the reference's are taken.
        policy: its ``effect_quantile`` and ``minimum_effect`` are used.
        generator: source of randomness.
        repeats: how many stretches.

    Raises:
        ValueError: an effect is not finite.
    """
    seen: dict[str, list[float]] = defaultdict(list)
    for rest, stretch in draw_stretches(reference, patients=patients, repeats=repeats, generator=generator):
        for name, effect in measure(rest, stretch).items():
            if not math.isfinite(effect):
                raise ValueError(f"the effect of {name} must be finite, got {effect}")
            seen[name].append(effect)
    return {
        name: max(policy.minimum_effect, upper_quantile(effects, policy.effect_quantile))
        for name, effects in seen.items()
    }


def draw_stretches(
    reference: Cohort, *, patients: int, repeats: int, generator: np.random.Generator
) -> Iterator[tuple[Cohort, Cohort]]:
    """Draw stretches of consecutive studies with so many patients; yields (rest, stretch), no patient in both.

    A stretch starts at a random study in order of time. At most half of the reference's patients are taken; none
    is drawn from a reference of fewer than two.
    """
    ordered = reference.select(np.argsort(reference.times, kind="stable"))
    owners = ordered.patient_index
    wanted = min(patients, ordered.patients // 2)
    if wanted < 1:
        return
    last = _last_start(owners, wanted)
    for start in generator.integers(last + 1, size=repeats):
        end = start + _length(owners[start:], wanted)
        inside = np.arange(len(owners))
        stretch = (inside >= start) & (inside < end)
        rest = ~np.isin(owners, owners[stretch])
        yield ordered.select(rest), ordered.select(stretch)


def _last_start(owners: np.typing.NDArray[np.intp], wanted: int) -> int:
    """Find the last row from which on there are still so many patients."""
    return len(owners) - _length(owners[::-1], wanted)


def _length(owners: np.typing.NDArray[np.intp], wanted: int) -> int:
    """Count the rows, from the first, that hold so many patients."""
    return int(np.sort(np.unique(owners, return_index=True)[1])[wanted - 1]) + 1


def upper_quantile(values: Sequence[float], quantile: float) -> float:
    """Give the order statistic that one more value stays below with at least that probability, else the largest."""
    rank = min(math.ceil(quantile * (len(values) + 1)), len(values))
    return sorted(values)[rank - 1]
