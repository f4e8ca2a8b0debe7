"""For whom: gaps between a subgroup and everyone else, and how they changed since the reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.cohorts import MISSING, Cohort, Window
from monitor.delong import hanley_mcneil
from monitor.intervals import Difference, Estimate, Floats, Measured
from monitor.measures import Basis, answers_of
from monitor.multiplicity import THRESHOLDS
from monitor.policies import DriftPolicy
from monitor.results import SubgroupGap, Verdict
from monitor.subgroup_figures import FIGURES, SubgroupFigures, draw_in_chunks

GAP_MEASURES = ("auroc", "sensitivity", "specificity", "selection_rate", "calibration_offset")
EQUALISED_ODDS = "equalised_odds"
ODDS = ("sensitivity", "specificity")
MINIMUM_EACH_CLASS = 5
MOST_VALUES = 20
"""An attribute with more values than this has its rare ones pooled as OTHER."""

OTHER = "other"
AND = " & "
AGE_BANDS = (18.0, 40.0, 65.0)
BISECTIONS = 18
"""Enough to know a p-value to one part in 10,000 of itself."""

Codes = NDArray[np.intp]
Words = NDArray[np.str_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Partition:
    """How one attribute, or several together, cut both cohorts into subgroups.

    ``values`` names the subgroups, ``parts`` what each intersection is made of (empty for one attribute);
    ``reference`` and ``current`` (n,) number the subgroup of each study.
    """

    attribute: str
    values: tuple[str, ...]
    parts: tuple[tuple[tuple[str, str], ...], ...]
    reference: Codes
    current: Codes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Side:
    """One finding of one cohort under a partition: its figures, (1 + b, 2, subgroups) by name, unresampled first."""

    figures: SubgroupFigures
    values: Mapping[str, Floats]

    def estimate(self, name: str, outside: int, place: int) -> Estimate:
        """Give one figure inside (0) or outside (1) of a subgroup."""
        column = self.values[name][:, outside, place]
        patients, informative = self._independent(name, outside, place)
        carrying = Basis.LABELLED if FIGURES[name].basis is Basis.BOTH else FIGURES[name].basis
        return Estimate(
            value=None if np.isnan(column[0]) else float(column[0]),
            form=FIGURES[name].form,
            studies=self.count(carrying, outside, place)[0],
            patients=patients,
            informative=informative,
            replicates=column[1:],
        )

    def count(self, basis: Basis, outside: int, place: int) -> tuple[int, int]:
        """Count the studies and the patients that carry a figure of this basis."""
        tally = self.figures.tallies[basis]
        return int(tally.studies[outside, place]), int(tally.patients[outside, place])

    def _independent(self, name: str, outside: int, place: int) -> tuple[int, float]:
        """Count the patients that limit a figure, and the yes/no answers it is worth at 0 or 1."""
        basis = FIGURES[name].basis
        if basis is not Basis.BOTH:
            patients = self.count(basis, outside, place)[1]
            return patients, float(patients)
        yes, no = (self.count(side, outside, place)[1] for side in (Basis.POSITIVE, Basis.NEGATIVE))
        return min(yes, no), hanley_mcneil(yes, no)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gap:
    """A gap in the making: everything of a row but its verdict, which depends on all other rows.

    ``test`` names the comparison: the two sides of two values mirror each other and are one.
    """

    row: SubgroupGap
    test: tuple[str, ...]


def measure_gaps(
    reference: Cohort, current: Cohort, *, window: Window, policy: DriftPolicy, generator: np.random.Generator
) -> tuple[SubgroupGap, ...]:
    """Measure every subgroup against everyone else: discrimination, errors, calibration and who is called positive.

    AUROC, sensitivity (the true-positive rate), specificity (1 less the false-positive rate), selection rate, and the
    calibration offset (mean score less prevalence). A gap is inside minus outside, its change the gap now
    minus the gap in the reference. Intervals are at the policy's level, over patients. DRIFT is said only where the
    p-value of the change passes ``policy.multiplicity`` over all changes of this window at
    ``policy.fairness_alpha``. The equalised-odds gap, the larger of the true- and the false-positive rate's, is
    judged by these two. A side with fewer studies than ``minimum_subgroup``, or fewer than five patients
    of a class that the figure needs, is not judged.
    """
    partitions = list(find_partitions(reference, current, policy))
    before, now = _figures(reference, current, partitions, policy, generator)
    gaps = [
        gap
        for cut_in, was, is_now in zip(partitions, before, now, strict=True)
        for finding, (past, present) in enumerate(zip(was, is_now, strict=True))
        for place in range(len(cut_in.values))
        for gap in _measure(cut_in, place, (past, present), window, policy, current.findings[finding])
    ]
    return _judge(gaps, window, policy)


def find_partitions(reference: Cohort, current: Cohort, policy: DriftPolicy) -> Iterator[Partition]:
    """Cut both cohorts by every attribute, and by several together up to ``policy.intersection_depth``.

    Age is cut at 18, 40 and 65 years, any other number at the reference's median; a missing value is a subgroup
    of its own. An attribute that everyone shares makes no subgroup.
    """
    cuts: dict[str, tuple[Words, Words]] = {}
    for attribute in policy.subgroup_attributes or sorted(set(reference.attributes) & set(current.attributes)):
        if attribute in reference.attributes and attribute in current.attributes:
            sides = cut(attribute, reference.attributes[attribute], current.attributes[attribute])
            sides = pool_rare(*sides, policy.minimum_subgroup)
            if len(set(sides[0]) | set(sides[1])) > 1:
                cuts[attribute] = sides
    for depth in range(1, policy.intersection_depth + 1):
        for attributes in combinations(cuts, depth):
            yield _cross(attributes, [cuts[attribute] for attribute in attributes])


def _cross(attributes: tuple[str, ...], cuts: Sequence[tuple[Words, Words]]) -> Partition:
    """Number the combinations of values that occur on either side."""
    columns = [np.concatenate(sides) for sides in cuts]
    combined = np.zeros(len(columns[0]), dtype=np.intp)
    for column in columns:
        values, codes = np.unique(column, return_inverse=True)
        combined = combined * len(values) + codes
    _, first, places = np.unique(combined, return_index=True, return_inverse=True)
    names = [tuple(str(column[row]) for column in columns) for row in first]
    n = len(cuts[0][0])
    return Partition(
        attribute=AND.join(attributes),
        values=tuple(AND.join(name) for name in names),
        parts=tuple(tuple(zip(attributes, name, strict=True)) if len(attributes) > 1 else () for name in names),
        reference=places[:n],
        current=places[n:],
    )


def _figures(
    reference: Cohort,
    current: Cohort,
    partitions: Sequence[Partition],
    policy: DriftPolicy,
    generator: np.random.Generator,
) -> tuple[list[list[_Side]], list[list[_Side]]]:
    """Weigh every finding under every partition by the same resamples of patients, those of both sides together."""
    keys, index = np.unique(np.concatenate([reference.patient_key, current.patient_key]), return_inverse=True)
    owners = index[: len(reference)], index[len(reference) :]
    made: list[list[list[SubgroupFigures]]] = [
        [
            [
                SubgroupFigures(answers, codes, subgroups=len(one.values), patients=len(keys), names=GAP_MEASURES)
                for answers in answers_of(cohort, mine)
            ]
            for one, codes in ((one, one.reference if cohort is reference else one.current) for one in partitions)
        ]
        for cohort, mine in zip((reference, current), owners, strict=True)
    ]
    sides = [np.isin(np.arange(len(keys)), mine) for mine in owners]
    strata = [np.flatnonzero(mask) for mask in (sides[0] & ~sides[1], sides[1] & ~sides[0], sides[0] & sides[1])]
    everyone = np.ones((1, len(keys)), dtype=np.int32)
    draws = draw_in_chunks(strata, policy.resamples, len(index), generator) if partitions else iter(())
    weighed: dict[int, list[dict[str, Floats]]] = {}
    for counts in (everyone, *draws):
        for figures in (figures for cohort in made for one in cohort for figures in one):
            weighed.setdefault(id(figures), []).append(figures.weigh(counts))
    before, now = ([[_side(figures, weighed[id(figures)]) for figures in one] for one in cohort] for cohort in made)
    return before, now


def _side(figures: SubgroupFigures, weighed: Sequence[Mapping[str, Floats]]) -> _Side:
    return _Side(
        figures=figures, values={name: np.concatenate([some[name] for some in weighed]) for name in GAP_MEASURES}
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


def pool_rare(
    reference: NDArray[np.str_], current: NDArray[np.str_], minimum: int
) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """Pool the values with fewer studies than the minimum as OTHER, if there are more than MOST_VALUES of them."""
    counted = Counter([*reference.tolist(), *current.tolist()])
    if len(counted) <= MOST_VALUES:
        return reference, current
    rare = [value for value, n in counted.items() if n < minimum and value != MISSING]
    before, now = (np.where(np.isin(side, rare), OTHER, side) for side in (reference, current))
    return before, now


def _measure(
    cut_in: Partition, place: int, sides: tuple[_Side, _Side], window: Window, policy: DriftPolicy, finding: str
) -> Iterator[_Gap]:
    """Measure the gaps of one subgroup in one finding, one a measure, and the equalised-odds gap of two of them."""
    was, is_now = sides
    found: dict[str, tuple[Difference | None, Difference | None]] = {}
    for name in GAP_MEASURES:
        small_now, small_before = (
            _explain_small(side, name, place, policy.minimum_subgroup, finding) for side in (is_now, was)
        )
        inside, outside = (is_now.estimate(name, side, place) for side in (0, 1))
        gap = None if small_now else Difference(first=inside, second=outside)
        past = None
        if not small_before:
            past = Difference(first=was.estimate(name, 0, place), second=was.estimate(name, 1, place))
        found[name] = gap, past
        change = Difference(first=gap, second=past) if gap and past else None
        row = _row(cut_in, place, window, policy, finding, name)
        row = replace(
            row,
            n=inside.studies,
            patients=inside.patients,
            inside=inside.value if gap else None,
            outside=outside.value if gap else None,
            reason=small_now or (f"reference: {small_before}" if small_before else ""),
        )
        yield _Gap(row=_fill(row, gap, past, change, policy.level), test=_name_test(cut_in, place, name, finding))
    row = replace(_row(cut_in, place, window, policy, finding, EQUALISED_ODDS), **_counts(is_now, place))
    yield _Gap(row=_equalise(row, found, policy.level), test=())


def _row(cut_in: Partition, place: int, window: Window, policy: DriftPolicy, finding: str, metric: str) -> SubgroupGap:
    nothing: dict[str, Any] = dict.fromkeys(("inside", "outside", "gap", "low", "high", "reference_gap"))
    return SubgroupGap(
        window=window,
        attribute=cut_in.attribute,
        value=cut_in.values[place],
        parts=cut_in.parts[place],
        metric=metric,
        finding=finding,
        n=0,
        patients=0,
        **nothing,
        change=None,
        change_low=None,
        change_high=None,
        level=policy.level,
        verdict=Verdict.NOT_ENOUGH_DATA,
        reason="",
    )


def _fill(
    row: SubgroupGap, gap: Measured | None, past: Measured | None, change: Difference | None, level: float
) -> SubgroupGap:
    low, high = gap.interval(level) if gap else (None, None)
    change_low, change_high = change.interval(level) if change else (None, None)
    return replace(
        row,
        gap=gap.value if gap else None,
        low=low,
        high=high,
        reference_gap=past.value if past else None,
        change=change.value if change else None,
        change_low=change_low,
        change_high=change_high,
        p_value=find_p_value(change) if change else None,
    )


def find_p_value(difference: Difference) -> float | None:
    """Give the level at which a difference's interval just reaches 0, as a two-sided p-value; None without one."""
    if difference.value is None or difference.interval(0.5)[0] is None:
        return None

    def excludes(alpha: float) -> bool:
        low, high = difference.interval(1 - alpha)
        return low is not None and high is not None and (low > 0 or high < 0)

    least, most = 1e-12, 1.0
    if excludes(least):
        return least
    for _ in range(BISECTIONS):
        middle = float(np.sqrt(least * most))
        least, most = (least, middle) if excludes(middle) else (middle, most)
    return most


def _equalise(
    row: SubgroupGap, found: Mapping[str, tuple[Difference | None, Difference | None]], level: float
) -> SubgroupGap:
    """Take the larger of both error rates' gaps, now and before, with the interval of the larger of two."""
    sides = [[found[name][time] for name in ODDS] for time in (0, 1)]
    (gap, low, high), (past, past_low, past_high) = (_larger(gaps, 1 - (1 - level) / 2) for gaps in sides)
    if gap is None or low is None or high is None:
        return replace(row, reason="one of the two error rates cannot be judged")
    row = replace(row, gap=gap, low=low, high=high)
    if past is None or past_low is None or past_high is None:
        return replace(row, reason="reference: one of the two error rates cannot be judged")
    return replace(
        row,
        reference_gap=past,
        change=gap - past,
        change_low=gap - past - float(np.hypot(gap - low, past_high - past)),
        change_high=gap - past + float(np.hypot(high - gap, past - past_low)),
    )


def _larger(gaps: Sequence[Difference | None], level: float) -> tuple[float | None, float | None, float | None]:
    """Give the largest absolute gap with bounds that hold for both at once."""
    found: list[tuple[float, float, float]] = []
    for gap in gaps:
        low, high = gap.interval(level) if gap else (None, None)
        if gap is None or gap.value is None or low is None or high is None:
            return None, None, None
        least = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
        found.append((abs(gap.value), least, max(abs(low), abs(high))))
    values, lows, highs = zip(*found, strict=True)
    return max(values), max(lows), max(highs)


def _counts(side: _Side, place: int) -> dict[str, Any]:
    studies, patients = side.count(Basis.LABELLED, 0, place)
    return {"n": studies, "patients": patients}


def _explain_small(side: _Side, name: str, place: int, minimum: int, finding: str) -> str:
    """Say which side of a gap is too small to be judged, and by how much; empty if neither."""
    for outside, word in ((0, "inside"), (1, "outside")):
        if why := _explain_side(side, name, outside, place, minimum, finding):
            return f"{word}: {why}"
    return ""


def _explain_side(side: _Side, name: str, outside: int, place: int, minimum: int, finding: str) -> str:
    basis = FIGURES[name].basis
    whole = basis if basis is Basis.EVERYONE else Basis.LABELLED
    studies, patients = side.count(whole, outside, place)
    if studies < minimum:
        return f"{studies} {'labelled ' if whole is Basis.LABELLED else ''}studies, {minimum} are needed"
    if basis is whole:
        return f"{patients} patients, {MINIMUM_EACH_CLASS} are needed" if patients < MINIMUM_EACH_CLASS else ""
    for needed, word in ((Basis.POSITIVE, "with"), (Basis.NEGATIVE, "without")):
        patients = side.count(needed, outside, place)[1]
        if basis in (needed, Basis.BOTH) and patients < MINIMUM_EACH_CLASS:
            return f"{patients} patients {word} {finding}, {MINIMUM_EACH_CLASS} are needed"
    return ""


def _name_test(cut_in: Partition, place: int, metric: str, finding: str) -> tuple[str, ...]:
    mirrored = len(cut_in.values) == 2
    return cut_in.attribute, "" if mirrored else cut_in.values[place], metric, finding


def _judge(gaps: Sequence[_Gap], window: Window, policy: DriftPolicy) -> tuple[SubgroupGap, ...]:
    """Say DRIFT where a change passes, all changes of the window corrected together."""
    p_values = {gap.test: gap.row.p_value for gap in gaps if gap.row.p_value is not None}
    correct = THRESHOLDS[policy.multiplicity]
    found = correct(list(p_values.values()), policy.fairness_alpha(window))
    thresholds = dict(zip(p_values, found, strict=True))
    judged = [_judge_one(gap, thresholds) for gap in gaps]
    return tuple(row if row.metric != EQUALISED_ODDS else _judge_odds(row, judged) for row in judged)


def _judge_one(gap: _Gap, thresholds: Mapping[tuple[str, ...], float]) -> SubgroupGap:
    row, tests = gap.row, len(thresholds)
    if row.p_value is None:
        return row
    threshold = thresholds[gap.test]
    if row.p_value > threshold:
        reason = f"no change beyond chance over {tests} comparisons"
        return replace(row, verdict=Verdict.NO_DRIFT, threshold=threshold, reason=reason)
    change = f"{row.metric} of {row.attribute} {row.value} moved against everyone else's"
    reason = f"{change} by {row.change:+.3f} since the reference, beyond chance over {tests} comparisons"
    return replace(row, verdict=Verdict.DRIFT, threshold=threshold, reason=reason)


def _judge_odds(row: SubgroupGap, judged: Sequence[SubgroupGap]) -> SubgroupGap:
    """Judge the equalised-odds gap by the two that it is made of; no test of its own is spent on it."""
    if row.change is None:
        return row
    key = (row.attribute, row.value, row.finding)
    parts = [one for one in judged if (one.attribute, one.value, one.finding) == key and one.metric in ODDS]
    moved = [one.metric for one in parts if one.verdict is Verdict.DRIFT]
    reason = f"judged by {' and '.join(moved)}, which moved" if moved else "judged by sensitivity and specificity"
    return replace(row, verdict=Verdict.DRIFT if moved else Verdict.NO_DRIFT, reason=reason)
