"""Records: documents come back, the first word stands, and the database itself refuses what must never happen."""

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from continual.plans import AdaptationPlan, AdaptationRun, RunState
from continual.policies import Treatment
from monitor.cohorts import Window
from monitor.results import DriftKind, DriftResult, Verdict, WindowReport
from registry.decisions import GateCheck, GateDecision, GatePolicy, Signature
from registry.entries import ChampionRecord, Look, User
from registry.held_out import HeldOutCohort, digest_of
from registry.records import Records, RecordsError, StaleChampion, open_records, wal_is_safe
from registry.settings import ModelSettings

AT = datetime(2026, 3, 30, 6, tzinfo=UTC)
WEEK = Window(start=datetime(2026, 3, 30, tzinfo=UTC), end=datetime(2026, 4, 6, tzinfo=UTC))


@pytest.fixture
def records(path: Path) -> Iterator[Records]:
    records = open_records(f"sqlite:///{path}")
    records.register_model("m", ModelSettings(), AT)
    yield records
    records.close()


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
        recipe="abc123",
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


def word(made: GateDecision, approved: bool = True, signer: str = "quinn") -> Signature:
    return Signature(
        decision_id=made.decision_id,
        digest=made.digest,
        user=signer,
        role="quality officer",
        approved=approved,
        meaning="reviewed",
        at=AT,
    )


def sign(records: Records, *, promote: bool = True, approved: bool = True, signer: str = "quinn") -> GateDecision:
    """Save a plan by emma and a decision, and sign it."""
    made = decision(promote)
    records.save_plan(plan(), AT)
    records.save_decision(made, AT)
    records.add_user(signer, "quality officer", "hash", AT)
    records.save_signature(word(made, approved, signer), AT)
    return made


def dump(path: Path, table: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"SELECT * FROM {table}").fetchall()


def kinds(records: Records) -> list[str]:
    return [event.kind for event in records.events("m")]


# ---- documents


def test_reports_plans_runs_and_decisions_come_back_and_are_kept_once(records: Records) -> None:
    for _ in range(2):
        records.save_report(report(), AT)
        records.save_plan(plan(), AT)
        records.save_run(run(), AT)
        records.save_decision(decision(), AT)
    assert records.reports("m") == [report()] == [records.report("m", WEEK)]
    assert records.plans("m") == [plan()] == [records.plan(plan().plan_id)]
    assert records.runs("m") == [run()] == [records.run(run().run_id)]
    assert records.decisions("m") == [decision()] == [records.decision(decision().decision_id)]
    expected = ["model.registered", "window.watched", "plan.made", "adapter.trained", "gate.decided"]
    assert kinds(records) == expected
    assert [event.kind for event in records.events("m", kind="plan.made")] == ["plan.made"]
    assert records.events("other") == []
    assert records.verify_events().ok


def test_nothing_is_there_before_it_is_saved(records: Records) -> None:
    assert records.report("m", WEEK) is None
    assert records.champion("m") is None
    assert records.user("emma") is None
    for listed in (records.reports, records.plans, records.runs, records.decisions, records.held_out, records.looks):
        assert listed("m") == []


def test_a_window_watched_again_with_more_data_shows_the_new_report_and_keeps_the_old(
    records: Records, path: Path
) -> None:
    records.save_report(report(), AT)
    records.save_report(report(Verdict.DRIFT), AT)
    assert [kept.verdict for kept in records.reports("m")] == [Verdict.DRIFT]
    assert records.report("m", WEEK) == report(Verdict.DRIFT)
    assert len(dump(path, "reports")) == len(dump(path, "drift_results")) == 2


def test_reports_are_listed_in_order_of_time_whatever_order_they_came_in(records: Records) -> None:
    weeks = [Window(start=WEEK.start + timedelta(days=7 * i), end=WEEK.end + timedelta(days=7 * i)) for i in (2, 0, 1)]
    day = Window(start=WEEK.start, end=WEEK.start + timedelta(days=1))
    for window in (*weeks, day):
        records.save_report(report(window=window), AT)
    assert [kept.window for kept in records.reports("m")] == [day, weeks[1], weeks[2], weeks[0]]


@pytest.mark.parametrize("state", [RunState.FAILED, RunState.STOPPED])
def test_a_run_without_an_adapter_gives_way_to_the_next_try_and_one_that_finished_stands(
    records: Records, state: RunState
) -> None:
    failed = replace(run(), state=state, adapter_sha256="", reason="the loss is not finite")
    for value in (failed, failed, run(), replace(run(), seconds=99.0), failed):
        records.save_run(value, AT)
    assert records.runs("m") == [run()] == [records.run(run().run_id)]
    assert kinds(records).count("adapter.trained") == 2


def test_unknown_identities_name_the_cure(records: Records) -> None:
    for look_up in (records.plan, records.run, records.decision):
        with pytest.raises(RecordsError, match=r"there is no .*'x'; `wardround status` lists"):
            look_up("x")


def test_an_event_of_a_document_carries_its_hash(records: Records, path: Path) -> None:
    records.save_decision(decision(), AT)
    (told,) = records.events("m", kind="gate.decided")
    with closing(sqlite3.connect(path)) as connection:
        (content,) = connection.execute("SELECT content FROM decisions").fetchone()
    assert json.loads(told.payload)["sha256"] == hashlib.sha256(content.encode()).hexdigest()


# ---- held-out cohorts


def held_out(*manifest: str) -> HeldOutCohort:
    return HeldOutCohort(name="old", kind="old", manifest=manifest, digest=digest_of(manifest))


def test_a_held_out_cohort_is_locked_once_and_each_look_is_kept(records: Records) -> None:
    for _ in range(2):
        records.lock_held_out("m", held_out("a", "b"), AT)
    assert records.held_out("m") == [held_out("a", "b")]
    with pytest.raises(RecordsError, match="locked with another content; choose another name"):
        records.lock_held_out("m", held_out("a", "c"), AT)
    for run_id in ("one", "one"):
        records.look_at_held_out("m", "old", held_out("a", "b").digest, run_id, AT)
    look = Look(model="m", name="old", digest=held_out("a", "b").digest, run_id="one", at=AT)
    assert records.looks("m") == [look, look]
    assert kinds(records)[1:] == ["held_out.locked", "held_out.looked_at", "held_out.looked_at"]


# ---- people and signatures


def test_people_are_added_once(records: Records) -> None:
    records.add_user("quinn", "quality officer", "hash", AT)
    records.add_user("emma", "engineer", "hash", AT)
    with pytest.raises(RecordsError, match="a user 'quinn' already"):
        records.add_user("quinn", "engineer", "other", AT)
    quinn = User(name="quinn", role="quality officer", password_hash="hash", active=True)
    assert records.user("quinn") == quinn
    assert [person.name for person in records.users()] == ["emma", "quinn"]
    assert "hash" not in "".join(event.payload for event in records.events())


def test_the_first_final_word_on_a_decision_stands(records: Records) -> None:
    made = sign(records, approved=False)
    late = word(made, approved=True)
    with pytest.raises(RecordsError, match="rejected by quinn already"):
        records.save_signature(late, AT)
    assert [signature.approved for signature in records.signatures(made.decision_id)] == [False]
    (told,) = records.events(kind="decision.signed")
    assert (told.actor, json.loads(told.payload)["approved"]) == ("quinn", False)


def test_a_signature_under_something_else_is_refused(records: Records) -> None:
    records.save_decision(decision(), AT)
    with pytest.raises(RecordsError, match="not what the gate decided"):
        records.save_signature(replace(word(decision()), digest="0"), AT)


# ---- champions


def promotion(made: GateDecision, version: str = "2") -> ChampionRecord:
    return replace(champion(version, "promote", made.decision_id), adapter_sha256=made.adapter_sha256)


def test_an_approved_promotion_moves_the_champion_once(records: Records) -> None:
    assert records.move_champion(champion("1"), expected=None).number == 1
    made = sign(records)
    assert records.move_champion(promotion(made), expected="1").number == 2
    with pytest.raises(StaleChampion, match="version 1 was expected to be live, but 2 is"):
        records.move_champion(promotion(made, "3"), expected="1")
    live = records.champion("m")
    assert live == replace(promotion(made), number=2)
    back = replace(champion("1", "rollback"), reason="worse")
    assert records.move_champion(back, expected="2").number == 3
    assert [entry.version for entry in records.champion_history("m")] == ["1", "2", "1"]
    told = [json.loads(event.payload) for event in records.events("m", kind="champion.moved")]
    assert [(move["from"], move["to"]) for move in told] == [(None, "1"), ("1", "2"), ("2", "1")]
    assert records.verify_events().ok


def records_decision(records: Records) -> GateDecision:
    records.save_plan(plan(), AT)
    records.save_decision(decision(), AT)
    return decision()


FORGERIES = {
    "no signature": (records_decision, {}),
    "rejected": (lambda r: sign(r, approved=False), {}),
    "failed the gate": (lambda r: sign(r, promote=False), {}),
    "signed by the proposer": (lambda r: sign(r, signer="emma"), {}),
    "of another adapter": (sign, {"adapter_sha256": "b" * 64}),
    "of another decision": (sign, {"decision_id": "gate-x"}),
    "of another model": (sign, {"model": "other"}),
    "first again": (sign, {"kind": "first"}),
    "back to what never was": (sign, {"kind": "rollback"}),
    "back to another adapter": (
        sign,
        {"kind": "rollback", "version": "1", "adapter_sha256": "b" * 64},
    ),
    "of an unknown kind": (sign, {"kind": "override"}),
}
REFUSALS = r"needs an approval|needs a model without one|was live before|known_kind"


@pytest.mark.parametrize("case", FORGERIES)
def test_no_row_makes_a_champion_without_an_approval(records: Records, path: Path, case: str) -> None:
    """G-06: the database refuses, whether it is asked through the records or with plain SQL."""
    prepare, change = FORGERIES[case]
    records.move_champion(champion("1"), expected=None)
    forged = replace(promotion(prepare(records)), **change)
    events = len(records.events())
    with pytest.raises(RecordsError, match=f"was not promoted: .*({REFUSALS})"):
        records.move_champion(forged, expected=None if forged.model == "other" else "1")
    columns = "model, number, version, adapter_sha256, decision_id, kind, actor, reason, since"
    values = (forged.version, forged.adapter_sha256, forged.decision_id, forged.kind)
    sql = f"INSERT INTO champions ({columns}) VALUES (?, 2, ?, ?, ?, ?, 'a', '', '2026-01-01 00:00:00.000000')"
    with closing(sqlite3.connect(path)) as connection, pytest.raises(sqlite3.IntegrityError, match=REFUSALS):
        connection.execute(sql, (forged.model, *values))
    assert [entry.version for entry in records.champion_history("m")] == ["1"]
    assert len(records.events()) == events


MOVER = """
    import sys
    from dataclasses import replace
    from registry.records import StaleChampion, open_records
    records, who = open_records(sys.argv[1]), sys.argv[2]
    second = records.champion_history("m")[1]
    sys.stdin.readline()
    try:
        print(records.move_champion(replace(second, kind="rollback", actor=who), expected="1").number)
    except StaleChampion:
        print("stale")
"""


@pytest.mark.slow
def test_of_processes_that_move_the_champion_at_once_one_wins(records: Records, path: Path) -> None:
    """I-13: all expect version 1 to be live; compare-and-set lets one through."""
    records.move_champion(champion("1"), expected=None)
    made = sign(records)
    records.move_champion(promotion(made), expected="1")
    records.move_champion(champion("1", "rollback"), expected="2")
    command = [sys.executable, "-c", textwrap.dedent(MOVER), f"sqlite:///{path}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": "."}
    movers = [subprocess.Popen([*command, str(who)], env=environment, **pipes) for who in range(4)]  # type: ignore[call-overload]
    said = sorted(mover.communicate("go\n", timeout=100)[0].strip() for mover in movers)
    assert said == ["4", "stale", "stale", "stale"]
    assert len(records.champion_history("m")) == 4
    assert records.verify_events().ok


# ---- the store itself


def test_another_schema_is_refused_with_the_cure_and_left_as_it_was(records: Records, path: Path) -> None:
    records.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    before = path.read_bytes()
    with pytest.raises(RecordsError, match=r"schema 99, this version of Wardround needs .*; use the version"):
        open_records(f"sqlite:///{path}")
    assert path.read_bytes() == before


def test_a_database_of_something_else_is_refused_and_left_as_it_was(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE runs (id)")
    before = path.read_bytes()
    with pytest.raises(RecordsError, match="other tables than Wardround's; set database to a file of its own"):
        open_records(f"sqlite:///{path}")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("sqlite:///{path}/no/such/folder/w.db", "unable to open"),
        ("sqlite:///{path}", "not a database"),
        ("nonsense", "is no database that can be opened"),
        ("postgresql://host/db", r"is no database that can be opened|need SQLite"),
    ],
)
def test_what_cannot_be_opened_is_one_clear_error(path: Path, url: str, problem: str) -> None:
    path.write_bytes(b"this is a text file, and quite certainly no database" * 50)
    with pytest.raises(RecordsError, match=problem) as caught:
        open_records(url.format(path=path))
    assert "\n" not in str(caught.value)


def test_a_full_or_locked_database_is_one_clear_error_and_nothing_is_written(
    records: Records, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.database.BUSY_SECONDS", 0.1)
    records.close()
    records = open_records(f"sqlite:///{path}")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RecordsError, match=r"nothing was written: database is locked; .*try again"):
            records.save_plan(plan(), AT)
        other.execute("ROLLBACK")
    assert records.plans("m") == []
    records.save_plan(plan(), AT)
    assert records.verify_events().ok
    records.close()


def test_every_connection_has_the_durable_profile(records: Records) -> None:
    """I-06, of several connections at once."""
    journal = "wal" if wal_is_safe(sqlite3.sqlite_version_info) else "truncate"
    expected = {"foreign_keys": 1, "busy_timeout": 30000, "synchronous": 2, "secure_delete": 1, "trusted_schema": 0}
    connections = [records._engine.connect() for _ in range(3)]
    for connection in connections:
        values = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in (*expected, "journal_mode")}
        assert values == {**expected, "journal_mode": journal}
    for connection in connections:
        connection.close()


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 0), False),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 51, 0), False),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 52, 0), True),
    ],
)
def test_the_write_ahead_log_is_used_only_where_it_is_safe(version: tuple[int, int, int], safe: bool) -> None:
    assert wal_is_safe(version) is safe


def test_a_signature_of_nobody_is_refused(records: Records) -> None:
    made = records_decision(records)
    with pytest.raises(RecordsError, match="nobody is not a user; add the person first"):
        records.save_signature(replace(word(made), user="nobody"), AT)
    assert records.signatures(made.decision_id) == []
