"""The audit trail in plain sentences. Values in, text out; nothing is escaped here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from dashboard.names import day, plural, reword, sentence, strategy_words
from dashboard.palette import VERDICT_WORDS
from dashboard.wording import REASON_WORDS
from registry.audit import Event
from registry.entries import ChampionRecord

EVENT_WORDS = {
    "model.registered": "model registered",
    "ingest.begun": "export opened",
    "predictions.added": "predictions added",
    "labels.added": "labels added",
    "rows.quarantined": "rows put in quarantine",
    "ingest.finished": "export read",
    "window.watched": "window watched",
    "alarm.raised": "alarm raised",
    "alarm.closed": "alarm closed",
    "stream.warned": "early warning between windows",
    "worklist.requested": "readings asked for",
    "labels.imported": "readings taken in",
    "plan.made": "treatment proposed",
    "adapter.trained": "adapter trained",
    "held_out.locked": "held-out cohort locked",
    "held_out.looked_at": "held-out cohort looked at",
    "gate.decided": "gate decided",
    "decision.signed": "decision signed",
    "signature.wrong_password": "wrong password",
    "champion.moved": "champion changed",
    "champion.projected": "MLflow told of champion",
    "champion.projection_pending": "MLflow could not be told",
    "alias.moved_outside": "MLflow changed by others",
    "user.added": "person added",
    "ward.rehearsal": "marked as a rehearsal",
    "memory.written": "rehearsal memory written",
    "memory.rewritten": "rehearsal memory made smaller",
    "patient.purge_begun": "removal of a patient begun",
    "patient.purged": "patient removed",
    "held_out.relocked": "held-out cohort locked anew",
    "reports.redacted": "studies taken out of reports",
}
MOVE_WORDS = {"first": "taken over as it was", "promote": "promoted", "rollback": "rolled back to"}
RUN = re.compile(r"(plan-[0-9a-f]+)-(?:[0-9a-f]{6}-)?(.+)-(\d+)")


def tell_move(move: ChampionRecord) -> str:
    """Say one change of champion."""
    word = MOVE_WORDS.get(move.kind, move.kind)
    what = f"{word} version {move.version}" if move.kind == "rollback" else f"version {move.version} {word}"
    return f"{day(move.since)}: {what} by {move.actor}. {sentence(move.reason)}"


def tell_event(event: Event) -> str:
    """Say what happened in one event."""
    tell = EVENT_SENTENCES.get(event.kind)
    return reword(tell(event.subject, json.loads(event.payload)) if tell else event.subject)


def tell_run_id(run_id: str) -> str:
    """Name a run by its strategy, with the plan it belongs to."""
    found = RUN.fullmatch(run_id)
    return f"{strategy_words(found[2])} of {found[1]}" if found else run_id


def _tell_watched(subject: str, content: dict[str, Any]) -> str:
    verdict = content.get("verdict", "")
    return f"{subject}: {VERDICT_WORDS.get(verdict, verdict)}, {plural(content.get('studies', 0), 'study')}"


def _tell_trained(subject: str, content: dict[str, Any]) -> str:
    name = sentence(tell_run_id(subject))
    if content.get("state") == "FAILED":
        return f"{name} did not finish"
    lost = content.get("forgetting")
    if lost is None:
        return f"{name} learned; what it forgot was not measured"
    return f"{name} learned and forgot {lost:.3f}" if lost > 0.0005 else f"{name} learned and forgot nothing"


def _tell_quarantined(subject: str, content: dict[str, Any]) -> str:
    reasons = content.get("reasons", {})
    return f"{subject}: " + ", ".join(f"{REASON_WORDS.get(reason, reason)} ({n})" for reason, n in reasons.items())


def _tell_finished(subject: str, content: dict[str, Any]) -> str:
    return f"{subject}: {content.get('accepted')} of {plural(content.get('received', 0), 'row')} accepted"


def _tell_moved(subject: str, content: dict[str, Any]) -> str:
    before = content.get("from")
    step = f"From version {before} to {subject}" if before else f"Version {subject} is the first"
    return f"{step}: {content.get('reason')}"


def _tell_signed(subject: str, content: dict[str, Any]) -> str:
    return f"{'Approved' if content.get('approved') else 'Refused'} {subject}: {content.get('meaning')}"


EVENT_SENTENCES: dict[str, Callable[[str, dict[str, Any]], str]] = {
    "window.watched": _tell_watched,
    "alarm.raised": lambda subject, content: f"{subject}: most of the evidence is {content.get('leading')}",
    "alarm.closed": lambda subject, content: f"{subject}: the evidence no longer grows",
    "stream.warned": lambda subject, content: content.get("reason", subject),
    "adapter.trained": _tell_trained,
    "rows.quarantined": _tell_quarantined,
    "predictions.added": lambda subject, content: f"{subject}: {content.get('accepted')} accepted",
    "labels.added": lambda subject, content: f"{subject}: {plural(content.get('labelled', 0), 'study')}",
    "ingest.finished": _tell_finished,
    "worklist.requested": lambda subject, content: f"{subject}: {plural(content.get('studies', 0), 'study')}",
    "labels.imported": _tell_finished,
    "plan.made": lambda subject, content: f"{sentence(content.get('treatment', subject))}. {content.get('reason')}",
    "held_out.locked": lambda subject, content: f"{subject}: {plural(content.get('studies', 0), 'study')}",
    "held_out.relocked": lambda subject, content: f"{subject}: {plural(content.get('studies', 0), 'study')} left",
    "memory.written": lambda subject, content: f"{subject}: {plural(content.get('studies', 0), 'study')}",
    "memory.rewritten": lambda subject, content: f"{subject}: {content.get('why')}",
    "patient.purge_begun": lambda subject, content: f"Under the sign {subject}: {content.get('reason')}",
    "patient.purged": lambda subject, content: (
        f"Under the sign {subject}; learned from by {plural(len(content.get('learned_from', [])), 'adapter')}"
    ),
    "held_out.looked_at": lambda subject, content: f"{subject}, to judge {tell_run_id(content.get('run', ''))}",
    "gate.decided": lambda subject, content: (
        f"{subject}: passed, a person may sign" if content.get("promote") else f"{subject}: refused"
    ),
    "decision.signed": _tell_signed,
    "champion.moved": _tell_moved,
    "champion.projected": lambda subject, content: f"Version {subject}",
    "ward.rehearsal": lambda subject, content: "Simulated studies may be taken in from now on",
    "user.added": lambda subject, content: f"{subject}, {content.get('role')}",
}
"""What an event's payload says, in words; a kind that is not here is told by its subject."""
