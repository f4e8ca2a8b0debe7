"""For whom: gaps between a subgroup and everyone else, and how they changed since the reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.cohorts import MISSING, Cohort, Window
from monitor.intervals import Difference, Estimate, Floats, Measured, draw_both
from monitor.measures import MEASURES, Answers, Basis, answers_of, estimate
from monitor.policies import DriftPolicy
from monitor.results import SubgroupGap, Verdict

GAP_MEASURES = ("auroc", "sensitivity", "specificity", "selection_rate")
MINIMUM_EACH_CLASS = 5
MOST_VALUES = 20
"""An attribute with more values than this has its rare ones pooled as OTHER."""

OTHER = "other"
AGE_BANDS = (18.0, 40.0, 65.0)

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subgroup:
    """One value of an attribute, and which studies of the reference and of the window have it."""

    attribute: str
    value: str
    reference: Mask
    current: Mask
    values: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gap:
    """A gap in the making: everything of a row but its verdict, which depends on all other rows."""

    row: SubgroupGap
    subgroup: Subgroup
    change: Measured | None


def measure_gaps(
    reference: Cohort, current: Cohort, *, window: Window, policy: DriftPolicy, generator: np.random.Generator
) -> tuple[SubgroupGap, ...]:
    """Measure each subgroup's AUROC, sensitivity, specificity and selection rate against everyone else.

    A gap is inside minus outside, its change the gap now minus the gap in the reference. Intervals
    are at the policy's level, over patients. DRIFT is said only where the interval of the change
    excludes 0 at alpha divided by the number of changes measured in this window (Bonferroni); the
    two sides of an attribute with two values are one test. A side with fewer studies than
    ``minimum_subgroup``, or fewer than five patients of a class that the figure needs, is not judged.
    """
    counts, first, second = draw_both(reference.patient_key, current.patient_key, policy.resamples, generator)
    answers = list(zip(answers_of(reference, first), answers_of(current, second), strict=True))
    gaps = [
        gap
        for subgroup in find_subgroups(reference, current, policy)
        for before, now in answers
        for gap in _measure(subgroup, before, now, counts, window=window, policy=policy)
    ]
    tests = _count_tests(gaps)
    return tuple(_judge(gap, tests, policy.fairness_alpha(window)) for gap in gaps)


def find_subgroups(reference: Cohort, current: Cohort, policy: DriftPolicy) -> Iterator[Subgroup]:
    """Name the subgroups of both cohorts, attribute by attribute; a missing value is a subgroup of its own.

    Age is cut at 18, 40 and 65 years, any other number at the reference's median. An attribute that
    everyone shares makes no subgroup.
    """
    for attribute in policy.subgroup_attributes or sorted(set(reference.attributes) & set(current.attributes)):
        if attribute not in reference.attributes or attribute not in current.attributes:
            continue
        before, now = cut(attribute, reference.attributes[attribute], current.attributes[attribute])
        before, now = _pool_rare(before, now, policy.minimum_subgroup)
        values = sorted({*before.tolist(), *now.tolist()})
        for value in values if len(values) > 1 else ():
            yield Subgroup(
                attribute=attribute,
                value=value,
                reference=before == value,
                current=now == value,
                values=len(values),
            )


def cut(attribute: str, reference: NDArray[Any], current: NDArray[Any]) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """Turn both sides of an attribute into strings; numbers become bands, NaN becomes MISSING."""
    if not np.issubdtype(reference.dtype, np.number) or not np.issubdtype(current.dtype, np.number):
        return reference.astype(np.str_), current.astype(np.str_)
    known = reference[~np.isnan(reference)]
    edges: tuple[float, ...] = ()
    names: tuple[str, ...] = ("known",)
    if attribute == "age":
        edges, names = AGE_BANDS, ("0-17", "18-39", "40-64", "65+")
    elif len(known):
        middle = float(np.median(known))
        edges, names = (float(np.nextafter(middle, np.inf)),), (f"≤ {middle:g}", f"> {middle:g}")
    labels = np.array([*names, MISSING])
    bands = (
        np.where(np.isnan(side), len(names), np.searchsorted(edges, np.nan_to_num(side), side="right"))
        for side in (reference, current)
    )
    before, now = (labels[band] for band in bands)
    return before, now


def _pool_rare(
    reference: NDArray[np.str_], current: NDArray[np.str_], minimum: int
) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    counted = Counter([*reference.tolist(), *current.tolist()])
    if len(counted) <= MOST_VALUES:
        return reference, current
    rare = [value for value, n in counted.items() if n < minimum and value != MISSING]
    before, now = (np.where(np.isin(side, rare), OTHER, side) for side in (reference, current))
    return before, now


def _measure(
    subgroup: Subgroup, before: Answers, now: Answers, counts: Floats, *, window: Window, policy: DriftPolicy
) -> Iterator[_Gap]:
    """Measure the gaps of one subgroup in one finding, one a measure."""
    was, small_before = _sides(before, subgroup.reference, counts, policy.minimum_subgroup)
    is_now, small_now = _sides(now, subgroup.current, counts, policy.minimum_subgroup)
    for name in GAP_MEASURES:
        inside, outside = is_now[name]
        gap = None if small_now[name] else Difference(first=inside, second=outside)
        past = None if small_before[name] else Difference(first=was[name][0], second=was[name][1])
        change = Difference(first=gap, second=past) if gap and past else None
        low, high = gap.interval(policy.level) if gap else (None, None)
        change_low, change_high = change.interval(policy.level) if change else (None, None)
        reason = small_now[name] or (f"reference: {small_before[name]}" if small_before[name] else "")
        row = SubgroupGap(
            window=window,
            attribute=subgroup.attribute,
            value=subgroup.value,
            metric=name,
            finding=now.finding,
            n=inside.studies,
            patients=inside.patients,
            inside=inside.value if gap else None,
            outside=outside.value if gap else None,
            gap=gap.value if gap else None,
            low=low,
            high=high,
            reference_gap=past.value if past else None,
            change=change.value if change else None,
            change_low=change_low,
            change_high=change_high,
            level=policy.level,
            verdict=Verdict.NO_DRIFT if change else Verdict.NOT_ENOUGH_DATA,
            reason=reason,
        )
        yield _Gap(row=row, subgroup=subgroup, change=change)


def _sides(
    answers: Answers, inside: Mask, counts: Floats, minimum: int
) -> tuple[Mapping[str, tuple[Estimate, Estimate]], Mapping[str, str]]:
    """Estimate every measure inside and outside of a subgroup, and say which is too small to be judged."""
    parts = {"inside": answers.select(inside), "outside": answers.select(~inside)}
    found = [estimate(part, GAP_MEASURES, counts) for part in parts.values()]
    small = {
        name: next(
            (f"{side}: {why}" for side, part in parts.items() if (why := _explain_small(part, name, minimum))), ""
        )
        for name in GAP_MEASURES
    }
    return {name: (found[0][name], found[1][name]) for name in GAP_MEASURES}, small


def _explain_small(answers: Answers, name: str, minimum: int) -> str:
    basis = MEASURES[name].basis
    studies = answers if basis is Basis.EVERYONE else answers.carrying(Basis.LABELLED)
    kind = "" if basis is Basis.EVERYONE else "labelled "
    if len(studies.scores) < minimum:
        return f"{len(studies.scores)} {kind}studies, {minimum} are needed"
    if basis is Basis.EVERYONE:
        patients = studies.count_patients()
        return f"{patients} patients, {MINIMUM_EACH_CLASS} are needed" if patients < MINIMUM_EACH_CLASS else ""
    for side, word in ((Basis.POSITIVE, "with"), (Basis.NEGATIVE, "without")):
        patients = studies.carrying(side).count_patients()
        if basis in (side, Basis.BOTH) and patients < MINIMUM_EACH_CLASS:
            return f"{patients} patients {word} {answers.finding}, {MINIMUM_EACH_CLASS} are needed"
    return ""


def _count_tests(gaps: list[_Gap]) -> float:
    """Count the changes that are tested; the two sides of two values mirror each other and are one."""
    return sum(0.5 if gap.subgroup.values == 2 else 1.0 for gap in gaps if gap.change)


def _judge(gap: _Gap, tests: float, alpha: float) -> SubgroupGap:
    if gap.change is None:
        return gap.row
    low, high = gap.change.interval(1 - alpha / max(tests, 1))
    drifted = low is not None and high is not None and (low > 0 or high < 0)
    if drifted:
        change = f"{gap.row.metric} of {gap.row.attribute} {gap.row.value} moved against everyone else's"
        reason = f"{change} by {gap.row.change:+.3f} since the reference, beyond chance over {tests:g} comparisons"
    else:
        reason = f"no change beyond chance over {tests:g} comparisons"
    return replace(gap.row, verdict=Verdict.DRIFT if drifted else Verdict.NO_DRIFT, reason=reason)
