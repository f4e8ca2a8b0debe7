"""Make an adapter by a step that trains no block: other outputs on the champion's logits, or another head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn

from continual.adapter_files import save_adapter
from continual.adapters import BATCH, Adapter
from continual.adapting import measure_auroc
from continual.calibrating import Lesson, NotFitted
from continual.expectations import MENDS, Bench, fit_outputs, side_of_threshold
from continual.experiences import Experience
from continual.forgetting import measure_backward_transfer, measure_forgetting, measure_forward_transfer
from continual.heads import Head, refit_head
from continual.outputs import Floats
from continual.plans import AdaptationRun, RunState
from continual.policies import Treatment
from monitor.cohorts import binary_labels
from monitor.measures import say_yes
from monitor.tasks import TASKS


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Order:
    """Which step to take for which plan, from which adapter, and where to keep what it makes.

    ``stages`` names all stages, the new one last; ``evaluation`` has studies of other patients for each, on which what
    was kept and lost is measured.
    """

    treatment: Treatment
    plan_id: str
    model: str
    start: Adapter
    stages: tuple[str, ...]
    evaluation: Sequence[Experience]
    directory: Path


def take_step(order: Order, bench: Bench) -> tuple[Adapter, AdaptationRun]:
    """Make the adapter of a step and keep it; the same arguments give the same bytes.

    Where the labels do not carry the step the run is FAILED with a reason, and nothing is kept.

    Raises:
        ValueError: the step trains blocks, or makes no adapter.
    """
    if not (order.treatment.keeps_network or order.treatment is Treatment.REFIT_HEAD):
        raise ValueError(f"“{order.treatment}” is no step that is taken without training blocks")
    began = perf_counter()  # a stop-watch for the record, nothing depends on it
    made, told, mends = order.start, "", ""
    try:
        made, mends, told = _make(order, bench)
        sha256, state, reason = save_adapter(made, order.directory), RunState.FINISHED, ""
    except NotFitted as error:
        sha256, state, reason = "", RunState.FAILED, str(error)
    finished = state is RunState.FINISHED
    matrix = _measure(order, made) if finished else []
    refitted = order.treatment is Treatment.REFIT_HEAD
    numbers = head_of(made).size if refitted else _count(made)
    card = order.start.card
    run = AdaptationRun(
        plan_id=order.plan_id,
        model=order.model,
        strategy="",
        adapter=card.kind,
        state=state,
        reason=reason,
        seed=bench.policy.seed,
        recipe=bench.policy.recipe,
        backbone_sha256=card.backbone_sha256,
        adapter_sha256=sha256,
        trainable_parameters=numbers,
        experiences=order.stages,
        matrix=tuple(tuple(row) for row in matrix),
        forgetting=measure_forgetting(matrix),
        backward_transfer=measure_backward_transfer(matrix),
        forward_transfer=measure_forward_transfer(matrix),
        losses=(),
        memory_studies=sum(map(len, bench.learned)) if refitted else 0,
        n_learned=len(bench.new),
        seconds=round(perf_counter() - began, 1),
        treatment=order.treatment,
        mends=mends,
        told=told,
    )
    return made, run


@torch.inference_mode()
def look_through(adapter: Adapter, experience: Experience, embeddings: Floats) -> Lesson:
    """See labelled studies as an adapter's head does; ``embeddings`` (n, d) are the frozen backbone's own.

    Raises:
        NotFitted: the adapter has no linear head.
    """
    card, features = adapter.card, []
    tail = adapter.network.tail
    for start in range(0, len(experience), BATCH):
        tokens = np.ascontiguousarray(experience.tokens[start : start + BATCH])
        features.append(tail(torch.from_numpy(tokens).float()).double().numpy())
    head = head_of(adapter)
    width = head.weight.shape[1]
    seen = np.concatenate(features) if features else np.empty((0, width))
    return Lesson(
        task=card.task,
        findings=TASKS[card.task].findings(card.classes),
        logits=head.logits(seen),
        answers=binary_labels(card.task, card.classes, experience.labels),
        patients=experience.patient_key,
        features=seen,
        embeddings=embeddings,
    )


def head_of(adapter: Adapter) -> Head:
    """Give an adapter's linear head as plain arrays.

    Raises:
        NotFitted: it has none.
    """
    head = adapter.network.head
    if not isinstance(head, nn.Linear):
        raise NotFitted(f"an adapter of kind {adapter.card.kind} has no linear head that could be refitted")
    return Head(weight=head.weight.detach().double().numpy(), bias=head.bias.detach().double().numpy())


def with_head(adapter: Adapter, head: Head) -> Adapter:
    """Copy an adapter and give it another head, and outputs without calibration."""
    made = adapter.copy()
    new: Any = made.network.head
    with torch.no_grad():
        new.weight.copy_(torch.from_numpy(head.weight).float())
        new.bias.copy_(torch.from_numpy(head.bias).float())
    return replace(made, outputs=adapter.outputs.after_training())


def _make(order: Order, bench: Bench) -> tuple[Adapter, str, str]:
    """Make the adapter; also the figure that it mends, and what was made in words."""
    start, treatment = order.start, order.treatment
    if treatment is Treatment.REFIT_HEAD:
        head = refit_head(bench.head, (*bench.learned, bench.new), hold=bench.policy.head_hold)
        return with_head(start, head), "", f"a new head of {head.size} numbers"
    before, lesson = start.outputs, bench.new
    outputs = fit_outputs(treatment, lesson, before, bench.target)
    mends = MENDS[treatment]
    if treatment is Treatment.MOVE_THRESHOLD:
        yes = [say_yes(one.apply(lesson.logits, lesson.task), lesson.task, one.thresholds) for one in (before, outputs)]
        mends = side_of_threshold(lesson.answers, yes[0], yes[1])
    return replace(start, outputs=outputs), mends, outputs.describe(lesson.findings)


def _measure(order: Order, made: Adapter) -> list[list[float | None]]:
    """Measure a row of the matrix before and one after; earlier history was not recorded."""
    rows: list[list[float | None]] = [[None] * len(order.stages) for _ in range(len(order.stages) - 2)]
    return [*rows, *([measure_auroc(adapter, each) for each in order.evaluation] for adapter in (order.start, made))]


def _count(adapter: Adapter) -> int:
    return sum(value.size for value in adapter.outputs.tensors().values())
