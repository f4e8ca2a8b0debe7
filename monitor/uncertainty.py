"""How unsure a model is of its own answers, study by study."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from monitor.tasks import Task

Floats = NDArray[np.float64]


def entropy(scores: Floats, task: Task) -> Floats:
    """Measure the entropy of each study's answer in bits; scores (n, columns), result (n,), 0 where it is certain.

    Binary: of the two chances. Multi-class: of the distribution over the classes (Shannon 1948). Multi-label: the
    mean over the findings, each a question of its own.
    """
    return ENTROPY[task](scores)


def margin(scores: Floats, task: Task) -> Floats:
    """Measure how far the most probable answer lies above the next; scores (n, columns), result (n,) in [0, 1].

    Binary and multi-label: |p - (1 - p)|, for several findings that of the least sure one. Multi-class: between the
    two most probable classes.
    """
    return MARGIN[task](scores)


def _of_questions(scores: Floats) -> Floats:
    return np.asarray((entr(scores) + entr(1 - scores)).mean(axis=1) / np.log(2))


def _of_distribution(scores: Floats) -> Floats:
    shares = scores / np.maximum(scores.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return np.asarray(entr(shares).sum(axis=1) / np.log(2))


def _between_answers(scores: Floats) -> Floats:
    return np.asarray(np.abs(2 * scores - 1).min(axis=1))


def _between_classes(scores: Floats) -> Floats:
    best = np.sort(scores, axis=1)[:, -2:]
    return np.asarray(best[:, 1] - best[:, 0])


ENTROPY: Mapping[Task, Callable[[Floats], Floats]] = {
    Task.BINARY: _of_questions,
    Task.MULTI_CLASS: _of_distribution,
    Task.MULTI_LABEL: _of_questions,
}
MARGIN: Mapping[Task, Callable[[Floats], Floats]] = {
    Task.BINARY: _between_answers,
    Task.MULTI_CLASS: _between_classes,
    Task.MULTI_LABEL: _between_answers,
}
