"""What the policy of a ward means for one of its models."""

from __future__ import annotations

import statistics
from datetime import UTC, datetime, timedelta

import numpy as np

from flows.ward import StepRefused, Ward, reference_of, version_at, version_in
from monitor.explaining import PolicyExplanation, Situation, explain_policy
from monitor.results import WindowReport

NEWEST = 8
COMPARISONS = 12
"""Taken before any window was watched: about what a model with images and a few attributes has."""


def explain(ward: Ward, model: str) -> PolicyExplanation:
    """Explain the policy in the situation of a model: its windows of late, else its reference.

    Raises:
        StepRefused: nothing has arrived yet that would tell how many patients a window has.
        SettingsError: there is no such model, or it names no reference window.
    """
    length = timedelta(days=ward.settings.model(model).window_days)
    patients, reports = patients_a_window(ward, model), _newest(ward, model)
    if reports:
        reference = _smallest_comparison(ward, model)
        comparisons = round(statistics.median(len(report.results) for report in reports))
    else:
        reference, comparisons = reference_of(ward, model, "").patients, COMPARISONS
    if min(patients, reference) < 2:
        raise StepRefused("too few studies have arrived to say what the policy means; ingest the reference first")
    situation = Situation(window=length, patients_reference=reference, patients=patients, comparisons=comparisons)
    generator = np.random.default_rng(ward.settings.drift.seed)
    return explain_policy(ward.settings.drift, situation, generator=generator, progress=ward.progress)


def patients_a_window(ward: Ward, model: str) -> int:
    """Tell how many patients a window has: the median of those watched last, before the first as in the reference."""
    if reports := _newest(ward, model):
        return round(statistics.median(report.patients for report in reports))
    cohort, length = reference_of(ward, model, ""), timedelta(days=ward.settings.model(model).window_days)
    span = cohort.times.max() - cohort.times.min() if len(cohort) else np.timedelta64(0)
    return round(cohort.patients / max(1.0, float(span / np.timedelta64(1, "s")) / length.total_seconds()))


def _newest(ward: Ward, model: str) -> list[WindowReport]:
    return [report for report in ward.records.reports(model)[-NEWEST:] if report.results]


def _smallest_comparison(ward: Ward, model: str) -> int:
    """Count the patients of the live version's reference: what its windows are compared with before any joins."""
    live = version_at(ward, model, datetime.max.replace(tzinfo=UTC))
    compared = [
        max(result.patients_reference or 0 for result in report.results)
        for report in ward.records.reports(model)
        if report.results and version_in(ward, model, report.window) == live
    ]
    return min(compared) if compared else reference_of(ward, model, live).patients
