"""How well a model answers where the truth is known: figures a finding, with intervals over patients."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from monitor.cohorts import Cohort
from monitor.intervals import Estimate, draw_patients
from monitor.measures import MEASURES, answers_of, estimate, fast_auroc
from monitor.policies import DriftPolicy
from monitor.results import Evaluation, Metric, Source

__all__ = ["auroc", "count_labelled", "evaluate", "fast_auroc", "mean_auroc", "report_metric"]

REPORTED = tuple(name for name in MEASURES if name not in ("selection_rate", "balanced_accuracy"))


def auroc(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Measure the area under the ROC curve, ties counted half; None with a single class.

    ``scores`` (n,) and ``labels`` (n,) of 0, 1 or NaN (not known, left out).
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if values.ndim != 1 or values.shape != truth.shape:
        raise ValueError(f"scores and labels are of one shape (n,), got {values.shape} and {truth.shape}")
    known = ~np.isnan(truth)
    if not np.isin(truth[known], (0, 1)).all():
        raise ValueError(f"labels are 0, 1 or NaN, got {np.unique(truth[known])[:10]}; use Cohort.binary_labels()")
    if np.isnan(values[known]).any():
        raise ValueError("scores must be numbers; quarantine the others at ingest")
    return _number(fast_auroc(values[known], truth[known])[0])


def mean_auroc(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Average the AUROC over the findings where it is defined; None where it is defined for none.

    ``scores`` (n, findings) and ``labels`` (n, findings) of 0, 1 or NaN, as ``Cohort.binary_labels`` gives them.
    """
    columns = zip(np.asarray(scores).T, np.asarray(labels).T, strict=True)
    areas = [area for column, truth in columns if (area := auroc(column, truth)) is not None]
    return float(np.mean(areas)) if areas else None


def evaluate(
    cohort: Cohort, *, name: str, model_version: str, policy: DriftPolicy, generator: np.random.Generator
) -> Evaluation:
    """Measure each finding of a cohort where labels exist, with intervals over patients.

    A figure that does not exist (single class, no labels) is None with its reason. A metric's ``n``
    is the number of studies it rests on: positives for a sensitivity, negatives for a specificity.
    """
    counts = draw_patients(np.zeros(cohort.patients, dtype=np.intp), policy.resamples, generator)
    metrics = [
        report_metric(measure, answers.finding, figure, policy.level)
        for answers in answers_of(cohort)
        for measure, figure in estimate(answers, REPORTED, counts).items()
    ]
    return Evaluation(
        model_version=model_version,
        cohort=name,
        source=Source.REALISED,
        n=len(cohort),
        patients=cohort.patients,
        n_labelled=count_labelled(cohort),
        metrics=tuple(metrics),
    )


def count_labelled(cohort: Cohort) -> int:
    """Count the studies with at least one known label."""
    return int((~np.isnan(cohort.labels)).any(axis=1).sum())


def report_metric(name: str, finding: str, figure: Estimate, level: float) -> Metric:
    """Write a figure down with its interval, and why either is missing."""
    low, high = figure.interval(level)
    unbounded = figure.value is not None and low is None
    return Metric(
        name=name,
        finding=finding,
        value=figure.value,
        low=low,
        high=high,
        level=level,
        n=figure.studies,
        reason="one patient alone gives no interval" if unbounded else figure.reason,
    )


def _number(value: np.float64) -> float | None:
    return None if np.isnan(value) else float(value)
