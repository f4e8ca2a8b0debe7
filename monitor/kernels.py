"""Permutation MMD on embeddings with patients as the unit: every permutation in one matrix product."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from monitor.permutations import contrasts, p_value

Floats = NDArray[np.float64]

BANDWIDTHS = (0.5, 1.0, 2.0)
PAIRS_FOR_MEDIAN = 2000


def permutation_mmd(
    values: Floats,
    patients: NDArray[np.intp],
    is_current: NDArray[np.bool_],
    *,
    permutations: int,
    generator: np.random.Generator,
) -> tuple[float, float, float]:
    """Test whether two samples of embeddings (n, width) differ, with patients permuted as wholes.

    The squared maximum mean discrepancy (Gretton 2012, V-statistic) for a mean of Gaussian kernels
    around the median distance. The Gram matrix is summed by patient once, so that m permutations cost
    one (m, patients) × (patients, patients) product.

    Args:
        values: both samples, shape (n, width).
        patients: patient number 0 … P-1 of each row; a patient stands on one side only.
        is_current: side of each row, shape (n,).
        permutations: how many relabellings of patients.
        generator: source of randomness.

    Returns: MMD², the effect size, and the p-value (b + 1) / (m + 1). The effect is the square root of
        the unbiased MMD² (pairs of the same patient left out) relative to the kernel's own spread; it
        does not grow with n and is 0 without a difference.
    """
    order = np.argsort(patients, kind="stable")
    sizes = np.bincount(patients).astype(np.float64)
    starts = np.searchsorted(patients[order], np.arange(len(sizes)))
    by_patient = np.add.reduceat(np.add.reduceat(_mean_kernel(values[order]), starts, axis=0), starts, axis=1)
    current = np.zeros(len(sizes), dtype=np.bool_)
    current[patients[is_current]] = True
    weights = contrasts(sizes, current, permutations, generator)
    statistics = np.einsum("mp,mp->m", weights @ by_patient, weights)

    return float(statistics[0]), _effect(by_patient, sizes, current), p_value(statistics)


def _mean_kernel(values: Floats) -> Floats:
    squared = cdist(values, values, "sqeuclidean")
    sample = squared[:PAIRS_FOR_MEDIAN, :PAIRS_FOR_MEDIAN]
    median = float(np.median(sample[sample > 0])) if (sample > 0).any() else 1.0
    return np.asarray(sum(np.exp(squared / (-2 * factor * median)) for factor in BANDWIDTHS) / len(BANDWIDTHS))


def _effect(by_patient: Floats, sizes: Floats, current: NDArray[np.bool_]) -> float:
    def mean_between(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
        block, pairs = by_patient[np.ix_(a, b)], np.outer(sizes[a], sizes[b])
        if a is b:
            np.fill_diagonal(block, 0)
            np.fill_diagonal(pairs, 0)
        return float(block.sum() / pairs.sum()) if pairs.sum() else 0.0

    rest = ~current
    within_current, within_rest = mean_between(current, current), mean_between(rest, rest)
    unbiased = within_current + within_rest - 2 * mean_between(current, rest)
    spread = 1 - (within_current + within_rest) / 2
    return float(np.sqrt(max(unbiased, 0.0) / spread)) if spread > 1e-12 else 0.0
