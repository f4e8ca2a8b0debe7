"""Follow the studies since the last complete window, and tell of an early warning once."""

from __future__ import annotations

from datetime import datetime, timedelta

from flows.explaining import patients_a_window
from flows.status import WARNED, plain, warnings_of
from flows.ward import Ward, answered_by, load_role, reference_of, version_at, windows_of
from monitor.cohorts import Window
from monitor.online import StreamReport, follow_between
from monitor.policies import YEAR
from registry.ledger import SYSTEM


def follow(ward: Ward, model: str, *, at: datetime) -> tuple[StreamReport, ...]:
    """Follow what arrived since the last complete window until now, with the online tests that the policy names.

    Nothing but an event is kept, one for each stream that warns and window: the answer is computed anew
    from the stored predictions. Studies that another version answered are left out.

    Raises:
        SettingsError: the settings name no first reference window.
    """
    policy = ward.settings.drift
    if not policy.online_tests or (window := _unfinished(ward, model, at)) is None:
        return ()
    begin = max([window.start, *(entry.since for entry in ward.records.champion_history(model)[1:])])
    if begin >= at:
        return ()
    version = version_at(ward, model, at)
    stream = answered_by(ward, model, load_role(ward, model, [Window(start=begin, end=at)], None), version)
    if not len(stream):
        return ()
    told = "Between windows"
    ward.progress(told, 0, 0)
    reports = follow_between(
        reference_of(ward, model, version),
        stream,
        window=window,
        policy=policy,
        patients_per_year=patients_a_window(ward, model) * (YEAR / (window.end - window.start)),
        progress=lambda what: ward.progress(f"{told}: {what}", 0, 0),
    )
    known = {
        (warning["window"], warning["detector"], warning["feature"]) for warning in warnings_of(ward.records, model)
    }
    for report in reports:
        if report.since is not None and (report.window.key, report.detector, report.feature) not in known:
            payload = {name: value for name, value in plain(report).items() if name != "window"}
            ward.records.tell(at=at, kind=WARNED, model=model, subject=window.key, payload=payload, actor=SYSTEM)
    return reports


def _unfinished(ward: Ward, model: str, at: datetime) -> Window | None:
    """Give the window that is not complete at a moment; None before the first reference window has ended."""
    if ward.records.studies_span(model) is None:
        return None
    (reference,) = windows_of(ward, model, "")
    if at < reference.end:
        return None
    length = timedelta(days=ward.settings.model(model).window_days)
    start = reference.end + (at - reference.end) // length * length
    return Window(start=start, end=start + length)
