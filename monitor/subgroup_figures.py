"""The figures of all subgroups of a partition, inside each and among everyone else, under every resample of patients.

Rates and calibration are made of sums, so that a resample is a product of how often each patient was drawn with
sums by patient and subgroup; outside is all less inside. The AUROC counts pairs: those outside a subgroup are all
pairs, less the pairs with one side inside, plus those with both. So one sorting serves all resamples, and all
subgroups together cost what the whole cohort costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from monitor.intervals import Floats, Form
from monitor.measures import MEASURES, Answers, Basis, Measure, Sums

Rows = NDArray[np.intp]
Counts = NDArray[np.int32]
Whole = NDArray[np.int32] | NDArray[np.int64]

WEIGHTS_AT_ONCE = 500_000
"""Weights held at once (resamples times studies): 2 MB, which a processor's cache holds."""


def _offset(answers: Answers) -> Sums:
    return Sums(
        terms=np.stack([answers.scores - answers.labels, np.ones_like(answers.scores)], axis=1),
        combine=lambda totals: _divide(totals[:, 0], totals[:, 1]),
    )


FIGURES: Mapping[str, Measure] = {
    **{name: MEASURES[name] for name in ("auroc", "sensitivity", "specificity", "selection_rate", "ece")},
    "calibration_offset": Measure(form=Form.NORMAL, basis=Basis.LABELLED, sums=_offset),
}
"""What is measured of a subgroup. ``calibration_offset`` is the mean score minus the prevalence (in the large)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tally:
    """How many studies and distinct patients carry a figure, inside each subgroup and outside; shape (2, subgroups)."""

    studies: NDArray[np.int64]
    patients: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Ranked:
    """The studies of one class, ranked by score, and again subgroup by subgroup.

    ``ranked`` patients in order of score; ``patients`` in order of subgroup, then score, where subgroup g takes
    ``starts[g]`` to ``starts[g + 1]``. ``below`` and ``upto`` count the other class's ranked studies that score
    less, and not more, than each of them; ``below_inside`` and ``upto_inside`` those in subgroup order. The
    two are one object where no scores tie.
    """

    ranked: Rows
    patients: Rows
    starts: Rows
    below: Rows
    upto: Rows
    below_inside: Rows
    upto_inside: Rows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Table:
    """What the sum-like figures of one basis are made of: terms summed by subgroup and patient."""

    names: tuple[str, ...]
    sums: tuple[Sums, ...]
    table: tuple[sparse.csr_matrix, ...]


class SubgroupFigures:
    """One finding of one cohort, cut into subgroups, made ready to be weighted by patients again and again.

    Args:
        answers: what was said and what was true.
        subgroup: number of each study's subgroup, shape (n,).
        subgroups: how many there are.
        patients: how many columns the weights have.
        names: figures out of FIGURES.
    """

    def __init__(
        self, answers: Answers, subgroup: Rows, *, subgroups: int, patients: int, names: Sequence[str] = tuple(FIGURES)
    ) -> None:
        known = ~np.isnan(answers.labels)
        rows = {Basis.EVERYONE: np.ones_like(known), Basis.LABELLED: known}
        rows |= {Basis.POSITIVE: answers.labels == 1, Basis.NEGATIVE: answers.labels == 0}
        self.tallies = {
            basis: _tally(answers.patients[some], subgroup[some], subgroups) for basis, some in rows.items()
        }
        self._names = tuple(names)
        self._tables = []
        for basis in (Basis.EVERYONE, Basis.LABELLED):
            wanted = [name for name in names if (FIGURES[name].basis is Basis.EVERYONE) is (basis is Basis.EVERYONE)]
            part, places = answers.select(rows[basis]), subgroup[rows[basis]]
            self._tables.append(_tabulate(part, places, wanted, (subgroups, patients)))
        positive, negative = (
            (answers.scores[some], answers.patients[some], subgroup[some])
            for some in (rows[Basis.POSITIVE], rows[Basis.NEGATIVE])
        )
        self._positive = _rank(positive, negative, subgroups)
        self._negative = _rank(negative, positive, subgroups)

    def weigh(self, counts: Counts) -> dict[str, Floats]:
        """Compute every figure under weights of patients.

        Args:
            counts: how often each patient counts, shape (b, patients).

        Returns: by name, inside each subgroup and outside: shape (b, 2, subgroups); NaN where undefined.
        """
        weights = np.ascontiguousarray(counts.T, dtype=np.float64)
        found = {name: figure for table in self._tables for name, figure in _weigh_sums(table, weights).items()}
        if "auroc" in self._names:
            found["auroc"] = self._weigh_areas(counts)
        return {name: found[name] for name in self._names}

    def _weigh_areas(self, counts: Whole) -> Floats:
        """Count the doubled pairs that positives win: those within, then all, less those of either side within."""
        yes, no = self._positive, self._negative
        counts = _widen(counts, len(yes.patients) + len(no.patients))
        above, below = _take(counts, yes.patients), _take(counts, no.patients)
        mine, theirs = _sum_subgroups(above, yes.starts), _sum_subgroups(below, no.starts)
        all_mine, all_theirs = (total.sum(axis=1, keepdims=True) for total in (mine, theirs))
        by_positive = _sum_subgroups(above * _beaten(_take(counts, no.ranked), yes.below, yes.upto), yes.starts)
        beats = _sum_subgroups(below * _beaten(_take(counts, yes.ranked), no.below, no.upto), no.starts)
        within = _sum_subgroups(above * _beaten(below, yes.below_inside, yes.upto_inside), yes.starts)
        within -= 2 * mine * (np.cumsum(theirs, axis=1) - theirs)
        by_negative = 2 * all_mine * theirs - beats
        outside = by_positive.sum(axis=1, keepdims=True) - by_positive - by_negative + within
        pairs = np.stack([mine * theirs, (all_mine - mine) * (all_theirs - theirs)], axis=1)
        return _divide(np.stack([within, outside], axis=1), 2 * pairs)


def draw_in_chunks(
    strata: Iterable[Rows], resamples: int, studies: int, generator: np.random.Generator
) -> Iterator[Counts]:
    """Resample patients with replacement within each stratum, a few resamples at a time.

    Args:
        strata: the patients of each stratum, together 0 … patients - 1.
        resamples: how many resamples in all.
        studies: how many weights one resample will become; keeps memory flat.
        generator: source of randomness; the draws do not depend on how they are cut into chunks.

    Yields: how often each patient is drawn, shape (some resamples, patients).
    """
    members = [stratum for stratum in strata if len(stratum)]
    patients, step = sum(map(len, members)), max(1, WEIGHTS_AT_ONCE // max(1, studies))
    for start in range(0, resamples, step):
        counts = np.zeros((min(step, resamples - start), patients), dtype=np.int32)
        for row in counts:
            for stratum in members:
                drawn = generator.integers(len(stratum), size=len(stratum))
                row[stratum] = np.bincount(drawn, minlength=len(stratum))
        yield counts


def _tally(patients: Rows, subgroup: Rows, subgroups: int) -> Tally:
    """Count studies and patients; a patient seen inside and outside of a subgroup counts on both sides."""
    studies = np.bincount(subgroup, minlength=subgroups)
    pairs = np.unique(patients * np.intp(subgroups) + subgroup)
    owners, places = pairs // subgroups, pairs % subgroups
    _, owner, seen = np.unique(owners, return_inverse=True, return_counts=True)
    inside = np.bincount(places, minlength=subgroups)
    only_there = np.bincount(places[seen[owner] == 1], minlength=subgroups)
    return Tally(
        studies=np.stack([studies, len(subgroup) - studies]), patients=np.stack([inside, len(seen) - only_there])
    )


def _tabulate(answers: Answers, subgroup: Rows, names: Sequence[str], shape: tuple[int, int]) -> _Table:
    """Sum the terms of the sum-like figures by subgroup and patient, one sparse (subgroups, patients) a term."""
    made = {name: make(answers) for name in names if (make := FIGURES[name].sums)}
    columns = [column for one in made.values() for column in one.terms.T]
    place = (subgroup, answers.patients)
    table = tuple(sparse.csr_matrix((column, place), shape=shape, dtype=np.float64) for column in columns)
    return _Table(names=tuple(made), sums=tuple(made.values()), table=table)


def _weigh_sums(table: _Table, weights: Floats) -> dict[str, Floats]:
    """Combine weighted sums, weights of shape (patients, b), to figures of shape (b, 2, subgroups)."""
    if not table.names:
        return {}
    inside = np.stack([np.asarray(terms @ weights).T for terms in table.table], axis=-1)
    totals = np.stack([inside, inside.sum(axis=1, keepdims=True) - inside], axis=1)
    ends = np.cumsum([one.terms.shape[1] for one in table.sums])
    parts = zip(table.names, table.sums, np.split(totals, ends[:-1], axis=-1), strict=True)
    return {name: one.combine(own.reshape(-1, own.shape[-1])).reshape(own.shape[:-1]) for name, one, own in parts}


def _rank(mine: tuple[Floats, Rows, Rows], other: tuple[Floats, Rows, Rows], subgroups: int) -> _Ranked:
    """Rank one class's scores, patients and subgroups and find its place among the other's."""
    order, their_order = (np.lexsort((side[0], side[2])) for side in (mine, other))
    starts, their_starts = (_starts(side[2], subgroups) for side in (mine, other))
    ordered, rivals = mine[0][order], other[0][their_order]
    inside = np.empty((2, len(ordered)), dtype=np.intp)
    for group in range(subgroups):
        rows, theirs = (slice(some[group], some[group + 1]) for some in (starts, their_starts))
        inside[:, rows] = their_starts[group] + np.stack(_places(rivals[theirs], ordered[rows]))
    below, upto = _places(np.sort(rivals), ordered)
    tied = not np.array_equal(below, upto)
    return _Ranked(
        ranked=mine[1][np.argsort(mine[0], kind="stable")],
        patients=mine[1][order],
        starts=starts,
        below=below,
        upto=upto if tied else below,
        below_inside=inside[0],
        upto_inside=inside[1] if tied else inside[0],
    )


def _places(rivals: Floats, scores: Floats) -> tuple[Rows, Rows]:
    return np.searchsorted(rivals, scores, side="left"), np.searchsorted(rivals, scores, side="right")


def _starts(subgroup: Rows, subgroups: int) -> Rows:
    return np.concatenate([[0], np.cumsum(np.bincount(subgroup, minlength=subgroups))]).astype(np.intp)


def _widen(counts: Whole, studies: int) -> Whole:
    """Keep 32 bits, which are three times as fast, wherever twice the pairs of one study fit in."""
    most = int(counts.max(initial=0))
    return counts if 2 * studies * most * most < np.iinfo(np.int32).max else counts.astype(np.int64)


def _take(values: Whole, columns: Rows) -> Whole:
    return np.asarray(np.take(values, columns, axis=1, mode="clip"))  # clip skips a check; all are in range


def _beaten(weights: Whole, below: Rows, upto: Rows) -> Whole:
    """Add up, doubled, the weight of rivals that score less, those that tie once; shape (b, len(below))."""
    summed = np.zeros((len(weights), weights.shape[1] + 1), dtype=weights.dtype)
    np.cumsum(weights, axis=1, out=summed[:, 1:])
    first = _take(summed, below)
    return first + (first if below is upto else _take(summed, upto))


def _sum_subgroups(values: Whole, starts: Rows) -> NDArray[np.int64]:
    """Sum (b, n) over each subgroup's stretch; shape (b, subgroups)."""
    filled = np.flatnonzero(np.diff(starts))
    sums = np.zeros((len(values), len(starts) - 1), dtype=np.int64)
    if len(filled):
        sums[:, filled] = np.add.reduceat(values, starts[filled], axis=1, dtype=np.int64)
    return sums


def _divide(over: NDArray[np.float64] | NDArray[np.int64], under: NDArray[np.float64] | NDArray[np.int64]) -> Floats:
    return np.asarray(np.divide(over, under, out=np.full(np.shape(over), np.nan), where=under > 0))
