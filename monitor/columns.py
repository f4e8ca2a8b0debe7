"""Tests of one column, numeric or of categories, with patients permuted as wholes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.permutations import contrasts, p_value

Floats = NDArray[np.float64]
CELLS_AT_ONCE = 8_000_000


def ks_distances(values: Floats, weights: Floats) -> Floats:
    """Kolmogorov–Smirnov distances for rows of contrast weights; values (n,), weights (rows, n), result (rows,)."""
    order = np.argsort(values, kind="stable")
    last_of_tie = np.r_[np.diff(values[order]) != 0, True]
    distances: Floats = np.abs(np.cumsum(weights[:, order], axis=1)[:, last_of_tie]).max(axis=1)
    return distances


def permutation_ks(
    values: Floats,
    patients: NDArray[np.intp],
    is_current: NDArray[np.bool_],
    *,
    permutations: int,
    generator: np.random.Generator,
) -> tuple[float, float, float]:
    """Test one numeric column; returns KS distance, effect (the same) and p-value.

    The statistic equals ``scipy.stats.ks_2samp``'s; its p-value comes from relabelled patients.
    """
    sizes, current = _by_patient(patients, is_current)
    weights = contrasts(sizes, current, permutations, generator)
    at_once = max(1, CELLS_AT_ONCE // len(values))
    parts = [
        ks_distances(values, weights[start : start + at_once][:, patients]) for start in range(0, len(weights), at_once)
    ]
    distances = np.concatenate(parts)
    return float(distances[0]), float(distances[0]), p_value(distances)


def permutation_chi_square(
    values: NDArray[Any],
    patients: NDArray[np.intp],
    is_current: NDArray[np.bool_],
    *,
    permutations: int,
    generator: np.random.Generator,
) -> tuple[float, float, float]:
    """Test one column of categories; returns Pearson's chi-square, effect (Cramér's V) and p-value.

    The statistic equals ``scipy.stats.chi2_contingency(correction=False)``'s; its p-value comes from
    relabelled patients, so small expected counts do no harm.
    """
    categories, codes = np.unique(values, return_inverse=True)
    sizes, current = _by_patient(patients, is_current)
    counts = np.zeros((len(sizes), len(categories)))
    np.add.at(counts, (patients, codes), 1)
    signs = contrasts(sizes, current, permutations, generator) > 0
    now = signs.astype(np.float64) @ counts
    statistics = _chi_square(now, counts.sum(axis=0) - now)
    n = len(values)
    return float(statistics[0]), float(np.sqrt(statistics[0] / n)), p_value(statistics)


def _chi_square(now: Floats, before: Floats) -> Floats:
    """Pearson's statistic for rows of 2 × K tables given by their two lines (rows, K)."""
    total = now + before
    share = now.sum(axis=1, keepdims=True) / total.sum(axis=1, keepdims=True)
    statistics = np.zeros(len(now))
    for seen, expected in ((now, total * share), (before, total * (1 - share))):
        statistics += np.divide((seen - expected) ** 2, expected, out=np.zeros_like(seen), where=expected > 0).sum(
            axis=1
        )
    return statistics


def _by_patient(patients: NDArray[np.intp], is_current: NDArray[np.bool_]) -> tuple[Floats, NDArray[np.bool_]]:
    count = int(patients.max()) + 1
    current = np.zeros(count, dtype=np.bool_)
    current[patients[is_current]] = True
    return np.bincount(patients, minlength=count).astype(np.float64), current
