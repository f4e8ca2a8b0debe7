"""How Avalanche's loop is fed: studies gathered by index, the chance of every epoch from a seed of its own.

Avalanche's own loaders fetch one study after another, which costs more than training a head on it, and
draw from torch's global generator, so that any other thread could change a result. Here a batch is one
gather. The draws are made as torch's loaders make theirs, so that both give the same batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.scenarios.dataset_scenario import benchmark_from_datasets
from avalanche.benchmarks.utils import make_avalanche_dataset
from avalanche.benchmarks.utils.data_attribute import TaskLabels
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from avalanche.training.supervised import Naive
from torch import Tensor
from torch.utils.data import TensorDataset

Rows = tuple[Tensor, ...]
"""Columns of the same studies: tokens (n, T, width), labels (n, columns), and whatever else goes with them."""

State = dict[str, Tensor]

OTHER_ROWS = 1
"""Which of an epoch's draws orders the rows that a plugin gathers beside the batches."""


class Protecting:
    """What every plugin of a strategy can tell beside the hooks that Avalanche names."""

    def protecting(self) -> str:
        """Say what keeps the past from being forgotten; empty where nothing does yet."""
        return ""

    def state(self) -> State:
        """Give what was measured and could not be measured again, at the end of an epoch or a stage."""
        return {}

    def restore(self, state: State) -> None:
        """Take up what `state` gave, after the stages that were finished by then were recalled.

        Raises:
            ValueError: it does not fit.
        """
        if state:
            raise ValueError(f"{', '.join(state)} is kept by another strategy; use the run's own state")


class StudyLoader:
    """Batches of an epoch, so many studies of every part each: as many as show the first part once.

    Shorter parts start again. ``studies`` may say how many studies of the first part are shown instead.
    """

    def __init__(self, parts: Sequence[Rows], batch_size: int, *, studies: int = 0) -> None:
        self.parts = list(parts)
        self.batch_size = batch_size
        self.seed = 0
        self._studies = studies or len(self.parts[0][0])

    def __len__(self) -> int:
        return math.ceil(self._studies / self.batch_size)

    def __iter__(self) -> Iterator[list[Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        _draw_seed(generator)  # torch's loader draws one for its workers first
        streams = [_endless_rows(len(part[0]), self.batch_size, generator) for part in self.parts]
        for _ in range(len(self)):
            taken = [
                [column[rows] for column in part]
                for part, rows in ((part, next(stream)) for part, stream in zip(self.parts, streams, strict=True))
            ]
            yield with_task([torch.cat(columns) for columns in zip(*taken, strict=True)])

    def attach(self, columns: Sequence[Tensor]) -> None:
        """Give every part one more column, which comes in the batches before the task."""
        self.parts = [(*part, column) for part, column in zip(self.parts, columns, strict=True)]


def endless_batches(rows: Rows, batch_size: int, seed: int) -> Iterator[list[Tensor]]:
    """Go through studies in random order again and again, a batch at a time."""
    generator = torch.Generator().manual_seed(seed)
    for taken in _endless_rows(len(rows[0]), batch_size, generator):
        yield with_task([column[taken] for column in rows])


def with_task(columns: list[Tensor]) -> list[Tensor]:
    """Append the task that Avalanche expects at the end of a batch: there is one."""
    return [*columns, torch.zeros(len(columns[0]), dtype=torch.int64)]


def join(parts: Sequence[Rows]) -> Rows:
    """Put the rows of several parts under each other."""
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


def tell_stages(count: int) -> str:
    """Say how many stages."""
    return f"{count} stage" if count == 1 else f"{count} stages"


@torch.no_grad()
def answers(model: torch.nn.Module, tokens: Tensor, batch_size: int) -> Tensor:
    """Compute a model's logits (n, columns) as it stands, without training it."""
    training = model.training
    model.eval()
    logits = torch.cat([model(part) for part in torch.split(tokens, batch_size)])
    model.train(training)
    return logits


class StudyLoop(Naive):  # type: ignore[misc]
    """Avalanche's plain training loop, fed by `StudyLoader`; one stage at a time.

    For plugins: ``rows`` are the stage's tokens and labels; ``known`` and ``seen`` say for each score
    column whether an earlier stage, or this one too, had labels of it; ``stage`` counts from 0.
    ``first_epoch`` is where a stage goes on that was interrupted.
    """

    def __init__(self, *, seed: int, columns: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.seed, self.stage, self.first_epoch = seed, 0, 0
        self.rows: Rows = ()
        self.known = self.seen = torch.zeros(columns, dtype=torch.bool)

    def show(self, rows: Rows, columns: Tensor) -> None:
        """Show a stage for ``train_epochs`` epochs; ``columns`` are the score columns its labels speak of."""
        self.rows, self.known, self.seen = rows, self.seen, self.seen | columns
        dataset = make_avalanche_dataset(
            TensorDataset(*rows), data_attributes=[TaskLabels(ConstantSequence(0, len(rows[0])))]
        )
        self.train(benchmark_from_datasets(train=[dataset]).train_stream)
        self.stage += 1

    def make_train_dataloader(self, **kwargs: Any) -> None:
        """Gather batches from the stage's rows; a plugin may add parts to it or put another in its place."""
        self.dataloader = StudyLoader([self.rows], self.train_mb_size)

    def draw(self, purpose: int = 0) -> int:
        """Draw a seed that depends on nothing but the policy's seed, the stage, the epoch and the purpose."""
        epoch = self.first_epoch + self.clock.train_exp_epochs
        return int(np.random.default_rng([self.seed, self.stage, epoch, purpose]).integers(2**31))

    def _before_training_epoch(self, **kwargs: Any) -> None:
        self.dataloader.seed = self.draw()
        torch.default_generator.manual_seed(self.draw())  # for layers that draw, such as dropout
        super()._before_training_epoch(**kwargs)


def _draw_seed(generator: torch.Generator) -> int:
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator).item())


def _endless_rows(n: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        order = torch.randperm(n, generator=torch.Generator().manual_seed(_draw_seed(generator)))
        yield from torch.split(order, batch_size)
