"""Records: nothing is lost, nothing is changed unseen, and the database itself refuses what must never happen."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from continual.plans import AdaptationPlan, AdaptationRun, RunState, Treatment
from monitor.cohorts import Prediction, Window
from monitor.results import DriftKind, DriftResult, Verdict, WindowReport
from registry.audit import BEGINNING, Event, canonical_json, event_digest, verify_chain
from registry.decisions import GateCheck, GateDecision, GatePolicy, Signature
from registry.entries import ChampionRecord, QuarantinedRow
from registry.records import Records, RecordsError, StaleChampion, open_records, wal_is_safe
from registry.rows import DriftResultRow, PredictionRow, ReportRow, UtcTime
from registry.settings import ModelSettings

AT = datetime(2026, 3, 30, 6, tzinfo=UTC)
WEEK = Window(start=datetime(2026, 3, 30, tzinfo=UTC), end=datetime(2026, 4, 6, tzinfo=UTC))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'wardround.db'}"


@pytest.fixture
def records(url: str) -> Records:
    records = open_records(url)
    records.register_model("m", ModelSettings(attributes=("site", "age"), numeric_attributes=("age",)), AT)
    return records


def prediction(i: int, score: float = 0.5, **more: object) -> Prediction:
    plain: dict[str, object] = {
        "model": "m",
        "study_uid": f"s{i}",
        "patient_key": f"p{i // 2}",
        "produced_at": AT + timedelta(minutes=i),
        "scores": (score,),
        "labels": (i % 2 if i % 3 else None,),
        "attributes": {"site": "A", "age": 40.0 + i},
    }
    return Prediction.model_validate(plain | more)


def result(**more: object) -> DriftResult:
    plain: dict[str, object] = {
        "window": WEEK,
        "detector": "mmd",
        "kind": DriftKind.APPEARANCE,
        "feature": "embedding",
        "verdict": Verdict.NO_DRIFT,
        "statistic": 0.01,
        "effect": 0.1,
        "effect_name": "distance",
        "p_value": 0.3,
        "threshold": 0.001,
        "n_reference": 50,
        "n_current": 40,
        "patients_reference": 20,
        "patients_current": 20,
        "reason": "quiet",
    }
    return DriftResult(**{**plain, **more})  # type: ignore[arg-type]


def report(verdict: Verdict = Verdict.NO_DRIFT, window: Window = WEEK) -> WindowReport:
    return WindowReport(
        model="m",
        window=window,
        verdict=verdict,
        reason="quiet",
        n=40,
        patients=20,
        n_labelled=0,
        results=(result(window=window, verdict=verdict),),
        evaluations=(),
        gaps=(),
        harms=(),
        contributions=(),
    )


def plan() -> AdaptationPlan:
    return AdaptationPlan(
        model="m",
        windows=(WEEK,),
        treatment=Treatment.UPDATE_ADAPTER,
        strategies=("replay",),
        evidence=("mmd embedding",),
        reason="it hurts",
        proposed_by="emma",
        champion_version="1",
    )


def run() -> AdaptationRun:
    return AdaptationRun(
        plan_id=plan().plan_id,
        model="m",
        strategy="replay",
        adapter="lora",
        state=RunState.FINISHED,
        reason="",
        seed=0,
        backbone_sha256="b",
        adapter_sha256="a" * 64,
        trainable_parameters=10,
        experiences=("old", "new"),
        matrix=((0.9, 0.8), (0.9, None)),
        forgetting=0.0,
        backward_transfer=0.0,
        forward_transfer=None,
        losses=(0.5, 0.25),
        memory_studies=5,
        n_learned=10,
        seconds=1.5,
    )


def decision(promote: bool = True) -> GateDecision:
    check = GateCheck(
        name="non-inferiority",
        cohort="old",
        metric="auroc",
        champion=0.9,
        challenger=0.91,
        difference=0.01,
        low=-0.01,
        high=0.03,
        margin=0.02,
        passed=promote,
        reason="fine",
    )
    return GateDecision(
        model="m",
        plan_id=plan().plan_id,
        run_id=run().run_id,
        champion_version="1",
        adapter_sha256="a" * 64,
        cohort_digests=(("old", "d"),),
        promote=promote,
        checks=(check,),
        policy=GatePolicy(),
    )


def champion(version: str, kind: str = "first", decision_id: str = "") -> ChampionRecord:
    return ChampionRecord(
        model="m",
        number=0,
        version=version,
        adapter_sha256="a" * 64,
        decision_id=decision_id,
        kind=kind,
        actor="quinn",
        reason="",
        since=AT,
    )


def sign(records: Records, promote: bool = True, approved: bool = True) -> GateDecision:
    made = decision(promote)
    records.save_decision(made, AT)
    records.add_user("quinn", "quality officer", "hash", AT)
    word = {"decision_id": made.decision_id, "digest": made.digest, "user": "quinn", "role": "quality officer"}
    records.save_signature(Signature(**word, approved=approved, meaning="reviewed", at=AT), AT)
    return made


def dump(url: str, table: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        rows = connection.execute(f"SELECT * FROM {table}").fetchall()
    connection.close()
    return rows


def add(records: Records, predictions: list[Prediction], source: str) -> tuple[int, int, int]:
    batch = records.begin_batch("m", source, source, AT)
    counts = records.add_predictions(batch, predictions, AT)
    records.finish_batch(batch, AT)
    return counts.accepted, counts.duplicate, counts.conflict


# ---- predictions


def test_predictions_come_back_as_a_cohort(records: Records) -> None:
    add(records, [prediction(i) for i in range(9)], "a.csv")
    cohort = records.load_cohort("m")
    assert cohort.study_uid.tolist() == [f"s{i}" for i in range(9)]
    assert cohort.attributes["age"].tolist() == [40.0 + i for i in range(9)]
    assert np.isnan(cohort.labels[[0, 3, 6], 0]).all()
    assert cohort.labels[[1, 2, 4], 0].tolist() == [1, 0, 0]
    half = Window(start=AT, end=AT + timedelta(minutes=4))
    assert records.load_cohort("m", window=half).study_uid.tolist() == ["s0", "s1", "s2", "s3"]
    assert len(records.load_cohort("m", model_version="other")) == 0
    assert records.studies_span("m") == (AT, AT + timedelta(minutes=8))


def test_same_key_same_content_is_known_and_other_content_is_a_conflict(records: Records) -> None:
    assert add(records, [prediction(1), prediction(2)], "a.csv") == (2, 0, 0)
    assert add(records, [prediction(1), prediction(2, 0.9), prediction(3)], "b.csv") == (1, 1, 1)
    assert records.load_cohort("m").scores[:, 0].tolist() == [0.5, 0.5, 0.5]
    (refused,) = records.quarantined("m")
    assert refused.reason == "key_conflict"
    assert "s2" in refused.detail


def test_a_conflict_inside_one_export_keeps_the_first(records: Records) -> None:
    assert add(records, [prediction(1), prediction(1, 0.9), prediction(1)], "a.csv") == (1, 1, 1)
    assert records.load_cohort("m").scores[:, 0].tolist() == [0.5]


def test_the_same_export_twice_changes_no_row_and_no_event(records: Records, url: str) -> None:
    tables = ("batches", "predictions", "quarantine", "events", "meta")
    for _ in range(2):
        batch = records.begin_batch("m", "a.csv", "hash", AT)
        records.add_predictions(batch, [prediction(i) for i in range(4)], AT)
        records.quarantine(batch, [QuarantinedRow(line=7, reason="bad", detail="x", content="y")], AT)
        summary = records.finish_batch(batch, AT)
        assert summary.received == 5
        before, after = (locals().get("before") or {t: dump(url, t) for t in tables}), {t: dump(url, t) for t in tables}
        assert before == after


@given(
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from([0.25, 0.5])), max_size=20),
    st.lists(st.integers(1, 9), max_size=5, unique=True),
)
def test_every_row_is_accounted_for(rows: list[tuple[int, float]], bad: list[int]) -> None:
    records = open_records("sqlite://")
    records.register_model("m", ModelSettings(), AT)
    batch = records.begin_batch("m", "a.csv", "hash", AT)
    records.add_predictions(batch, [prediction(i, score) for i, score in rows], AT)
    records.quarantine(batch, [QuarantinedRow(line=i, reason="bad", detail="", content="") for i in bad], AT)
    summary = records.finish_batch(batch, AT)
    assert summary.received == len(rows) + len(bad)
    assert summary.accepted == len({i for i, _ in rows}) == len(records.load_cohort("m"))


# ---- documents and round trips


def test_reports_plans_runs_and_decisions_come_back_as_they_were(records: Records) -> None:
    for _ in range(2):
        records.save_report(report(), AT)
        records.save_plan(plan(), AT)
        records.save_run(run(), AT)
        records.save_decision(decision(), AT)
    assert records.reports("m") == [report()] == [records.report("m", WEEK)]
    assert records.plans("m") == [plan()] == [records.plan(plan().plan_id)]
    assert records.runs("m") == [run()] == [records.run(run().run_id)]
    assert records.decisions("m") == [decision()] == [records.decision(decision().decision_id)]
    assert len(records.events()) == 5  # the model and one for each


def test_a_window_watched_again_with_more_data_shows_the_new_report_and_keeps_the_old(
    records: Records, url: str
) -> None:
    records.save_report(report(), AT)
    records.save_report(report(Verdict.DRIFT), AT)
    assert [kept.verdict for kept in records.reports("m")] == [Verdict.DRIFT]
    assert len(dump(url, "reports")) == 2
    assert len(dump(url, "drift_results")) == 2


def test_unknown_identities_name_the_cure(records: Records) -> None:
    with pytest.raises(RecordsError, match="wardround status"):
        records.plan("plan-x")
    with pytest.raises(RecordsError, match="not registered"):
        records.load_cohort("other")


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(finite, finite, st.floats(0, 1), st.sampled_from(Verdict), st.sampled_from(DriftKind), st.text())
def test_drift_results_round_trip(
    statistic: float, effect: float, p: float, verdict: Verdict, kind: DriftKind, reason: str
) -> None:
    value = result(statistic=statistic, effect=effect, p_value=p, verdict=verdict, kind=kind, reason=reason)
    assert DriftResultRow.of(value, report_id=1).value() == value


@given(st.lists(finite, min_size=1, max_size=4), st.text(min_size=1, max_size=20), st.none() | st.integers(0, 1))
def test_predictions_round_trip(scores: list[float], study: str, label: int | None) -> None:
    value = prediction(1, scores=tuple(scores), study_uid=study, labels=(label,))
    assert PredictionRow.of(value, batch_id=1).value() == value


def test_a_figure_that_is_not_finite_is_refused() -> None:
    value = report()
    broken = WindowReport(
        **{f: getattr(value, f) for f in value.__slots__} | {"results": (result(effect=float("nan")),)}
    )
    with pytest.raises(ValueError, match="not JSON compliant"):
        ReportRow.of(broken, AT)


@given(st.datetimes(datetime(1970, 1, 1), datetime(9990, 1, 1)), st.integers(-14 * 60, 14 * 60))
def test_moments_come_back_in_utc(moment: datetime, minutes: int) -> None:
    aware = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    dialect = open_records("sqlite://")._engine.dialect
    stored = UtcTime().process_bind_param(aware, dialect)
    back = UtcTime().process_result_value(stored, dialect)
    assert back == aware
    assert back is not None
    assert back.utcoffset() == timedelta(0)


def test_a_naive_moment_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        UtcTime().process_bind_param(datetime(2026, 1, 1), open_records("sqlite://")._engine.dialect)


# ---- champions and signatures


def test_the_database_refuses_a_promotion_without_an_approval(records: Records) -> None:
    records.save_decision(decision(), AT)
    records.move_champion(champion("1"), expected=None)
    with pytest.raises(RecordsError, match="needs an approval"):
        records.move_champion(champion("2", "promote", decision().decision_id), expected="1")
    assert [entry.version for entry in records.champion_history("m")] == ["1"]


@pytest.mark.parametrize(("promote", "approved"), [(True, False), (False, True)])
def test_the_database_refuses_a_promotion_that_was_rejected_or_failed_the_gate(
    records: Records, promote: bool, approved: bool
) -> None:
    records.move_champion(champion("1"), expected=None)
    made = sign(records, promote, approved)
    with pytest.raises(RecordsError, match="needs an approval"):
        records.move_champion(champion("2", "promote", made.decision_id), expected="1")


def test_an_approved_promotion_moves_the_champion_once(records: Records) -> None:
    records.move_champion(champion("1"), expected=None)
    made = sign(records)
    assert records.move_champion(champion("2", "promote", made.decision_id), expected="1").number == 2
    with pytest.raises(StaleChampion, match="2 is"):
        records.move_champion(champion("3", "promote", made.decision_id), expected="1")
    live = records.champion("m")
    assert live is not None
    assert live.version == "2"


def test_the_first_final_word_on_a_decision_stands(records: Records) -> None:
    made = sign(records, approved=False)
    late = Signature(
        decision_id=made.decision_id, digest=made.digest, user="quinn", role="q", approved=True, meaning="", at=AT
    )
    with pytest.raises(RecordsError, match="rejected by quinn already"):
        records.save_signature(late, AT)


def test_a_signature_under_something_else_is_refused(records: Records) -> None:
    made = decision()
    records.save_decision(made, AT)
    other = Signature(decision_id=made.decision_id, digest="0", user="q", role="q", approved=True, meaning="", at=AT)
    with pytest.raises(RecordsError, match="not what the gate decided"):
        records.save_signature(other, AT)


# ---- events


def test_the_chain_holds_and_counts(records: Records) -> None:
    add(records, [prediction(1)], "a.csv")
    state = records.verify_events()
    assert (state.ok, state.n) == (True, 3)


@pytest.mark.parametrize("table", ["events", "champions", "signatures", "decisions"])
def test_the_database_refuses_to_change_or_delete_what_is_append_only(records: Records, url: str, table: str) -> None:
    records.move_champion(champion("1"), expected=None)
    sign(records)
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    column = {"events": "actor", "champions": "actor", "signatures": "meaning", "decisions": "content"}[table]
    for statement in (f"UPDATE {table} SET {column} = 'x'", f"DELETE FROM {table}"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        ("UPDATE events SET actor = 'wardrounc' WHERE seq = 2", 2),
        ("UPDATE events SET payload = replace(payload, '1', '2') WHERE seq = 3", 3),
        ("UPDATE events SET at = '2026-03-30 06:00:01.000000' WHERE seq = 1", 1),
        ("DELETE FROM events WHERE seq = 2", 2),
        ("DELETE FROM events WHERE seq = 4", 4),
        ("UPDATE events SET seq = CASE seq WHEN 2 THEN 30 ELSE 2 END WHERE seq IN (2, 3)", 2),
    ],
)
def test_one_changed_byte_or_row_is_found_and_named(records: Records, url: str, statement: str, row: int) -> None:
    for i in range(2):
        add(records, [prediction(i)], f"{i}.csv")
    assert records.verify_events().ok
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    for verb in ("update", "delete"):
        connection.execute(f"DROP TRIGGER events_refuse_{verb}")
    if "DELETE FROM events WHERE seq = 4" in statement:
        statement = "DELETE FROM events WHERE seq >= 4"
    if "CASE" in statement:
        connection.execute("UPDATE events SET seq = 30 WHERE seq = 2")
        connection.execute("UPDATE events SET seq = 2 WHERE seq = 3")
        statement = "UPDATE events SET seq = 3 WHERE seq = 30"
    connection.execute(statement)
    connection.commit()
    connection.close()
    state = records.verify_events()
    assert (state.ok, state.bad_row) == (False, row)


def chain(*payloads: str) -> list[Event]:
    events, previous = [], BEGINNING
    for seq, payload in enumerate(payloads, start=1):
        event = Event(
            seq=seq, at=AT, actor="a", kind="k", model="m", subject="s", payload=payload, previous=previous, digest=""
        )
        event = Event(**{f: getattr(event, f) for f in event.__slots__} | {"digest": event_digest(event)})
        previous = event.digest
        events.append(event)
    return events


@given(st.lists(st.text(max_size=5), min_size=1, max_size=6), st.data())
def test_any_change_to_any_event_breaks_the_chain_there(payloads: list[str], data: st.DataObject) -> None:
    events = chain(*payloads)
    head = events[-1].digest
    assert verify_chain(events, count=len(events), head=head).ok
    place = data.draw(st.integers(0, len(events) - 1))
    field = data.draw(st.sampled_from(["actor", "kind", "model", "subject", "payload"]))
    fields = {f: getattr(events[place], f) for f in events[place].__slots__}
    events[place] = Event(**fields | {field: fields[field] + "x"})
    state = verify_chain(events, count=len(events), head=head)
    assert (state.ok, state.bad_row) == (False, place + 1)


def test_canonical_json_is_one_way_and_refuses_nan() -> None:
    assert canonical_json({"b": 1, "a": [1.0, "é"]}) == '{"a":[1.0,"é"],"b":1}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


# ---- the store itself


def test_another_schema_is_refused_with_the_cure(records: Records, url: str) -> None:
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    connection.commit()
    connection.close()
    with pytest.raises(RecordsError, match="schema 99"):
        open_records(url)


def test_every_connection_has_the_durable_profile(records: Records) -> None:
    with records._engine.connect() as connection:
        values = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("foreign_keys", "busy_timeout", "synchronous", "secure_delete", "journal_mode")
        }
    journal = "wal" if wal_is_safe(sqlite3.sqlite_version_info) else "truncate"
    expected = {"foreign_keys": 1, "busy_timeout": 30000, "synchronous": 2, "secure_delete": 1, "journal_mode": journal}
    assert values == expected


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 40, 1), False),
        ((3, 44, 6), True),
        ((3, 45, 0), False),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
    ],
)
def test_the_write_ahead_log_is_used_only_where_it_is_safe(version: tuple[int, int, int], safe: bool) -> None:
    assert wal_is_safe(version) is safe


WRITER = textwrap.dedent(
    """
    import sys
    from datetime import UTC, datetime, timedelta
    from monitor.cohorts import Prediction
    from registry.records import open_records
    at = datetime(2026, 3, 30, tzinfo=UTC)
    records = open_records(sys.argv[1])
    for k in range(int(sys.argv[2]), int(sys.argv[3])):
        batch = records.begin_batch("m", f"{k}.csv", f"{k}", at)
        common = dict(model="m", patient_key="p", produced_at=at, scores=(0.5,), labels=(None,))
        rows = [Prediction(study_uid=f"s{k}-{i}", **common) for i in range(5)]
        records.add_predictions(batch, rows, at)
        records.finish_batch(batch, at)
        print(k, flush=True)
    """
)


def start_writer(url: str, first: int, last: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, url, str(first), str(last)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "."})


@pytest.mark.slow
def test_writers_at_once_never_fork_the_chain(records: Records, url: str) -> None:
    writers = [start_writer(url, 100 * who, 100 * who + 15) for who in range(3)]
    for writer in writers:
        writer.communicate(timeout=120)
        assert writer.returncode == 0
    state = records.verify_events()
    assert (state.ok, state.n) == (True, 1 + 2 * 45)


@pytest.mark.fault
@pytest.mark.parametrize("seconds", [0.2, 0.35, 0.5, 0.8, 1.1])
def test_a_killed_writer_leaves_whole_batches_and_a_chain_that_holds(
    records: Records, url: str, seconds: float
) -> None:
    """I-03, I-05: what was acknowledged is there, batches are whole, the chain holds."""
    writer = start_writer(url, 0, 10_000)
    assert writer.stdout is not None
    first = writer.stdout.readline()
    time.sleep(seconds)
    writer.send_signal(signal.SIGKILL)
    acknowledged = [first, *writer.stdout.read().splitlines()]
    writer.wait()
    writer.stdout.close()
    again = open_records(url)
    assert again.verify_events().ok
    stored = len(again.load_cohort("m"))
    assert stored % 5 == 0
    assert stored >= 5 * len([line for line in acknowledged if line.strip()])
    integrity = sqlite3.connect(url.removeprefix("sqlite:///"))
    assert integrity.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    integrity.close()


def test_events_tell_what_happened_in_words_that_programs_read(records: Records) -> None:
    sign(records)
    told = [event for event in records.events("m") if event.kind == "decision.signed"]
    assert [event.actor for event in told] == ["quinn"]
    assert json.loads(told[0].payload)["approved"] is True
