"""One adapter in training: the loop, through Avalanche, over stages of cached tokens.

Avalanche sees a domain-incremental stream. What the champion has learned already is shown to it with
zero epochs: nothing is trained, but its plugins fill the rehearsal memory and measure which numbers
matter, exactly as after training. With ``continual.strategies`` the only file that imports Avalanche.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
from continual.checkpoints import StageStanding, put_weights, under
from continual.early_stopping import BestSoFar
from continual.experiences import Experience
from continual.plans import AdaptationPolicy
from continual.strategies import STRATEGIES, PatientBalancedMemory

EpochDone = Callable[[int, int, float], None]
"""Told epoch, epochs and mean loss."""
StepDone = Callable[[int, int, float], None]
"""Told step, steps of the whole stage, and the loss of the step's batch."""
CUTS_IN_A_ROW = 50
LOST_IN_A_ROW = 3
JUDGED_AT_ONCE = 256


class TrainingDiverged(ArithmeticError):
    """The loss or the gradient became infinite or not a number, or the gradient grew without end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """One showing of a stage: how many epochs at most, what judges each of them, where to go on, whom to tell."""

    epochs: int
    validation: Experience | None = None
    resumed: StageStanding | None = None
    epoch_done: EpochDone = lambda epoch, epochs, loss: None
    step_done: StepDone = lambda step, steps, loss: None


class Learner:
    """One adapter in training with one strategy; stages are shown in order with ``recall`` and ``learn``.

    Training changes the adapter in place. Every stage and every epoch draws from its own seeded generator,
    so the result does not depend on anything else in the process, a training can go on after any epoch,
    and the global generator is left alone.

    Raises:
        ValueError: unknown strategy.
    """

    def __init__(self, adapter: Adapter, *, strategy: str, policy: AdaptationPolicy) -> None:
        if strategy not in STRATEGIES:
            raise ValueError(f"unknown strategy {strategy!r}; there are {', '.join(STRATEGIES)}")
        self._policy = policy
        self._strategy = strategy
        self._stages = 0
        self._memory = PatientBalancedMemory(policy.memory_size) if strategy == "replay" else None
        self._watch = _Watch(policy.gradient_bound)
        model = _TrainableOnly(adapter.network)
        self._avalanche = _Loop(
            model=model,
            optimizer=torch.optim.AdamW(model.parameters(), lr=policy.learning_rate, weight_decay=0.01),
            criterion=TRAINING[adapter.card.task].loss,
            train_mb_size=policy.batch_size,
            plugins=[*STRATEGIES[strategy](policy, self._memory), _CosineDecay(policy), self._watch],
            evaluator=EvaluationPlugin(loggers=[BaseLogger()]),  # one that says nothing; with none it warns,
        )
        self._avalanche.patience = policy.early_stopping.patience

    @property
    def memory_studies(self) -> int:
        """Count the studies in the rehearsal memory."""
        return len(self._memory.buffer) if self._memory is not None else 0

    @property
    def kept_epoch(self) -> int:
        """Tell which epoch of the stage that was learned last gave the weights: the last, or the best one."""
        return len(self._watch.losses) - self._avalanche.best.waited

    @property
    def protecting(self) -> str:
        """Say in a few words what the strategy protects from being forgotten."""
        if self._memory is not None:
            return f"{self.memory_studies} studies of before, by rehearsal"
        return {"ewc": "the weights that mattered before"}.get(self._strategy, "nothing of before")

    def state(self) -> dict[str, Tensor]:
        """Give what the strategy has gathered within the stage that is being learned, by name."""
        return {}

    def restore_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what ``state`` gave."""

    def standing(self) -> StageStanding:
        """Tell where the stage that is being learned stands; to be asked after an epoch, from ``epoch_done``."""
        best, parameters = self._avalanche.best, dict(self._avalanche.model.named_parameters())
        optimizer = self._avalanche.optimizer.state
        moments = {f"{name}/{key}": v for name, p in parameters.items() for key, v in optimizer.get(p, {}).items()}
        return StageStanding(
            epoch=len(self._watch.losses),
            losses=tuple(self._watch.losses),
            best_loss=best.loss,
            waited=best.waited,
            tensors=under("weights", parameters)
            | under("optimizer", moments)
            | under("best", best.weights)
            | under("strategy", self.state()),
        )

    def recall(self, experience: Experience) -> None:
        """Show a stage that the adapter has learned already: nothing is trained."""
        self._show(experience, Lesson(epochs=0))

    def learn(
        self,
        experience: Experience,
        epoch_done: EpochDone,
        *,
        validation: Experience | None = None,
        resumed: StageStanding | None = None,
        step_done: StepDone = lambda step, steps, loss: None,
    ) -> tuple[float, ...]:
        """Train on a stage, or go on with it. Returns the mean loss of each epoch.

        With a ``validation`` stage of other patients, training stops when their loss has not fallen for the
        policy's patience, and the weights of the best epoch are kept.

        Raises:
            TrainingDiverged: the loss or the gradient is not finite, or the gradient stays too long.
        """
        lesson = Lesson(
            epochs=self._policy.epochs,
            validation=validation,
            resumed=resumed,
            epoch_done=epoch_done,
            step_done=step_done,
        )
        self._show(experience, lesson)
        return tuple(self._watch.losses)

    def _show(self, experience: Experience, lesson: Lesson) -> None:
        generator = np.random.default_rng([self._policy.seed, self._stages])
        if self._memory is not None:
            self._memory.expect(experience, generator)
        done = lesson.resumed.epoch if lesson.resumed else 0
        self._watch.start(lesson)
        self._avalanche.start(lesson, seeds=(self._policy.seed, self._stages), restore_state=self.restore_state)
        over = lesson.validation is not None and self._avalanche.best.is_over
        self._avalanche.train_epochs = 0 if over else lesson.epochs - done
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


class _Loop(Naive):  # type: ignore[misc]
    """Avalanche's loop, with a seed for every epoch, the way back into a stage, and the best epoch kept in the end."""

    patience = 0

    def start(self, lesson: Lesson, *, seeds: tuple[int, int], restore_state: Callable[[Any], None]) -> None:
        """Prepare for the stage that is shown next."""
        self._lesson, self._seeds, self._restore_state = lesson, seeds, restore_state
        self.best = BestSoFar(self.patience)
        if (resumed := lesson.resumed) is not None:
            self.best = BestSoFar(self.patience, resumed.best_loss, resumed.waited, resumed.part("best"))

    def _before_training_exp(self, **kwargs: Any) -> None:
        """Go on where a checkpoint left off, after every plugin has set itself up."""
        super()._before_training_exp(**kwargs)
        if (resumed := self._lesson.resumed) is None:
            return
        parameters = dict(self.model.named_parameters())
        put_weights(parameters, resumed.part("weights"))
        moments = resumed.part("optimizer")
        for name, parameter in parameters.items():
            mine = {key.rsplit("/", 1)[1]: v.clone() for key, v in moments.items() if key.rsplit("/", 1)[0] == name}
            if mine:
                self.optimizer.state[parameter] = mine
        self._restore_state(resumed.part("strategy"))
        self.clock.train_exp_epochs = resumed.epoch
        self.clock.train_exp_iterations = resumed.epoch * len(self.dataloader)

    def _before_training_epoch(self, **kwargs: Any) -> None:
        seed = np.random.default_rng([*self._seeds, self.clock.train_exp_epochs]).integers(2**31)
        torch.manual_seed(int(seed))
        super()._before_training_epoch(**kwargs)

    def _after_training_exp(self, **kwargs: Any) -> None:
        """Keep the best epoch before the plugins measure what matters in it."""
        if self.best.weights:
            put_weights(dict(self.model.named_parameters()), self.best.weights)
        super()._after_training_exp(**kwargs)

    @torch.no_grad()
    def judge_epoch(self) -> None:
        """Measure the loss on the patients set aside; stop if it has not fallen for too long."""
        if (aside := self._lesson.validation) is None:
            return
        self.model.eval()
        total = 0.0
        for start in range(0, len(aside), JUDGED_AT_ONCE):
            part = slice(start, start + JUDGED_AT_ONCE)
            logits = self.model(torch.from_numpy(aside.tokens[part]).to(self.device))
            loss = self._criterion(logits, torch.from_numpy(aside.labels[part]).to(self.device))
            total += float(loss) * len(logits)
        self.model.train()
        self.best.look(total / len(aside), dict(self.model.named_parameters()))
        if self.best.is_over:
            self.stop_training()


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


class _Watch(SupervisedPlugin):  # type: ignore[misc]
    """Keep the mean loss of each epoch, tell it, and stop at a loss or a gradient that runs away.

    A gradient longer than the bound is cut to it (Pascanu, Mikolov and Bengio 2013); one that is not
    finite moves nothing.
    """

    def __init__(self, gradient_bound: float) -> None:
        super().__init__()
        self._bound = gradient_bound

    def start(self, lesson: Lesson) -> None:
        self.losses: list[float] = list(lesson.resumed.losses) if lesson.resumed else []
        self._lesson = lesson
        self._batches: list[float] = []
        self._cut = self._lost = 0

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        loss = float(strategy.loss.detach())
        if not math.isfinite(loss):
            raise TrainingDiverged(f"the loss became {loss} in epoch {len(self.losses) + 1}; lower learning_rate")
        self._batches.append(loss)

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        """Cut the gradient; the last word before a step, after what strategies do to it."""
        parameters = [p for group in strategy.optimizer.param_groups for p in group["params"] if p.grad is not None]
        length = float(nn.utils.clip_grad_norm_(parameters, self._bound))
        self._cut = self._cut + 1 if length > self._bound else 0
        self._lost = 0 if math.isfinite(length) else self._lost + 1
        if self._lost:
            strategy.optimizer.zero_grad()
        epoch = len(self.losses) + 1
        if self._lost == LOST_IN_A_ROW:
            raise TrainingDiverged(
                f"the gradient was not finite in {LOST_IN_A_ROW} steps in a row in epoch {epoch}; lower learning_rate"
            )
        if self._cut == CUTS_IN_A_ROW:
            raise TrainingDiverged(
                f"the gradient was longer than {self._bound:g} in {CUTS_IN_A_ROW} steps in a row, {length:.3g} in the "
                f"last of them, in epoch {epoch}; lower learning_rate, or raise gradient_bound if you know why"
            )

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        steps = len(strategy.dataloader)
        done = len(self.losses) * steps + len(self._batches)
        self._lesson.step_done(done, self._lesson.epochs * steps, self._batches[-1])

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self.losses.append(float(np.mean(self._batches)))
        self._batches = []
        strategy.judge_epoch()
        self._lesson.epoch_done(len(self.losses), self._lesson.epochs, self.losses[-1])
