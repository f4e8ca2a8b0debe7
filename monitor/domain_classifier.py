"""Can a linear classifier tell the window from the reference? A ridge, relabelled in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.kernels import standardise_rows
from monitor.measures import fast_auroc
from monitor.permutations import SINGLE_ROUNDING, p_value, refuse_lone_patients, relabel_patients, sides_by_patient

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

FOLDS = 10
RIDGE = 1.0  # of the mean eigenvalue: from 0.1 to 3, the best compromise over leading, spread-out and mixture shifts
RELABELLINGS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Fold:
    """One fold of patients and what the studies of all others teach, whatever their labels.

    Attributes:
        rows: its studies.
        patients: its patients.
        middle: mean of the other studies, shape (width,).
        inverse: of their ridged scatter matrix, shape (width, width).
    """

    rows: NDArray[np.intp]
    patients: NDArray[np.intp]
    middle: Singles
    inverse: Singles


def permutation_classifier(
    values: NDArray[Any],
    patients: NDArray[np.intp],
    is_current: NDArray[np.bool_],
    *,
    permutations: int,
    generator: np.random.Generator,
) -> tuple[float, float, float]:
    """Test whether a classifier learned on some patients tells the sides of the others apart.

    A classifier two-sample test (Lopez-Paz and Oquab 2017) by least squares with a ridge, whose scatter
    matrices do not know the labels: a relabelling changes class sums alone. The statistic is the mean
    out-of-fold score of the current studies less that of the reference: a cross-validated squared Mahalanobis
    distance (Walther et al. 2016), 0 on average without a difference. Patients are dealt into folds without
    regard to their side and permuted as wholes, so that the p-value is exact.

    Arguments and errors as `monitor.kernels.permutation_mmd`.

    Returns: the statistic, the effect 2 · AUROC - 1 of the out-of-fold scores, not below 0, and the p-value
        (b + 1) / (m + 1). The effect approaches that of the best linear classifier from below as n grows.
    """
    rows, folds, (sizes, current) = _prepare(values, patients, is_current, generator)
    sides = relabel_patients(current, permutations, generator)
    sums = _sum_by_patient(rows, patients)
    chunks = (sides[start : start + RELABELLINGS_AT_ONCE] for start in range(0, len(sides), RELABELLINGS_AT_ONCE))
    statistics = np.concatenate([_separate(folds, sums, sizes, some) for some in chunks])
    p = p_value(statistics, rounding=SINGLE_ROUNDING * float(statistics.std()))
    area = fast_auroc(_score(folds, rows, is_current), is_current.astype(np.float64))[0]
    return float(statistics[0]), max(2 * float(area) - 1, 0.0), p


def score_studies(
    values: NDArray[Any],
    patients: NDArray[np.intp],
    is_current: NDArray[np.bool_],
    *,
    generator: np.random.Generator,
) -> Floats:
    """Score how much each study looks like the window and unlike the reference, shape (n,).

    By the classifier of `permutation_classifier`, learned on other patients than the study's own, in
    standard deviations of the reference's scores from their mean; 0 for all where nothing varies.
    Arguments and errors as there.
    """
    rows, folds, _ = _prepare(values, patients, is_current, generator)
    scores = _score(folds, rows, is_current)
    usual = scores[~is_current]
    spread = float(usual.std())
    return (scores - usual.mean()) / spread if spread > 0 else np.zeros(len(scores))


def _prepare(
    values: NDArray[Any], patients: NDArray[np.intp], is_current: NDArray[np.bool_], generator: np.random.Generator
) -> tuple[Singles, list[_Fold], tuple[NDArray[np.intp], NDArray[np.bool_]]]:
    sizes, current = sides_by_patient(patients, is_current)
    refuse_lone_patients(current)
    rows = standardise_rows(values)[0]
    dealt = generator.permutation(np.arange(len(sizes)) % FOLDS)
    return rows, _fit_folds(rows, patients, dealt), (sizes, current)


def _fit_folds(rows: Singles, patients: NDArray[np.intp], dealt: NDArray[np.intp]) -> list[_Fold]:
    """Fit each fold from the moments of all studies less its own; ``dealt`` is the fold of each patient."""
    members = [np.flatnonzero(dealt[patients] == fold) for fold in np.unique(dealt)]
    scatters = [rows[own].T @ rows[own] for own in members]
    total = np.sum(scatters, axis=0, dtype=np.float64)
    folds = []
    for own, scatter in zip(members, scatters, strict=True):
        others = len(rows) - len(own)
        middle = -rows[own].sum(axis=0, dtype=np.float64) / others  # all rows together sum to 0
        learned = total - scatter - others * np.outer(middle, middle)
        ridge = RIDGE * float(np.trace(learned)) / len(learned)
        learned.flat[:: len(learned) + 1] += ridge if ridge > 0 else 1.0
        folds.append(
            _Fold(
                rows=own,
                patients=np.unique(patients[own]),
                middle=middle.astype(np.float32),
                inverse=np.linalg.inv(learned).astype(np.float32),
            )
        )
    return folds


def _separate(folds: list[_Fold], sums: Singles, sizes: NDArray[np.intp], sides: NDArray[np.bool_]) -> Floats:
    """Give the mean out-of-fold score of current less that of reference studies, shape (relabellings,)."""
    everyone, counts = sides.astype(np.float32) @ sums, (sides @ sizes).astype(np.float64)
    statistics = np.zeros(len(sides))
    for fold in folds:
        chosen = sides[:, fold.patients]
        own, own_count = chosen.astype(np.float32) @ sums[fold.patients], chosen @ sizes[fold.patients]
        taught = everyone - own - np.outer(counts - own_count, fold.middle)
        now = own - np.outer(own_count, fold.middle)
        both = sums[fold.patients].sum(axis=0) - sizes[fold.patients].sum() * fold.middle
        weights = 1 / counts + 1 / (sizes.sum() - counts)
        moved = now * weights[:, None] - both / (sizes.sum() - counts)[:, None]
        statistics += np.einsum("mw,mw->m", moved, taught @ fold.inverse, dtype=np.float64)
    return statistics


def _score(folds: list[_Fold], rows: Singles, is_current: NDArray[np.bool_]) -> Floats:
    """Give each study the score of the fold that holds its patient, shape (n,)."""
    scores = np.empty(len(rows))
    everyone = rows[is_current].sum(axis=0, dtype=np.float64)
    for fold in folds:
        own = fold.rows[is_current[fold.rows]]
        taught = everyone - rows[own].sum(axis=0, dtype=np.float64)
        taught -= (is_current.sum() - len(own)) * fold.middle
        scores[fold.rows] = (rows[fold.rows] - fold.middle) @ (fold.inverse @ taught)
    return scores


def _sum_by_patient(rows: Singles, patients: NDArray[np.intp]) -> Singles:
    order = np.argsort(patients, kind="stable")
    return np.add.reduceat(rows[order], np.flatnonzero(np.diff(patients[order], prepend=-1)), axis=0)
