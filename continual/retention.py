"""Measure what an adaptation kept and what it lost: champion against challenger, stage by stage, with intervals. Pure.

Every figure of every model and stage is computed on the same resamples of patients, who are drawn once for all stages
together: a patient seen on two stages is drawn on both, and what the two models share cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from continual.changes import Side, Sides, compare_groups, describe_difference, measure_side
from continual.forgetting import (
    Matrix,
    measure_average,
    measure_backward_transfer,
    measure_forgetting,
    measure_forward_transfer,
    weigh_stages,
)
from continual.kept import DECAY, Figure, KeptAndLost, LearningTriple, Reliability, StreamSummary, TaskMatrix
from monitor.cohorts import Cohort
from monitor.intervals import Difference, Estimate, Floats, Form, draw_patients
from monitor.paired import average_estimates
from monitor.policies import DriftPolicy
from monitor.reliability import bin_reliability
from monitor.tasks import TASKS

MATRICES = ("auroc", "accuracy", "brier", "ece_debiased")
SUMMARISED = ("auroc", "accuracy")

Estimates = Sequence[Sequence[Estimate | None]]
"""A task-by-task matrix with resamples: after each step (rows) on each stage (columns)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageScores:
    """The labelled reference patients of one stage, as each model answers them.

    ``models`` are one cohort under the scores of each model: the champion first, then those after further learning
    steps, the challenger last; two for a treatment of one step.

    Raises:
        ValueError: fewer than two models, or cohorts of different studies.
    """

    name: str
    models: tuple[Cohort, ...]

    def __post_init__(self) -> None:
        if len(self.models) < 2:
            raise ValueError(f"stage {self.name}: what was kept is measured between two models, a champion first")
        if any(not np.array_equal(self.models[0].study_uid, other.study_uid) for other in self.models[1:]):
            raise ValueError(f"stage {self.name}: all models must answer the same studies in the same order")

    @property
    def cohort(self) -> Cohort:
        """The studies, as the champion answers them."""
        return self.models[0]


def measure_kept(stages: Sequence[StageScores], *, policy: DriftPolicy, generator: Generator) -> KeptAndLost:
    """Measure what was kept and lost between the first and the last model, on every stage and subgroup.

    ``stages`` stand in the order in which they were learned, the new one last. Level, resamples, subgroups and the
    smallest cell are the policy's. Nothing is trained or loaded here, so that it serves every treatment.

    Raises:
        ValueError: there are fewer stages than models, or stages of several tasks or numbers of models.
    """
    _check(stages)
    patients, counts = _draw([stage.cohort for stage in stages], policy.resamples, generator)
    sides = [
        tuple(measure_side(model, index, counts, policy.smallest_cell) for model in stage.models)
        for stage, index in zip(stages, patients, strict=True)
    ]
    matrices = {metric: _matrix(sides, metric) for metric in MATRICES}
    changes, flips = compare_groups(
        [
            Sides(name=stage.name, cohort=stage.cohort, before=models[0], after=models[-1])
            for stage, models in zip(stages, sides, strict=True)
        ],
        counts=counts,
        policy=policy,
    )
    chance = {"auroc": 0.5, "accuracy": 1 / TASKS[stages[0].cohort.task].label_levels(stages[0].cohort.classes)}
    return KeptAndLost(
        stages=tuple(stage.name for stage in stages),
        level=policy.level,
        matrices=tuple(_write_matrix(metric, matrix, policy.level) for metric, matrix in matrices.items()),
        summaries=tuple(_summarise(name, matrices[name], chance[name], policy.level) for name in SUMMARISED),
        changes=changes,
        flips=flips,
        reliability=tuple(_compare_reliability(stage, policy, generator) for stage in stages),
        triple=measure_triple(matrices["auroc"], policy.level),
    )


def measure_triple(matrix: Estimates, level: float, *, decay: float = DECAY) -> LearningTriple:
    """Measure learning, potential and retention of the last step, with intervals; see ``LearningTriple``."""
    before, after = matrix[-2], matrix[-1]
    earlier = len(after) - 1
    weights = weigh_stages(earlier, decay)
    retained, retained_before = (_average(row[:earlier], weights) for row in (after, before))
    return LearningTriple(
        learning=describe_difference(before[-1], after[-1], level),
        potential=_describe_potential(before, level),
        retention=_describe(retained, level),
        retained_before=_describe(retained_before, level),
        retention_change=describe_difference(retained_before, retained, level),
        decay=decay,
    )


def _check(stages: Sequence[StageScores]) -> None:
    models = {len(stage.models) for stage in stages}
    kinds = {(stage.cohort.task, stage.cohort.classes) for stage in stages}
    if len(models) != 1 or len(kinds) != 1 or max(models) > len(stages):
        raise ValueError(
            "what was kept needs stages of one task, at least as many as models, each answered by all models; got "
            f"{len(stages)} stages, {sorted(models)} models, tasks {sorted(str(task) for task, _ in kinds)}"
        )


def _draw(cohorts: Sequence[Cohort], resamples: int, generator: Generator) -> tuple[list[NDArray[np.intp]], Floats]:
    """Resample the patients of all cohorts together, each within those that are seen on the same cohorts."""
    keys, index = np.unique(np.concatenate([cohort.patient_key for cohort in cohorts]), return_inverse=True)
    ends = np.cumsum([len(cohort) for cohort in cohorts])
    columns = np.split(index, ends[:-1])
    seen = np.stack([np.isin(np.arange(len(keys)), column) for column in columns], axis=1)
    strata = np.unique(seen, axis=0, return_inverse=True)[1].ravel()
    return columns, draw_patients(strata, resamples, generator)


def _matrix(sides: Sequence[tuple[Side, ...]], metric: str) -> list[list[Estimate | None]]:
    """Set the figures of all models (rows) and stages (columns) side by side, with rows for steps nobody recorded."""
    rows: list[list[Estimate | None]] = [[None] * len(sides) for _ in range(len(sides) - len(sides[0]))]
    rows += ([models[step].figures[metric, ""] for models in sides] for step in range(len(sides[0])))
    return rows


def _write_matrix(metric: str, matrix: Estimates, level: float) -> TaskMatrix:
    figures = [[_describe(one, level) for one in row] for row in matrix]
    return TaskMatrix(
        metric=metric,
        values=tuple(tuple(one.value for one in row) for row in figures),
        low=tuple(tuple(one.low for one in row) for row in figures),
        high=tuple(tuple(one.high for one in row) for row in figures),
    )


def _summarise(metric: str, matrix: Estimates, chance: float, level: float) -> StreamSummary:
    measures: Mapping[str, Callable[[Matrix], float | None]] = {
        "average": measure_average,
        "forgetting": measure_forgetting,
        "backward_transfer": measure_backward_transfer,
        "forward_transfer": lambda figures: measure_forward_transfer(figures, chance=chance),
    }
    return StreamSummary(metric=metric, **{name: _resample(one, matrix, level) for name, one in measures.items()})


def _resample(measure: Callable[[Matrix], float | None], matrix: Estimates, level: float) -> Figure:
    """Measure a matrix, and again under every resample of patients, for the interval."""
    value = measure([[None if one is None else one.value for one in row] for row in matrix])
    known = [one for row in matrix for one in row if one is not None and one.value is not None]
    if value is None:
        return Figure(value=None, low=None, high=None, reason="too few stages or patients to tell")
    resampled = [
        measure([[_take(one, draw) for one in row] for row in matrix]) for draw in range(len(known[0].replicates))
    ]
    return _describe(
        Estimate(
            value=value,
            form=Form.NORMAL,
            studies=min(one.studies for one in known),
            patients=min(one.patients for one in known),
            informative=min(one.informative for one in known),
            replicates=np.array([np.nan if one is None else one for one in resampled]),
        ),
        level,
    )


def _take(one: Estimate | None, draw: int) -> float | None:
    if one is None or one.value is None or np.isnan(one.replicates[draw]):
        return None
    return float(one.replicates[draw])


def _average(row: Sequence[Estimate | None], weights: Sequence[float]) -> Estimate | None:
    known = [one for one in row if one is not None and one.value is not None]
    return average_estimates(known, weights) if known and len(known) == len(row) else None


def _describe(estimate: Estimate | None, level: float) -> Figure:
    if estimate is None or estimate.value is None:
        return Figure(value=None, low=None, high=None, reason=estimate.reason if estimate else "not measured")
    low, high = estimate.interval(level)
    return Figure(value=estimate.value, low=low, high=high, reason="" if low is not None else "one patient alone")


def _describe_potential(before: Sequence[Estimate | None], level: float) -> Figure:
    """Subtract the figure on the new stage from that on the stage before: one model, other patients."""
    if len(before) < 2 or before[-2] is None or before[-1] is None:
        return _describe(None, level)
    fall = Difference(first=before[-2], second=before[-1])
    low, high = fall.interval(level)
    return Figure(value=fall.value, low=low, high=high, reason=fall.reason)


def _compare_reliability(stage: StageScores, policy: DriftPolicy, generator: Generator) -> Reliability:
    before, after = (
        bin_reliability(model, policy=policy, generator=generator) for model in (stage.models[0], stage.models[-1])
    )
    return Reliability(stage=stage.name, before=before, after=after)
