"""The chain of events: exact digests, any change found and named, and a database that refuses to change the past."""

import hashlib
import os
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.audit import BEGINNING, Event, StoredEvent, canonical_json, event_digest, stored_time, verify_chain
from registry.database import APPEND_ONLY
from registry.records import Records, open_records

AT = datetime(2026, 3, 30, 6, tzinfo=UTC)
EVENTS = 5


@pytest.fixture
def records(path: Path) -> Iterator[Records]:
    records = open_records(f"sqlite:///{path}")
    for i in range(EVENTS):
        records.tell(at=AT, kind="k", model="m", subject=f"s{i}", payload={"wörter": i}, actor="emma")
    yield records
    records.close()


def change(path: Path, *statements: str, values: tuple[object, ...] = ()) -> None:
    """Change the file as somebody would who may write it."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            assert connection.execute(statement, values).rowcount != 0


# ---- the pure part


def test_the_digest_is_sha256_over_these_very_letters() -> None:
    event = Event(seq=7, at=AT, actor="é", kind="k", model="m", subject="s", payload="{}", previous="p", digest="")
    letters = '[7,"2026-03-30T06:00:00.000000+00:00","é","k","m","s","{}","p"]'
    assert event_digest(event) == hashlib.sha256(letters.encode()).hexdigest()


def test_the_digest_does_not_depend_on_the_time_zone_it_was_told_in() -> None:
    event = Event(seq=1, at=AT, actor="a", kind="k", model="m", subject="s", payload="", previous="", digest="")
    elsewhere = replace(event, at=AT.astimezone(timezone(timedelta(hours=-3, minutes=-30))))
    assert event_digest(elsewhere) == event_digest(event)
    with pytest.raises(ValueError, match="time zone"):
        stored_time(datetime(2026, 1, 1))


def test_canonical_json_is_one_way_and_refuses_nan() -> None:
    assert canonical_json({"b": 1, "a": [1.0, "é"]}) == '{"a":[1.0,"é"],"b":1}'
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            canonical_json({"a": [value]})


def chain(payloads: list[str]) -> list[StoredEvent]:
    events: list[StoredEvent] = []
    for seq, payload in enumerate(payloads, start=1):
        previous = events[-1].digest if events else BEGINNING
        plain = {"seq": seq, "at": stored_time(AT), "actor": "a", "kind": "k", "model": "m", "subject": "s"}
        event = StoredEvent(**plain, payload=payload, previous=previous, digest="")  # type: ignore[arg-type]
        events.append(replace(event, digest=event_digest(event)))
    return events


chains = st.lists(st.text(max_size=5), min_size=1, max_size=6).map(chain)


@given(chains, st.data())
def test_any_change_to_any_field_of_any_event_is_found_there(events: list[StoredEvent], data: st.DataObject) -> None:
    noted = {"count": str(len(events)), "head": events[-1].digest}
    assert verify_chain(events, **noted).ok
    place = data.draw(st.integers(0, len(events) - 1))
    field = data.draw(st.sampled_from([field.name for field in fields(StoredEvent)]))
    before = getattr(events[place], field)
    after = data.draw((st.integers() if field == "seq" else st.text()).filter(lambda value: value != before))
    events[place] = replace(events[place], **{field: after})
    state = verify_chain(events, **noted)
    assert (state.ok, state.bad_row) == (False, place + 1)


@given(chains, st.data())
def test_what_is_removed_or_put_elsewhere_is_found_there(events: list[StoredEvent], data: st.DataObject) -> None:
    noted = {"count": str(len(events)), "head": events[-1].digest}
    place = data.draw(st.integers(0, len(events) - 1))
    without = events[:place] + events[place + 1 :]
    assert verify_chain(without, **noted).bad_row == place + 1
    other = data.draw(st.integers(0, len(events) - 1))
    events[place], events[other] = (
        replace(events[other], seq=events[place].seq),
        replace(events[place], seq=events[other].seq),
    )
    if place != other:
        assert verify_chain(events, **noted).bad_row == min(place, other) + 1


# ---- a real file


def test_the_chain_holds_and_says_its_head(records: Records) -> None:
    state, events = records.verify_events(), records.events()
    assert (state.ok, state.n, state.bad_row, state.head) == (True, EVENTS, None, events[-1].digest)
    assert [event.previous for event in events] == [BEGINNING, *(event.digest for event in events[:-1])]
    assert open_records("sqlite://").verify_events().ok


def test_every_single_byte_of_a_row_counts(records: Records, path: Path) -> None:
    """Flip one bit of each byte of each column of event 3, one after another: each time row 3 is named."""
    columns = [field.name for field in fields(StoredEvent) if field.name != "seq"]
    change(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        row = connection.execute(f"SELECT {', '.join(columns)} FROM events WHERE seq = 3").fetchone()
        flipped = 0
        for column, letters in zip(columns, row, strict=True):
            for place in range(len(letters.encode())):
                for bit in (0x01, 0x80):
                    damaged = bytearray(letters.encode())
                    damaged[place] ^= bit
                    sql = f"UPDATE events SET {column} = CAST(? AS TEXT) WHERE seq = 3"
                    connection.execute(sql, (bytes(damaged),))
                    state = records.verify_events()
                    assert (state.ok, state.bad_row) == (False, 3), (column, place)
                    flipped += 1
            connection.execute(f"UPDATE events SET {column} = ? WHERE seq = 3", (letters,))
    assert flipped > 2 * (64 + 64 + 32)
    assert records.verify_events().ok


@pytest.mark.parametrize(
    ("statements", "row", "reason"),
    [
        (["UPDATE events SET at = '2026-03-30 06:00:00.000000+00:00' WHERE seq = 2"], 2, "changed"),
        (["UPDATE events SET payload = payload || ' ' WHERE seq = 5"], 5, "changed"),
        (["UPDATE events SET previous = 'x' WHERE seq = 1"], 1, "does not follow"),
        (["DELETE FROM events WHERE seq = 1"], 1, "event 1 is missing"),
        (["DELETE FROM events WHERE seq = 4"], 4, "event 4 is missing"),
        (["DELETE FROM events WHERE seq = 5"], 5, "the newest were removed"),
        (["DELETE FROM events"], 1, "the newest were removed"),
        (["DELETE FROM events WHERE seq = 5", "UPDATE meta SET value = '4' WHERE key = 'events'"], 4, "not the event"),
        (["UPDATE meta SET value = 'x' WHERE key = 'head'"], 5, "not the event"),
        (["DELETE FROM meta WHERE key = 'events'"], 6, "no events were noted"),
        (
            [
                "UPDATE events SET seq = 30 WHERE seq = 2",
                "UPDATE events SET seq = 2 WHERE seq = 3",
                "UPDATE events SET seq = 3 WHERE seq = 30",
            ],
            2,
            "does not follow",
        ),
    ],
)
def test_a_changed_removed_or_moved_row_is_found_and_named(
    records: Records, path: Path, statements: list[str], row: int, reason: str
) -> None:
    assert records.verify_events().ok
    change(path, *statements)
    state = records.verify_events()
    assert (state.ok, state.bad_row) == (False, row)
    assert reason in state.reason


def test_who_writes_the_whole_chain_anew_cannot_keep_its_head(records: Records, path: Path) -> None:
    noted = records.verify_events().head
    forged = chain([event.payload.replace("0", "1") for event in records.events()])
    for event in forged:
        names = [field.name for field in fields(event)]
        sql = f"UPDATE events SET {', '.join(f'{name} = ?' for name in names)} WHERE seq = {event.seq}"
        change(path, sql, values=tuple(getattr(event, name) for name in names))
    change(path, f"UPDATE meta SET value = '{forged[-1].digest}' WHERE key = 'head'")
    state = records.verify_events()
    assert state.ok
    assert state.head != noted


# ---- the database refuses


@pytest.mark.parametrize("table", [row.__tablename__ for row in APPEND_ONLY])
def test_the_past_cannot_be_changed(records: Records, path: Path, table: str) -> None:
    """The row here is a stand-in, put there past every trigger and constraint but those under test."""
    with closing(sqlite3.connect(path)) as connection:
        guards = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in guards:
            connection.execute(f"DROP TRIGGER {name}")
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        connection.execute("PRAGMA ignore_check_constraints = ON")
        if table != "events":
            connection.execute(f"INSERT INTO {table} VALUES ({', '.join('1' for _ in columns)})")
        for _, sql in guards:
            connection.execute(sql)
        content = connection.execute(f"SELECT * FROM {table}").fetchall()
        for statement in (
            f"UPDATE {table} SET {columns[-1]} = 'x'",
            f"DELETE FROM {table}",
            f"REPLACE INTO {table} SELECT * FROM {table}",
            f"INSERT OR REPLACE INTO {table} SELECT * FROM {table} WHERE rowid = 1",
        ):
            with pytest.raises(sqlite3.IntegrityError, match=r"append-only|follows the newest"):
                connection.execute(statement)
        assert connection.execute(f"SELECT * FROM {table}").fetchall() == content


@pytest.mark.parametrize("seq", [3, 6, 7])
def test_the_database_itself_refuses_a_fork_and_a_gap(records: Records, path: Path, seq: int) -> None:
    events = records.events()
    previous = events[1].digest if seq == 6 else events[-1].digest
    row = (seq, "at", "a", "k", "m", "s", "{}", previous, "digest")
    with (
        closing(sqlite3.connect(path)) as connection,
        pytest.raises(sqlite3.IntegrityError, match=r"follows the newest|append-only"),
    ):
        connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)


WRITER = """
    import sys
    from datetime import UTC, datetime
    from registry.records import open_records
    records = open_records(sys.argv[1])
    for i in range(int(sys.argv[3])):
        at = datetime(2026, 3, 30, tzinfo=UTC)
        records.tell(at=at, kind="k", model="m", subject=str(i), payload={}, actor=sys.argv[2])
"""


@pytest.mark.slow
def test_writers_at_once_never_fork_the_chain_and_lose_nothing(path: Path) -> None:
    """Four processes also create the file at once."""
    command = [sys.executable, "-c", textwrap.dedent(WRITER), f"sqlite:///{path}"]
    environment = {**os.environ, "PYTHONPATH": "."}
    writers = [subprocess.Popen([*command, str(who), "25"], env=environment) for who in range(4)]
    assert [writer.wait(timeout=120) for writer in writers] == [0] * 4
    records = open_records(f"sqlite:///{path}")
    state = records.verify_events()
    assert (state.ok, state.n) == (True, 100)
    told = [(event.actor, event.subject) for event in records.events()]
    for who in "0123":
        assert [subject for actor, subject in told if actor == who] == [str(i) for i in range(25)]
