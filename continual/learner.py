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
from avalanche.benchmarks.scenarios.dataset_scenario import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset, make_avalanche_dataset
from avalanche.benchmarks.utils.data_attribute import TaskLabels
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.supervised import Naive
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from continual.adapters import TRAINING, AdaptedTail, Adapter
from continual.analytic_learner import AnalyticLearner
from continual.experiences import Experience
from continual.plans import AdaptationPolicy
from continual.strategies import STRATEGIES, PatientBalancedMemory

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
        self._stages = 0
        self._memory = PatientBalancedMemory(policy.memory_size) if strategy == "replay" else None
        self._watch = _LossWatch()
        model = _TrainableOnly(adapter.network)
        self._avalanche = Naive(
            model=model,
            optimizer=torch.optim.AdamW(model.parameters(), lr=policy.learning_rate, weight_decay=0.01),
            criterion=TRAINING[adapter.card.task].loss,
            train_mb_size=policy.batch_size,
            plugins=[*STRATEGIES[strategy](policy, self._memory), _CosineDecay(policy), self._watch],
            evaluator=EvaluationPlugin(loggers=[BaseLogger()]),  # one that says nothing; with none it warns,
        )

    @property
    def memory_studies(self) -> int:
        """Count the studies in the rehearsal memory."""
        if self._analytic is not None:
            return self._analytic.memory_studies
        return len(self._memory.buffer) if self._memory is not None else 0

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
        generator = np.random.default_rng([self._policy.seed, self._stages])
        if self._memory is not None:
            self._memory.expect(experience, generator)
        self._watch.start(epochs, epoch_done)
        self._avalanche.train_epochs = epochs
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(generator.integers(2**31)))
            self._avalanche.train(benchmark_from_datasets(train=[_dataset(experience)]).train_stream)
        self._avalanche.model.eval()
        self._stages += 1


def _dataset(experience: Experience) -> AvalancheDataset:
    tensors = TensorDataset(torch.from_numpy(experience.tokens), torch.from_numpy(experience.labels))
    return make_avalanche_dataset(tensors, data_attributes=[TaskLabels(ConstantSequence(0, len(experience)))])


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
