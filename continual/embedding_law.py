"""A law of embeddings given their labels, that can be kept where no study may be. Pure.

A linear Gaussian: the mean moves with every label, the covariance is shrunk as Ledoit and Wolf (2004) do.
With hundreds of studies of hundreds of numbers each it draws better embeddings than a small autoencoder
learns to, fits in milliseconds and gives the same bits every time. What is kept is a mean, a slope for each
label and a covariance, each over all studies, and how often each set of labels occurs: no patient's embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf

FEWEST = 5
"""Of how many studies a label must be to move the mean: fewer would give their own embeddings away."""

ENOUGH = 20_000
"""To how many studies a law is fitted at most; more do not change it, and cost gigabytes."""

UNKNOWN = -1.0

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EmbeddingLaw:
    """How embeddings (width,) are spread: around ``means`` (m, width), one for each row of ``labels``.

    ``labels`` (m, label columns), NaN where unknown, occur with ``shares`` (m,); the covariance is
    ``factor`` times its transpose, shape (width, width).
    """

    labels: Doubles
    shares: Doubles
    means: Doubles
    factor: Doubles

    def draw(self, n: int, generator: np.random.Generator) -> tuple[NDArray[np.float32], Doubles]:
        """Draw tokens (n, 1, width) and labels (n, label columns) of nobody."""
        rows = generator.choice(len(self.shares), size=n, p=self.shares)
        noise = generator.standard_normal((n, len(self.factor)), dtype=np.float32)
        tokens = self.means[rows].astype(np.float32) + noise @ self.factor.T.astype(np.float32)
        return tokens[:, None], self.labels[rows]


def fit_law(embeddings: Doubles, labels: Doubles) -> EmbeddingLaw:
    """Fit the law of embeddings (n, width) given labels (n, label columns), NaN where unknown."""
    step = -(-len(labels) // ENOUGH)
    embeddings, labels = embeddings[::step], labels[::step]
    coded, counts = np.unique(np.nan_to_num(labels, nan=UNKNOWN), axis=0, return_counts=True)
    rows = np.where(coded == UNKNOWN, np.nan, coded)
    levels = _levels(labels)
    design = _indicate(labels, levels)
    slopes = np.linalg.lstsq(design, embeddings, rcond=None)[0]
    covariance, _ = ledoit_wolf(embeddings - design @ slopes, assume_centered=True)
    width = len(covariance)
    jitter = 1e-6 * max(np.trace(covariance) / width, 1e-6)
    return EmbeddingLaw(
        labels=rows,
        shares=counts / counts.sum(),
        means=_indicate(rows, levels) @ slopes,
        factor=np.linalg.cholesky(covariance + jitter * np.eye(width)),
    )


def _levels(labels: Doubles) -> list[tuple[int, float]]:
    """List what a label column may say, beyond the most usual; what too few studies say is left out."""
    found = []
    for column in range(labels.shape[1]):
        values, counts = np.unique(labels[~np.isnan(labels[:, column]), column], return_counts=True)
        usual = np.argmax(counts) if len(counts) else 0
        found += [(column, v) for i, v in enumerate(values) if i != usual and counts[i] >= FEWEST]
    return found


def _indicate(labels: Doubles, levels: list[tuple[int, float]]) -> Doubles:
    return np.column_stack([np.ones(len(labels)), *(labels[:, column] == value for column, value in levels)])
