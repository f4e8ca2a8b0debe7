"""Learning in closed form: what an analytic adapter does in place of training. No Avalanche here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from continual.adapters import BATCH, Adapter, Inputs
from continual.analytic import AT_ONCE, SUMS, AnalyticHead, AnalyticOnTop
from continual.experiences import Experience
from continual.task_training import TRAINING

EpochDone = Callable[[int, int, float], None]


class AnalyticLearner:
    """An analytic adapter in learning, with the face of ``continual.learner.Learner``.

    Every strategy comes to the same exact solution, so none is named. What the adapter brings along holds what
    it has learned, so that recalling a stage adds nothing, unless it brings nothing at all.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._brings = bool(analytic_head(adapter).get_buffer("count").any())

    @property
    def memory_studies(self) -> int:
        """Count the studies in a rehearsal memory: none is needed."""
        return 0

    def recall(self, experience: Experience) -> None:
        """Take in a stage that was learned already, where the adapter does not hold it."""
        if not self._brings:
            accumulate(self._adapter, experience)

    def learn(self, experience: Experience, epoch_done: EpochDone) -> tuple[float, ...]:
        """Learn a stage in one step; ``epoch_done`` is told 1, 1 and the loss afterwards. Returns that loss."""
        accumulate(self._adapter, experience)
        head, tokens = self._adapter.network.head, experience.tokens
        parts = range(0, len(tokens), AT_ONCE)
        with torch.inference_mode():
            logits = torch.cat([head(_embed(self._adapter, tokens[start : start + AT_ONCE])) for start in parts])
        loss = float(TRAINING[self._adapter.card.task].loss(logits.double(), torch.from_numpy(experience.labels)))
        epoch_done(1, 1, loss)
        return (loss,)


def accumulate(adapter: Adapter, studies: Experience) -> None:
    """Let an analytic adapter learn studies, of each the labels that are known; it is changed in place.

    Raises:
        ValueError: the adapter is of another kind, or was saved without its sums.
    """
    _update(adapter, studies, sign=1)


def remove(adapter: Adapter, studies: Experience) -> None:
    """Let an analytic adapter unlearn studies, for example all of one patient; it is changed in place.

    With the tokens and labels that it learned from, what is left equals the adapter that never saw them, to
    the bit where it reads cached embeddings. Learn an amended label by removing the old and adding the new.

    Raises:
        ValueError: as ``accumulate``, or these studies were not all learned; then nothing is changed.
    """
    _update(adapter, studies, sign=-1)


def without_sums(adapter: Adapter) -> Adapter:
    """Copy an analytic adapter without its sums: it scores the same and can learn and unlearn nothing more."""
    bare = adapter.copy()
    for name in SUMS:
        analytic_head(bare).get_buffer(name).zero_()
    return bare


def analytic_head(adapter: Adapter) -> AnalyticHead:
    """Give the head that learns in closed form.

    Raises:
        ValueError: the adapter is of another kind.
    """
    found = [*adapter.network.analytic().values()]
    if not found:
        raise ValueError(f'only adapter = "analytic" learns and unlearns in closed form, this is {adapter.card.kind}')
    return found[0]


def _update(adapter: Adapter, studies: Experience, *, sign: int) -> None:
    own, head = analytic_head(adapter), adapter.network.head
    with torch.no_grad():
        embedding = _embed(adapter, studies.tokens)
        seen = head.features_of(embedding) if isinstance(head, AnalyticOnTop) else embedding
    own.update(seen, studies.labels, studies.patient_key, sign=sign)


def _embed(adapter: Adapter, inputs: Inputs) -> Tensor:
    parts = [inputs[start : start + BATCH] for start in range(0, len(inputs), BATCH)]
    with torch.no_grad():
        return torch.cat([adapter.network.tail(torch.from_numpy(np.ascontiguousarray(p)).float()) for p in parts])
