"""One adapter in training: the loop, through Avalanche, over stages of cached tokens.

Avalanche sees a domain-incremental stream. What the champion has learned already is shown to it with
zero epochs: nothing is trained, but its plugins fill the rehearsal memory and measure which numbers
matter, exactly as after training. With ``continual.strategies`` the only file that imports Avalanche.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from avalanche.training.plugins import SupervisedPlugin
from numpy.typing import NDArray
from torch import Tensor, nn

from continual.adapters import AdaptedTail, Adapter, score
from continual.checkpoints import StageStanding, part_of, put_weights, under
from continual.early_stopping import BestSoFar
from continual.experiences import Experience
from continual.memory_selection import measure_difficulty
from continual.policies import AdaptationPolicy
from continual.strategies import STRATEGIES, Setting
from continual.strategy_cards import check_strategy
from continual.study_loop import StudyLoop
from continual.task_training import TRAINING
from monitor.cohorts import binary_labels
from monitor.tasks import TASKS

EpochDone = Callable[[int, int, float], None]
"""Told epoch, epochs and mean loss."""
StepDone = Callable[[int, int, float], None]
"""Told step, steps of the whole stage, and the loss of the step's batch."""
STEP_EVENTS = tuple(
    f"{when}_{what}" for what in ("training_iteration", "forward", "backward", "update") for when in ("before", "after")
)
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
        ValueError: unknown strategy, or an adapter that is not trained by gradient.
    """

    def __init__(self, adapter: Adapter, *, strategy: str, policy: AdaptationPolicy) -> None:
        check_strategy(strategy)
        if adapter.network.analytic():
            raise ValueError("an analytic adapter learns in closed form: start it with `start_learner`")
        self._adapter, self._policy = adapter, policy
        self._task = TRAINING[adapter.card.task]
        self._columns = TASKS[adapter.card.task].score_columns(adapter.card.classes)
        self._strategy = STRATEGIES[strategy](Setting(adapter=adapter, policy=policy))
        self._watch = _Watch(policy.gradient_bound)
        model = _TrainableOnly(adapter.network)
        self._avalanche = _Loop(
            seed=policy.seed,
            columns=self._columns,
            model=model,
            optimizer=torch.optim.AdamW(model.parameters(), lr=policy.learning_rate, weight_decay=0.01),
            criterion=self._task.loss,
            train_mb_size=policy.batch_size,
            plugins=[*self._strategy.plugins, _CosineDecay(policy), self._watch],
            evaluator=_NoMetrics(),
        )
        self._avalanche.patience = policy.early_stopping.patience

    @property
    def memory_studies(self) -> int:
        """Count the studies in the rehearsal memory."""
        return len(self._strategy.memory) if self._strategy.memory is not None else 0

    @property
    def kept_epoch(self) -> int:
        """Tell which epoch of the stage that was learned last gave the weights: the last, or the best one."""
        return len(self._watch.losses) - self._avalanche.best.waited

    @property
    def protecting(self) -> str:
        """Say what keeps the past from being forgotten; empty where nothing does."""
        return " and ".join(filter(None, (plugin.protecting() for plugin in self._strategy.plugins)))

    def state(self) -> dict[str, Tensor]:
        """Give what the strategy has measured, to go on at this epoch's or stage's end; not weights or optimizer.

        To go on: make a learner alike, `recall` the stages that are finished, `restore_state`, and learn.
        What a recall finds again (the memory's studies, the laws of embeddings) is not in it.
        """
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
        parts: dict[str, dict[str, Tensor]] = {type(plugin).__name__: {} for plugin in self._strategy.plugins}
        for name, value in state.items():
            owner, _, rest = name.partition(".")
            if owner not in parts:
                raise ValueError(f"the state has {name!r}, which this strategy does not keep; use the run's own state")
            parts[owner][rest] = value
        for plugin in self._strategy.plugins:
            plugin.restore(parts[type(plugin).__name__])

    def standing(self) -> StageStanding:
        """Tell where the stage that is being learned stands; to be asked after an epoch, from ``epoch_done``."""
        best, parameters = self._avalanche.best, dict(self._avalanche.model.named_parameters())
        optimizer = self._avalanche.optimizer.state
        moments = {f"{name}/{key}": v for name, p in parameters.items() for key, v in optimizer.get(p, {}).items()}
        tensors = under("weights", parameters) | under("optimizer", moments) | under("best", best.weights)
        tensors |= under("strategy", self.state())
        return StageStanding(
            epoch=len(self._watch.losses),
            losses=tuple(self._watch.losses),
            best_loss=best.loss,
            waited=best.waited,
            tensors={name: value.detach().clone() for name, value in tensors.items()},
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
        loop = self._avalanche
        if self._strategy.memory is not None:
            generator = np.random.default_rng([self._policy.seed, loop.stage])
            self._strategy.memory.expect(experience, generator, self._difficulty(experience))
        if lesson.resumed is not None:
            self.restore_state(lesson.resumed.part("strategy"))
        tokens, labels = torch.from_numpy(experience.tokens), torch.from_numpy(experience.labels)
        self._watch.start(lesson)
        loop.start(lesson)
        with torch.random.fork_rng(devices=[]):
            loop.show((tokens, labels), self._task.columns(labels, self._columns))
        loop.model.eval()

    def _difficulty(self, experience: Experience) -> NDArray[np.float64] | None:
        """Measure the loss of every study before it is learned, where the memory chooses by it."""
        memory, card = self._strategy.memory, self._adapter.card
        if memory is None or memory.selection != "hardest":
            return None
        answers = binary_labels(card.task, card.classes, experience.labels)
        return measure_difficulty(score(self._adapter, experience.tokens), answers)


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


class _Loop(StudyLoop):
    """The loop with a way back into a stage, and the best epoch kept in the end.

    What is due at a step is looked up once a stage: Avalanche asks every plugin about every event, which takes
    longer than a small head's step.
    """

    patience = 0

    def start(self, lesson: Lesson) -> None:
        """Prepare for the stage that is shown next."""
        self._lesson, self.best, done = lesson, BestSoFar(self.patience), 0
        self._due = {event: _hooks(self.plugins, event) for event in STEP_EVENTS}
        if (resumed := lesson.resumed) is not None:
            self.best = BestSoFar(self.patience, resumed.best_loss, resumed.waited, resumed.part("best"))
            done = resumed.epoch
        over = lesson.validation is not None and self.best.is_over
        self.train_epochs = 0 if over else lesson.epochs - done

    def _before_training_exp(self, **kwargs: Any) -> None:
        """Go on where a checkpoint left off, after every plugin has set itself up."""
        super()._before_training_exp(**kwargs)
        if (resumed := self._lesson.resumed) is None:
            return
        parameters = dict(self.model.named_parameters())
        put_weights(parameters, resumed.part("weights"))
        moments = resumed.part("optimizer")
        for name, parameter in parameters.items():
            if mine := part_of(moments, name):
                self.optimizer.state[parameter] = {key: value.clone() for key, value in mine.items()}
        self.clock.train_exp_epochs = resumed.epoch
        self.clock.train_exp_iterations = resumed.epoch * len(self.dataloader)

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


def _hooks(plugins: Sequence[Any], event: str) -> list[Callable[[Any], None]]:
    """List what plugins do at an event; what the parent of all has under that name does nothing."""
    nothing = getattr(SupervisedPlugin, event)
    return [getattr(plugin, event) for plugin in plugins if getattr(type(plugin), event, nothing) is not nothing]


def _trigger(event: str) -> Callable[..., None]:
    def trigger(self: _Loop, **kwargs: Any) -> None:
        for hook in self._due[event]:
            hook(self)

    return trigger


for _event in STEP_EVENTS:
    setattr(_Loop, f"_{_event}", _trigger(_event))


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
        length = math.hypot(*(float(torch.linalg.vector_norm(parameter.grad)) for parameter in parameters))
        if length > self._bound:
            nn.utils.clip_grads_with_norm_(parameters, self._bound, torch.tensor(length))
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
