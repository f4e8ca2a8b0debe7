"""Calibration of a window: whether a score of 0.8 comes true eight times in ten."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import streamlit as st

from dashboard import calibration_charts
from dashboard.drawing import QUIET_BAR
from dashboard.glossary import TERMS
from dashboard.names import METRIC_MEANINGS, metric_words, number, sentence
from dashboard.reading import plain, store
from monitor.reliability import bin_reliability
from monitor.results import Evaluation, Metric, WindowReport

FIGURES = ("ece_debiased", "calibration_slope", "calibration_intercept", "brier")
PARTS = {"brier_uncertainty": 1, "brier_resolution": -1, "brier_reliability": 1}
"""The parts of the Brier score, and whether each raises or lowers it."""

LEAST_SHOWN = 0.0005
"""Differences that three digits do not show."""


def show_calibration(report: WindowReport, finding: str) -> None:
    """Show the figures of calibration, the reliability diagram, and what the Brier score is made of."""
    st.subheader("Do the scores mean what they say?", anchor=False, help=TERMS["Calibration"])
    evaluation = next(iter(report.evaluations), None)
    found = {} if evaluation is None else {name: _find(evaluation, name, finding) for name in (*FIGURES, *PARTS)}
    figures = {name: metric for name in FIGURES if (metric := found.get(name)) is not None}
    if not any(metric.value is not None for metric in figures.values()):
        reasons = sorted({metric.reason for metric in figures.values()} - {""})
        st.info(plain(f"Calibration cannot be told: {'; '.join(reasons) or 'it was not measured in this window'}."))
        return
    for column, (name, metric) in zip(st.columns(len(FIGURES)), figures.items(), strict=False):
        value = "not known" if metric.value is None else number(metric.value)
        column.metric(sentence(metric_words(name)), value, help=METRIC_MEANINGS[name])
        column.caption(plain(_tell_interval(metric)))
    left, right = st.columns([3, 2])
    with left:
        _show_reliability(report, finding)
    with right:
        _show_brier(found, found.get("brier"))


def _show_reliability(report: WindowReport, finding: str) -> None:
    settings, records = store()
    cohort = records.load_cohort(report.model, window=report.window)
    cohort = replace(cohort, labels=records.labels_to_measure(report.model, cohort, settings.roles))
    bins = [
        one
        for one in bin_reliability(cohort, policy=settings.drift, generator=np.random.default_rng(settings.drift.seed))
        if one.finding == finding
    ]
    if not bins:
        st.caption("Too few patients are labelled to draw how often scores come true.")
        return
    st.plotly_chart(calibration_charts.reliability(bins), width="stretch", key="reliability", config=QUIET_BAR)
    patients = [one.patients for one in bins]
    st.caption(
        f"Each point is {min(patients)} to {max(patients)} patients with about the same score; groups of fewer than "
        f"{settings.drift.smallest_cell} are joined with their neighbours. Below the diagonal the model promises too "
        f"much. Lines are {settings.drift.level:.0%} intervals over patients, from the labels known now."
    )


def _show_brier(found: dict[str, Metric | None], total: Metric | None) -> None:
    parts = [
        (metric_words(name), sign * metric.value)
        for name, sign in PARTS.items()
        if (metric := found.get(name)) is not None and metric.value is not None
    ]
    if len(parts) < len(PARTS) or total is None or total.value is None:
        return
    rest = total.value - sum(value for _, value in parts)
    if abs(rest) >= LEAST_SHOWN:
        parts.append(("within groups", rest))
    st.plotly_chart(calibration_charts.brier_parts(parts, total.value), width="stretch", key="brier", config=QUIET_BAR)
    st.caption(
        "How the Brier score adds up: how hard the cases are, less what the scores tell apart, plus what they are "
        "off by. Lower is better."
    )


def _find(evaluation: Evaluation, name: str, finding: str) -> Metric | None:
    return next((m for m in evaluation.metrics if (m.name, m.finding) == (name, finding)), None)


def _tell_interval(metric: Metric) -> str:
    if metric.value is None or metric.low is None or metric.high is None:
        return metric.reason or "no interval"
    return f"{number(metric.low)} to {number(metric.high)}, {metric.level:.0%} interval"
