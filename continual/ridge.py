"""Ridge regression and its calibration, from sums alone: nothing here has seen a study. Pure.

Yes/no targets are regressed on features; the strength is chosen by generalised cross-validation (Golub, Heath
and Wahba 1979). The regression's answers become probabilities by a linear discriminant over them (optimal
scoring, Hastie, Tibshirani and Buja 1994), on answers corrected for having been learned: leaving a study out
turns its answer ``f`` into ``(f - h y) / (1 - h)``, with the mean leverage for ``h``, as in the criterion itself.
So strength, weights and calibration are functions of sums, do not depend on the order of studies, and follow
exactly when a study is subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ridge = float | Literal["auto"]
STRENGTHS = np.logspace(-5, 4, 28)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spread:
    """How features spread about their mean over n studies: eigenvalues (D,) and eigenvectors (D, D)."""

    n: float
    mean: Array
    values: Array
    vectors: Array


def decompose(n: float, total: Array, gram: Array) -> Spread:
    """Turn a number of studies, the sum of features (D,) and of their products (D, D) into a spread.

    Of the products only the lower triangle is read.
    """
    mean = total / max(n, 1)
    values, vectors = np.linalg.eigh(gram - n * np.outer(mean, mean))
    return Spread(n=n, mean=mean, values=np.clip(values, 0.0, None), vectors=vectors)


def solve(spread: Spread, sums: Array, counts: Array, ridge: Ridge) -> tuple[Array, Array]:
    """Give weights (K, D) and bias (K,) of the logits of K classes that exclude each other.

    ``sums`` (K, D) and ``counts`` (K,) are the features' sums and the studies of each class. Only differences
    of logits matter. A class never seen has logit 0, and ``log(count + 1)`` takes the place of a prior: with
    nothing known all classes are equal. Where the regression tells the classes apart no better than chance,
    only these priors are left. ``ridge`` is relative to the features' mean variance sum.
    """
    weights, bias = np.zeros(sums.shape), np.log(counts + 1)
    seen = np.flatnonzero(counts)
    if len(seen) < 2:
        return weights, bias
    counts = counts[seen]
    targets = np.diag(counts) - np.outer(counts, counts) / spread.n  # products of centred targets
    towards = (sums[seen] - np.outer(counts, spread.mean)) @ spread.vectors
    strength = _choose(spread, towards, float(np.trace(targets)), ridge)
    shrunk = towards / (spread.values + strength)
    slopes, offsets = _discriminate(spread, towards, shrunk, targets, counts, strength)
    weights[seen] = slopes @ shrunk @ spread.vectors.T
    bias[seen] += offsets - weights[seen] @ spread.mean
    return weights, bias


def _scale(spread: Spread) -> float:
    return max(float(spread.values.mean()), np.finfo(float).tiny)


def _choose(spread: Spread, towards: Array, total: float, ridge: Ridge) -> float:
    """Choose the strength with the least generalised cross-validation error; of near-equals the largest."""
    if ridge != "auto":
        return ridge * _scale(spread)
    strengths = STRENGTHS * _scale(spread)
    kept = spread.values / (spread.values + strengths[:, None])
    explained = ((2 - kept) * kept) @ (
        np.square(towards).sum(axis=0) / np.maximum(spread.values, 1e-12 * _scale(spread))
    )
    free = np.maximum(spread.n - 1 - kept.sum(axis=1), 1e-9)
    errors = np.maximum(total - explained, 0.0) / free**2
    return float(strengths[np.flatnonzero(errors <= errors.min() * (1 + 1e-6))[-1]])


def _discriminate(
    spread: Spread, towards: Array, shrunk: Array, targets: Array, counts: Array, strength: float
) -> tuple[Array, Array]:
    """Give slopes (K, K) and offsets (K,) from centred answers to logits less the priors."""
    n, k = spread.n, len(counts)
    leverage = min((1 + (spread.values / (spread.values + strength)).sum()) / n, 0.99)
    cross = shrunk @ towards.T  # answers times centred targets
    answers = (shrunk * spread.values) @ shrunk.T
    total = (answers - leverage * (cross + cross.T) + leverage**2 * targets) / (1 - leverage) ** 2
    apart = (cross - leverage * targets) / (1 - leverage)
    if np.trace(apart) <= 0 or n <= k:
        return np.zeros((k, k)), np.zeros(k)
    means = apart / counts  # column c: the mean answer of class c
    within = total - (means * counts) @ means.T + targets / n  # as if one more study spread like the targets
    slopes = (np.linalg.pinv(within / (n - k + 1), rcond=1e-9, hermitian=True) @ means).T
    return slopes, -0.5 * np.einsum("kj,jk->k", slopes, means)
