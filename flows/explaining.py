"""What the policy of a ward means for one of its models."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np

from flows.ward import StepRefused, Ward, reference_of, version_at, version_in
from monitor.cohorts import Cohort
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
    length, reports = timedelta(days=ward.settings.model(model).window_days), ward.records.reports(model)
    if newest := _newest(reports):
        patients, reference = _median_patients(newest), _smallest_comparison(ward, model, reports)
        comparisons = round(statistics.median(len(report.results) for report in newest))
    else:
        cohort = reference_of(ward, model, "")
        patients, reference, comparisons = _expect_patients(cohort, length), cohort.patients, COMPARISONS
    if min(patients, reference) < 2:
        raise StepRefused("too few studies have arrived to say what the policy means; ingest the reference first")
    situation = Situation(window=length, patients_reference=reference, patients=patients, comparisons=comparisons)
    generator = np.random.default_rng(ward.settings.drift.seed)
    return explain_policy(ward.settings.drift, situation, generator=generator, progress=ward.progress)


def patients_a_window(ward: Ward, model: str) -> int:
    """Tell how many patients a window has: the median of those watched last, before the first as in the reference."""
    if newest := _newest(ward.records.reports(model)):
        return _median_patients(newest)
    return _expect_patients(reference_of(ward, model, ""), timedelta(days=ward.settings.model(model).window_days))


def _newest(reports: Sequence[WindowReport]) -> list[WindowReport]:
    return [report for report in reports[-NEWEST:] if report.results]


def _median_patients(reports: Sequence[WindowReport]) -> int:
    return round(statistics.median(report.patients for report in reports))


def _expect_patients(reference: Cohort, length: timedelta) -> int:
    span = reference.times.max() - reference.times.min() if len(reference) else np.timedelta64(0)
    return round(reference.patients / max(1.0, float(span / np.timedelta64(1, "s")) / length.total_seconds()))


def _smallest_comparison(ward: Ward, model: str, reports: Sequence[WindowReport]) -> int:
    """Count the patients of the live version's reference: what its windows are compared with before any joins."""
    live = version_at(ward, model, datetime.max.replace(tzinfo=UTC))
    compared = [
        max(result.patients_reference or 0 for result in report.results)
        for report in reports
        if report.results and version_in(ward, model, report.window) == live
    ]
    return min(compared) if compared else reference_of(ward, model, live).patients
