"""Relabelling patients: the null distribution of every test here."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SINGLE_ROUNDING = 1e-4
"""Of a standard deviation: what single precision may lose, so that relabellings that are the same count as reached."""


def sides_by_patient(
    patients: NDArray[np.intp], is_current: NDArray[np.bool_]
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Count the studies of each patient, and tell who is current; both of shape (P,).

    Args:
        patients: patient number 0 … P-1 of each study, shape (n,).
        is_current: side of each study, shape (n,).
    """
    current = np.zeros(int(patients.max()) + 1, dtype=np.bool_)
    current[patients[is_current]] = True
    return np.bincount(patients), current


def refuse_lone_patients(current: NDArray[np.bool_]) -> None:
    """Refuse to compare where nothing varies among the patients of a side; who is current, shape (P,).

    Raises:
        ValueError: fewer than two patients on a side.
    """
    if min(current.sum(), (~current).sum()) < 2:
        raise ValueError(f"{current.sum()} of {len(current)} patients are current; each side needs two")


def relabel_patients(
    current: NDArray[np.bool_], permutations: int, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Give who is current, shape (permutations + 1, P); row 0 as observed, each other an even draw of as many."""
    sides = np.empty((permutations + 1, len(current)), dtype=np.bool_)
    sides[0] = current
    for side in sides[1:]:
        side[:] = current[np.argsort(generator.random(len(current)))]
    return sides


def contrasts(
    sizes: NDArray[np.intp] | Floats, current: NDArray[np.bool_], permutations: int, generator: np.random.Generator
) -> Floats:
    """Give the weights that turn sums by patient into "mean of current minus mean of reference".

    Args:
        sizes: studies of each patient, shape (P,).
        current: side of each patient as observed, shape (P,).
        permutations: how many relabellings; each keeps the number of patients on either side.
        generator: source of randomness.

    Returns: shape (permutations + 1, P); row 0 is as observed.
    """
    sides = relabel_patients(current, permutations, generator).astype(np.float64)
    return sides / (sides @ sizes)[:, None] - (1 - sides) / ((1 - sides) @ sizes)[:, None]


def p_value(statistics: Floats, *, rounding: float = 0.0) -> float:
    """Give (b + 1) / (m + 1) for a row of statistics whose first is the observed one; never 0.

    Others that fall short of the observed one by no more than ``rounding`` count as reaching it.
    """
    least = statistics[0] - rounding
    exceeding = int((statistics[1:] >= least - 1e-12 * max(1.0, abs(least))).sum())
    return (exceeding + 1) / len(statistics)
