"""The SQLite file under the records: durable by profile, and refusing by trigger what must never happen."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from sqlalchemy import Connection, Engine, Table, UniqueConstraint, create_engine, event, inspect, text
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError
from sqlmodel import Session, SQLModel

from registry.audit import BEGINNING
from registry.entries import RecordsError
from registry.rows import (
    ChampionRow,
    DecisionRow,
    DriftResultRow,
    EventRow,
    HeldOutRow,
    LabelRow,
    LookRow,
    MetaRow,
    PlanRow,
    ReportRow,
    RunRow,
    SignatureRow,
)

SCHEMA = "6"
BUSY_SECONDS = 30
APPEND_ONLY = (
    EventRow,
    LabelRow,
    ReportRow,
    DriftResultRow,
    PlanRow,
    RunRow,
    DecisionRow,
    SignatureRow,
    ChampionRow,
    HeldOutRow,
    LookRow,
)

NEVER = {
    "event_follows_the_newest": (
        "events",
        "NEW.seq IS NOT (SELECT COALESCE(MAX(seq), 0) + 1 FROM events) OR NEW.previous IS NOT "
        f"COALESCE((SELECT digest FROM events ORDER BY seq DESC LIMIT 1), '{BEGINNING}')",
        "an event follows the newest one",
    ),
    "first_champion_needs_none_before": (
        "champions",
        "NEW.kind = 'first' AND EXISTS (SELECT 1 FROM champions WHERE model = NEW.model)",
        "a first champion needs a model without one",
    ),
    "rollback_needs_an_earlier_champion": (
        "champions",
        "NEW.kind = 'rollback' AND NOT EXISTS (SELECT 1 FROM champions c WHERE c.model = NEW.model "
        "AND c.version = NEW.version AND c.adapter_sha256 = NEW.adapter_sha256)",
        "a rollback needs a version that was live before",
    ),
    "promotion_needs_approval": (
        "champions",
        "NEW.kind = 'promote' AND NOT EXISTS (SELECT 1 FROM signatures s JOIN decisions d ON d.id = s.decision_id "
        "JOIN plans p ON p.id = d.plan_id WHERE s.decision_id = NEW.decision_id AND s.approved = 1 "
        "AND s.digest = d.digest AND s.user <> p.proposed_by AND d.promote = 1 AND d.model = NEW.model "
        "AND d.adapter_sha256 = NEW.adapter_sha256)",
        "a promotion needs an approval under its gate decision, by a person who did not propose it",
    ),
}
"""Trigger name: the table, the condition on a new row, and why it is refused."""


def open_database(url: str) -> Engine:
    """Connect to a database of ours, creating the tables in an empty one.

    Raises:
        RecordsError: the URL or the file cannot be used, or another version of Wardround wrote it.
    """
    try:
        engine = create_engine(url)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise RecordsError(f"{url!r} is no database that can be opened ({error}); use sqlite:///FILE") from None
    if engine.dialect.name != "sqlite":
        raise RecordsError(f"records need SQLite by now, got {engine.dialect.name}; set database to sqlite:///FILE")
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)
    try:
        with engine.connect() as connection:
            found = _schema(connection)
        if found is None:
            _create(engine)
    except DatabaseError as error:
        raise RecordsError(f"cannot use {url}: {error.orig}; check the file, its folder and the free space") from None
    return engine


def wal_is_safe(version: tuple[int, ...]) -> bool:
    """Tell whether SQLite's write-ahead log is free of the WAL-reset data race (fixed in 3.44.6, 3.50.7, 3.51.3)."""
    return version >= (3, 51, 3) or (3, 44, 6) <= version < (3, 45) or (3, 50, 7) <= version < (3, 51)


def _set_up(connection: sqlite3.Connection, _: object) -> None:
    """Give every connection the durable profile; transactions are begun by us, not by the driver."""
    connection.isolation_level = None
    journal = "WAL" if wal_is_safe(sqlite3.sqlite_version_info) else "TRUNCATE"
    for pragma in (
        "foreign_keys=ON",
        f"busy_timeout={BUSY_SECONDS * 1000}",
        f"journal_mode={journal}",
        "synchronous=FULL",
        "secure_delete=ON",
        "trusted_schema=OFF",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    """Take the write lock at once when writing, so that nobody else can chain an event in between."""
    writing = connection.get_execution_options().get("writing")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _schema(connection: Connection) -> str | None:
    """Give the schema version of the tables; None of an empty database.

    Raises:
        RecordsError: it is another version's, or not ours at all.
    """
    tables = set(inspect(connection).get_table_names())
    if not tables:
        return None
    if MetaRow.__tablename__ not in tables:
        raise RecordsError("the database holds other tables than Wardround's; set database to a file of its own")
    with Session(connection) as session:
        row = session.get(MetaRow, "schema")
    found = row.value if row else "unknown"
    if found != SCHEMA:
        raise RecordsError(
            f"the database has schema {found}, this version of Wardround needs {SCHEMA}; "
            "use the version that wrote it, or start in an empty folder and ingest the exports again"
        )
    return found


def _create(engine: Engine) -> None:
    with engine.connect().execution_options(writing=True) as connection, connection.begin():
        if _schema(connection) is not None:
            return  # another process was faster
        SQLModel.metadata.create_all(connection)
        _protect(connection)
        with Session(connection) as session:
            session.add_all(
                MetaRow(key=key, value=value)
                for key, value in (("schema", SCHEMA), ("events", "0"), ("head", BEGINNING))
            )
            session.flush()


def _protect(connection: Connection) -> None:
    for row in APPEND_ONLY:
        table = SQLModel.metadata.tables[str(row.__tablename__)]
        for verb in ("update", "delete"):
            _refuse(
                connection, f"{table.name}_refuse_{verb}", f"{verb} ON {table.name}", f"{table.name} is append-only"
            )
        _refuse(
            connection,
            f"{table.name}_refuse_replace",
            f"INSERT ON {table.name} WHEN {' OR '.join(_already_there(table))}",
            f"{table.name} is append-only, and holds such a row",
        )
    for name, (on, condition, why) in NEVER.items():
        _refuse(connection, name, f"INSERT ON {on} WHEN {condition}", why)


def _refuse(connection: Connection, name: str, when: str, why: str) -> None:
    connection.execute(text(f"CREATE TRIGGER {name} BEFORE {when} BEGIN SELECT RAISE(ABORT, '{why}'); END"))


def _already_there(table: Table) -> Iterator[str]:
    """Say of each key whether the new row has one that is taken: INSERT OR REPLACE deletes without a delete trigger."""
    keys = [list(table.primary_key.columns)]
    keys += [list(constraint.columns) for constraint in table.constraints if isinstance(constraint, UniqueConstraint)]
    keys += [list(index.columns) for index in table.indexes if index.unique]
    for key in keys:
        same = " AND ".join(f'"{column.name}" = NEW."{column.name}"' for column in key)
        yield f"EXISTS (SELECT 1 FROM {table.name} WHERE {same})"
