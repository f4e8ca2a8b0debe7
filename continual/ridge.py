"""Ridge regression, its strength and its calibration, from sums alone: nothing here has seen a study. Pure.

Studies are summed in folds, by patient. All sums less one fold's give the regression that never saw that fold,
and the fold's sums give the first two moments of its answers there. So the strength is chosen by exact
cross-validation between patients, and the answers become probabilities by a linear discriminant over answers to
patients unseen (optimal scoring, Hastie, Tibshirani and Buja 1994): near-duplicate studies of a patient flatter
neither. Everything is a function of sums, does not depend on the order of studies, and follows exactly when
a study is subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ridge = float | Literal["auto"]
STRENGTHS = np.logspace(-4, 4, 25)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sums:
    """Sums over studies of F folds: counts (F,), features (F, D) and their products (F, D, D), lower triangles."""

    count: Array
    total: Array
    gram: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spread:
    """How features spread about their mean over n studies: eigenvalues (D,) and eigenvectors (D, D).

    ``held_out`` is the count, the sum of features and the product of features of the fold left out, the last
    two about the mean and along the eigenvectors.
    """

    n: float
    mean: Array
    values: Array
    vectors: Array
    held_out: tuple[float, Array, Array] | None = None


def decompose(sums: Sums) -> list[Spread]:
    """Give the spread of all studies, and after it for each fold the spread of the studies outside it."""
    count, total, gram = sums.count.sum(), sums.total.sum(axis=0), sums.gram.sum(axis=0)
    spreads = [_spread(count, total, gram)]
    for n, features, products in zip(sums.count, sums.total, sums.gram, strict=True):
        outside = _spread(count - n, total - features, gram - products)
        whole = np.tril(products) + np.tril(products, -1).T
        cross = np.outer(features, outside.mean)
        about = whole - cross - cross.T + n * np.outer(outside.mean, outside.mean)
        along = outside.vectors.T
        held_out = (float(n), along @ (features - n * outside.mean), along @ about @ outside.vectors)
        spreads.append(
            Spread(n=outside.n, mean=outside.mean, values=outside.values, vectors=outside.vectors, held_out=held_out)
        )
    return spreads


def _spread(n: float, total: Array, gram: Array) -> Spread:
    mean = total / max(n, 1)
    values, vectors = np.linalg.eigh(gram - n * np.outer(mean, mean))
    return Spread(n=float(n), mean=mean, values=np.clip(values, 0.0, None), vectors=vectors)


def solve(spreads: list[Spread], sums: Array, counts: Array, ridge: Ridge) -> tuple[Array, Array]:
    """Give weights (K, D) and bias (K,) of the logits of K classes that exclude each other.

    ``sums`` (K, F, D) and ``counts`` (K, F) are the features' sums and the studies of each class and fold;
    ``ridge`` is relative to the mean variance. Only differences of logits matter. A class never seen has logit
    0, and ``log(count + 1)`` takes the place of a prior: with nothing known all classes are equal, and only
    priors are left where patients unseen are answered no better than by chance.
    """
    of_class = counts.sum(axis=1)
    weights, bias = np.zeros((len(sums), sums.shape[2])), np.log(of_class + 1)
    seen = np.flatnonzero(of_class)
    if len(seen) < 2:
        return weights, bias
    whole, sums, counts = spreads[0], sums[seen], counts[seen]
    strengths = STRENGTHS if ridge == "auto" else np.array([ridge])
    moments = _cross_validate(spreads[1:], sums, counts, strengths)
    best = _choose(*moments, counts)
    slopes, offsets = _discriminate(moments[0][best], moments[1][best], counts)
    answers, _ = _regress(whole, sums.sum(axis=1), of_class[seen], strengths[[best]])
    weights[seen] = slopes @ answers[0] @ whole.vectors.T
    bias[seen] += offsets - weights[seen] @ whole.mean + slopes @ (of_class[seen] / whole.n)
    return weights, bias


def _regress(spread: Spread, sums: Array, counts: Array, strengths: Array) -> tuple[Array, Array]:
    """Regress each class's membership for each strength: coefficients (S, K, D) along the eigenvectors, shares (K,)."""
    towards = (sums - np.outer(counts, spread.mean)) @ spread.vectors
    scale = max(float(spread.values.mean()), np.finfo(float).tiny)
    return towards / (spread.values + strengths[:, None, None] * scale), counts / max(spread.n, 1)


def _cross_validate(folds: list[Spread], sums: Array, counts: Array, strengths: Array) -> tuple[Array, Array]:
    """Sum the answers to every fold by the regression that never saw it.

    Returns: sums of the K answers by true class (S, K, K; answers first), and of their products (S, K, K).
    """
    k = len(counts)
    first, second = np.zeros((len(strengths), k, k)), np.zeros((len(strengths), k, k))
    for fold, spread in enumerate(folds):
        if spread.held_out is None or not spread.held_out[0]:
            continue
        n, features, products = spread.held_out
        answers, shares = _regress(spread, sums.sum(1) - sums[:, fold], counts.sum(1) - counts[:, fold], strengths)
        inside = (sums[:, fold] - np.outer(counts[:, fold], spread.mean)) @ spread.vectors
        first += answers @ inside.T + np.outer(shares, counts[:, fold])
        linear = (answers @ features)[:, :, None] * shares
        second += (answers @ products) @ answers.transpose(0, 2, 1)
        second += linear + linear.transpose(0, 2, 1) + n * np.outer(shares, shares)
    return first, second


def _choose(first: Array, second: Array, counts: Array) -> int:
    """Choose the strength of the least squared error; of near-equals the largest."""
    errors = np.trace(second, axis1=1, axis2=2) - 2 * np.trace(first, axis1=1, axis2=2) + counts.sum()
    return int(np.flatnonzero(errors <= errors.min() * (1 + 1e-6) + 1e-9)[-1])


def _discriminate(first: Array, second: Array, counts: Array) -> tuple[Array, Array]:
    """Give slopes (K, K) and offsets (K,) that turn K answers into logits less the priors."""
    of_class = counts.sum(axis=1)
    n, k = of_class.sum(), len(of_class)
    means = first / of_class  # column c: the mean answers to studies of class c
    centre = first.sum(axis=1) / n
    apart = means - centre[:, None]
    if n <= k or np.trace(apart) <= 0:
        return np.zeros((k, k)), np.zeros(k)
    shares = of_class / n
    one_more = np.diag(shares) - np.outer(shares, shares)  # as if one more study had been answered blindly
    within = second - (means * of_class) @ means.T + one_more
    slopes = (np.linalg.pinv(within / (n - k + 1), rcond=1e-9, hermitian=True) @ apart).T
    return slopes, -0.5 * np.einsum("kj,jk->k", slopes, apart) - slopes @ centre
