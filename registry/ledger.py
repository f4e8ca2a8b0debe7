"""The ledger: a change and the event that tells of it are one transaction, and events are chained by digest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError
from sqlmodel import Session, col, select

from registry.audit import ChainState, Event, StoredEvent, canonical_json, event_digest, verify_chain
from registry.database import open_database
from registry.entries import RecordsError
from registry.rows import STORED_EVENT, EventRow, MetaRow

SYSTEM = "wardround"
ROWS_AT_ONCE = 5_000


class Ledger:
    """Transactions and events; everything that is kept builds on it."""

    def __init__(self, url: str) -> None:
        self._engine: Engine = open_database(url)

    def close(self) -> None:
        """Let go of the file."""
        self._engine.dispose()

    def tell(self, *, at: datetime, kind: str, model: str, subject: str, payload: dict[str, Any], actor: str) -> None:
        """Append an event that changes no other table, such as a projection into MLflow."""
        with self._writing() as session:
            self._append(session, at=at, kind=kind, model=model, subject=subject, payload=payload, actor=actor)

    def events(self, model: str | None = None, *, kind: str | None = None) -> list[Event]:
        """List the events in order, of one model or of all, of one kind or of all."""
        query = select(EventRow).order_by(col(EventRow.seq))
        if model is not None:
            query = query.where(EventRow.model == model)
        if kind is not None:
            query = query.where(EventRow.kind == kind)
        with self._reading() as session:
            return [row.value() for row in session.exec(query)]

    def verify_events(self) -> ChainState:
        """Recompute the chain over every event as it is stored, letter for letter."""
        columns = ", ".join(f"CAST({name} AS BLOB)" for name in STORED_EVENT)
        with self._reading() as session:
            rows = session.connection().exec_driver_sql(f"SELECT {columns} FROM events ORDER BY seq")
            noted = [session.get(MetaRow, key) for key in ("events", "head")]
            count, head = (row.value if row else "no" for row in noted)
            return verify_chain(map(_read, rows.yield_per(ROWS_AT_ONCE)), count=count, head=head)

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        """Open a transaction that nobody else writes beside; it commits at the end, or nothing has happened.

        Raises:
            RecordsError: the database is busy for too long, full or read-only.
        """
        try:
            with (
                self._engine.connect().execution_options(writing=True) as connection,
                connection.begin(),
                Session(connection, expire_on_commit=False) as session,
            ):
                yield session
                session.flush()
        except OperationalError as error:
            raise RecordsError(
                f"nothing was written: {error.orig}; end what else uses the database, check the free space, try again"
            ) from error

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with Session(self._engine) as session:
            yield session

    def _append(  # noqa: PLR0913 - an event is that wide
        self,
        session: Session,
        *,
        at: datetime,
        kind: str,
        model: str,
        subject: str,
        payload: dict[str, Any],
        actor: str = SYSTEM,
    ) -> None:
        """Chain an event to the last one, inside the caller's transaction."""
        count, head = session.get_one(MetaRow, "events"), session.get_one(MetaRow, "head")
        event = Event(
            seq=int(count.value) + 1,
            at=at,
            actor=actor,
            kind=kind,
            model=model,
            subject=subject,
            payload=canonical_json(payload),
            previous=head.value,
            digest="",
        )
        event = replace(event, digest=event_digest(event))
        session.add(EventRow.of(event))
        count.value, head.value = str(event.seq), event.digest
        session.add_all([count, head])
        session.flush()


def _read(columns: Any) -> StoredEvent:
    """Read a raw row so that any changed byte, valid text or not, changes the letters."""
    seq, *letters = (bytes(column or b"").decode("utf-8", errors="backslashreplace") for column in columns)
    named = dict(zip(STORED_EVENT[1:], letters, strict=True))
    return StoredEvent(seq=int(seq), **named)
