"""Many columns at once against a reference fitted once: cost linear in the window, whatever the reference's size.

A reference is kept as bins (``monitor.column_sketches``) with how much its shares vary over patients. A window is
counted into the bins in one pass, and every distance is held against its large-sample law with the variance that
patients, not studies, give (a design effect: Kish 1965; for tables Rao and Scott 1984). For windows of fewer
patients than ``LEAST_PATIENTS`` the permutation tests of ``monitor.columns`` are exact and fast enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, kstwo

from monitor.column_sketches import (
    CategorySketch,
    NumberSketch,
    Sketch,
    find_bins,
    find_levels,
    merge_bins,
    sketch_categories,
    sketch_numbers,
)
from monitor.columns import jensen_shannon, psi
from monitor.results import NotEnoughData

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]

LEAST_PATIENTS = 50
DECILES = 10
LEAST_EXPECTED = 5.0
"""Categories with fewer studies expected on either side are counted together."""

DRAWS = 4000
KOLMOGOROV_SQUARED = float(np.pi**2 / 12)
"""Mean of the square of Kolmogorov's law."""

NUMERIC_TESTS = ("ks", "wasserstein", "psi", "jensen_shannon")
CATEGORY_TESTS = ("chi_square", "psi", "jensen_shannon")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ColumnSketch:
    """One column of the reference: its bins, its studies with a value, and how its shares vary over patients.

    ``covariance`` (K, K) is that of the shares of the K coarse bins or categories, with patients as clusters;
    ``patients`` counts those with a value, ``missing`` the studies without.
    """

    sketch: Sketch
    studies: int
    patients: int
    missing: int
    covariance: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnOutcome:
    """What one test says of one column: statistic, effect (0 without a difference), p-value, and what it rests on."""

    statistic: float
    effect: float
    p_value: float
    studies: int
    patients: int
    missing: int


def fit_columns(columns: Mapping[str, NDArray[Any]], patients: NDArray[Any]) -> dict[str, ColumnSketch]:
    """Sketch every column of a reference; numbers (n,) with NaN as missing, words (n,); ``patients`` (n,).

    Raises:
        ValueError: infinite values.
    """
    owners = np.unique(patients, return_inverse=True)[1]
    return {name: _fit(column, owners) for name, column in columns.items()}


def compare_columns(
    reference: Mapping[str, ColumnSketch],
    columns: Mapping[str, NDArray[Any]],
    patients: NDArray[Any],
    *,
    tests: Sequence[str],
) -> dict[tuple[str, str], ColumnOutcome | str]:
    """Test every column of a window that the reference has; by (test, column), a text says why it cannot be told.

    ``tests`` are tried on the columns they read: ks and wasserstein on numbers, chi_square on words, psi and
    jensen_shannon on both.
    """
    owners = np.unique(patients, return_inverse=True)[1]
    found: dict[tuple[str, str], ColumnOutcome | str] = {}
    for name, column in columns.items():
        if name not in reference:
            continue
        known = reference[name]
        numeric = isinstance(known.sketch, NumberSketch)
        asked = [test for test in tests if test in (NUMERIC_TESTS if numeric else CATEGORY_TESTS)]
        try:
            told = (_test_numbers if numeric else _test_words)(known, column, owners, asked)
        except NotEnoughData as reason:
            found |= {(test, name): str(reason) for test in asked}
        else:
            found |= {(test, name): outcome for test, outcome in told.items()}
    return found


def to_arrays(reference: Mapping[str, ColumnSketch]) -> dict[str, NDArray[Any]]:
    """Give a fitted reference as named plain arrays, ready for ``numpy.savez``; `of_arrays` reads them back."""
    arrays: dict[str, NDArray[Any]] = {"columns": np.array(list(reference), dtype=np.str_)}
    for place, column in enumerate(reference.values()):
        kind = type(column.sketch).__name__
        arrays[f"{place}.kind"] = np.array(kind)
        arrays[f"{place}.counts_of"] = np.array([column.studies, column.patients, column.missing])
        arrays[f"{place}.covariance"] = column.covariance
        arrays |= {f"{place}.{f.name}": getattr(column.sketch, f.name) for f in fields(column.sketch)}
    return arrays


def of_arrays(arrays: Mapping[str, NDArray[Any]]) -> dict[str, ColumnSketch]:
    """Rebuild a reference from what `to_arrays` gave."""
    kinds: dict[str, type[Sketch]] = {"NumberSketch": NumberSketch, "CategorySketch": CategorySketch}
    made: dict[str, ColumnSketch] = {}
    for place, name in enumerate(arrays["columns"]):
        kind = kinds[str(arrays[f"{place}.kind"])]
        sketch = kind(**{f.name: arrays[f"{place}.{f.name}"] for f in fields(kind)})
        studies, patients, missing = (int(n) for n in arrays[f"{place}.counts_of"])
        made[str(name)] = ColumnSketch(
            sketch=sketch,
            studies=studies,
            patients=patients,
            missing=missing,
            covariance=arrays[f"{place}.covariance"],
        )
    return made


def _fit(column: NDArray[Any], owners: Codes) -> ColumnSketch:
    if column.dtype.kind in "US":
        words = column.astype(np.str_)
        named = sketch_categories(words)
        sketch: Sketch = named
        codes, bins = find_levels(named, words)[0], len(named.levels)
    else:
        numbers = column.astype(np.float64, copy=False)
        binned = sketch_numbers(numbers)
        sketch, fine = binned, find_bins(binned, numbers)
        codes, bins = np.where(fine < 0, -1, binned.coarse[fine]), int(binned.coarse[-1]) + 1
    known = codes >= 0
    _, covariance = _shares(codes[known], owners[known], max(bins, 1))
    return ColumnSketch(
        sketch=sketch,
        studies=int(known.sum()),
        patients=_count(owners[known]),
        missing=int((~known).sum()),
        covariance=covariance,
    )


def _test_numbers(
    known: ColumnSketch, column: NDArray[Any], owners: Codes, tests: Sequence[str]
) -> dict[str, ColumnOutcome]:
    sketch = known.sketch
    assert isinstance(sketch, NumberSketch)
    fine = find_bins(sketch, column.astype(np.float64, copy=False))
    seen = fine >= 0
    _need(known, owners[seen])
    counts = np.bincount(fine[seen], minlength=len(sketch.counts)).astype(np.float64)
    if ((counts + sketch.counts) > 0).sum() < 2:
        raise NotEnoughData("nothing varies: every value is the same, on both sides")
    bins = int(sketch.coarse[-1]) + 1
    _, covariance = _shares(sketch.coarse[fine[seen]], owners[seen], bins)
    noise = covariance + known.covariance
    sizes = len(fine[seen]), known.studies
    apart = np.cumsum(counts / sizes[0] - sketch.counts / sizes[1])[:-1]
    merged = _merge(sketch.coarse, counts, sketch.counts)
    base = {"studies": sizes[0], "patients": _count(owners[seen]), "missing": int((~seen).sum())}
    found: dict[str, ColumnOutcome] = {}
    for test in tests:
        if test == "ks":
            figures = _ks(apart, noise, sizes)
        elif test == "wasserstein":
            figures = _wasserstein(sketch, _centres(sketch, column, fine), apart, noise)
        else:
            figures = _by_table(test, *_cut_at_deciles(merged, noise), sizes)
        found[test] = ColumnOutcome(statistic=figures[0], effect=figures[1], p_value=figures[2], **base)
    return found


def _test_words(
    known: ColumnSketch, column: NDArray[Any], owners: Codes, tests: Sequence[str]
) -> dict[str, ColumnOutcome]:
    sketch = known.sketch
    assert isinstance(sketch, CategorySketch)
    codes, strangers = find_levels(sketch, column.astype(np.str_))
    seen = codes >= 0
    _need(known, owners[seen])
    if not len(sketch.levels):
        raise NotEnoughData(f"{int(sketch.distinct[0])} different categories are too many to compare")
    bins = len(sketch.levels) + len(strangers)
    counts, covariance = _shares(codes[seen], owners[seen], bins)
    before = np.zeros(bins)
    before[: len(sketch.levels)] = sketch.counts
    if bins < 2:
        raise NotEnoughData("nothing varies: every value is the same, on both sides")
    noise = covariance.copy()
    noise[: len(sketch.levels), : len(sketch.levels)] += known.covariance
    sizes = int(seen.sum()), known.studies
    table, noise = _pool_rare(np.stack([counts, before]), noise)
    base = {"studies": sizes[0], "patients": _count(owners[seen]), "missing": int((~seen).sum())}
    return {
        test: ColumnOutcome(statistic=statistic, effect=effect, p_value=p, **base)
        for test in tests
        for statistic, effect, p in [_by_table(test, table, noise, sizes)]
    }


def _need(known: ColumnSketch, owners: Codes) -> None:
    for side, n in (("reference", known.patients), ("window", _count(owners))):
        if n < LEAST_PATIENTS:
            raise NotEnoughData(f"{n} patients in the {side}, {LEAST_PATIENTS} needed for a large-sample test")


def _count(owners: Codes) -> int:
    return int((np.bincount(owners) > 0).sum()) if len(owners) else 0


def _shares(codes: Codes, owners: Codes, bins: int) -> tuple[Floats, Floats]:
    """Count studies by bin (K,), and give the covariance of the shares (K, K) with patients as clusters."""
    n = len(codes)
    counts = np.bincount(codes, minlength=bins).astype(np.float64)
    if not n:
        return counts, np.zeros((bins, bins))
    shares = counts / n
    patients = _count(owners)
    if patients == n:
        return counts, (np.diag(shares) - np.outer(shares, shares)) / max(n - 1, 1)
    sizes = np.bincount(owners).astype(np.float64)
    together = _pairs(codes, owners, bins)
    # sum over patients of (c_p - n_p s)(c_p - n_p s)', from sums of products alone
    crossed = np.bincount(codes, weights=sizes[owners], minlength=bins)
    spread = (
        together - np.outer(crossed, shares) - np.outer(shares, crossed) + (sizes @ sizes) * np.outer(shares, shares)
    )
    return counts, spread / n**2 * patients / max(patients - 1, 1)


def _pairs(codes: Codes, owners: Codes, bins: int) -> Floats:
    """Sum, over patients, the products of their counts in every two bins; (K, K)."""
    cells, counted = np.unique(owners * np.intp(bins) + codes, return_counts=True)
    patient, place = cells // bins, cells % bins
    starts = np.flatnonzero(np.diff(patient, prepend=-1))
    lengths = np.diff(np.append(starts, len(cells)))
    together = np.zeros((bins, bins))
    for length in np.unique(lengths):
        rows = starts[lengths == length][:, None] + np.arange(length)
        for one in range(length):
            for other in range(length):
                pair = place[rows[:, one]] * bins + place[rows[:, other]]
                weights = counted[rows[:, one]] * counted[rows[:, other]]
                together += np.bincount(pair, weights=weights, minlength=bins * bins).reshape(bins, bins)
    return together


def _merge(coarse: Codes, counts: Floats, before: Floats) -> Floats:
    return np.stack([np.bincount(coarse, weights=side) for side in (counts, before)])


def _ks(apart: Floats, noise: Floats, sizes: tuple[int, int]) -> tuple[float, float, float]:
    """Give distance, effect and p-value by Kolmogorov's law at the size that the most uncertain cut amounts to.

    The tail of a supremum is that of its largest variance (1 / 4n for n independent studies). The mean over the cuts
    alarmed on 9 to 13 % of unchanged windows at a nominal 5 % where patients with high values have more studies.
    Values that repeat are no reason to count more studies than there are.
    """
    distance = float(np.abs(apart).max())
    lower = np.tril(np.ones(noise.shape))[:-1]
    variances = np.einsum("cj,jk,ck->c", lower, noise, lower)
    effective = 1 / max(4 * float(variances.max()), 1 / sizes[0] + 1 / sizes[1])
    p = float(kstwo.sf(distance, max(round(effective), 1)))
    return distance, _less(distance**2, KOLMOGOROV_SQUARED / effective), _hold(p)


def _centres(sketch: NumberSketch, column: NDArray[Any], fine: Codes) -> Floats:
    """Give the bins' centres; outside the reference's range it is the window that says where its values lie."""
    centres = sketch.centres.copy()
    for outer in (0, len(centres) - 1):
        if len(beyond := column[fine == outer]):
            centres[outer] = beyond.mean()
    return centres


def _wasserstein(sketch: NumberSketch, centres: Floats, apart: Floats, noise: Floats) -> tuple[float, float, float]:
    """Give distance (column unit), effect (standard deviations), p-value from Gaussian draws (1 / 4,001 at least)."""
    gaps = np.diff(centres)
    distance = float(np.abs(apart) @ gaps)
    coarse_gaps = np.bincount(sketch.coarse[:-1], weights=gaps, minlength=len(noise))
    spread, axes = np.linalg.eigh(noise)
    draws = np.random.default_rng(0).standard_normal((DRAWS, len(noise)))
    walks = np.cumsum(draws @ (axes * np.sqrt(np.maximum(spread, 0))).T, axis=1)
    drawn = np.abs(walks) @ coarse_gaps
    p = (1 + float((drawn >= distance).sum())) / (1 + DRAWS)
    scale = float(sketch.spread[0])
    return distance, _less(distance**2, float(np.mean(drawn**2))) / scale, _hold(p)


def _cut_at_deciles(table: Floats, noise: Floats) -> tuple[Floats, Floats]:
    """Count bins together between the reference's deciles."""
    return _gather(table, noise, merge_bins(table[1], DECILES, keep_heavy=False))


def _pool_rare(table: Floats, noise: Floats) -> tuple[Floats, Floats]:
    """Count categories together of which too few studies are expected on the smaller side."""
    share = table.sum(axis=0) / table.sum()
    rare = share * table.sum(axis=1).min() < LEAST_EXPECTED
    if rare.sum() < 2:
        return table, noise
    return _gather(table, noise, np.where(rare, 0, np.cumsum(~rare)))


def _gather(table: Floats, noise: Floats, places: Codes) -> tuple[Floats, Floats]:
    """Add up the columns of a table (2, K) that share a place, and the covariance (K, K) of their shares."""
    member = (places[:, None] == np.arange(places.max() + 1)).astype(np.float64)
    return np.asarray(table @ member), np.asarray(member.T @ noise @ member)


def _by_table(test: str, table: Floats, noise: Floats, sizes: tuple[int, int]) -> tuple[float, float, float]:
    """Give statistic, effect and p-value of a 2 x K table by Rao and Scott's second-order correction.

    PSI and the squared Jensen-Shannon distance are multiples of Pearson's statistic in large samples; all three share
    its p-value, which holds best where samples are not so large, and what it leaves beyond chance as the effect.
    """
    if table.shape[1] < 2:
        raise NotEnoughData("too few studies in all categories but one")
    each = 1 / sizes[0] + 1 / sizes[1]
    pooled = table.sum(axis=0) / table.sum()
    kept = pooled > 0
    if kept.sum() < 2:
        raise NotEnoughData("nothing varies: every value is the same, on both sides")
    # generalised design effects: eigenvalues of the clustered covariance in units of the independent one
    root = np.sqrt(pooled[kept])
    design = noise[np.ix_(kept, kept)] / np.outer(root, root) / each
    freedom = int(kept.sum()) - 1
    mean = float(np.trace(design)) / freedom
    squared = float((design * design.T).sum()) / freedom
    spread = max(squared / max(mean**2, 1e-300), 1.0)
    chi = float(((table[0] / sizes[0] - table[1] / sizes[1])[kept] ** 2 / pooled[kept]).sum() / each)
    p = _hold(float(chi2.sf(chi / max(mean * spread, 1e-300), freedom / spread)))
    excess = max(0.0, chi - freedom * mean)
    if test == "psi":
        return float(psi(table[:1], table[1:])[0]), excess * each, p
    if test == "jensen_shannon":
        return float(jensen_shannon(table[:1], table[1:])[0]), float(np.sqrt(excess * each / (8 * np.log(2)))), p
    return chi, float(np.sqrt(excess / sum(sizes))), p


def _less(squared: float, usual: float) -> float:
    return float(np.sqrt(max(0.0, squared - usual)))


def _hold(p: float) -> float:
    """Keep a p-value above 0: no sample rules chance out."""
    return float(min(max(p, np.finfo(np.float64).tiny), 1.0))
