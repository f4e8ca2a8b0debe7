# ruff: noqa: D102 - Avalanche names the hooks of a plugin, Protecting the rest
"""Strategies that rehearse: a small memory of studies of the past, and what is done with it.

A memory is filled after each stage, trained or recalled. With latent rehearsal it holds tokens, no images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from avalanche.training.plugins import AGEMPlugin, SupervisedPlugin
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from continual.experiences import Experience, share_memory
from continual.memory_selection import rank_for_rehearsal
from continual.study_loop import (
    OTHER_ROWS,
    Protecting,
    Rows,
    State,
    StudyLoader,
    StudyLoop,
    answers,
    endless_batches,
    join,
    tell_stages,
)


class PatientBalancedMemory:
    """A rehearsal memory shared evenly over stages, balanced over labels and patients within each.

    It holds rows of its own: what was not chosen is let go.
    """

    def __init__(self, max_size: int, selection: str = "reservoir") -> None:
        self.max_size, self.selection = max_size, selection
        self.kept: list[Rows] = []
        self._next: NDArray[np.intp] = np.empty(0, dtype=np.intp)

    def __len__(self) -> int:
        return sum(len(rows[0]) for rows in self.kept)

    @property
    def stages(self) -> int:
        """Count the stages that are rehearsed."""
        return sum(bool(len(rows[0])) for rows in self.kept)

    def expect(
        self, experience: Experience, generator: np.random.Generator, difficulty: NDArray[np.float64] | None = None
    ) -> None:
        """Rank the studies of the stage that is shown next; see ``rank_for_rehearsal``."""
        self._next = rank_for_rehearsal(experience, generator, self.selection, difficulty, most=self.max_size)

    def update(self, rows: Rows) -> None:
        """Take in the stage that was shown: the best ranked studies of every stage within the size."""
        ranking = torch.from_numpy(self._next[: self.max_size])
        self.kept.append(tuple(column[ranking] for column in rows))
        shares = share_memory([len(kept[0]) for kept in self.kept], self.max_size)
        self.kept = [
            tuple(column[:share].clone() for column in kept) for kept, share in zip(self.kept, shares, strict=True)
        ]

    def rows(self) -> Rows:
        """Give all that is kept."""
        return join(self.kept)

    def __str__(self) -> str:
        return f"rehearsing {len(self):,} studies of {tell_stages(self.stages)}" if len(self) else ""


class Everything(PatientBalancedMemory):
    """A memory without a limit: the ceiling that a rehearsal memory is compared with."""

    def __init__(self) -> None:
        super().__init__(max_size=0)

    def update(self, rows: Rows) -> None:
        """Keep the stage whole."""
        self.kept.append(rows)


class Rehearsal(Protecting, SupervisedPlugin):  # type: ignore[misc]
    """Mix remembered studies into every batch, one for each new one (Chaudhry et al. 2019, experience replay).

    Avalanche's ReplayPlugin does the same with a loader that fetches study by study and draws from the
    global generator.
    """

    def __init__(self, memory: PatientBalancedMemory) -> None:
        super().__init__()
        self._memory = memory

    def before_training_exp(self, strategy: StudyLoop, **kwargs: Any) -> None:
        if len(self._memory):
            strategy.dataloader = StudyLoader([strategy.rows, self._memory.rows()], strategy.train_mb_size)

    def after_training_exp(self, strategy: StudyLoop, **kwargs: Any) -> None:
        self._memory.update(strategy.rows)

    def protecting(self) -> str:
        return str(self._memory)


class Cumulative(Protecting, SupervisedPlugin):  # type: ignore[misc]
    """Train on all stages so far together.

    Avalanche has this as a template of its own, which could not be one of several plugins of one loop.
    """

    def __init__(self, memory: PatientBalancedMemory) -> None:
        super().__init__()
        self._memory = memory

    def before_training_exp(self, strategy: StudyLoop, **kwargs: Any) -> None:
        strategy.dataloader = StudyLoader([join([*self._memory.kept, strategy.rows])], strategy.train_mb_size)

    def after_training_exp(self, strategy: StudyLoop, **kwargs: Any) -> None:
        self._memory.update(strategy.rows)

    def protecting(self) -> str:
        return str(self._memory)


class GreedyMemory(Protecting, SupervisedPlugin):  # type: ignore[misc]
    """Start from a fresh adapter at every stage and train on the memory alone (Prabhu et al. 2020, GDumb).

    Fresh is what the adapter was when it was made, before any training: the frozen backbone stays, the
    champion's adapter is forgotten, and only what the memory holds can be learned again. Avalanche's
    GDumbPlugin puts a copy in the model's place, which would leave the adapter itself untrained, and
    balances its memory by integer targets, which multi-label studies do not have.
    """

    def __init__(self, memory: PatientBalancedMemory, fresh: State) -> None:
        super().__init__()
        self._memory, self._fresh = memory, fresh
        self._training = self._resumed = False

    def before_training_exp(self, strategy: StudyLoop, **kwargs: Any) -> None:
        self._memory.update(strategy.rows)
        size, shown = strategy.train_mb_size, max(len(self._memory), len(strategy.rows[0]))  # steps, as others make
        strategy.dataloader = StudyLoader([self._memory.rows()], size, studies=shown)
        if strategy.train_epochs and not self._resumed:
            self._start_afresh(strategy)
        self._training, self._resumed = True, False

    @torch.no_grad()
    def _start_afresh(self, strategy: StudyLoop) -> None:
        for name, parameter in strategy.model.network.trainable().items():
            parameter.copy_(self._fresh[name])
        strategy.optimizer.state.clear()

    def after_training_exp(self, strategy: StudyLoop, **kwargs: Any) -> None:
        self._training = False

    def protecting(self) -> str:
        return str(self._memory)

    def state(self) -> State:
        return {"started": torch.ones(1)} if self._training else {}

    def restore(self, state: State) -> None:
        self._resumed = "started" in state


class GradientEpisodicMemory(Protecting, AGEMPlugin):  # type: ignore[misc]
    """Turn each step so that it does not raise the loss on a sample of the memory (Chaudhry et al. 2019, A-GEM).

    The turning is Avalanche's. Its own memory shuffles with Python's global generator and remembers
    where its loader stands between stages; ours is the shared memory, in a new order every epoch.
    """

    def __init__(self, memory: PatientBalancedMemory, sample_size: int) -> None:
        super().__init__(patterns_per_experience=memory.max_size, sample_size=sample_size)
        self._memory = memory

    def before_training_epoch(self, strategy: StudyLoop, **kwargs: Any) -> None:
        if self.buffers:
            self.buffer_dliter = endless_batches(self._memory.rows(), self.sample_size, strategy.draw(OTHER_ROWS))

    def after_training_exp(self, strategy: StudyLoop, **kwargs: Any) -> None:
        self._memory.update(strategy.rows)
        self.buffers = self._memory.kept

    def protecting(self) -> str:
        return str(self._memory).replace("rehearsing", "checking every step against")


class DarkExperience(Protecting, SupervisedPlugin):  # type: ignore[misc]
    """Rehearse old studies with the logits they once had (Buzzega et al. 2020, DER; with ``beta`` DER++).

    Avalanche has this as a template with cross-entropy written into it and a memory by integer targets:
    it can do neither yes/no questions nor a head that has grown. Here the memory is shared, the loss the
    task's, and a column that had no labels yet when the logits were kept is not asked for.
    """

    def __init__(self, memory: PatientBalancedMemory, alpha: float, beta: float) -> None:
        super().__init__()
        self._memory, self._alpha, self._beta = memory, alpha, beta
        self._batches: Iterator[list[Tensor]] | None = None

    def before_training_epoch(self, strategy: StudyLoop, **kwargs: Any) -> None:
        if len(self._memory):
            self._batches = endless_batches(self._memory.rows(), strategy.train_mb_size, strategy.draw(OTHER_ROWS))

    def before_forward(self, strategy: StudyLoop, **kwargs: Any) -> None:
        """Let old and new studies pass through the network together."""
        if self._batches is not None:
            tokens, self._labels, self._logits, _ = next(self._batches)
            strategy.mbatch[0] = torch.cat([tokens, strategy.mbatch[0]])

    def after_forward(self, strategy: StudyLoop, **kwargs: Any) -> None:
        """Keep what was said of the old studies apart, so that the loop sees the new ones alone."""
        if self._batches is not None:
            old = len(self._labels)
            self._said, strategy.mb_output = strategy.mb_output[:old], strategy.mb_output[old:]
            strategy.mbatch[0] = strategy.mbatch[0][old:]

    def before_backward(self, strategy: StudyLoop, **kwargs: Any) -> None:
        if self._batches is not None:
            asked = ~self._logits.isnan()
            strategy.loss += self._alpha * functional.mse_loss(self._said[asked], self._logits[asked])
            if self._beta:
                strategy.loss += self._beta * strategy._criterion(self._said, self._labels)

    def after_training_exp(self, strategy: StudyLoop, **kwargs: Any) -> None:
        logits = answers(strategy.model, strategy.rows[0], strategy.train_mb_size)
        self._memory.update((*strategy.rows, logits.masked_fill(~strategy.seen, torch.nan)))
        self._batches = None

    def protecting(self) -> str:
        return f"{self._memory} with their old answers" if len(self._memory) else ""

    def state(self) -> State:
        return {f"logits.{stage}": rows[-1] for stage, rows in enumerate(self._memory.kept)}

    def restore(self, state: State) -> None:
        if len(state) != len(self._memory.kept):
            raise ValueError(f"the state is of {len(state)} stages, {len(self._memory.kept)} were shown; recall those")
        self._memory.kept = [(*rows[:-1], state[f"logits.{i}"]) for i, rows in enumerate(self._memory.kept)]
