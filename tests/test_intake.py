"""Intake: nothing is lost, nothing is overwritten, and a process may be killed at any line."""

import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.cohorts import Prediction, Window
from monitor.tasks import Task
from registry.entries import BatchSummary, QuarantinedRow
from registry.records import Records, RecordsError, open_records
from registry.settings import ModelSettings

AT = datetime(2026, 3, 30, 6, tzinfo=UTC)
SETTINGS = ModelSettings(attributes=("site", "age"), numeric_attributes=("age",))
TABLES = ("models", "batches", "predictions", "labels", "quarantine", "events", "meta")
BAD = QuarantinedRow(line=7, reason="bad_row", detail="x", content="y")


@pytest.fixture
def records(path: Path) -> Iterator[Records]:
    records = open_records(f"sqlite:///{path}")
    records.register_model("m", SETTINGS, AT)
    yield records
    records.close()


def prediction(i: int, score: float = 0.5, **more: object) -> Prediction:
    plain: dict[str, object] = {
        "model": "m",
        "study_uid": f"s{i}",
        "patient_key": f"p{i // 2}",
        "produced_at": AT + timedelta(minutes=i),
        "scores": (score,),
        "labels": (i % 2 if i % 3 else None,),
        "attributes": {"site": "A", "age": 40.0 + i},
        "image": f"{i}.png",
        "image_sha256": f"{i:064x}",
    }
    return Prediction.model_validate(plain | more)


def add(records: Records, predictions: Sequence[Prediction], name: str, bad: Sequence[QuarantinedRow] = ()) -> int:
    """Take in an export but for its end."""
    batch = records.begin_batch("m", name, name, AT)
    records.add_predictions(batch, predictions, AT)
    records.quarantine(batch, bad, AT)
    return batch


def take(
    records: Records, predictions: Sequence[Prediction], name: str, bad: Sequence[QuarantinedRow] = ()
) -> BatchSummary:
    return records.finish_batch(add(records, predictions, name, bad), AT)


def parts(summary: BatchSummary) -> tuple[int, int, int, int]:
    return summary.accepted, summary.duplicate, summary.conflict, summary.quarantined


def dump(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(path)) as connection:
        return {table: connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall() for table in TABLES}


# ---- cohorts


def test_predictions_come_back_as_a_cohort_in_order_of_time(records: Records) -> None:
    take(records, [prediction(i) for i in (8, 3, 0, 1, 2, 4, 5, 6, 7)], "a.csv")
    cohort = records.load_cohort("m")
    assert cohort.study_uid.tolist() == [f"s{i}" for i in range(9)]
    assert cohort.patient_key.tolist() == [f"p{i // 2}" for i in range(9)]
    assert cohort.times.tolist() == [(AT + timedelta(minutes=i)).replace(tzinfo=None) for i in range(9)]
    assert cohort.attributes["age"].tolist() == [40.0 + i for i in range(9)]
    assert cohort.attributes["site"].tolist() == ["A"] * 9
    assert np.isnan(cohort.labels[[0, 3, 6], 0]).all()
    assert cohort.labels[[1, 2, 4, 5, 7, 8], 0].tolist() == [1, 0, 0, 1, 1, 0]
    assert cohort.images is not None
    assert cohort.images.tolist() == [f"{i:064x}" for i in range(9)]
    assert cohort.embeddings is None


def test_windows_and_versions_choose_half_open_and_exactly(records: Records) -> None:
    rows = [prediction(i, produced_at=AT + timedelta(microseconds=i)) for i in range(4)]
    take(records, [*rows, prediction(9, model_version="2")], "a.csv")
    half = Window(start=AT + timedelta(microseconds=1), end=AT + timedelta(microseconds=3))
    assert records.load_cohort("m", window=half).study_uid.tolist() == ["s1", "s2"]
    assert records.load_cohort("m", model_version="2").study_uid.tolist() == ["s9"]
    assert len(records.load_cohort("m", model_version="3")) == 0
    assert len(records.load_cohort("m", window=Window(start=AT - timedelta(days=1), end=AT))) == 0
    assert records.studies_span("m") == (AT, AT + timedelta(minutes=9))


def test_a_model_without_predictions_is_an_empty_cohort_and_an_unknown_one_is_an_error(records: Records) -> None:
    empty = records.load_cohort("m")
    assert (len(empty), empty.scores.shape, empty.images, records.studies_span("m")) == (0, (0, 1), None, None)
    for ask in (records.load_cohort, lambda name: records.begin_batch(name, "a", "a", AT)):
        with pytest.raises(RecordsError, match="not registered here yet; ingest"):
            ask("other")


def test_missing_attributes_are_named_missing_and_nan(records: Records) -> None:
    take(records, [prediction(1, attributes={}), prediction(2, attributes={"site": "", "age": None})], "a.csv")
    cohort = records.load_cohort("m")
    assert cohort.attributes["site"].tolist() == ["missing", "missing"]
    assert np.isnan(cohort.attributes["age"]).all()


@pytest.mark.parametrize(
    ("settings", "scores", "labels"),
    [
        (ModelSettings(task=Task.MULTI_CLASS, classes=("a", "b", "c")), (0.2, 0.3, 0.5), (2,)),
        (ModelSettings(task=Task.MULTI_LABEL, classes=("a", "b")), (0.2, 0.9), (None, 1)),
    ],
)
def test_every_task_comes_back_in_its_shape(
    records: Records, settings: ModelSettings, scores: tuple[float, ...], labels: tuple[int | None, ...]
) -> None:
    records.register_model("other", settings, AT)
    batch = records.begin_batch("other", "a", "a", AT)
    records.add_predictions(batch, [prediction(1, model="other", scores=scores, labels=labels, attributes={})], AT)
    cohort = records.load_cohort("other")
    assert cohort.scores.tolist() == [list(scores)]
    np.testing.assert_array_equal(cohort.labels, [[np.nan if label is None else label for label in labels]])
    assert len(records.load_cohort("m")) == 0


def test_paths_of_images_are_found_by_hash_however_many(records: Records) -> None:
    take(records, [prediction(i) for i in range(1200)], "a.csv")
    wanted = {f"{i:064x}": f"{i}.png" for i in range(1100)}
    assert records.image_paths([*wanted, "unknown", ""]) == wanted


@pytest.mark.slow
def test_a_hundred_thousand_rows_are_a_matter_of_seconds(records: Records) -> None:
    rows = [prediction(i) for i in range(100_000)]
    started = time.perf_counter()
    take(records, rows, "a.csv")
    stored = time.perf_counter()
    assert len(records.load_cohort("m")) == 100_000
    assert time.perf_counter() - stored < 10
    assert stored - started < 60


# ---- natural keys


def test_same_key_same_content_is_known_and_other_content_is_a_conflict(records: Records) -> None:
    assert parts(take(records, [prediction(1), prediction(2)], "a.csv")) == (2, 0, 0, 0)
    assert parts(take(records, [prediction(1), prediction(2, 0.9), prediction(3)], "b.csv")) == (1, 1, 1, 0)
    assert records.load_cohort("m").scores[:, 0].tolist() == [0.5, 0.5, 0.5]
    (refused,) = records.quarantined("m")
    assert refused.reason == "key_conflict"
    assert "s2" in refused.detail
    assert "0.9" in refused.content


def test_the_same_moment_told_in_another_time_zone_is_the_same_key(records: Records) -> None:
    elsewhere = prediction(1).produced_at.astimezone(timezone(timedelta(hours=9)))
    assert parts(take(records, [prediction(1), prediction(1, produced_at=elsewhere)], "a")) == (1, 1, 0, 0)
    assert parts(take(records, [prediction(1, produced_at=elsewhere)], "b")) == (0, 1, 0, 0)


def test_another_version_of_the_model_may_judge_the_same_study(records: Records) -> None:
    assert parts(take(records, [prediction(1), prediction(1, 0.9, model_version="2")], "a")) == (2, 0, 0, 0)


def test_a_conflict_inside_one_export_keeps_the_first_and_names_the_line(records: Records) -> None:
    batch = records.begin_batch("m", "a.csv", "a", AT)
    rows = [prediction(1), prediction(1, 0.9), prediction(1), prediction(1, 0.8)]
    records.add_predictions(batch, rows, AT, lines=[2, 3, 4, 5])
    assert parts(records.finish_batch(batch, AT)) == (1, 1, 2, 0)
    assert records.load_cohort("m").scores[:, 0].tolist() == [0.5]
    assert [row.line for row in records.quarantined("m")] == [3, 5]


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.25, 0.5]), st.booleans()), max_size=12)),
    st.lists(st.integers(1, 9), max_size=5, unique=True),
)
def test_every_row_of_every_export_is_accounted_for(
    exports: list[list[tuple[int, float, bool]]], bad: list[int]
) -> None:
    """Conservation, against a dictionary that keeps the first content of each key; exports come in two chunks."""
    records, model = open_records("sqlite://"), dict[int, float]()
    records.register_model("m", SETTINGS, AT)
    for number, export in enumerate(exports):
        batch = records.begin_batch("m", "a.csv", str(number), AT)
        for late in (False, True):
            chunk = [(i, score) for i, score, second in export if second is late]
            records.add_predictions(batch, [prediction(i, score) for i, score in chunk], AT)
            records.quarantine(
                batch, [QuarantinedRow(line=i, reason="bad", detail="", content="") for i in bad if (i > 4) is late], AT
            )
        ordered = sorted(export, key=lambda row: row[2])
        fresh = {i: score for i, score, _ in reversed(ordered) if i not in model}
        conflicts = sum((model | fresh)[i] != score for i, score, _ in ordered)
        model = fresh | model
        expected = (len(fresh), len(export) - len(fresh) - conflicts, conflicts, len(bad))
        assert parts(records.finish_batch(batch, AT)) == expected
    cohort = records.load_cohort("m")
    assert {int(uid[1:]): score for uid, score in zip(cohort.study_uid, cohort.scores[:, 0], strict=True)} == model
    assert records.verify_events().ok


def test_the_same_export_twice_changes_no_row_and_no_event(records: Records, path: Path) -> None:
    rows = [*(prediction(i) for i in range(4)), prediction(2, 0.9)]
    assert parts(take(records, rows, "a.csv", [BAD])) == (4, 0, 1, 1)
    before = dump(path)
    assert parts(take(records, rows, "a.csv", [BAD])) == (0, 4, 1, 1)
    assert dump(path) == before
    assert [parts(batch) for batch in records.batches("m")] == [(4, 0, 1, 1)]


def test_an_interrupted_export_counts_what_it_had_accepted_before(path: Path, records: Records) -> None:
    """Another process, the same file: its summary is that of an undisturbed one."""
    rows = [*(prediction(i) for i in range(6)), prediction(0), prediction(3, 0.9)]
    add(records, rows[:4], "a.csv", [BAD])
    with closing(open_records(f"sqlite:///{path}")) as later:
        assert parts(take(later, rows, "a.csv", [BAD])) == (6, 1, 1, 1)
    assert [row.reason for row in records.quarantined("m")] == ["bad_row", "key_conflict"]


def test_a_row_that_is_refused_on_the_second_try_is_counted_once(path: Path, records: Records) -> None:
    """Its image vanished between the kill and the next try: the parts still add up, none is negative."""
    add(records, [prediction(1), prediction(2)], "a.csv")
    with closing(open_records(f"sqlite:///{path}")) as later:
        assert parts(take(later, [prediction(2)], "a.csv", [BAD])) == (1, 0, 0, 1)


def test_a_batch_that_is_not_open_names_the_cure(records: Records) -> None:
    batch = records.begin_batch("m", "a.csv", "a", AT)
    records.finish_batch(batch, AT)
    for act in (
        lambda: records.finish_batch(batch, AT),
        lambda: records.add_predictions(batch, [], AT),
        lambda: records.quarantine(77, [], AT),
    ):
        with pytest.raises(RecordsError, match="begin_batch opens it"):
            act()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"model": "other"}, "of model 'other'"),
        ({"scores": (0.5, 0.5)}, "1 scores and 1 labels"),
        ({"labels": ()}, "1 scores and 1 labels"),
        ({"scores": (1.01,)}, r"not in \[0, 1\]"),
        ({"scores": (float("nan"),)}, r"not in \[0, 1\]"),
        ({"labels": (2,)}, r"not one of \[0, 1\]"),
        ({"attributes": {"age": "old"}}, "no finite number"),
        ({"attributes": {"age": float("inf")}}, "no finite number"),
    ],
)
def test_a_prediction_that_would_spoil_every_cohort_is_refused_with_its_chunk(
    records: Records, path: Path, change: dict[str, object], problem: str
) -> None:
    batch = records.begin_batch("m", "a.csv", "a", AT)
    before = dump(path)
    with pytest.raises(ValueError, match=f"study 's2'.*{problem}.*quarantine"):
        records.add_predictions(batch, [prediction(1), prediction(2, **change)], AT)  # type: ignore[arg-type]
    assert dump(path) == before
    records.add_predictions(batch, [prediction(1)], AT)
    assert parts(records.finish_batch(batch, AT)) == (1, 0, 0, 0)


# ---- models


def test_settings_of_a_model_are_kept_and_a_change_is_an_event(records: Records) -> None:
    records.register_model("m", SETTINGS, AT)
    more = SETTINGS.model_copy(update={"attributes": ("site", "age", "device")})
    records.register_model("m", more, AT)
    assert records.models() == {"m": more}
    assert [event.kind for event in records.events("m")] == ["model.registered"] * 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"classes": ("no", "maybe")}, "classes"),
        ({"task": Task.MULTI_CLASS}, "task"),
        ({"numeric_attributes": ()}, "age"),
    ],
)
def test_stored_predictions_do_not_change_their_meaning(
    records: Records, change: dict[str, object], named: str
) -> None:
    other = SETTINGS.model_copy(update=change)
    records.register_model("m", other, AT)
    records.register_model("m", SETTINGS, AT)
    take(records, [prediction(1)], "a.csv")
    with pytest.raises(RecordsError, match=f"{named} of model 'm' cannot change .* another name"):
        records.register_model("m", other, AT)
    assert records.models() == {"m": SETTINGS}


# ---- many processes, and processes that die

COMMON = """
    import os, random, signal, sys
    from datetime import UTC, datetime, timedelta
    from sqlalchemy import event
    from monitor.cohorts import Prediction
    from registry.entries import QuarantinedRow
    from registry.records import open_records
    from registry.settings import ModelSettings

    at = datetime(2026, 3, 30, tzinfo=UTC)

    def prediction(i, score=0.5, label=None):
        moment = at + timedelta(minutes=i)
        return Prediction(
            model="m", study_uid=f"s{i}", patient_key="p", produced_at=moment, scores=(score,), labels=(label,)
        )
"""
MANIFEST = """
    records, rows = open_records(sys.argv[1]), [prediction(i) for i in range(1000)]
    for again in range(3):
        random.Random(sys.argv[2] + str(again)).shuffle(rows)
        batch = records.begin_batch("m", "manifest", "hash", at)
        for start in range(0, 1000, 100):
            records.add_predictions(batch, rows[start:start + 100], at)
        assert records.finish_batch(batch, at).received == 1000
"""
WRITER = """
    records = open_records(sys.argv[1])
    for k in range(10_000):
        batch = records.begin_batch("m", f"{k}.csv", f"{k}", at)
        records.add_predictions(batch, [prediction(10 * k + i) for i in range(5)], at)
        records.finish_batch(batch, at)
        print(k, flush=True)
"""
DYING = """
    # Statement by statement: fork a process that dies before its k-th, until one comes to the end.
    import shutil
    import sqlite3

    def keep(path, copy):
        source, target = sqlite3.connect(path), sqlite3.connect(copy)
        source.backup(target)
        target.close()
        source.close()

    def work(path, k, seen):
        records, said = open_records(f"sqlite:///{path}"), 0

        def count(statement):
            nonlocal said
            said += 1
            if said == k:
                os.kill(os.getpid(), signal.SIGKILL)

        @event.listens_for(records._engine, "connect")
        def listen(connection, _):
            connection.set_trace_callback(count)

        records._engine.dispose()
        steps = [
            lambda: records.register_model("m", ModelSettings(), at),
            lambda: records.begin_batch("m", "a.csv", "hash", at),
            lambda: records.add_predictions(1, [prediction(1), prediction(2), prediction(1, 0.9)], at, lines=[2, 3, 4]),
            lambda: records.add_predictions(1, [prediction(3), prediction(3)], at, lines=[5, 6]),
            lambda: records.add_predictions(1, [prediction(1, label=1), prediction(4, label=0)], at, lines=[7, 8]),
            lambda: records.quarantine(1, [QuarantinedRow(line=9, reason="bad", detail="", content="")], at),
            lambda: records.finish_batch(1, at),
        ]
        seen(path)
        for step in steps:
            step()
            seen(path)

    def fork(path, k):
        child = os.fork()
        if not child:
            work(path, k, lambda path: None)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    folder = sys.argv[1]
    open_records(f"sqlite:///{folder}/empty.db").close()
    states = []
    shutil.copy(f"{folder}/empty.db", f"{folder}/whole.db")
    child = os.fork()
    if not child:
        numbers = iter(range(100))
        work(f"{folder}/whole.db", 0, lambda path: keep(path, f"{folder}/state{next(numbers):02d}.db"))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    for k in range(1, 1000):
        path = f"{folder}/killed{k:03d}.db"
        shutil.copy(f"{folder}/empty.db", path)
        code = fork(path, k)
        if code == 0:
            break
        assert code == -signal.SIGKILL, code
        for part in ("", "-journal", "-wal", "-shm"):
            if os.path.exists(path + part):
                shutil.copy(path + part, f"{folder}/resumed{k:03d}.db{part}")
        assert fork(f"{folder}/resumed{k:03d}.db", 0) == 0
    print(k - 1)
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    program = textwrap.dedent(COMMON) + textwrap.dedent(code)
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "."})


def integrity(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])


@pytest.mark.slow
def test_a_manifest_shuffled_and_taken_in_by_four_processes_at_once_is_taken_in_once(path: Path) -> None:
    """I-01: 1 000 rows, twelve times, four processes: 1 000 rows, one ingest in the audit."""
    records = open_records(f"sqlite:///{path}")
    records.register_model("m", ModelSettings(), AT)
    writers = [start(MANIFEST, f"sqlite:///{path}", str(who)) for who in range(4)]
    for writer in writers:
        writer.communicate(timeout=200)
    assert [writer.returncode for writer in writers] == [0] * 4
    assert len(records.load_cohort("m")) == 1000
    assert [parts(batch) for batch in records.batches("m")] == [(1000, 0, 0, 0)]
    kinds = [event.kind for event in records.events()]
    assert (kinds.count("ingest.begun"), kinds.count("ingest.finished")) == (1, 1)
    assert records.verify_events().ok


@pytest.mark.fault
def test_killed_before_any_statement_it_is_before_or_after_a_step_and_goes_on(tmp_path: Path) -> None:
    """I-03, fail-at-k: what a kill leaves is what stood between two calls, and the next try ends as if nothing was."""
    process = start(DYING, str(tmp_path))
    kills = int(process.communicate(timeout=280)[0])
    assert process.returncode == 0
    assert kills > 40
    states = [dump(state) for state in sorted(tmp_path.glob("state*.db"))]
    assert len(states) == 8
    reached = []
    for k in range(1, kills + 1):
        killed, resumed = tmp_path / f"killed{k:03d}.db", tmp_path / f"resumed{k:03d}.db"
        assert (integrity(killed), integrity(resumed)) == ("ok", "ok")
        reached.append(states.index(dump(killed)))
        assert dump(resumed) == states[-1]
        with closing(open_records(f"sqlite:///{resumed}")) as records:
            assert records.verify_events().ok
    assert all(before <= after for before, after in itertools.pairwise(reached))
    assert set(reached) >= set(range(7))


@pytest.mark.fault
@pytest.mark.parametrize("seconds", [0.0, 0.2, 0.35, 0.5, 0.8])
def test_a_killed_writer_has_lost_nothing_that_it_acknowledged(records: Records, path: Path, seconds: float) -> None:
    """I-05, and batches are whole and the chain holds."""
    records.register_model("m", ModelSettings(), AT)
    writer = start(WRITER, f"sqlite:///{path}")
    assert writer.stdout is not None
    first = writer.stdout.readline()
    time.sleep(seconds)
    writer.send_signal(signal.SIGKILL)
    acknowledged = [int(line) for line in (first, *writer.stdout.read().splitlines())]
    writer.stdout.close()
    assert writer.wait() == -signal.SIGKILL
    assert acknowledged == list(range(len(acknowledged)))
    assert integrity(path) == "ok"
    with closing(open_records(f"sqlite:///{path}")) as again:
        assert again.verify_events().ok
        sources = {batch.source for batch in again.batches("m")}
        assert sources >= {f"{k}.csv" for k in acknowledged}
        numbers = sorted(int(uid[1:]) for uid in again.load_cohort("m").study_uid)
    whole = {10 * k + i for k in range(len(numbers) // 5) for i in range(5)}
    assert set(numbers) == whole
    assert len(numbers) >= 5 * len(acknowledged)
