"""One adapter in training: the loop, through Avalanche, over stages of cached tokens.

Avalanche sees a domain-incremental stream. What the champion has learned already is shown to it with
zero epochs: nothing is trained, but its plugins fill the rehearsal memory and measure which numbers
matter, exactly as after training. With ``continual.strategies`` the only file that imports Avalanche.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn

from continual.adapters import TRAINING, AdaptedTail, Adapter
from continual.analytic_learner import AnalyticLearner
from continual.experiences import Experience
from continual.plans import AdaptationPolicy
from continual.strategies import STRATEGIES, Setting
from continual.study_loop import StudyLoop
from monitor.tasks import TASKS

EpochDone = Callable[[int, int, float], None]


class TrainingDiverged(ArithmeticError):
    """The loss became infinite or not a number."""


class Learner:
    """One adapter in training with one strategy; stages are shown in order with ``recall`` and ``learn``.

    Training changes the adapter in place. Every stage draws from its own seeded generator, so the
    result does not depend on anything else in the process, and the global generator is left alone.

    Raises:
        ValueError: unknown strategy.
    """

    def __init__(self, adapter: Adapter, *, strategy: str, policy: AdaptationPolicy) -> None:
        if strategy not in STRATEGIES:
            raise ValueError(f"unknown strategy {strategy!r}; there are {', '.join(STRATEGIES)}")
        self._analytic = AnalyticLearner(adapter) if adapter.network.analytic() else None
        if self._analytic is not None:
            return  # learns in closed form, whatever the strategy
        self._policy = policy
        self._task = TRAINING[adapter.card.task]
        self._columns = TASKS[adapter.card.task].score_columns(adapter.card.classes)
        self._strategy = STRATEGIES[strategy](Setting(adapter=adapter, policy=policy))
        self._watch = _LossWatch()
        model = _TrainableOnly(adapter.network)
        self._avalanche = StudyLoop(
            seed=policy.seed,
            columns=self._columns,
            model=model,
            optimizer=torch.optim.AdamW(model.parameters(), lr=policy.learning_rate, weight_decay=0.01),
            criterion=self._task.loss,
            train_mb_size=policy.batch_size,
            plugins=[*self._strategy.plugins, _CosineDecay(policy), self._watch],
            evaluator=_NoMetrics(),
        )

    @property
    def memory_studies(self) -> int:
        """Count the studies in the rehearsal memory."""
        if self._analytic is not None:
            return self._analytic.memory_studies
        return len(self._strategy.memory) if self._strategy.memory is not None else 0

    @property
    def protecting(self) -> str:
        """Say what keeps the past from being forgotten; empty where nothing does."""
        if self._analytic is not None:
            return "everything learned so far, exactly"
        return " and ".join(filter(None, (plugin.protecting() for plugin in self._strategy.plugins)))

    def state(self) -> dict[str, Tensor]:
        """Give what the strategy has measured, to go on at this epoch's or stage's end; not weights or optimizer.

        To go on: make a learner alike, `recall` the stages that are finished, `restore_state`, and learn.
        What a recall finds again (the memory's studies, the laws of embeddings) is not in it.
        """
        if self._analytic is not None:
            return {}
        return {
            f"{type(plugin).__name__}.{name}": value.detach().clone()
            for plugin in self._strategy.plugins
            for name, value in plugin.state().items()
        }

    def restore_state(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` gave, after the stages that were finished by then were recalled.

        Raises:
            ValueError: the state is of another strategy, other stages or another adapter.
        """
        if self._analytic is not None:
            return
        parts: dict[str, dict[str, Tensor]] = {type(plugin).__name__: {} for plugin in self._strategy.plugins}
        for name, value in state.items():
            owner, _, rest = name.partition(".")
            if owner not in parts:
                raise ValueError(f"the state has {name!r}, which this strategy does not keep; use the run's own state")
            parts[owner][rest] = value
        for plugin in self._strategy.plugins:
            plugin.restore(parts[type(plugin).__name__])

    def recall(self, experience: Experience) -> None:
        """Show a stage that the adapter has learned already: nothing is trained."""
        if self._analytic is not None:
            self._analytic.recall(experience)
            return
        self._show(experience, epochs=0, epoch_done=lambda epoch, epochs, loss: None)

    def learn(self, experience: Experience, epoch_done: EpochDone) -> tuple[float, ...]:
        """Train on a stage; ``epoch_done`` is told epoch, epochs and mean loss. Returns the mean losses.

        Raises:
            TrainingDiverged: the loss is not finite.
        """
        if self._analytic is not None:
            return self._analytic.learn(experience, epoch_done)
        self._show(experience, epochs=self._policy.epochs, epoch_done=epoch_done)
        return tuple(self._watch.losses)

    def _show(self, experience: Experience, *, epochs: int, epoch_done: EpochDone) -> None:
        if self._strategy.memory is not None:
            generator = np.random.default_rng([self._policy.seed, self._avalanche.stage])
            self._strategy.memory.expect(experience, generator)
        tokens, labels = torch.from_numpy(experience.tokens), torch.from_numpy(experience.labels)
        self._watch.start(epochs, epoch_done)
        self._avalanche.train_epochs = epochs
        with torch.random.fork_rng(devices=[]):
            self._avalanche.show((tokens, labels), self._task.columns(labels, self._columns))
        self._avalanche.model.eval()


class _TrainableOnly(nn.Module):
    """Show Avalanche the trained parameters alone: its EWC would keep importances of the frozen ones too."""

    def __init__(self, network: AdaptedTail) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.network(tokens)
        return logits

    def named_parameters(self, *arguments: Any, **options: Any) -> Iterator[tuple[str, nn.Parameter]]:
        return ((n, p) for n, p in super().named_parameters(*arguments, **options) if p.requires_grad)


class _NoMetrics(SupervisedPlugin):  # type: ignore[misc]
    """Measure nothing: Avalanche's evaluator copies the experience at every hook, a fifth of a small head's time."""

    def get_last_metrics(self) -> dict[str, float]:
        return {}


class _CosineDecay(SupervisedPlugin):  # type: ignore[misc]
    """Let the learning rate of each stage fall to 0 along a cosine (Loshchilov and Hutter 2017).

    With a constant rate the last steps decide how sure the scores sound: between five seeds the Brier
    score on what was learned before spread almost three times as much.
    """

    def __init__(self, policy: AdaptationPolicy) -> None:
        super().__init__()
        self._rate, self._epochs = policy.learning_rate, policy.epochs

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        done = strategy.clock.train_exp_iterations / (self._epochs * len(strategy.dataloader))
        for group in strategy.optimizer.param_groups:
            group["lr"] = self._rate * (1 + math.cos(math.pi * done)) / 2


class _LossWatch(SupervisedPlugin):  # type: ignore[misc]
    """Keep the mean loss of each epoch, tell it, and stop at a loss that is not finite."""

    def start(self, epochs: int, epoch_done: EpochDone) -> None:
        self.losses: list[float] = []
        self._epochs, self._epoch_done = epochs, epoch_done
        self._batches: list[float] = []

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        loss = float(strategy.loss.detach())
        if not math.isfinite(loss):
            raise TrainingDiverged(f"the loss became {loss} in epoch {len(self.losses) + 1}; lower learning_rate")
        self._batches.append(loss)

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self.losses.append(float(np.mean(self._batches)))
        self._batches = []
        self._epoch_done(len(self.losses), self._epochs, self.losses[-1])
