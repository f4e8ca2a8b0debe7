"""The hash chain: each event carries the digest of the one before it, so that no row can be changed unseen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

BEGINNING = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened: when, who, what, to what, and the digests that chain it."""

    seq: int
    at: datetime
    actor: str
    kind: str
    model: str
    subject: str
    payload: str
    previous: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """An event letter for letter as the database holds it; the digest is taken over these letters."""

    seq: int
    at: str
    actor: str
    kind: str
    model: str
    subject: str
    payload: str
    previous: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainState:
    """Whether the chain holds; ``bad_row`` is the seq of the first event that does not, ``head`` the last digest.

    Whoever may write the file may also write all of it anew: a head noted elsewhere tells.
    """

    n: int
    ok: bool
    bad_row: int | None
    reason: str
    head: str = ""


def canonical_json(value: Any) -> str:
    """Write a value as JSON in exactly one way.

    Raises:
        ValueError: the value holds NaN or infinity, which JSON does not know.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def stored_time(at: datetime) -> str:
    """Write a moment in exactly one way, in UTC and of constant width.

    Raises:
        ValueError: the moment has no time zone.
    """
    if at.tzinfo is None:
        raise ValueError(f"an event needs a time zone, got {at!r}; use datetime(..., tzinfo=UTC)")
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def event_digest(event: Event | StoredEvent) -> str:
    """Hash everything an event says, its place and the digest before it (SHA-256, hexadecimal)."""
    at = event.at if isinstance(event.at, str) else stored_time(event.at)
    content = [event.seq, at, event.actor, event.kind, event.model, event.subject, event.payload, event.previous]
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def verify_chain(events: Iterable[StoredEvent], *, count: str, head: str) -> ChainState:
    """Recompute the chain from its beginning; ``count`` and ``head`` are what was noted at the last append."""
    previous, n = BEGINNING, 0
    for n, event in enumerate(events, start=1):
        if event.seq != n:
            return _broken(n, n, f"event {n} is missing; the next row has number {event.seq}")
        if event.previous != previous:
            return _broken(n, n, "it does not follow the event before it")
        if event.digest != event_digest(event):
            return _broken(n, n, "its content was changed after it was written")
        previous = event.digest
    if str(n) != count:
        return _broken(n, n + 1, f"{count} events were noted, {n} are there: the newest were removed or added")
    if previous != head:
        return _broken(n, n, "it is not the event that was noted as the last")
    return ChainState(n=n, ok=True, bad_row=None, reason=f"{n} events hold", head=previous)


def _broken(n: int, row: int, reason: str) -> ChainState:
    return ChainState(n=n, ok=False, bad_row=row, reason=reason)
