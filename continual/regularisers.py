# ruff: noqa: D102 - Avalanche names the hooks of a plugin, Protecting the rest
"""Strategies that hold back: weights near what mattered, or answers near what was answered before.

They store numbers about the model, no study; and only for the parameters that are trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from avalanche.training.plugins import EWCPlugin, SupervisedPlugin, SynapticIntelligencePlugin
from avalanche.training.utils import ParamData
from torch import Tensor
from torch.utils.data import Dataset

from continual.study_loop import Protecting, Rows, State, StudyLoop, answers, with_task


class ElasticWeights(Protecting, EWCPlugin):  # type: ignore[misc]
    """Hold each weight near its old value, the more the steeper the old loss is in it (Kirkpatrick et al. 2017, EWC).

    Avalanche's, but the importances are measured on batches gathered at once, and a column for which no
    stage had labels yet asks for nothing: else a new class could not be learned.
    """

    def __init__(self, strength: float) -> None:
        super().__init__(ewc_lambda=strength)

    def after_training_exp(self, strategy: StudyLoop, **kwargs: Any) -> None:
        self._shown, self._seen = strategy.rows, strategy.seen
        super().after_training_exp(strategy, **kwargs)
        del self._shown

    def compute_importances(self, model: Any, criterion: Any, *others: Any, **options: Any) -> dict[str, ParamData]:
        """Measure the importances of the stage that was shown."""

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            asked: Tensor = criterion(logits.masked_fill(~self._seen, -math.inf), labels)
            return asked

        optimizer, _, *rest = others  # the dataset, which would be read study by study
        importances: dict[str, ParamData] = super().compute_importances(
            model, loss, optimizer, _Gathered(self._shown), *rest, **options
        )
        return importances

    def protecting(self) -> str:
        return _tell_weights(self.importances[0]) if self.importances else ""

    def state(self) -> State:
        return {
            f"{stage}.{what}.{name}": value.data
            for what, stages in (("importance", self.importances), ("weight", self.saved_params))
            for stage, values in stages.items()
            for name, value in values.items()
        }

    def restore(self, state: State) -> None:
        mine = self.state()
        if {name: value.shape for name, value in mine.items()} != {name: value.shape for name, value in state.items()}:
            raise ValueError("the state is of other stages or another adapter; recall the same stages first")
        for name, value in state.items():
            mine[name].copy_(value)


class PathIntegral(Protecting, SynapticIntelligencePlugin):  # type: ignore[misc]
    """Hold each weight by what moving it has won on its way (Zenke et al. 2017, synaptic intelligence).

    The path can be measured only while a stage is trained: what was merely recalled is not protected,
    unless the state of the training that learned it is restored. Avalanche's importances are cut at
    0.001, at which a small adapter's weights all look the same, and may be below 0, which pushes a weight
    away; here they have a floor of 0 and no ceiling, and the damping is the paper's.
    """

    def __init__(
        self, strength: float, *, floor: float = 0.0, ceiling: float = math.inf, damping: float = 1e-3
    ) -> None:
        super().__init__(si_lambda=strength, eps=damping)
        self._floor, self._ceiling = floor, ceiling
        self._restored: State = {}
        self._training = False

    def before_training_exp(self, strategy: StudyLoop, **kwargs: Any) -> None:
        super().before_training_exp(strategy, **kwargs)
        for name, value in self._restored.items():
            self._held(name).copy_(_widen(value, self._held(name)))
        self._restored, self._training = {}, bool(strategy.train_epochs)

    def after_training_exp(self, strategy: StudyLoop, **kwargs: Any) -> None:
        self.update_ewc_data(
            strategy.model, self.ewc_data, self.syn_data, self._ceiling, self.excluded_parameters, 1, eps=self.eps
        )
        for importance in self.ewc_data[1].values():
            importance.data = importance.data.clamp(min=self._floor)
        self._training = False

    def protecting(self) -> str:
        measured = any(bool(value.data.any()) for value in self.ewc_data[1].values())
        return _tell_weights(self.ewc_data[1]) if measured else ""

    def state(self) -> State:
        """Give what was measured, and inside a stage the way so far and where it began."""
        if self._restored:
            return self._restored
        parts = {"won": self.syn_data["cum_trajectory"], "importance": self.ewc_data[1]}
        if self._training:
            parts |= {"way": self.syn_data["trajectory"], "begin": self.ewc_data[0]}
        return {f"{part}.{name}": value.data for part, values in parts.items() for name, value in values.items()}

    def restore(self, state: State) -> None:
        self._restored = dict(state)

    def _held(self, name: str) -> Tensor:
        part, _, parameter = name.partition(".")
        places = {"won": self.syn_data["cum_trajectory"], "importance": self.ewc_data[1]}
        places |= {"way": self.syn_data["trajectory"], "begin": self.ewc_data[0]}
        if parameter not in places.get(part, {}):
            raise ValueError(f"the state has {name!r}, which this adapter has not; restore it into the same kind")
        held: Tensor = places[part][parameter].data
        return held


class Distillation(Protecting, SupervisedPlugin):  # type: ignore[misc]
    """Keep the answers near those that the model gave before the stage (Li and Hoiem 2016, LwF).

    Avalanche's needs integer targets and compares by softmax, which has nothing to say of a yes/no
    answer; and it runs a copy of the old model every step. Here the comparison is the task's, the old
    answers are computed once a stage, and only columns of which earlier stages had labels are compared.
    """

    def __init__(self, strength: float, distance: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._strength, self._distance = strength, distance
        self._columns: list[Tensor] = []
        self._restored: list[Tensor] = []

    def before_training_exp(self, strategy: StudyLoop, **kwargs: Any) -> None:
        if not (strategy.known.any() and strategy.train_epochs):
            return
        parts, size = strategy.dataloader.parts, strategy.train_mb_size
        self._columns = self._restored or [answers(strategy.model, part[0], size) for part in parts]
        self._restored = []
        strategy.dataloader.attach(self._columns)

    def before_backward(self, strategy: StudyLoop, **kwargs: Any) -> None:
        if self._columns:
            before = strategy.mbatch[-2][:, strategy.known]
            strategy.loss += self._strength * self._distance(strategy.mb_output[:, strategy.known], before)

    def after_training_exp(self, strategy: StudyLoop, **kwargs: Any) -> None:
        self._columns = []

    def protecting(self) -> str:
        return "keeping the answers given before" if self._columns else ""

    def state(self) -> State:
        return {f"answers.{part}": column for part, column in enumerate(self._columns or self._restored)}

    def restore(self, state: State) -> None:
        self._restored = [state[f"answers.{part}"] for part in range(len(state))]


class _Gathered(Dataset[list[Tensor]]):
    """Rows as a data set that gives a whole batch at once."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows[0])

    def __getitems__(self, taken: list[int]) -> list[Tensor]:
        return with_task([column[taken] for column in self._rows])

    @staticmethod
    def collate_fn(batch: list[Tensor]) -> list[Tensor]:
        """Leave the batch as it is."""
        return batch


def _tell_weights(values: dict[str, ParamData]) -> str:
    return f"holding {sum(value.data.numel() for value in values.values()):,} weights near what mattered"


def _widen(value: Tensor, like: Tensor) -> Tensor:
    """Append zeros, for the rows that a head has grown by; both are flat."""
    return torch.cat([value, value.new_zeros(len(like) - len(value))]) if len(value) < len(like) else value
