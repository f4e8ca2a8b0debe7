"""The course of a training: what is to be learned, how far it has come, and the run that is put on record."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from continual.adapters import Adapter
from continual.checkpoints import Checkpoint, RunKey, StageStanding, identify, load_checkpoint, save_checkpoint
from continual.experiences import Experience
from continual.forgetting import measure_backward_transfer, measure_forgetting, measure_forward_transfer
from continual.limits import RunWatch
from continual.plans import AdaptationRun, RunState
from continual.policies import AdaptationPolicy

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[str, int, int], None]
"""Told what is going on, how much of it is done, and out of how much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What is to be learned, from where and how."""

    start: Adapter
    stream: Sequence[Experience]
    evaluation: Sequence[Experience]
    learned: int
    strategy: str
    policy: AdaptationPolicy
    progress: Progress
    checkpoint: Path | None


@dataclass(slots=True)
class Training:
    """What a training has come to so far; ``measured`` are rows of the matrix, ``losses`` of finished stages."""

    course: Course
    key: RunKey
    adapter: Adapter
    watch: RunWatch
    earlier: Checkpoint
    measured: list[list[float | None]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    finished: list[dict[str, Tensor]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    memory_studies: int = 0
    n_learned: int = 0
    place: str = ""
    kept_at: float = -math.inf
    keeping_took: float = 0.0

    def tell_place(self) -> str:
        """Say how far it has come."""
        return self.place or "before the first epoch"

    def keep(self, standing: StageStanding | None) -> None:
        """Write the checkpoint."""
        if self.course.checkpoint is not None:
            checkpoint = Checkpoint(
                key=self.key,
                seconds=self.watch.seconds,
                losses=tuple(self.losses),
                matrix=tuple(map(tuple, self.measured)),
                notes=tuple(self.notes),
                finished=tuple(self.finished),
                standing=standing,
            )
            began = monotonic()
            save_checkpoint(checkpoint, self.course.checkpoint)
            self.kept_at = monotonic()
            self.keeping_took = self.kept_at - began


def begin(course: Course, *, plan_id: str, model: str) -> Training:
    """Look for an earlier part of the same run."""
    identity, found = "", None
    if course.checkpoint is not None:
        identity = identify(
            course.start,
            stream=course.stream,
            evaluation=course.evaluation,
            learned=course.learned,
            strategy=course.strategy,
            policy=course.policy,
        )
        found = load_checkpoint(course.checkpoint)
    key = RunKey(plan_id=plan_id, model=model, strategy=course.strategy, identity=identity)
    earlier = found if found is not None and found.key == key else Checkpoint(key=key)
    watch = RunWatch(course.policy.limits, earlier.seconds)
    return Training(course, key, course.start.copy(), watch, earlier)


def put_on_record(training: Training, state: RunState, reason: str, sha256: str = "") -> AdaptationRun:
    """Put a run on record; without an adapter there is nothing that was measured."""
    course = training.course
    kept = training.measured if state is RunState.FINISHED else []
    return AdaptationRun(
        plan_id=training.key.plan_id,
        model=training.key.model,
        strategy=course.strategy,
        adapter=course.start.card.kind,
        state=state,
        reason=reason,
        seed=course.policy.seed,
        recipe=course.policy.recipe,
        backbone_sha256=course.start.card.backbone_sha256,
        adapter_sha256=sha256,
        trainable_parameters=course.start.trainable_parameters,
        experiences=tuple(experience.name for experience in course.stream),
        matrix=tuple(tuple(row) for row in kept),
        forgetting=measure_forgetting(kept),
        backward_transfer=measure_backward_transfer(kept),
        forward_transfer=measure_forward_transfer(kept),
        losses=tuple(training.losses),
        memory_studies=training.memory_studies,
        n_learned=training.n_learned,
        seconds=round(training.watch.seconds, 1),
        notes=tuple(training.notes),
    )
