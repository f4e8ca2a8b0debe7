"""Tests of one column, numeric or of categories, with patients permuted as wholes.

Every effect is 0 without a difference, also where patients are few: what the relabellings typically reach is
taken off, as Bergsma (2013) does with Cramér's V. A raw KS distance of 20 studies is about 0.3 when nothing changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.permutations import contrasts, p_value, sides_by_patient

Floats = NDArray[np.float64]
CELLS_AT_ONCE = 8_000_000
QUANTILE_BINS = 10
HALF_A_STUDY = 0.5


def permutation_ks(
    values: Floats,
    patients: NDArray[np.intp],
    is_current: NDArray[np.bool_],
    *,
    permutations: int,
    generator: np.random.Generator,
) -> tuple[float, float, float]:
    """Test one numeric column; returns KS distance, effect (KS distance beyond chance) and p-value.

    The statistic equals ``scipy.stats.ks_2samp``'s; its p-value comes from relabelled patients.
    """
    sides = contrasts(*sides_by_patient(patients, is_current), permutations, generator)
    distances = _in_chunks(sides, patients, lambda weights: ks_distances(values, weights))
    return float(distances[0]), effect_of(distances), p_value(distances)


def permutation_wasserstein(
    values: Floats,
    patients: NDArray[np.intp],
    is_current: NDArray[np.bool_],
    *,
    permutations: int,
    generator: np.random.Generator,
) -> tuple[float, float, float]:
    """Test one numeric column; returns the Wasserstein-1 distance, effect and p-value.

    The statistic equals ``scipy.stats.wasserstein_distance``'s (Vallender 1974: the area between the two
    distribution functions), in the column's unit. The effect is the distance beyond chance in standard
    deviations of the reference's studies (of all studies where the reference is constant).
    """
    sides = contrasts(*sides_by_patient(patients, is_current), permutations, generator)
    distances = _in_chunks(sides, patients, lambda weights: wasserstein_distances(values, weights))
    scale = float(values[~is_current].std()) or float(values.std()) or 1.0
    return float(distances[0]), effect_of(distances / scale), p_value(distances / scale)


def permutation_chi_square(
    values: NDArray[Any],
    patients: NDArray[np.intp],
    is_current: NDArray[np.bool_],
    *,
    permutations: int,
    generator: np.random.Generator,
) -> tuple[float, float, float]:
    """Test one column of categories; returns Pearson's chi-square, effect (Cramér's V beyond chance) and p-value.

    The statistic equals ``scipy.stats.chi2_contingency(correction=False)``'s; its p-value comes from
    relabelled patients, so small expected counts do no harm.
    """
    sides = contrasts(*sides_by_patient(patients, is_current), permutations, generator)
    statistics = chi_square(*_count_categories(values, patients, sides))
    return float(statistics[0]), effect_of(np.sqrt(statistics / len(values))), p_value(statistics)


def permutation_psi(
    values: NDArray[Any],
    patients: NDArray[np.intp],
    is_current: NDArray[np.bool_],
    *,
    permutations: int,
    generator: np.random.Generator,
) -> tuple[float, float, float]:
    """Test one column of numbers or categories; returns the population stability index, effect and p-value.

    Numbers are counted in bins between the reference's deciles, found anew in every relabelling, so that the
    p-value is exact. See `psi` for the formula and small counts. The effect is the index beyond chance.
    """
    sides = contrasts(*sides_by_patient(patients, is_current), permutations, generator)
    indices = psi(*_count(values, patients, sides))
    return float(indices[0]), max(0.0, float(indices[0] - indices[1:].mean())), p_value(indices)


def permutation_jensen_shannon(
    values: NDArray[Any],
    patients: NDArray[np.intp],
    is_current: NDArray[np.bool_],
    *,
    permutations: int,
    generator: np.random.Generator,
) -> tuple[float, float, float]:
    """Test one column of numbers or categories; returns Jensen–Shannon distance, effect (beyond chance) and p-value.

    The statistic equals ``scipy.spatial.distance.jensenshannon(base=2)`` of the two sides' shares, 0 to 1. Numbers are
    counted in bins between the reference's deciles, found anew in every relabelling, so that the p-value is exact.
    """
    sides = contrasts(*sides_by_patient(patients, is_current), permutations, generator)
    distances = jensen_shannon(*_count(values, patients, sides))
    return float(distances[0]), effect_of(distances), p_value(distances)


def ks_distances(values: Floats, weights: Floats) -> Floats:
    """Kolmogorov–Smirnov distances for rows of contrast weights; values (n,), weights (rows, n), result (rows,)."""
    order = np.argsort(values, kind="stable")
    distances: Floats = np.abs(_up_to_each(values[order], weights[:, order])).max(axis=1)
    return distances


def wasserstein_distances(values: Floats, weights: Floats) -> Floats:
    """Wasserstein-1 distances, in the values' unit; shapes as for `ks_distances`."""
    order = np.argsort(values, kind="stable")
    gaps = np.diff(np.unique(values))
    distances: Floats = np.abs(_up_to_each(values[order], weights[:, order])[:, :-1]) @ gaps
    return distances


def chi_square(now: Floats, before: Floats) -> Floats:
    """Pearson's statistic for rows of 2 × K tables given by their two lines (rows, K)."""
    total = now + before
    share = now.sum(axis=1, keepdims=True) / total.sum(axis=1, keepdims=True)
    statistics = np.zeros(len(now))
    for seen, expected in ((now, total * share), (before, total * (1 - share))):
        statistics += np.divide((seen - expected) ** 2, expected, out=np.zeros_like(seen), where=expected > 0).sum(
            axis=1
        )
    return statistics


def psi(now: Floats, before: Floats) -> Floats:
    """Population stability index for rows of counts (rows, K), in nats.

    The sum of (p - q) log(p / q), Jeffreys' (1946) divergence, over the K bins. Half a study is added to every
    bin of both sides (Krichevsky and Trofimov 1981), so that an empty bin counts for what its n can tell.
    """
    p, q = (_shares(counts + HALF_A_STUDY) for counts in (now, before))
    indices: Floats = ((p - q) * np.log(p / q)).sum(axis=1)
    return indices


def jensen_shannon(now: Floats, before: Floats) -> Floats:
    """Jensen–Shannon distances (Endres and Schindelin 2003; base 2, 0 to 1) for rows of counts (rows, K)."""
    p, q = _shares(now), _shares(before)
    middle = (p + q) / 2
    divergence = sum(side * np.log2(np.divide(side, middle, out=np.ones_like(side), where=side > 0)) for side in (p, q))
    distances: Floats = np.sqrt(np.maximum(np.asarray(divergence).sum(axis=1) / 2, 0.0))
    return distances


def effect_of(distances: Floats) -> float:
    """Give the first distance less, in quadrature, what the others (relabellings) typically reach; 0 at least."""
    return float(np.sqrt(max(0.0, distances[0] ** 2 - np.mean(distances[1:] ** 2))))


def _in_chunks(sides: Floats, patients: NDArray[np.intp], measure: Callable[[Floats], Any]) -> Any:
    """Measure relabellings, given to each study of a patient, as many at once as memory bears."""
    at_once = max(1, CELLS_AT_ONCE // len(patients))
    parts = [measure(sides[start : start + at_once][:, patients]) for start in range(0, len(sides), at_once)]
    return np.concatenate(parts)


def _up_to_each(ascending: Floats, weights: Floats) -> Floats:
    """Sum the weights up to and with each distinct value; (rows, distinct)."""
    last_of_tie = np.r_[np.diff(ascending) != 0, True]
    sums: Floats = np.cumsum(weights, axis=1)[:, last_of_tie]
    return sums


def _shares(counts: Floats) -> Floats:
    shares: Floats = counts / counts.sum(axis=1, keepdims=True)
    return shares


def _count(values: NDArray[Any], patients: NDArray[np.intp], sides: Floats) -> tuple[Floats, Floats]:
    """Count studies by category, or by bin between deciles of the reference side; now and before, each (rows, K)."""
    if values.dtype.kind not in "fiu":
        return _count_categories(values, patients, sides)
    order = np.argsort(values, kind="stable")
    tables = _in_chunks(sides, patients, lambda weights: _count_quantile_bins(values[order], weights[:, order] > 0))
    return tables[:, 0], tables[:, 1]


def _count_categories(values: NDArray[Any], patients: NDArray[np.intp], sides: Floats) -> tuple[Floats, Floats]:
    categories, codes = np.unique(values, return_inverse=True)
    counts = np.zeros((sides.shape[1], len(categories)))
    np.add.at(counts, (patients, codes), 1)
    now = (sides > 0).astype(np.float64) @ counts
    return now, counts.sum(axis=0) - now


def _count_quantile_bins(ascending: Floats, is_current: NDArray[np.bool_]) -> Floats:
    """Count both sides of each row in bins (…, q1], (q1, q2], … of its own reference side; (rows, 2, bins)."""
    up_to = np.stack([_up_to_each(ascending, side.astype(np.float64)) for side in (is_current, ~is_current)], axis=1)
    known = up_to[:, 1, -1]
    ends = [
        (up_to[:, 1] >= (known * part / QUANTILE_BINS)[:, None] - 1e-9).argmax(axis=1)
        for part in range(1, QUANTILE_BINS)
    ]
    last = np.full(len(up_to), up_to.shape[2] - 1)
    places = np.stack([*ends, last], axis=1)[:, None, :]
    counts: Floats = np.diff(np.take_along_axis(up_to, places, axis=2), axis=2, prepend=0.0)
    return counts
