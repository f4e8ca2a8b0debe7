# ruff: noqa: D102 - Avalanche names the hooks of a plugin, Protecting the rest
"""Generative replay: instead of studies, a law of their embeddings given their labels is kept.

One law a stage: a linear Gaussian, the embedding's mean moving with every label, with a covariance shrunk
as Ledoit and Wolf (2004) do; over the stages it is a mixture. With hundreds of studies of hundreds of
numbers each this draws better embeddings than a small autoencoder learns to, fits in milliseconds and
gives the same bits every time. What is kept is a mean, a slope for each label and a covariance, each over
all studies of the stage, and how often each set of labels occurs: no patient's embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from avalanche.training.plugins import SupervisedPlugin
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf

from continual.study_loop import OTHER_ROWS, Protecting, Rows, StudyLoader, StudyLoop, join, tell_stages

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

    def draw(self, n: int, generator: np.random.Generator) -> Rows:
        """Draw tokens (n, 1, width) and labels (n, label columns) of nobody."""
        rows = generator.choice(len(self.shares), size=n, p=self.shares)
        noise = generator.standard_normal((n, len(self.factor)), dtype=np.float32)
        tokens = self.means[rows].astype(np.float32) + noise @ self.factor.T.astype(np.float32)
        return torch.from_numpy(tokens[:, None]), torch.from_numpy(self.labels[rows])


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


class GenerativeReplay(Protecting, SupervisedPlugin):  # type: ignore[misc]
    """Rehearse embeddings drawn from the laws of earlier stages, one for each new study (Shin et al. 2017).

    Avalanche's plugin labels what was drawn by the highest logit, which a yes/no answer does not have,
    and draws from the global generator. Here an embedding is drawn for its label.
    """

    def __init__(self) -> None:
        super().__init__()
        self._laws: list[EmbeddingLaw] = []

    def before_training_exp(self, strategy: StudyLoop, **kwargs: Any) -> None:
        if (tokens := strategy.rows[0]).shape[1] != 1:
            raise ValueError(
                f"generative replay draws one vector a study, these have {tokens.shape[1]} tokens: set blocks = 0 "
                'under [backbone] and adapter = "head", or use the strategy replay'
            )
        if self._laws:
            drawn_each_epoch = strategy.rows[0][:0], strategy.rows[1][:0]
            strategy.dataloader = StudyLoader([strategy.rows, drawn_each_epoch], strategy.train_mb_size)

    def before_training_epoch(self, strategy: StudyLoop, **kwargs: Any) -> None:
        """Draw new studies for the epoch, as many of each stage."""
        if self._laws:
            generator = np.random.default_rng(strategy.draw(OTHER_ROWS))
            each = -(-len(strategy.rows[0]) // len(self._laws))
            strategy.dataloader.parts[1] = join([law.draw(each, generator) for law in self._laws])

    def after_training_exp(self, strategy: StudyLoop, **kwargs: Any) -> None:
        tokens, labels = strategy.rows
        self._laws.append(fit_law(tokens[:, 0].double().numpy(), labels.double().numpy()))

    def protecting(self) -> str:
        return f"rehearsing embeddings drawn as those of {tell_stages(len(self._laws))}" if self._laws else ""


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
