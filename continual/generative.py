# ruff: noqa: D102 - Avalanche names the hooks of a plugin, Protecting the rest
"""Generative replay: instead of studies, a law of their embeddings given their labels is kept for each stage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from avalanche.training.plugins import SupervisedPlugin
from numpy.typing import NDArray

from continual.embedding_law import EmbeddingLaw, fit_law
from continual.study_loop import OTHER_ROWS, Protecting, Rows, StudyLoader, StudyLoop, join, tell_stages


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
            strategy.dataloader.parts[1] = join([_as_rows(law.draw(each, generator)) for law in self._laws])

    def after_training_exp(self, strategy: StudyLoop, **kwargs: Any) -> None:
        tokens, labels = strategy.rows
        self._laws.append(fit_law(tokens[:, 0].double().numpy(), labels.double().numpy()))

    def protecting(self) -> str:
        return f"rehearsing embeddings drawn as those of {tell_stages(len(self._laws))}" if self._laws else ""


def _as_rows(drawn: Iterable[NDArray[Any]]) -> Rows:
    return tuple(map(torch.from_numpy, drawn))
