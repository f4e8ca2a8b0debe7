"""Small cells never leave the process: a count of two patients may name them.

Counts of fewer patients than the policy's ``smallest_cell`` are taken away wherever figures are shown or written
(statistical offices use 5 to 10; the default is 5). One blank alone could be computed from the total, so the next
smallest count of the same table is taken away with it (complementary suppression; Hundepool et al. 2012). A count of
zero names nobody and stays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from monitor.results import Contribution, SubgroupGap, WindowReport

Row = TypeVar("Row", SubgroupGap, Contribution)


def suppress_report(report: WindowReport, smallest: int) -> WindowReport:
    """Take small cells out of everything in a report that counts patients of a subgroup."""
    return replace(
        report,
        gaps=suppress_gaps(report.gaps, smallest),
        contributions=suppress_contributions(report.contributions, smallest),
    )


def suppress_gaps(gaps: Iterable[SubgroupGap], smallest: int) -> tuple[SubgroupGap, ...]:
    """Blank the small subgroups of each attribute, finding and metric, with a second where one alone could be found."""

    def blank(gap: SubgroupGap, small: bool) -> SubgroupGap:
        if not small:  # its figures name nobody; only its count would give the other's away
            return replace(gap, n=None, patients=None, suppressed=True)
        figures = ("n", "patients", "inside", "outside", "gap", "low", "high", "reference_gap")
        nothing: dict[str, Any] = dict.fromkeys((*figures, "change", "change_low", "change_high", "p_value"))
        return replace(gap, **nothing, suppressed=True, reason=tell_suppressed(smallest))

    return _suppress(tuple(gaps), smallest, lambda g: (g.attribute, g.finding, g.metric), lambda g: g.patients, blank)


def suppress_contributions(contributions: Iterable[Contribution], smallest: int) -> tuple[Contribution, ...]:
    """Blank the small values of each attribute on either side, with a second where one alone could be found."""

    def fewest(row: Contribution) -> int | None:
        counts = [n for n in (row.patients_reference, row.patients_current) if n]
        return min(counts, default=row.n_current)

    def blank(row: Contribution, small: bool) -> Contribution:
        return replace(
            row,
            n_current=None,
            share_reference=None,
            share_current=None,
            shift=None if small else row.shift,
            carried=None if small else row.carried,
            patients_reference=None,
            patients_current=None,
            suppressed=True,
        )

    return _suppress(tuple(contributions), smallest, lambda row: row.attribute, fewest, blank)


def tell_suppressed(smallest: int) -> str:
    """Say why a figure is not shown."""
    return f"suppressed: fewer than {smallest} patients"


def _suppress(
    rows: Sequence[Row],
    smallest: int,
    table: Callable[[Row], Hashable],
    count: Callable[[Row], int | None],
    blank: Callable[[Row, bool], Row],
) -> tuple[Row, ...]:
    tables: dict[Hashable, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        if not row.suppressed:
            tables[table(row)].append(place)
    blanked = list(rows)
    for places in tables.values():
        counted = sorted((n, place) for place in places if (n := count(rows[place])))
        small = [place for n, place in counted if n < smallest]
        for place in small:
            blanked[place] = blank(rows[place], True)
        if len(small) == 1 and len(counted) > 1:
            beside = counted[1][1]
            blanked[beside] = blank(rows[beside], False)
    return tuple(blanked)
