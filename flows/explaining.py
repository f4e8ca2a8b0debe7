"""What the policy of a ward means for one of its models."""

from __future__ import annotations

import statistics
from datetime import UTC, datetime, timedelta

import numpy as np

from flows.ward import StepRefused, Ward, reference_of, version_at, version_in
from monitor.explaining import PolicyExplanation, Situation, explain_policy

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
    reports = [report for report in ward.records.reports(model)[-NEWEST:] if report.results]
    if reports:
        patients = round(statistics.median(report.patients for report in reports))
        reference = _smallest_comparison(ward, model)
        comparisons = round(statistics.median(len(report.results) for report in reports))
    else:
        cohort = reference_of(ward, model, "")
        reference, comparisons = cohort.patients, COMPARISONS
        span = cohort.times.max() - cohort.times.min() if len(cohort) else np.timedelta64(0)
        windows = max(1.0, float(span / np.timedelta64(1, "s")) / length.total_seconds())
        patients = round(reference / windows)
    if min(patients, reference) < 2:
        raise StepRefused("too few studies have arrived to say what the policy means; ingest the reference first")
    situation = Situation(window=length, patients_reference=reference, patients=patients, comparisons=comparisons)
    generator = np.random.default_rng(ward.settings.drift.seed)
    return explain_policy(ward.settings.drift, situation, generator=generator, progress=ward.progress)


def _smallest_comparison(ward: Ward, model: str) -> int:
    """Count the patients of the live version's reference: what its windows are compared with before any joins."""
    live = version_at(ward, model, datetime.max.replace(tzinfo=UTC))
    compared = [
        max(result.patients_reference or 0 for result in report.results)
        for report in ward.records.reports(model)
        if report.results and version_in(ward, model, report.window) == live
    ]
    return min(compared) if compared else reference_of(ward, model, live).patients
