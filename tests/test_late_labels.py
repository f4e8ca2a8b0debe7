"""The truth comes later: it is added whenever it comes, as it was known on any day, and never takes another's place."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.cohorts import Prediction, Window
from monitor.tasks import Task
from registry.entries import BatchSummary
from registry.records import Records, open_records
from registry.settings import ModelSettings

AT = datetime(2026, 3, 30, 6, tzinfo=UTC)
LATER = AT + timedelta(days=20)
FINDINGS = ModelSettings(task=Task.MULTI_LABEL, classes=("a", "b"))
ALL = Window(start=AT, end=AT + timedelta(days=1))
TABLES = ("predictions", "labels", "batches", "quarantine")

Labels = tuple[int | None, ...]


@pytest.fixture
def records(path: Path) -> Iterator[Records]:
    records = open_records(f"sqlite:///{path}")
    records.register_model("m", FINDINGS, AT)
    yield records
    records.close()


def study(i: int, *labels: int | None, score: float = 0.5, labelled_at: datetime | None = None) -> Prediction:
    plain: dict[str, Any] = {"model": "m", "study_uid": f"s{i}", "patient_key": f"p{i}", "labelled_at": labelled_at}
    told = labels or (None, None)
    return Prediction(**plain, produced_at=AT + timedelta(minutes=i), scores=(score, score), labels=told)


def take(
    records: Records, rows: Sequence[Prediction], name: str, at: datetime = AT, *, model: str = "m"
) -> BatchSummary:
    batch = records.begin_batch(model, name, name, at)
    for row in rows:  # each a chunk of its own
        records.add_predictions(batch, [row], at)
    return records.finish_batch(batch, at)


def parts(summary: BatchSummary) -> tuple[int, int, int, int]:
    return summary.accepted, summary.labelled, summary.duplicate, summary.conflict


def known(records: Records, by: datetime | None = None, *, model: str = "m") -> list[list[float]]:
    labels: list[list[float]] = records.load_cohort(model, known_by=by).labels.tolist()
    return [[-1.0 if np.isnan(label) else label for label in row] for row in labels]


def kinds(records: Records, model: str = "m") -> list[str]:
    return [event.kind for event in records.events(model)]


def dump(path: Path) -> dict[str, list[Any]]:
    with closing(sqlite3.connect(path)) as connection:
        return {table: connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall() for table in TABLES}


def test_labels_that_come_later_are_added_and_told_in_the_chain(records: Records) -> None:
    assert parts(take(records, [study(1), study(2, 0, 0)], "a")) == (2, 0, 0, 0)
    assert parts(take(records, [study(1, 1, 0), study(2), study(3)], "b", LATER)) == (1, 1, 1, 0)
    assert known(records) == [[1, 0], [0, 0], [-1, -1]]
    assert kinds(records).count("labels.added") == 1
    assert records.verify_events().ok
    assert records.quarantined("m") == []


def test_what_was_known_on_a_day_can_be_told(records: Records) -> None:
    take(records, [study(1), study(2, 0, None)], "a")
    take(records, [study(1, 1, None), study(2, 0, 1)], "b", LATER)
    take(records, [study(1, 1, 1)], "c", LATER + timedelta(days=1))
    assert known(records, AT - timedelta(seconds=1)) == [[-1, -1], [-1, -1]]
    assert known(records, AT) == [[-1, -1], [0, -1]]
    assert known(records, LATER) == [[1, -1], [0, 1]]
    assert known(records) == known(records, LATER + timedelta(days=2)) == [[1, 1], [0, 1]]


def test_the_same_labels_again_change_nothing(records: Records, path: Path) -> None:
    take(records, [study(1)], "a")
    rows = [study(1, 1, None), study(1, 1, 0)]
    assert parts(take(records, rows, "b", LATER)) == (0, 2, 0, 0)
    before, events = dump(path), kinds(records)
    assert parts(take(records, rows, "b", LATER)) == (0, 0, 2, 0)
    assert (dump(path), kinds(records)) == (before, events)
    assert parts(take(records, rows, "c", LATER)) == (0, 0, 2, 0)
    assert dump(path)["labels"] == before["labels"]


def test_another_truth_is_a_conflict_and_the_first_is_kept(records: Records) -> None:
    take(records, [study(1, 1, None)], "a")
    assert parts(take(records, [study(1, 0, 0), study(1, 1, 0, score=0.6)], "b", LATER)) == (0, 0, 0, 2)
    assert known(records) == [[1, -1]]
    truth, content = records.quarantined("m")
    assert "is stored with another truth, which was kept" in truth.detail
    assert '"labels":[0,0]' in truth.content
    assert "is stored with another content, which was kept" in content.detail


def test_when_the_hospital_knew_is_kept_beside_when_we_were_told(records: Records, path: Path) -> None:
    signed = AT + timedelta(days=3)
    take(records, [study(1), study(2)], "a")
    take(records, [study(1, 1, 1, labelled_at=signed), study(2, 1, 1)], "b", LATER)
    times = [[datetime.fromisoformat(f"{cell}+00:00") for cell in row[-2:]] for row in dump(path)["labels"]]
    assert times == [[signed, LATER], [LATER, LATER]]


def test_studies_and_labels_of_a_window_are_counted(records: Records) -> None:
    take(records, [study(1), study(2, 0, None), study(3)], "a")
    assert records.count("m", ALL) == (3, 1)
    take(records, [study(2, 0, 1), study(3, 1, 1)], "b", LATER)
    assert records.count("m", ALL) == (3, 4)
    assert records.count("m", Window(start=ALL.end, end=ALL.end + timedelta(days=1))) == (0, 0)
    seen = study(4, 1, None).model_copy(update={"image": "4.png", "image_sha256": "4" * 64})
    take(records, [seen], "c", LATER)
    assert records.count("m", ALL) == (1, 1)  # beside one with an image, those without are not watched


def test_labels_are_never_changed_or_removed(records: Records, path: Path) -> None:
    take(records, [study(1, 1, 1)], "a")
    with closing(sqlite3.connect(path)) as connection:
        for statement in (
            "UPDATE labels SET labels = '[0,0]'",
            "DELETE FROM labels",
            "INSERT OR REPLACE INTO labels SELECT * FROM labels",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="labels is append-only"):
                connection.execute(statement)


rows_of_exports = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from([None, 0, 1]),
        st.sampled_from([None, 0, 1]),
        st.sampled_from([0.5, 0.5, 0.6]),
    ),
    max_size=7,
)
Rows = list[tuple[int, int | None, int | None, float]]
numbers = count()


@pytest.fixture(scope="module")
def store() -> Records:
    """One store in memory, in which each example has models of its own."""
    return open_records("sqlite://")


def new_model(store: Records) -> str:
    name = f"m{next(numbers)}"
    store.register_model(name, FINDINGS, AT)
    return name


def told(rows: Rows, model: str) -> list[Prediction]:
    return [study(i, *labels, score=score).model_copy(update={"model": model}) for i, *labels, score in rows]


@settings(max_examples=50)
@given(exports=st.lists(rows_of_exports, max_size=4))
def test_every_row_is_accounted_for_and_no_truth_is_lost(store: Records, exports: list[Rows]) -> None:
    """Against a dictionary that fills gaps in what it knows and contradicts nothing."""
    model, kept = new_model(store), dict[int, tuple[float, Labels]]()
    for number, export in enumerate(exports):
        expected = dict.fromkeys(("accepted", "labelled", "duplicate", "conflict"), 0)
        for i, first, second, score in export:
            stored, labels = kept.get(i, (score, (None, None)))
            pairs = list(zip(labels, (first, second), strict=True))
            clash = any(old is not None and new is not None and old != new for old, new in pairs)
            merged = tuple(new if old is None else old for old, new in pairs)
            part = "accepted" if i not in kept else "labelled" if merged != labels else "duplicate"
            expected["conflict" if stored != score or clash else part] += 1
            if stored == score and not clash:
                kept[i] = score, merged
        assert parts(take(store, told(export, model), str(number), model=model)) == tuple(expected.values())
    assert known(store, model=model) == [[-1 if one is None else one for one in kept[i][1]] for i in sorted(kept)]
    assert store.count(model, ALL)[1] == sum(one is not None for _, labels in kept.values() for one in labels)


@settings(max_examples=50)
@given(earlier=rows_of_exports, export=rows_of_exports, killed_after=st.integers(0, 7))
def test_an_interrupted_reading_ends_as_an_undisturbed_one(
    store: Records, earlier: Rows, export: Rows, killed_after: int
) -> None:
    whole, killed = new_model(store), new_model(store)
    for model in (whole, killed):
        take(store, told(earlier, model), "a", model=model)
    batch = store.begin_batch(killed, "b", "b", AT)
    for row in told(export, killed)[:killed_after]:
        store.add_predictions(batch, [row], AT)
    first, second = (take(store, told(export, model), "b", model=model) for model in (whole, killed))
    assert parts(first) == parts(second)
    assert known(store, model=whole) == known(store, model=killed)
    assert kinds(store, whole).count("labels.added") == kinds(store, killed).count("labels.added")
