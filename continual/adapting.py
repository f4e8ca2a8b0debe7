"""Adapt: train an adapter further on what is new, and measure on every stage what was kept and lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from continual.adapter_files import SUFFIX, save_adapter
from continual.adapters import Adapter, new_adapter, score
from continual.analytic_learner import AnalyticLearner
from continual.backbones import Backbone
from continual.checkpoints import put_weights
from continual.early_stopping import set_aside, why_not_early
from continual.experiences import Experience, why_not_learnable
from continual.limits import RunStopped, check_request
from continual.plans import AdaptationPlan, AdaptationRun, RunState
from continual.policies import AdaptationPolicy
from continual.strategy_cards import check_strategy
from continual.training_course import Course, Progress, Training, begin, put_on_record
from monitor.cohorts import binary_labels
from monitor.performance import auroc
from monitor.tasks import Task

if TYPE_CHECKING:
    from continual.learner import Learner

__all__ = [
    "AdaptationFailed",
    "AdaptationInterrupted",
    "Experience",
    "adapt",
    "measure_auroc",
    "start_learner",
    "train_first",
]

TELL_SECONDS = 0.25
KEEPING_AT_MOST = 20
"""A checkpoint waits for so many times as long as the last one took to write: at most a twentieth goes there."""
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


class AdaptationFailed(ValueError):
    """Nothing could be learned; the message says why."""


class AdaptationInterrupted(KeyboardInterrupt):
    """A person stopped a run; ``run`` tells how far it came, for the record."""

    def __init__(self, run: AdaptationRun) -> None:
        super().__init__(run.reason)
        self.run = run


def adapt(  # noqa: PLR0913 - the plan's own words, each needed, none of them belongs together with another
    *,
    start: Adapter,
    stream: Sequence[Experience],
    evaluation: Sequence[Experience],
    learned: int,
    strategy: str,
    policy: AdaptationPolicy,
    plan_id: str,
    model: str,
    directory: Path,
    progress: Progress,
    checkpoint: Path | None = None,
) -> tuple[Adapter, AdaptationRun]:
    """Train a copy of an adapter on the stages it does not know yet, and keep it in ``directory``.

    ``stream`` lists all stages in order, of which ``start`` has learned the first ``learned``; those are
    only shown to the strategy. ``evaluation`` has a stage of other patients for each. The same arguments
    give the same bytes. Where nothing can be learned, or the loss or the gradient runs away, the run is FAILED;
    at a limit of the policy, or where memory or disk are full, it is STOPPED. Both say why, nothing is kept,
    and the adapter returned is ``start``.

    With a ``checkpoint`` file the training is written there after an epoch, as often as costs next to nothing.
    If the file holds an earlier part of this very run, training goes on after it and ends in the same bytes;
    anything else in it is written over. It stays for the caller to remove once the run is on record.

    Raises:
        ValueError: the two lists do not fit each other, a patient is in both, or the strategy is unknown.
        AdaptationInterrupted: a person stopped it (Ctrl-C); the run it carries is STOPPED.
    """
    stream = [experience.labelled() for experience in stream]
    check_strategy(strategy)
    _check_stages(stream, evaluation, learned)
    course = Course(
        start=start,
        stream=stream,
        evaluation=evaluation,
        learned=learned,
        strategy=strategy,
        policy=policy,
        progress=progress,
        checkpoint=checkpoint,
    )
    training = begin(course, plan_id=plan_id, model=model)
    state, reason, sha256 = RunState.FINISHED, "", ""
    try:
        _learn_stream(training)
        sha256 = save_adapter(training.adapter, directory)
    except KeyboardInterrupt:
        reason = f"a person stopped it {training.tell_place()}; `wardround adapt --resume` goes on after the last epoch"
        raise AdaptationInterrupted(put_on_record(training, RunState.STOPPED, reason)) from None
    except RunStopped as error:
        state, reason = RunState.STOPPED, str(error)
    except (AdaptationFailed, ArithmeticError) as error:
        state, reason = RunState.FAILED, str(error)
    except (MemoryError, RuntimeError) as error:
        state, reason = RunState.STOPPED, _tell_out_of_memory(error, policy)
    except OSError as error:
        state, reason = RunState.STOPPED, _tell_not_written(error, training)
    run = put_on_record(training, state, reason, sha256)
    return (training.adapter if state is RunState.FINISHED else start), run


def train_first(  # noqa: PLR0913 - as adapt
    backbone: Backbone,
    experience: Experience,
    *,
    task: Task,
    classes: tuple[str, ...],
    policy: AdaptationPolicy,
    directory: Path,
    progress: Progress,
) -> Path:
    """Train a first adapter from nothing and keep it in ``directory``; returns its file.

    Raises:
        AdaptationFailed: nothing can be learned from the experience, the loss or the gradient runs away, or a
            limit of the policy is reached.
    """
    course = Course(
        start=new_adapter(backbone, task=task, classes=classes, policy=policy, seed=policy.seed),
        stream=[experience.labelled()],
        evaluation=[],
        learned=0,
        strategy="naive",
        policy=policy,
        progress=progress,
        checkpoint=None,
    )
    training = begin(course, plan_id="", model="")
    try:
        _learn_stream(training)
    except (RunStopped, ArithmeticError) as error:
        raise AdaptationFailed(str(error)) from None
    return directory / f"{save_adapter(training.adapter, directory)}{SUFFIX}"


def not_begun(
    start: Adapter, plan: AdaptationPlan, *, strategy: str, policy: AdaptationPolicy, stages: tuple[str, ...], why: str
) -> AdaptationRun:
    """Put on record a run that could not begin, for a reason that can be cured: it is STOPPED."""
    course = Course(
        start=start,
        stream=[],
        evaluation=[],
        learned=0,
        strategy=strategy,
        policy=policy,
        progress=lambda what, done, total: None,
        checkpoint=None,
    )
    run = put_on_record(begin(course, plan_id=plan.plan_id, model=plan.model), RunState.STOPPED, why)
    return replace(run, experiences=stages)


def measure_auroc(adapter: Adapter, experience: Experience) -> float | None:
    """Measure the AUROC on an experience, averaged over its findings; None where no finding has both answers."""
    card = adapter.card
    scores, answers = score(adapter, experience.tokens), binary_labels(card.task, card.classes, experience.labels)
    figures = [auroc(scores[:, column], answers[:, column]) for column in range(scores.shape[1])]
    known = [figure for figure in figures if figure is not None]
    return sum(known) / len(known) if known else None


def _learn_stream(training: Training) -> None:
    """Show the learned stages, learn the others, and measure a row of the matrix after each."""
    course, earlier = training.course, training.earlier
    if earlier.standing is None:
        training.keep(None)  # from here on there is something to resume, even before Avalanche is imported
    tokens = course.stream[-1].tokens
    check_request(
        course.policy,
        stages=len(course.stream) - course.learned,
        tokens_a_study=tokens[0].size if len(tokens) else 0,
        parameters=training.adapter.trainable_parameters,
    )
    course.progress(f"Getting ready to train ({course.strategy})", 0, 0)
    learner = start_learner(training.adapter, strategy=course.strategy, policy=course.policy)
    if earlier.standing is not None:
        training.measured = [list(row) for row in earlier.matrix]
    elif course.learned:
        training.measured = [[None] * len(course.stream) for _ in range(course.learned - 1)]
        training.measured.append(_measure(training))
    for experience in course.stream[: course.learned]:
        if len(experience):  # of a stage whose retention has ended nothing is remembered
            learner.recall(experience)
    for number, experience in enumerate(course.stream[course.learned :]):
        _learn_stage(training, learner, number, experience)
    training.memory_studies = learner.memory_studies


def start_learner(adapter: Adapter, *, strategy: str, policy: AdaptationPolicy) -> Learner | AnalyticLearner:
    """Start what learns; a closed form needs no strategy, and does not wait for Avalanche.

    Raises:
        ValueError: unknown strategy.
    """
    check_strategy(strategy)
    if adapter.network.analytic():
        return AnalyticLearner(adapter)
    from continual.learner import Learner  # imports Avalanche: seconds that only training should pay

    return Learner(adapter, strategy=strategy, policy=policy)


def _learn_stage(training: Training, learner: Learner | AnalyticLearner, number: int, experience: Experience) -> None:
    """Learn the ``number``-th new stage; what was finished before the run was resumed is only shown again."""
    course, earlier, card = training.course, training.earlier, training.adapter.card
    if reason := why_not_learnable(experience, card.task, card.classes):
        raise AdaptationFailed(reason)
    if isinstance(learner, AnalyticLearner):
        _learn_at_once(training, learner, experience)
        return
    stopping = course.policy.early_stopping
    learning, aside = set_aside(experience, stopping, task=card.task, classes=card.classes, seed=course.policy.seed)
    training.n_learned += len(learning)
    if number < len(earlier.finished):
        put_weights(training.adapter.network.trainable(), earlier.finished[number])
        learner.recall(learning)
        training.finished.append(earlier.finished[number])
        training.losses, training.notes = list(earlier.losses), list(earlier.notes)
        return
    losses = learner.learn(
        learning,
        lambda epoch, epochs, loss: _end_epoch(training, learner, f"epoch {epoch} of {epochs} of {experience.name}"),
        validation=aside,
        resumed=earlier.standing if number == len(earlier.finished) else None,
        step_done=_teller(training, learner),
    )
    training.losses += losses
    training.notes += [_tell_stopping(experience, aside, course.policy, len(losses), learner.kept_epoch)]
    training.finished.append({name: v.detach().clone() for name, v in training.adapter.network.trainable().items()})
    training.measured.append(_measure(training))


def _learn_at_once(training: Training, learner: AnalyticLearner, experience: Experience) -> None:
    """Learn a stage in closed form: there is nothing to stop early, and nothing that a checkpoint would save."""
    course = training.course
    training.n_learned += len(experience)
    training.losses += learner.learn(experience, lambda step, steps, loss: course.progress("Learning", step, steps))
    training.notes.append(f"{experience.name}: learned in closed form, in one step")
    training.measured.append(_measure(training))


def _measure(training: Training) -> list[float | None]:
    return [measure_auroc(training.adapter, each) for each in training.course.evaluation]


def _end_epoch(training: Training, learner: Learner, place: str) -> None:
    """Write a checkpoint, unless epochs are so short that writing would take more than its share of the time."""
    training.place = f"after {place}"
    due = monotonic() - training.kept_at >= KEEPING_AT_MOST * training.keeping_took
    if training.course.checkpoint is not None and due:
        training.keep(learner.standing())


def _teller(training: Training, learner: Learner) -> Callable[[int, int, float], None]:
    """Make what is called after every step: it holds the limits, and tells of the last step and now and then one."""
    course, told = training.course, 0.0
    epochs = course.policy.epochs

    def tell(step: int, steps: int, loss: float) -> None:
        nonlocal told
        training.watch.check()
        now = monotonic()
        if now - told >= TELL_SECONDS or step == steps:
            told = now
            epoch = -(-step * epochs // steps)
            text = f"Training ({course.strategy}): loss {loss:.3f}, epoch {epoch} of {epochs}"
            course.progress(f"{text}, {learner.protecting or 'protecting nothing of before'}", step, steps)

    return tell


def _tell_stopping(
    experience: Experience, aside: Experience | None, policy: AdaptationPolicy, epochs: int, kept: int
) -> str:
    """Say how early stopping went on a stage."""
    if aside is None:
        return f"{experience.name}: every epoch was run; {why_not_early(experience, policy.early_stopping)}"
    patients = len(set(aside.patient_key))
    stopped = f"stopped after epoch {epochs} of {policy.epochs}" if epochs < policy.epochs else "every epoch was run"
    return f"{experience.name}: {stopped}, epoch {kept} was best for the {patients} patients set aside and is kept"


def _tell_out_of_memory(error: Exception, policy: AdaptationPolicy) -> str:
    """Tell of a lack of memory; any other failure of PyTorch is not ours to explain and flies on."""
    if not isinstance(error, MemoryError) and not any(words in str(error) for words in OUT_OF_MEMORY):
        raise error
    return (
        f"the machine ran out of memory with {policy.batch_size} studies a batch; lower batch_size or blocks under "
        "[adaptation], or use a larger machine"
    )


def _tell_not_written(error: OSError, training: Training) -> str:
    where = f" ({error.filename})" if error.filename else ""
    return (
        f"the training could not be kept {training.tell_place()}: {error.strerror or error}{where}; "
        "make room on the disk and run `wardround adapt --resume`"
    )


def _check_stages(stream: Sequence[Experience], evaluation: Sequence[Experience], learned: int) -> None:
    if len(stream) != len(evaluation) or not 0 <= learned < len(stream):
        raise ValueError(
            f"there must be an evaluation stage for each stage and at least one stage to learn, got {len(stream)} "
            f"stages, {len(evaluation)} evaluation stages, {learned} learned"
        )
    learning = {patient for experience in stream for patient in experience.patient_key}
    judging = {patient for experience in evaluation for patient in experience.patient_key}
    if shared := learning & judging:
        raise ValueError(
            f"{len(shared)} patients are both learned from and evaluated on; divide patients by their role"
        )
