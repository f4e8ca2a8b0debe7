"""Many columns at once against a reference fitted once: cost linear in the window, whatever the reference's size.

A reference is kept as bins (``monitor.column_sketches``) with how much its shares vary over patients. A window is
counted into the bins in one pass, and every distance is held against its large-sample law
(``monitor.column_laws``). For windows of fewer patients than ``LEAST_PATIENTS`` the permutation tests of
``monitor.columns`` are exact and fast enough.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from monitor.column_clusters import Clusters, cluster_by_patient, count_even, covariance_of_shares
from monitor.column_laws import Figures, Noise, cut_at_deciles, judge_ks, judge_table, judge_wasserstein, pool_rare
from monitor.column_sketches import (
    CategorySketch,
    NumberSketch,
    Sketch,
    find_bins,
    find_levels,
    sketch_categories,
    sketch_numbers,
)
from monitor.results import NotEnoughData
from monitor.text_hashing import ROWS_AT_ONCE

Floats = NDArray[np.float64]
SmallCodes = NDArray[np.int16]

LEAST_PATIENTS = 50
ROWS_ALONE = 20_000
"""Rows of a window up to which starting another thread costs more than it saves."""

Item = TypeVar("Item")
Made = TypeVar("Made")

NUMERIC_TESTS = ("ks", "wasserstein", "psi", "jensen_shannon")
CATEGORY_TESTS = ("chi_square", "psi", "jensen_shannon")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ColumnSketch:
    """One column of the reference: its bins, and how its shares vary over patients.

    Attributes:
        sketch: the bins, with the studies of the reference in each.
        patients: who has a value; MISSING is one where the column holds categories.
        missing: studies without a value.
        together: sums over patients of the products of their studies in every two coarse bins or categories, shape
            (K, K), whole numbers, so that a patient's part can be taken off again exactly.
        fourth: fourth powers of how many studies the patients have, added up.
    """

    sketch: Sketch
    patients: int
    missing: int
    together: Floats
    fourth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnOutcome:
    """What one test says of one column: statistic, effect (0 without a difference), p-value, and what it rests on."""

    statistic: float
    effect: float
    p_value: float
    studies: int
    patients: int
    missing: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Counted:
    """Studies counted by bin (E + 1,) or category (L + 1,), and over patients as in `ColumnSketch`."""

    counts: Floats
    patients: int
    missing: int
    together: Floats
    fourth: float


def fit_columns(columns: Mapping[str, NDArray[Any]], patients: NDArray[Any]) -> dict[str, ColumnSketch]:
    """Sketch every column of a reference; ``patients`` (n,) are the keys of its rows.

    Args:
        columns: by name numbers (n,) with NaN as missing, or words (n,), of which MISSING is a category of its own.
        patients: texts or whole numbers, shape (n,).

    Raises:
        ValueError: infinite values.
    """
    clusters = cluster_by_patient(patients)
    return dict(
        zip(columns, _each(lambda column: _fit(column, clusters), columns.values(), len(patients)), strict=True)
    )


def forget_studies(known: ColumnSketch, column: NDArray[Any], patients: NDArray[Any]) -> ColumnSketch:
    """Take studies off a fitted column: exactly what counting the others into the same bins would give.

    Args:
        known: the fitted column.
        column: all the values that it has of some patients, shape (m,).
        patients: whose they are, shape (m,).
    """
    if not len(column):
        return known
    sketch = known.sketch
    taken = _count(sketch, column, cluster_by_patient(patients))
    return ColumnSketch(
        sketch=replace(sketch, counts=sketch.counts - taken.counts[: len(sketch.counts)]),
        patients=known.patients - taken.patients,
        missing=known.missing - taken.missing,
        together=known.together - _of_reference(sketch, taken),
        fourth=known.fourth - taken.fourth,
    )


def compare_columns(
    reference: Mapping[str, ColumnSketch],
    columns: Mapping[str, NDArray[Any]],
    patients: NDArray[Any],
    *,
    tests: Sequence[str],
) -> dict[tuple[str, str], ColumnOutcome | str]:
    """Test every column of a window that the reference has; by (test, column), a text says why it cannot be told.

    ``tests`` are tried on the columns they read: ks and wasserstein on numbers, chi_square on words, psi and
    jensen_shannon on both. Words that the reference has not are one category together.
    """
    clusters = cluster_by_patient(patients)
    names = [name for name in columns if name in reference]

    def test(name: str) -> dict[tuple[str, str], ColumnOutcome | str]:
        known, column = reference[name], columns[name]
        numeric = isinstance(known.sketch, NumberSketch)
        asked = [test for test in tests if test in (NUMERIC_TESTS if numeric else CATEGORY_TESTS)]
        try:
            told = (_test_numbers if numeric else _test_words)(known, column, clusters, asked)
        except NotEnoughData as reason:
            return {(test, name): str(reason) for test in asked}
        return {(test, name): outcome for test, outcome in told.items()}

    return {key: told for found in _each(test, names, len(patients)) for key, told in found.items()}


def to_arrays(reference: Mapping[str, ColumnSketch]) -> dict[str, NDArray[Any]]:
    """Give a fitted reference as named plain arrays, ready for ``numpy.savez``; `of_arrays` reads them back."""
    arrays: dict[str, NDArray[Any]] = {"columns": np.array(list(reference), dtype=np.str_)}
    for place, column in enumerate(reference.values()):
        arrays[f"{place}.kind"] = np.array(type(column.sketch).__name__)
        arrays[f"{place}.counts_of"] = np.array([column.patients, column.missing, column.fourth])
        arrays[f"{place}.together"] = column.together
        arrays |= {f"{place}.{f.name}": getattr(column.sketch, f.name) for f in fields(column.sketch)}
    return arrays


def of_arrays(arrays: Mapping[str, NDArray[Any]]) -> dict[str, ColumnSketch]:
    """Rebuild a reference from what `to_arrays` gave."""
    kinds: dict[str, type[Sketch]] = {"NumberSketch": NumberSketch, "CategorySketch": CategorySketch}
    made: dict[str, ColumnSketch] = {}
    for place, name in enumerate(arrays["columns"]):
        kind = kinds[str(arrays[f"{place}.kind"])]
        sketch = kind(**{f.name: arrays[f"{place}.{f.name}"] for f in fields(kind)})
        patients, missing, fourth = arrays[f"{place}.counts_of"].tolist()
        made[str(name)] = ColumnSketch(
            sketch=sketch,
            patients=int(patients),
            missing=int(missing),
            together=arrays[f"{place}.together"],
            fourth=fourth,
        )
    return made


def _each(work: Callable[[Item], Made], items: Collection[Item], rows: int) -> list[Made]:
    """Do the work for each item, on every core where there are many rows."""
    threads = min(os.cpu_count() or 1, len(items)) if rows > ROWS_ALONE else 1
    if threads < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, items))


def _fit(column: NDArray[Any], clusters: Clusters) -> ColumnSketch:
    if column.dtype.kind in "US":
        column = column.astype(np.str_, copy=False)
        sketch: Sketch = sketch_categories(column)
    else:
        sketch = sketch_numbers(column)
    counted = _count(sketch, column, clusters)
    return ColumnSketch(
        sketch=sketch,
        patients=counted.patients,
        missing=counted.missing,
        together=_of_reference(sketch, counted),
        fourth=counted.fourth,
    )


def _of_reference(sketch: Sketch, counted: _Counted) -> Floats:
    """Leave out the category of what the reference has not."""
    groups = len(counted.together) - isinstance(sketch, CategorySketch)
    return counted.together[:groups, :groups]


def _count(sketch: Sketch, column: NDArray[Any], clusters: Clusters) -> _Counted:
    """Count a column's studies into the bins of a sketch."""
    if isinstance(sketch, CategorySketch):
        codes, bins = find_levels(sketch, column.astype(np.str_, copy=False)), len(sketch.levels) + 1
        counts = _tally(codes, bins)
        patients, fourth = clusters.count_patients(None)
        return _Counted(
            counts=counts,
            patients=patients,
            missing=int(counts[bins - 2]),
            together=clusters.count_together(codes, np.arange(bins), counts),
            fourth=fourth,
        )
    codes, bins, groups = find_bins(sketch, column), len(sketch.counts), int(sketch.coarse[-1]) + 1
    counts = _tally(codes, bins + 1)
    merged = np.append(sketch.coarse, groups)
    merged_counts: Floats = np.bincount(merged, weights=counts).astype(np.float64)
    together = clusters.count_together(codes, merged, merged_counts)
    missing = int(counts[bins])
    patients, fourth = clusters.count_patients(codes < bins if missing else None)
    return _Counted(
        counts=counts[:bins],
        patients=patients,
        missing=missing,
        together=together[:groups, :groups],
        fourth=fourth,
    )


def _tally(codes: SmallCodes, bins: int) -> Floats:
    counts = np.zeros(bins, dtype=np.intp)
    for start in range(0, len(codes), ROWS_AT_ONCE):
        counts += np.bincount(codes[start : start + ROWS_AT_ONCE], minlength=bins)
    return counts.astype(np.float64)


def _test_numbers(
    known: ColumnSketch, column: NDArray[Any], clusters: Clusters, tests: Sequence[str]
) -> dict[str, ColumnOutcome]:
    sketch = known.sketch
    assert isinstance(sketch, NumberSketch)
    now = _count(sketch, column, clusters)
    _need(known, now)
    sizes = int(now.counts.sum()), int(sketch.counts.sum())
    table = np.array([np.bincount(sketch.coarse, weights=counts) for counts in (now.counts, sketch.counts)])
    noise = _noise_of(now, table[0]) + _noise_of(known, table[1])
    if ((now.counts + sketch.counts) > 0).sum() < 2:
        raise NotEnoughData("nothing varies: every value is the same, on both sides")
    apart = np.cumsum(now.counts / sizes[0] - sketch.counts / sizes[1])[:-1]

    def judge(test: str) -> Figures:
        if test == "ks":
            return judge_ks(apart, noise, sizes)
        if test == "wasserstein":
            return judge_wasserstein(sketch, _centres(sketch, column, now.counts), apart, noise)
        return judge_table(test, *cut_at_deciles(table, noise), sizes)

    return {test: _outcome(judge(test), now) for test in tests}


def _test_words(
    known: ColumnSketch, column: NDArray[Any], clusters: Clusters, tests: Sequence[str]
) -> dict[str, ColumnOutcome]:
    sketch = known.sketch
    assert isinstance(sketch, CategorySketch)
    if sketch.distinct[0] and len(sketch.levels) < 2:
        raise NotEnoughData(f"{int(sketch.distinct[0])} different categories are too many to compare")
    now = _count(sketch, column, clusters)
    _need(known, now)
    table = np.stack([now.counts, np.append(sketch.counts, 0.0)])
    noise = _noise_of(now, table[0]) + _noise_of(known, sketch.counts)
    if (table.sum(axis=0) > 0).sum() < 2:
        raise NotEnoughData("nothing varies: every value is the same, on both sides")
    sizes = int(table[0].sum()), int(table[1].sum())
    pooled = pool_rare(table, noise)
    return {test: _outcome(judge_table(test, *pooled, sizes), now) for test in tests}


def _noise_of(side: ColumnSketch | _Counted, counts: Floats) -> Noise:
    return Noise(
        covariance=covariance_of_shares(counts, side.together, side.patients),
        freedom=max(count_even(side.together, side.fourth) - 1, 1.0),
    )


def _need(known: ColumnSketch, now: _Counted) -> None:
    for side, n in (("reference", known.patients), ("window", now.patients)):
        if n < LEAST_PATIENTS:
            raise NotEnoughData(f"{n} patients in the {side}, {LEAST_PATIENTS} needed for a large-sample test")


def _outcome(figures: Figures, now: _Counted) -> ColumnOutcome:
    statistic, effect, p = figures
    return ColumnOutcome(
        statistic=statistic,
        effect=effect,
        p_value=p,
        studies=int(now.counts.sum()),
        patients=now.patients,
        missing=now.missing,
    )


def _centres(sketch: NumberSketch, column: NDArray[Any], counts: Floats) -> Floats:
    """Give the bins' centres; outside the reference's range it is the window that says where its values lie."""
    centres = sketch.centres.copy()
    if counts[0]:
        centres[0] = column[column <= sketch.edges[0]].mean()
    if counts[-1]:
        centres[-1] = column[column > sketch.edges[-1]].mean()
    return centres
