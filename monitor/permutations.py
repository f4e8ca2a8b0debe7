"""Relabelling patients: the null distribution of every test here."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def contrasts(sizes: Floats, current: NDArray[np.bool_], permutations: int, generator: np.random.Generator) -> Floats:
    """Give the weights that turn sums by patient into "mean of current minus mean of reference".

    Args:
        sizes: studies of each patient, shape (P,).
        current: side of each patient as observed, shape (P,).
        permutations: how many relabellings; each keeps the number of patients on either side.
        generator: source of randomness.

    Returns: shape (permutations + 1, P); row 0 is as observed.
    """
    order = np.argsort(generator.random((permutations, len(current))), axis=1)
    sides = np.concatenate([current[None, :], current[order]]).astype(np.float64)
    return sides / (sides @ sizes)[:, None] - (1 - sides) / ((1 - sides) @ sizes)[:, None]


def p_value(statistics: Floats) -> float:
    """Give (b + 1) / (m + 1) for a row of statistics whose first is the observed one; never 0."""
    exceeding = int((statistics[1:] >= statistics[0] - 1e-12 * max(1.0, abs(statistics[0]))).sum())
    return (exceeding + 1) / len(statistics)
