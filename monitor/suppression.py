"""Small cells never leave the process: a count of two patients may name them.

Counts of fewer patients than the policy's ``smallest_cell`` are taken away wherever figures are shown or written
(statistical offices use 5 to 10; the default is 5). One blank alone could be computed from the total, so the next
smallest counts of the same table are taken away with it until what is blank holds enough patients together
(complementary suppression; Hundepool et al. 2012). What is blank in one table is blank in all, or the tables
together would give it away. A count of zero names nobody and stays.

A cell is a value of an attribute, a combination of values, or a class of a finding. How many studies and patients
a window has in all is no cell, and performance over all of them is none either.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from monitor.cohorts import MISSING
from monitor.measures import MEASURES, Basis
from monitor.results import Contribution, Evaluation, Harm, SubgroupGap, WindowReport
from monitor.sentences import tell_report

Name = tuple[str, str]
"""An attribute and its value; of a combination both joined, as in a gap."""

COUNT = re.compile(r"\b(\d+) ((?:labelled )?(?:positive |negative )?(?:studies|patients))\b(?! or)")
FIGURES_OF_HARM = ("n", "loss", "low", "high", *(f.name for f in fields(Harm) if f.name.startswith("current")))
CLASSES = {Basis.POSITIVE: "sensitivity", Basis.NEGATIVE: "specificity"}
"""The figures that count the studies of either class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The patients of a value in one table, whose cells add up to a total that is known.

    ``parts`` are the values that a combination is made of.
    """

    name: Name
    patients: int
    table: Hashable
    parts: tuple[Name, ...] = ()


def suppress_report(report: WindowReport, smallest: int) -> WindowReport:
    """Take small cells out of everything in a report: subgroups, values, classes, and reasons in words."""
    gaps, contributions = suppress_subgroups(report.gaps, report.contributions, smallest)
    blank = blank_values(replace(report, contributions=contributions))
    few = _find_few(report.harms, report.evaluations, smallest)
    uncounted: dict[str, Any] = dict.fromkeys(("n_reference", "n_current", "patients_reference", "patients_current"))
    shown = replace(
        report,
        gaps=gaps,
        contributions=contributions,
        results=tuple(
            replace(
                result,
                reason=_mask(result.reason, smallest),
                # who is counted here and who in all differ by those of whom the attribute is not known
                **(uncounted if (result.feature, MISSING) in blank else {}),
            )
            for result in report.results
        ),
        harms=tuple(_hide_harm(harm, few, smallest) for harm in report.harms),
        evaluations=tuple(_hide_evaluation(one, few, smallest) for one in report.evaluations),
        prevalences=tuple(replace(one, reason=_mask(one.reason, smallest)) for one in report.prevalences),
    )
    return replace(shown, reason=tell_report(shown))


def blank_values(report: WindowReport) -> set[Name]:
    """Name the values whose counts were taken away in a report that was suppressed."""
    return {(row.attribute, row.value) for row in report.contributions if row.suppressed}


def suppress_subgroups(
    gaps: Iterable[SubgroupGap], contributions: Iterable[Contribution], smallest: int
) -> tuple[tuple[SubgroupGap, ...], tuple[Contribution, ...]]:
    """Blank the small subgroups, and as many beside them as keep their counts from being computed.

    A small subgroup, or one whose opposite is small, loses every figure; what is blank beside it loses its counts,
    in every metric, for the difference of two counts is a count too. Blank values come last, in the order of
    their names: their rank would say how large they are.
    """
    gap_rows, rows = tuple(gaps), tuple(contributions)
    blank = find_blank([*_cells_of_gaps(gap_rows), *_cells_of_values(rows)], smallest)
    small = _find_small(gap_rows, rows, smallest)
    told = (_hide_gap(row, blank, place in small, smallest) for place, row in enumerate(gap_rows))
    hidden = [_hide_value(row, blank, smallest) for row in rows]
    last = sorted((row for row in hidden if row.suppressed), key=lambda row: (row.attribute, row.value))
    return tuple(told), (*(row for row in hidden if not row.suppressed), *last)


def find_blank(cells: Sequence[Cell], smallest: int, blank: Collection[Name] = ()) -> set[Name]:
    """Find the values whose counts are blank: in each table none, or two or more that hold enough patients together.

    ``blank`` are blank already. A combination with a part that is blank is blank too, or its lines would count it.
    """
    tables: dict[Hashable, list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.patients:
            tables[cell.table].append(cell)
    found = {*blank, *(cell.name for cell in cells if 0 < cell.patients < smallest)}
    grown = True
    while grown:
        before = len(found)
        found |= {cell.name for cell in cells if not found.isdisjoint(cell.parts)}
        for table in tables.values():
            hidden = [cell.patients for cell in table if cell.name in found]
            beside = [(cell.patients, cell.name) for cell in table if cell.name not in found]
            if hidden and beside and (len(hidden) < 2 or sum(hidden) < smallest):
                found.add(min(beside)[1])
        grown = len(found) > before
    return found


def tell_suppressed(smallest: int) -> str:
    """Say why a figure is not shown."""
    return f"suppressed: fewer than {smallest} patients"


def _cells_of_gaps(rows: Iterable[SubgroupGap]) -> Iterator[Cell]:
    """Give each subgroup as a cell of its attribute's table, and of each line of a crossed one."""
    for row in rows:
        if row.patients is not None:
            whole: Hashable = (row.attribute, row.finding, row.metric)
            rests = (row.parts[:place] + row.parts[place + 1 :] for place in range(len(row.parts)))
            for table in (whole, *((whole, place, rest) for place, rest in enumerate(rests))):
                yield Cell(name=(row.attribute, row.value), patients=_count(row), table=table, parts=row.parts)


def _cells_of_values(rows: Iterable[Contribution]) -> Iterator[Cell]:
    for row in rows:
        counts = {"reference": row.patients_reference, "current": row.patients_current}
        if set(counts.values()) == {None}:
            counts = {"current": row.n_current}  # written before patients were counted: a study has one patient
        for side, patients in counts.items():
            if patients is not None:
                yield Cell(name=(row.attribute, row.value), patients=patients, table=(row.attribute, side))


def _find_small(rows: Sequence[SubgroupGap], values: Sequence[Contribution], smallest: int) -> set[int]:
    """Find the rows of which the subgroup, on either side, or everyone outside it holds few: the figures are theirs."""
    few = {cell.name for cell in _cells_of_values(values) if 0 < cell.patients < smallest}
    totals: dict[Hashable, int] = defaultdict(int)
    for row in rows:
        totals[row.attribute, row.finding, row.metric] += _count_in_sum(row)
    small: set[int] = set()
    for place, row in enumerate(rows):
        inside = _count_in_sum(row)
        outside = totals[row.attribute, row.finding, row.metric] - inside
        if 0 < _count(row) < smallest or (inside and 0 < outside < smallest) or (row.attribute, row.value) in few:
            small.add(place)
    return small


def _count_in_sum(row: SubgroupGap) -> int:
    """Count a row so that rows add up: its patients, but the studies where the patients are those of one class."""
    both = row.metric in MEASURES and MEASURES[row.metric].basis is Basis.BOTH
    return (row.n if both else row.patients) or 0


def _count(row: SubgroupGap) -> int:
    """Count the patients of a row; of a figure that needs both classes, and has one, the studies."""
    return row.patients or row.n or 0


def _hide_gap(row: SubgroupGap, blank: Collection[Name], small: bool, smallest: int) -> SubgroupGap:
    counted = (row.attribute, row.value) in blank
    told = replace(row, reason=_mask(row.reason, smallest, every=counted))
    if small:
        figures = ("inside", "outside", "gap", "low", "high", "reference_gap")
        nothing: dict[str, Any] = dict.fromkeys((*figures, "change", "change_low", "change_high", "p_value"))
        told = replace(row, **nothing, reason=tell_suppressed(smallest))
    return replace(told, n=None, patients=None, suppressed=True) if counted or small else told


def _hide_value(row: Contribution, blank: Collection[Name], smallest: int) -> Contribution:
    if row.suppressed or (row.attribute, row.value) not in blank:
        return row
    counts = ("n_current", "share_reference", "share_current", "patients_reference", "patients_current")
    # what the values carry adds up to 1, so that one part follows from the others
    nothing: dict[str, Any] = dict.fromkeys((*counts, "carried", "p_share"))
    if any(0 < cell.patients < smallest for cell in _cells_of_values([row])):
        nothing |= dict.fromkeys(("shift", "p_within"))
    return replace(row, **nothing, suppressed=True)


def _find_few(harms: Iterable[Harm], evaluations: Iterable[Evaluation], smallest: int) -> set[tuple[str, Basis]]:
    """Find the findings of which few studies of a class are labelled, and the class."""
    counts = [(harm.finding, harm.metric, harm.n) for harm in harms]
    counts += [(metric.finding, metric.name, metric.n) for one in evaluations for metric in one.metrics]
    return {
        (finding, basis)
        for basis, name in CLASSES.items()
        for finding, metric, n in counts
        if metric == name and n is not None and 0 < n < smallest
    }


def _hide_harm(harm: Harm, few: Collection[tuple[str, Basis]], smallest: int) -> Harm:
    told = replace(harm, reason=_mask(harm.reason, smallest))
    if _rests_on(harm.metric, harm.finding, few):
        nothing: dict[str, Any] = dict.fromkeys(FIGURES_OF_HARM)
        return replace(told, **nothing, sure=False, reason=tell_suppressed(smallest))
    return replace(told, n=None) if _counts_class(harm.metric, harm.finding, few) else told


def _hide_evaluation(one: Evaluation, few: Collection[tuple[str, Basis]], smallest: int) -> Evaluation:
    nothing: dict[str, Any] = dict.fromkeys(("n", "value", "low", "high"))
    metrics = []
    for metric in one.metrics:
        told = replace(metric, reason=_mask(metric.reason, smallest))
        if _rests_on(metric.name, metric.finding, few):
            told = replace(told, **nothing, reason=tell_suppressed(smallest))
        elif _counts_class(metric.name, metric.finding, few):
            told = replace(told, n=None)
        metrics.append(told)
    return replace(one, metrics=tuple(metrics))


def _rests_on(metric: str, finding: str, few: Collection[tuple[str, Basis]]) -> bool:
    """Tell whether a figure rests on a class of which there are few: on it alone, or on both."""
    basis = MEASURES[metric].basis if metric in MEASURES else Basis.LABELLED
    classes = CLASSES if basis is Basis.BOTH else (basis,)
    return any((finding, one) in few for one in classes)


def _counts_class(metric: str, finding: str, few: Collection[tuple[str, Basis]]) -> bool:
    """Tell whether a figure counts a class whose opposite has few: their number is the rest."""
    return metric in CLASSES.values() and any((finding, basis) in few for basis in CLASSES)


def _mask(reason: str, smallest: int, *, every: bool = False) -> str:
    """Take small counts out of a reason in words, or every count."""

    def hide(found: re.Match[str]) -> str:
        if every:
            return f"too few {found[2]}"
        return f"fewer than {smallest} {found[2]}" if 0 < int(found[1]) < smallest else found[0]

    return COUNT.sub(hide, reason)
