"""Champion against challenger on one stage, for everyone and for each subgroup: figures, differences, flips. Pure.

Small cells are taken out here, before anything is stored: subgroups of few patients on any stage, those from which
they could be computed, and figures that rest on few patients with or without the finding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from continual.flips import measure_flips, right_answers, share_of
from continual.kept import Change, Figure, Flips
from monitor.cohorts import Cohort
from monitor.intervals import Estimate, Floats
from monitor.measures import MEASURES, Answers, Basis, answers_of, estimate
from monitor.paired import average_estimates, bound_change
from monitor.policies import DriftPolicy
from monitor.subgroups import cut, pool_rare
from monitor.suppression import Cell, Name, find_blank, tell_suppressed

MEASURED = ("auroc", "accuracy", "brier", "ece_debiased", "calibration_slope", "calibration_intercept")
OF_SUBGROUPS = ("auroc", "accuracy", "brier", "ece_debiased")
OF_ONE_FINDING = ("calibration_slope", "calibration_intercept")
"""Not averaged over findings: scores too extreme for one and too timid for another would look right."""

EVERYONE: Name = ("", "")
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Side:
    """One model on one stage: its answers, which of them are right, and its figures by metric and finding.

    The finding is empty for the figure over all of them: the average, and for the accuracy the share of all answers.
    """

    answers: tuple[Answers, ...]
    right: Floats
    figures: Mapping[tuple[str, str], Estimate]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sides:
    """Both models on one stage; of the cohort only attributes, labels and patients are used."""

    name: str
    cohort: Cohort
    before: Side
    after: Side


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Some studies of one stage, how many of them are labelled and of how many patients, and what may be told."""

    stage: str
    place: int
    name: Name
    rows: Mask
    studies: int
    patients: int


def measure_side(cohort: Cohort, patients: NDArray[np.intp], counts: Floats, smallest: int) -> Side:
    """Measure one model on one stage, whose scores are those of the cohort.

    ``patients`` (n,) are columns of ``counts`` (b, patients). A figure that needs both classes is not made of fewer
    than ``smallest`` patients of either.
    """
    answers = answers_of(cohort, patients)
    right = right_answers(answers, cohort.task)
    figures = _measure(answers, right, counts, metrics=MEASURED, smallest=smallest)
    return Side(answers=answers, right=right, figures=figures)


def compare_groups(
    stages: Sequence[Sides], *, counts: Floats, policy: DriftPolicy
) -> tuple[tuple[Change, ...], tuple[Flips, ...]]:
    """Compare both models on every stage, for everyone and for each subgroup, with what may not be told taken out."""
    groups = [group for place in range(len(stages)) for group in _find_groups(place, stages, policy)]
    cells = [Cell(name=g.name, patients=g.patients, table=(g.place, g.name[0])) for g in groups if g.name != EVERYONE]
    blank = find_blank(cells, policy.smallest_cell)
    changes: list[Change] = []
    flips: list[Flips] = []
    for group in sorted(groups, key=lambda group: group.name != EVERYONE):
        if group.name in blank:
            changes += _hide(group, policy.smallest_cell)
            flips.append(_hide_flips(group, policy.smallest_cell))
        else:
            changes += _compare(group, stages[group.place], counts, policy)
            flips.append(_flip(group, stages[group.place], counts, policy.level))
    return tuple(changes), tuple(flips)


def describe_difference(before: Estimate | None, after: Estimate | None, level: float) -> Figure:
    """Subtract what was before from what is after, over the same patients."""
    if before is None or after is None or before.value is None or after.value is None:
        reasons = [one.reason for one in (before, after) if one is not None and one.reason]
        return Figure(value=None, low=None, high=None, reason=reasons[0] if reasons else "not measured")
    low, high = bound_change(before, after, level)
    reason = "too few patients for an interval" if low is None or high is None else ""
    return Figure(value=after.value - before.value, low=low, high=high, reason=reason)


def _measure(
    answers: Sequence[Answers], right: Floats, counts: Floats, *, metrics: Sequence[str], smallest: int
) -> dict[tuple[str, str], Estimate]:
    found: dict[tuple[str, str], Estimate] = {}
    for one in answers:
        short = _explain_few(one, smallest)
        for metric, figure in estimate(one, metrics, counts).items():
            few = short if MEASURES[metric].basis is Basis.BOTH and figure.value is not None else ""
            found[metric, one.finding] = replace(figure, value=None, reason=few) if few else figure
    for metric in metrics:
        if metric not in OF_ONE_FINDING or len(answers) == 1:
            found[metric, ""] = _average([found[metric, one.finding] for one in answers])
    if "accuracy" in metrics:
        found["accuracy", ""] = share_of(right, answers[0].patients, counts)
    return found


def _explain_few(answers: Answers, smallest: int) -> str:
    fewest = min(answers.count_patients(side) for side in (Basis.POSITIVE, Basis.NEGATIVE))
    return f"fewer than {smallest} patients with or without {answers.finding}" if fewest < smallest else ""


def _average(estimates: Sequence[Estimate]) -> Estimate:
    """Average over the findings for which the figure exists; the first, with its reason, if it does for none."""
    known = [one for one in estimates if one.value is not None]
    return average_estimates(known) if len(known) > 1 else known[0] if known else estimates[0]


def _find_groups(place: int, stages: Sequence[Sides], policy: DriftPolicy) -> Iterator[_Group]:
    """Give everyone of a stage, and each subgroup by each attribute; numbers are cut alike on all stages."""
    stage, cohort = stages[place], stages[place].cohort
    known = ~np.isnan(stage.before.right).all(axis=1)
    columns: dict[Name, Mask] = {EVERYONE: np.ones(len(cohort), dtype=np.bool_)}
    for attribute in policy.subgroup_attributes or sorted(cohort.attributes):
        if all(attribute in other.cohort.attributes for other in stages):
            everywhere = np.concatenate([other.cohort.attributes[attribute] for other in stages])
            values, here = pool_rare(*cut(attribute, everywhere, cohort.attributes[attribute]), policy.minimum_subgroup)
            if len(np.unique(values)) > 1 and len(np.unique(here)) > 1:  # else everyone is told once already
                columns |= {(attribute, str(value)): here == value for value in np.unique(here)}
    for name, rows in columns.items():
        some = rows & known
        if some.any():
            patients = len(np.unique(cohort.patient_key[some]))
            studies = int(some.sum())
            yield _Group(stage=stage.name, place=place, name=name, rows=rows, studies=studies, patients=patients)


def _compare(group: _Group, stage: Sides, counts: Floats, policy: DriftPolicy) -> Iterator[Change]:
    if group.name == EVERYONE:
        before, after = stage.before.figures, stage.after.figures
    else:
        before, after = (
            _measure(
                [one.select(group.rows) for one in side.answers],
                side.right[group.rows],
                counts,
                metrics=OF_SUBGROUPS,
                smallest=policy.smallest_cell,
            )
            for side in (stage.before, stage.after)
        )
    several = len(stage.before.answers) > 1
    for metric, finding in before:
        # one finding is its own average, and a subgroup is told over all findings: its rows are many already
        if finding and (group.name != EVERYONE or not several):
            continue
        was, is_now = before[metric, finding], after[metric, finding]
        change = describe_difference(was, is_now, policy.level)
        yield replace(
            _empty(group, metric, finding),
            champion=was.value,
            challenger=is_now.value,
            difference=change.value,
            low=change.low,
            high=change.high,
            reason=change.reason,
        )


def _flip(group: _Group, stage: Sides, counts: Floats, level: float) -> Flips:
    negative, positive = measure_flips(
        stage.before.right[group.rows],
        stage.after.right[group.rows],
        stage.before.answers[0].patients[group.rows],
        counts,
    )
    rates = []
    for share in (negative, positive):
        low, high = share.interval(level)
        rates.append(Figure(value=share.value, low=low, high=high, reason=share.reason))
    return replace(_empty_flips(group), negative=rates[0], positive=rates[1])


def _hide(group: _Group, smallest: int) -> Iterator[Change]:
    """Give rows without figures or counts: a rate of so many decimals would tell how many it is a share of."""
    for metric in OF_SUBGROUPS:
        row = replace(_empty(group, metric, ""), reason=_explain_hidden(group, smallest))
        yield replace(row, studies=None, patients=None, suppressed=True)


def _hide_flips(group: _Group, smallest: int) -> Flips:
    nothing = Figure(value=None, low=None, high=None, reason=_explain_hidden(group, smallest))
    row = replace(_empty_flips(group), negative=nothing, positive=nothing)
    return replace(row, studies=None, patients=None, suppressed=True)


def _explain_hidden(group: _Group, smallest: int) -> str:
    if group.patients < smallest:
        return tell_suppressed(smallest)
    return "suppressed: a group of few patients could be computed from it"


def _empty(group: _Group, metric: str, finding: str) -> Change:
    attribute, value = group.name
    return Change(
        stage=group.stage,
        metric=metric,
        finding=finding,
        attribute=attribute,
        value=value,
        champion=None,
        challenger=None,
        difference=None,
        low=None,
        high=None,
        studies=group.studies,
        patients=group.patients,
    )


def _empty_flips(group: _Group) -> Flips:
    attribute, value = group.name
    nothing = Figure(value=None, low=None, high=None)
    return Flips(
        stage=group.stage,
        attribute=attribute,
        value=value,
        negative=nothing,
        positive=nothing,
        studies=group.studies,
        patients=group.patients,
    )
