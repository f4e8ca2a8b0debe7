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
class ChainState:
    """Whether the chain holds; ``bad_row`` is the seq of the first event that does not."""

    n: int
    ok: bool
    bad_row: int | None
    reason: str


def canonical_json(value: Any) -> str:
    """Write a value as JSON in exactly one way.

    Raises:
        ValueError: the value holds NaN or infinity, which JSON does not know.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def event_digest(event: Event) -> str:
    """Hash everything an event says, its place and the digest before it (SHA-256, hexadecimal)."""
    at = event.at.astimezone(UTC).isoformat()
    content = [event.seq, at, event.actor, event.kind, event.model, event.subject, event.payload, event.previous]
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def verify_chain(events: Iterable[Event], *, count: int, head: str) -> ChainState:
    """Recompute the chain from its beginning; ``count`` and ``head`` are what was noted at the last append."""
    previous, n = BEGINNING, 0
    for n, event in enumerate(events, start=1):  # noqa: B007 - n is the number checked when the loop ends
        if event.seq != n:
            return _broken(n, n, f"event {n} is missing; the next row has number {event.seq}")
        if event.previous != previous:
            return _broken(n, event.seq, "it does not follow the event before it")
        if event.digest != event_digest(event):
            return _broken(n, event.seq, "its content was changed after it was written")
        previous = event.digest
    if n != count or previous != head:
        return _broken(n, n + 1, f"{count} events were written, {n} are there: the newest were removed")
    return ChainState(n=n, ok=True, bad_row=None, reason=f"{n} events hold")


def _broken(n: int, row: int, reason: str) -> ChainState:
    return ChainState(n=n, ok=False, bad_row=row, reason=reason)
