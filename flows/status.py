"""The state of everything under watch, as one plain value for screens and programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, date, datetime
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from continual.label_uses import OpenWorklist
from continual.plans import AdaptationPlan, AdaptationRun
from flows.labelling import open_worklists, tell_need
from flows.ward import Ward, shown_reports
from monitor.alarms import count_alarms
from monitor.cohorts import Window, span_of
from monitor.harm import headline_harm
from monitor.policies import YEAR, DriftPolicy
from monitor.results import Source, Verdict, WindowReport
from monitor.severity import grade_window
from monitor.streams import StreamScore, score_headline, score_streams
from registry.agenda import next_step
from registry.decisions import GateDecision
from registry.entries import AlarmEntry, windows_open
from registry.records import Records

WARNED = "stream.warned"
"""The event of an early warning."""


def status_of(ward: Ward, *, at: datetime | None = None) -> dict[str, Any]:
    """Collect, for each model, windows with verdicts, plans, runs, decisions, signatures and the champion.

    Worklists are as old as they are ``at`` a moment, by default now.
    """
    return {model: _status_of_model(ward, model, at or datetime.now(UTC)) for model in ward.settings.models}


def _status_of_model(ward: Ward, model: str, at: datetime) -> dict[str, Any]:
    records = ward.records
    champion = records.champion(model)
    decisions = records.decisions(model)
    signatures = [signature for d in decisions for signature in records.signatures(d.decision_id)]
    policy, alarms = ward.settings.drift, records.alarms(model)
    reports = shown_reports(ward, model)
    state: dict[str, Any] = plain(
        {
            "rehearsal": records.is_rehearsal,
            "champion": champion,
            "champion_history": records.champion_history(model),
            "alarms": _count_alarms(alarms, policy),
            "warnings": warnings_of(records, model),
            "windows": [
                {
                    **headline(report, policy, alarm_windows=windows_open(alarms, report.window)),
                    "labels": records.label_arrival(model, report.window),
                }
                for report in reports
            ],
            "labels": records.label_arrival(model, span_of([r.window for r in reports])) if reports else None,
            "worklists": open_worklists(ward, model, at=at),
            "labels_needed": tell_need(ward, model, at=at),
            "plans": records.plans(model),
            "runs": records.runs(model),
            "decisions": decisions,
            "signatures": signatures,
            "batches": records.batches(model),
            "quarantined": len(records.quarantined(model)),
            "next": next_step(records, model),
        }
    )
    return state


def warnings_of(records: Records, model: str) -> list[dict[str, Any]]:
    """List the early warnings between windows, oldest first; the verdict of their window takes their place."""
    watched = {window.key for window in records.watched(model)}
    events = [event for event in records.events(model, kind=WARNED) if event.subject not in watched]
    return [{"window": event.subject, "told_at": event.at, **json.loads(event.payload)} for event in events]


def _count_alarms(entries: Sequence[AlarmEntry], policy: DriftPolicy) -> dict[str, Any] | None:
    """Count the alarms of the year up to the newest window beside the false ones that are borne; None before any."""
    if not entries:
        return None
    newest = entries[-1]
    year = [entry.state for entry in entries if entry.window.start >= newest.window.end - YEAR]
    return {
        "of_a_year": count_alarms(year),
        "false_alarms_per_year": policy.false_alarms_per_year,
        "open_since": newest.state.open_since,
    }


def headline(report: WindowReport, policy: DriftPolicy, *, alarm_windows: int = 0) -> dict[str, Any]:
    """Sum a report up: how grave, the headline score with its streams and their parts, and what each rests on.

    The report is one that was suppressed. ``alarm_windows`` is for how many windows an alarm is open.
    """
    streams = score_streams(report, policy)
    realised = next((h for h in report.harms if h.source is Source.REALISED and h.metric == "auroc"), None)
    drifted = [f"{r.detector} {r.feature}" for r in report.results if r.verdict is Verdict.DRIFT]
    return {
        "window": report.window,
        "verdict": report.verdict,
        "reason": report.reason,
        "severity": grade_window(report, policy, alarm_windows=alarm_windows),
        "headline": score_headline(streams),
        "streams": streams,
        "studies": report.n,
        "patients": report.patients,
        "labelled": report.n_labelled,
        "drifted": drifted,
        "auroc": realised.current if realised else None,
        "auroc_loss": realised.loss if realised else None,
        "auroc_loss_low": realised.low if realised else None,
        "auroc_loss_high": realised.high if realised else None,
        "harm": headline_harm(report.harms),
        "metrics": [metric for evaluation in report.evaluations for metric in evaluation.metrics],
    }


def plain(value: Any) -> Any:
    """Turn our values into what JSON knows: windows to their key, enumerations to their word, times to ISO 8601.

    Plans, runs and decisions carry their identity, which the next command asks for.
    """
    if is_dataclass(value) and not isinstance(value, type | Window):
        names = [*(field.name for field in fields(value)), *DERIVED.get(type(value), ())]
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    write = next((write for kind, write in WRITERS.items() if isinstance(value, kind)), None)
    return value if write is None else write(value)


DERIVED: dict[type, tuple[str, ...]] = {
    AdaptationPlan: ("plan_id",),
    AdaptationRun: ("run_id",),
    GateDecision: ("decision_id", "digest", "reasons"),
    StreamScore: ("told",),
    OpenWorklist: ("return_rate",),
}
WRITERS: dict[type, Callable[[Any], Any]] = {
    Window: lambda window: window.key,
    Enum: lambda member: member.value,
    date: lambda moment: moment.isoformat(),  # a datetime is a date too
    Path: str,
    BaseModel: lambda model: model.model_dump(mode="json"),
}
