"""Small cells never leave the process: a count of two patients may name them.

Counts of fewer patients than the policy's ``smallest_cell`` are taken away wherever figures are shown or written
(statistical offices use 5 to 10; the default is 5). One blank alone could be computed from the total, so the next
smallest counts of the same table are taken away with it until what is blank holds enough patients together
(complementary suppression; Hundepool et al. 2012). A count of zero names nobody and stays.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from monitor.results import Contribution, SubgroupGap, WindowReport

Row = TypeVar("Row", SubgroupGap, Contribution)
COUNT = re.compile(r"\b(\d+) ((?:labelled )?(?:studies|patients))\b(?! or)")


def suppress_report(report: WindowReport, smallest: int) -> WindowReport:
    """Take small cells out of everything in a report that counts patients of a subgroup."""
    return replace(
        report,
        gaps=suppress_gaps(report.gaps, smallest),
        contributions=suppress_contributions(report.contributions, smallest),
    )


def suppress_gaps(gaps: Iterable[SubgroupGap], smallest: int) -> tuple[SubgroupGap, ...]:
    """Blank the small subgroups, and as many beside them as keep their counts from being computed.

    Every attribute, finding and metric is a table, and so is every line of a crossed one. A subgroup that is blank in
    one metric of a finding loses its counts in all: the difference of two counts is a count too.
    """
    rows = tuple(gaps)
    small, blank = _find_cells(rows, smallest, _tables_of_gap, lambda gap: gap.patients)
    named = {(row.attribute, row.value, row.finding) for place, row in enumerate(rows) if place in blank}
    figures = ("n", "patients", "inside", "outside", "gap", "low", "high", "reference_gap")
    nothing: dict[str, Any] = dict.fromkeys((*figures, "change", "change_low", "change_high", "p_value"))
    shown: list[SubgroupGap] = []
    for place, row in enumerate(rows):
        if place in small:
            shown.append(replace(row, **nothing, suppressed=True, reason=tell_suppressed(smallest)))
            continue
        told = replace(row, reason=_mask(row.reason, smallest))
        counted = (row.attribute, row.value, row.finding) in named and row.patients
        shown.append(replace(told, n=None, patients=None, suppressed=True) if counted else told)
    return tuple(shown)


def suppress_contributions(contributions: Iterable[Contribution], smallest: int) -> tuple[Contribution, ...]:
    """Blank the small values of each attribute on either side, and what is beside them likewise."""

    def fewest(row: Contribution) -> int | None:
        counts = [n for n in (row.patients_reference, row.patients_current) if n]
        return min(counts, default=row.n_current)

    rows = tuple(contributions)
    small, blank = _find_cells(rows, smallest, lambda row: [row.attribute], fewest)
    counts = ("n_current", "share_reference", "share_current", "patients_reference", "patients_current")
    nothing: dict[str, Any] = dict.fromkeys(counts)
    more: dict[str, Any] = dict.fromkeys(("shift", "carried"))
    return tuple(
        replace(row, **(nothing | more if place in small else nothing), suppressed=True) if place in blank else row
        for place, row in enumerate(rows)
    )


def tell_suppressed(smallest: int) -> str:
    """Say why a figure is not shown."""
    return f"suppressed: fewer than {smallest} patients"


def _tables_of_gap(gap: SubgroupGap) -> list[Hashable]:
    """Name the tables whose lines add up to a total that is known: the attribute's, and each line of a crossed one."""
    whole: Hashable = (gap.attribute, gap.finding, gap.metric)
    rests = (gap.parts[:place] + gap.parts[place + 1 :] for place in range(len(gap.parts)))
    return [whole, *((whole, place, rest) for place, rest in enumerate(rests))]


def _find_cells(
    rows: Sequence[Row],
    smallest: int,
    tables_of: Callable[[Row], list[Hashable]],
    count: Callable[[Row], int | None],
) -> tuple[set[int], set[int]]:
    """Find the small cells, and all that are blanked: in each table none, or two or more that hold enough together."""
    tables: dict[Hashable, list[tuple[int, int]]] = defaultdict(list)
    small: set[int] = set()
    for place, row in enumerate(rows):
        n = count(row)
        if row.suppressed or not n:
            continue
        if n < smallest:
            small.add(place)
        for table in tables_of(row):
            tables[table].append((n, place))
    blank, grown = set(small), True
    while grown:
        grown = False
        for cells in tables.values():
            hidden = [n for n, place in cells if place in blank]
            beside = sorted((n, place) for n, place in cells if place not in blank)
            if hidden and beside and (len(hidden) < 2 or sum(hidden) < smallest):
                blank.add(beside[0][1])
                grown = True
    return small, blank


def _mask(reason: str, smallest: int) -> str:
    """Take small counts out of a reason in words."""

    def hide(found: re.Match[str]) -> str:
        return f"fewer than {smallest} {found[2]}" if 0 < int(found[1]) < smallest else found[0]

    return COUNT.sub(hide, reason)
