"""Adapt: train an adapter further on what is new, and measure on every stage what was kept and lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from continual.adapters import SUFFIX, Adapter, new_adapter, save_adapter, score
from continual.backbones import Backbone
from continual.experiences import Experience, why_not_learnable
from continual.forgetting import measure_backward_transfer, measure_forgetting, measure_forward_transfer
from continual.plans import AdaptationPolicy, AdaptationRun, RunState
from monitor.cohorts import binary_labels
from monitor.performance import auroc
from monitor.tasks import Task

if TYPE_CHECKING:
    from continual.learner import Learner

__all__ = ["AdaptationFailed", "Experience", "adapt", "measure_auroc", "train_first"]

Progress = Callable[[str, int, int], None]
"""Told what is going on, how much of it is done, and out of how much."""


class AdaptationFailed(ValueError):
    """Nothing could be learned; the message says why."""


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
) -> tuple[Adapter, AdaptationRun]:
    """Train a copy of an adapter on the stages it does not know yet, and keep it in ``directory``.

    ``stream`` lists all stages in order, of which ``start`` has learned the first ``learned``; those are
    only shown to the strategy. ``evaluation`` has a stage of other patients for each. The same arguments
    give the same bytes. Where nothing can be learned or the loss is not finite, the run is FAILED with a
    reason, nothing is kept, and the adapter returned is ``start``.

    Raises:
        ValueError: the two lists do not fit each other, a patient is in both, or the strategy is unknown.
    """
    began = perf_counter()  # a stop-watch for the record, nothing depends on it
    stream = [experience.labelled() for experience in stream]
    _check_stages(stream, evaluation, learned)
    trained = _Training(start.copy(), measured=[[None] * len(stream) for _ in range(learned - 1)])
    try:
        _learn_stream(trained, stream, evaluation, learned, strategy=strategy, policy=policy, progress=progress)
        sha256, state, reason = save_adapter(trained.adapter, directory), RunState.FINISHED, ""
    except (AdaptationFailed, ArithmeticError) as error:
        sha256, state, reason = "", RunState.FAILED, str(error)
    kept = trained.measured if state is RunState.FINISHED else []
    run = AdaptationRun(
        plan_id=plan_id,
        model=model,
        strategy=strategy,
        adapter=start.card.kind,
        state=state,
        reason=reason,
        seed=policy.seed,
        recipe=policy.recipe,
        backbone_sha256=start.card.backbone_sha256,
        adapter_sha256=sha256,
        trainable_parameters=start.trainable_parameters,
        experiences=tuple(experience.name for experience in stream),
        matrix=tuple(tuple(row) for row in kept),
        forgetting=measure_forgetting(kept),
        backward_transfer=measure_backward_transfer(kept),
        forward_transfer=measure_forward_transfer(kept),
        losses=tuple(trained.losses),
        memory_studies=trained.memory_studies,
        n_learned=sum(len(experience) for experience in stream[learned:]),
        seconds=round(perf_counter() - began, 1),
    )
    return (trained.adapter if state is RunState.FINISHED else start), run


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
        AdaptationFailed: nothing can be learned from the experience, or the loss is not finite.
    """
    trained = _Training(new_adapter(backbone, task=task, classes=classes, policy=policy, seed=policy.seed))
    try:
        _learn_stream(trained, [experience.labelled()], [], 0, strategy="naive", policy=policy, progress=progress)
    except ArithmeticError as error:
        raise AdaptationFailed(str(error)) from None
    return directory / f"{save_adapter(trained.adapter, directory)}{SUFFIX}"


def measure_auroc(adapter: Adapter, experience: Experience) -> float | None:
    """Measure the AUROC on an experience, averaged over its findings; None where no finding has both answers."""
    card = adapter.card
    scores, answers = score(adapter, experience.tokens), binary_labels(card.task, card.classes, experience.labels)
    figures = [auroc(scores[:, column], answers[:, column]) for column in range(scores.shape[1])]
    known = [figure for figure in figures if figure is not None]
    return sum(known) / len(known) if known else None


@dataclass(slots=True)
class _Training:
    """What a training has come to so far."""

    adapter: Adapter
    measured: list[list[float | None]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    memory_studies: int = 0


def _learn_stream(  # noqa: PLR0913
    trained: _Training,
    stream: Sequence[Experience],
    evaluation: Sequence[Experience],
    learned: int,
    *,
    strategy: str,
    policy: AdaptationPolicy,
    progress: Progress,
) -> None:
    """Show the learned stages, learn the others, and measure a row of the matrix after each."""
    from continual.learner import Learner  # imports Avalanche: seconds that only training should pay

    learner = Learner(trained.adapter, strategy=strategy, policy=policy)
    if learned:
        trained.measured.append([measure_auroc(trained.adapter, each) for each in evaluation])
    for stage, experience in enumerate(stream):
        if stage < learned:
            if len(experience):  # of a stage whose retention has ended nothing is remembered
                learner.recall(experience)
            continue
        trained.losses += _learn(learner, trained.adapter, experience, strategy, progress)
        trained.measured.append([measure_auroc(trained.adapter, each) for each in evaluation])
    trained.memory_studies = learner.memory_studies


def _learn(
    learner: Learner, adapter: Adapter, experience: Experience, strategy: str, progress: Progress
) -> tuple[float, ...]:
    if reason := why_not_learnable(experience, adapter.card.task, adapter.card.classes):
        raise AdaptationFailed(reason)

    def tell(epoch: int, epochs: int, loss: float) -> None:
        progress(f"Training ({strategy}): loss {loss:.3f}", epoch, epochs)

    return learner.learn(experience, tell)


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
