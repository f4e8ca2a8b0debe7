# ruff: noqa: D102 - Avalanche names the hooks of a plugin, Protecting the rest
"""Strategies that hold back: weights near what mattered, or answers near what was answered before.

They store numbers about the model, no study; and only for the parameters that are trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from avalanche.training.plugins import EWCPlugin, SupervisedPlugin
from avalanche.training.utils import ParamData
from torch import Tensor
from torch.utils.data import Dataset

from continual.study_loop import Protecting, Rows, State, StudyLoop, answers, with_task


class ElasticWeights(Protecting, EWCPlugin):  # type: ignore[misc]
    """Hold each weight near its old value, the more the steeper the old loss is in it (Kirkpatrick et al. 2017, EWC).

    Avalanche's, but the importances are measured on batches gathered at once; a column for which no
    stage had labels yet asks for nothing, else a new class could not be learned; and the strength counts
    in average importances of the first stage. Importances are squared gradients: those of a head are some
    hundred times those of LoRA, and no one strength on Avalanche's scale fits both.
    """

    def __init__(self, strength: float) -> None:
        super().__init__(ewc_lambda=strength)
        self._strength = strength

    def after_training_exp(self, strategy: StudyLoop, **kwargs: Any) -> None:
        self._shown, self._seen = strategy.rows, strategy.seen
        super().after_training_exp(strategy, **kwargs)
        del self._shown
        self._set_scale()

    def _set_scale(self) -> None:
        average = float(torch.cat([value.data.flatten() for value in self.importances[0].values()]).mean())
        self.ewc_lambda = self._strength / average if average > 0 else self._strength

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
        return (
            _tell_weights({name: value.data for name, value in self.importances[0].items()}) if self.importances else ""
        )

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
        if self.importances:
            self._set_scale()


class PathIntegral(Protecting, SupervisedPlugin):  # type: ignore[misc]
    """Hold each weight by what moving it has won on its way (Zenke et al. 2017, synaptic intelligence).

    The way can be measured only while a stage is trained: what was merely recalled is not protected,
    unless the state of the training that learned it is restored.

    Avalanche 0.6's plugin does nothing on a CPU: the "old" weights that it keeps are views of the live
    ones, so that no weight ever moved. And its importances are cut at 0.001, where a small adapter's
    weights all look the same, may be below 0, which drives a weight away, and count the pull of the
    penalty itself as a gain. Here they lie between ``floor`` and ``ceiling``, with the paper's damping.
    """

    def __init__(
        self, strength: float, *, floor: float = 0.0, ceiling: float = math.inf, damping: float = 1e-3
    ) -> None:
        super().__init__()
        self._strength, self._bounds, self._damping = strength, (floor, ceiling), damping
        self._won: State = {}
        self._begin: State = {}
        self._way: State = {}
        self._restored: State | None = None

    def before_training_exp(self, strategy: StudyLoop, **kwargs: Any) -> None:
        weights = _weights(strategy)
        self._begin = {name: value.clone() for name, value in weights.items()}
        self._way = {name: torch.zeros_like(value) for name, value in weights.items()}
        for name, value in weights.items():
            self._won.setdefault(name, torch.zeros_like(value))
        for name, value in (self._restored or {}).items():
            part, _, weight = name.partition(".")
            held = {"won": self._won, "begin": self._begin, "way": self._way}[part]
            if weight not in held:
                raise ValueError(f"the state has {weight!r}, which this adapter has not; restore it into the same kind")
            held[weight] = _widen(value, held[weight])
        self._restored = None

    def before_training_iteration(self, strategy: StudyLoop, **kwargs: Any) -> None:
        self._old = {name: value.clone() for name, value in _weights(strategy).items()}

    def before_backward(self, strategy: StudyLoop, **kwargs: Any) -> None:
        for name, value in strategy.model.named_parameters():
            moved = (value - self._begin[name]) ** 2
            strategy.loss += self._strength / 2 * (self._importance(name) * moved).sum()

    @torch.no_grad()
    def after_training_iteration(self, strategy: StudyLoop, **kwargs: Any) -> None:
        for name, value in strategy.model.named_parameters():
            if value.grad is not None:
                pull = self._strength * self._importance(name) * (self._old[name] - self._begin[name])
                self._way[name] += (value.grad - pull) * (value - self._old[name])

    def after_training_exp(self, strategy: StudyLoop, **kwargs: Any) -> None:
        for name, value in _weights(strategy).items():
            self._won[name] = self._won[name] - self._way[name] / ((value - self._begin[name]) ** 2 + self._damping)
        self._begin, self._way = {}, {}

    def protecting(self) -> str:
        return _tell_weights({name: value for name, value in self._won.items() if bool(value.any())})

    def state(self) -> State:
        """Give what was won, and inside a stage the way so far and where it began."""
        if self._restored is not None:
            return self._restored
        parts = {"won": self._won, "begin": self._begin, "way": self._way}
        return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}

    def restore(self, state: State) -> None:
        self._restored = dict(state)

    def _importance(self, name: str) -> Tensor:
        return self._won[name].clamp(*self._bounds)


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


def _weights(strategy: StudyLoop) -> State:
    return {name: value.detach() for name, value in strategy.model.named_parameters()}


def _tell_weights(values: Mapping[str, Tensor]) -> str:
    count = sum(value.numel() for value in values.values())
    return f"holding {count:,} weights near what mattered" if count else ""


def _widen(value: Tensor, like: Tensor) -> Tensor:
    """Append rows of zeros, for those that a head has grown by."""
    if value.shape[1:] != like.shape[1:] or len(value) > len(like):
        raise ValueError(
            f"the state has a weight of shape {tuple(value.shape)}, the adapter one of {tuple(like.shape)}"
        )
    return torch.cat([value, value.new_zeros((len(like) - len(value), *like.shape[1:]))])
