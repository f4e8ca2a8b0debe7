"""Watch one window of one model: compare, save the report, write Evidently's page beside it."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from flows.alarming import follow_alarm, load_background
from flows.ward import Ward, answered_by, load_role, reference_of, version_in, windows_of
from monitor.cohorts import Window, tile_windows
from monitor.reports import write_report
from monitor.results import WindowReport
from monitor.suppression import blank_values, suppress_report
from monitor.watching import watch_window

log = logging.getLogger("wardround.watching")


def watch(ward: Ward, model: str, window: Window, *, at: datetime) -> WindowReport:
    """Compare a window with the reference of the version that was live in it, and keep the report.

    Watching a window twice keeps one report; the second replaces nothing and adds no event unless
    studies or labels have come since.
    """
    version, (_, labels) = version_in(ward, model, window), ward.records.count(model, window)
    reference = reference_of(ward, model, version)
    current = answered_by(ward, model, load_role(ward, model, [window], None), version)
    ward.progress(f"Watching {window.key}: what counts as a change", 0, 0)
    background = load_background(ward, model, reference, current, window)
    report = watch_window(
        reference,
        current,
        model=model,
        model_version=version,
        window=window,
        policy=ward.settings.drift,
        background=background,
        progress=lambda what: ward.progress(f"Watching {window.key}: {what}", 0, 0),
    )
    # also those that may not be measured by have been seen, or the window would be due for ever
    report = replace(report, n_labels=labels)
    if ward.settings.drift.evidently and len(current):
        ward.progress(f"Watching {window.key}: Evidently report", 0, 0)
        smallest = ward.settings.drift.smallest_cell
        blank = blank_values(suppress_report(report, smallest))
        write_report(reference, current, report_path(ward, model, window), smallest=smallest, blank=blank)
    ward.records.save_report(report, at)
    follow_alarm(ward, model, window, at=at)
    return report


def report_path(ward: Ward, model: str, window: Window) -> Path:
    """Tell where the Evidently page of a window lies."""
    return ward.settings.directory / "reports" / model / f"{window.key.replace('/', '_').replace(':', '')}.html"


def windows_to_watch(ward: Ward, model: str, *, until: datetime) -> list[Window]:
    """List the complete windows after the first reference that were never watched, or got studies or labels since.

    A window in which nothing arrived is among them: that is a verdict too, NOT_ENOUGH_DATA, and people must see it.

    Raises:
        SettingsError: the settings name no first reference window.
    """
    (reference,) = windows_of(ward, model, "")
    if ward.records.studies_span(model) is None:
        return []
    watched = ward.records.watched(model)
    length = timedelta(days=ward.settings.model(model).window_days)
    return [
        window
        for window in tile_windows(reference.end, until, length)
        if watched.get(window) != ward.records.count(model, window)
    ]
