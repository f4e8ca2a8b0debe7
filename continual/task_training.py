"""Everything in training that depends on the task: what logits mean, their loss, and how far answers have moved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from monitor.tasks import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTraining:
    """How a task's logits become probabilities, and its loss of logits and labels (NaN: not counted).

    ``columns`` says of which score columns labels (n, label columns) speak, given how many there are.
    ``distance`` is how far answers are from earlier ones of the same columns, both as logits.
    """

    activate: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    columns: Callable[[Tensor, int], Tensor]
    distance: Callable[[Tensor, Tensor], Tensor]


def _yes_no_loss(logits: Tensor, labels: Tensor) -> Tensor:
    known = ~labels.isnan()
    return functional.binary_cross_entropy_with_logits(logits[known], labels[known].to(logits.dtype))


def _one_of_loss(logits: Tensor, labels: Tensor) -> Tensor:
    known = ~labels[:, 0].isnan()
    return functional.cross_entropy(logits[known], labels[known, 0].long())


TEMPERATURE = 2.0
"""How far answers are softened before they are compared, as Li and Hoiem 2016 do."""


def _yes_no_distance(logits: Tensor, earlier: Tensor) -> Tensor:
    """Average the Kullback-Leibler divergence of each answer from the earlier one, both softened."""
    earlier = torch.sigmoid(earlier / TEMPERATURE)
    apart = functional.binary_cross_entropy_with_logits(logits / TEMPERATURE, earlier)
    return apart - functional.binary_cross_entropy(earlier, earlier)


def _one_of_distance(logits: Tensor, earlier: Tensor) -> Tensor:
    """Average the Kullback-Leibler divergence of each study's answer from the earlier one, both softened."""
    said = torch.log_softmax(logits / TEMPERATURE, dim=1)
    return functional.kl_div(said, torch.softmax(earlier / TEMPERATURE, dim=1), reduction="batchmean")


def _given_classes(labels: Tensor, columns: int) -> Tensor:
    known = labels[~labels.isnan()].long()
    return torch.bincount(known, minlength=columns) > 0


YES_NO = TaskTraining(
    activate=torch.sigmoid,
    loss=_yes_no_loss,
    columns=lambda labels, columns: ~labels.isnan().all(dim=0),
    distance=_yes_no_distance,
)
TRAINING: dict[Task, TaskTraining] = {
    Task.BINARY: YES_NO,
    Task.MULTI_CLASS: TaskTraining(
        activate=lambda logits: torch.softmax(logits, dim=1),
        loss=_one_of_loss,
        columns=_given_classes,
        distance=_one_of_distance,
    ),
    Task.MULTI_LABEL: YES_NO,
}
