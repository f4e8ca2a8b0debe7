"""One commit point: a promotion happened or it did not, whatever is killed and whatever MLflow does."""

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import registry.promotion
from continual.plans import AdaptationPlan, AdaptationRun, RunState
from continual.policies import Treatment
from monitor.cohorts import Cohort, Window
from monitor.tasks import Task
from registry.approvals import SignatureRefused, approve, hash_password, reject
from registry.comparison import HeldOutScores
from registry.decisions import GateDecision, GatePolicy
from registry.entries import ChampionRecord
from registry.gate import decide
from registry.held_out import lock_cohort
from registry.model_versions import ModelVersions
from registry.promotion import PromotionRefused, install, lineage, promote, reconcile, rollback
from registry.records import Records, RecordsError, StaleChampion, open_records
from registry.settings import ModelSettings

# MLflow's own tables use a loader strategy that SQLAlchemy 2.1 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning")

AT = datetime(2026, 5, 4, 9, tzinfo=UTC)
WEEK = Window(start=datetime(2026, 4, 27, tzinfo=UTC), end=datetime(2026, 5, 4, tzinfo=UTC))
PASSWORD = "a long enough password"
HASH = hash_password(PASSWORD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ward:
    """A store directory with a model, three people, locked cohorts and a first champion."""

    model: str
    directory: Path
    records: Records
    versions: ModelVersions

    def adapter(self, content: str) -> Path:
        """Write an adapter file as training leaves it."""
        sha256 = hashlib.sha256(content.encode()).hexdigest()
        path = self.versions.adapter(sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode())
        path.with_suffix(".json").write_text('{"adapter": "lora"}')
        return path

    def judged(self, content: str, *, at: datetime = AT) -> GateDecision:
        """Plan, train and judge a challenger that is plainly better."""
        live = self.records.champion(self.model)
        plan = AdaptationPlan(
            model=self.model,
            windows=(WEEK,),
            treatment=Treatment.UPDATE_ADAPTER,
            strategies=("replay",),
            evidence=(content,),
            reason="drift",
            proposed_by="emma",
            champion_version=live.version,
        )
        run = AdaptationRun(
            plan_id=plan.plan_id,
            model=self.model,
            strategy="replay",
            adapter="lora",
            state=RunState.FINISHED,
            reason="",
            seed=0,
            recipe="abc123",
            backbone_sha256="b" * 64,
            adapter_sha256=self.adapter(content).stem,
            trainable_parameters=1,
            experiences=("old", "new"),
            matrix=((0.9, 0.5), (0.9, 0.9)),
            forgetting=0.0,
            backward_transfer=0.0,
            forward_transfer=0.0,
            losses=(0.1,),
            memory_studies=1,
            n_learned=1,
            seconds=1.0,
        )
        decision = decide(cohorts(), run=run, champion_version=live.version, policy=GatePolicy(resamples=100))
        assert decision.promote, decision.reasons
        self.records.save_plan(plan, at)
        self.records.save_run(run, at)
        self.records.save_decision(decision, at)
        return decision

    def approved(self, content: str, *, at: datetime = AT) -> str:
        """Let somebody approve a challenger; gives the decision's id."""
        decision = self.judged(content, at=at)
        entered = {"user": "quinn", "password": PASSWORD, "meaning": "Reviewed and approved.", "at": at}
        approve(self.records, decision.decision_id, **entered)
        return decision.decision_id

    def promote(self, decision_id: str, *, at: datetime = AT):
        return promote(self.records, self.versions, decision_id, actor="quinn", at=at)

    def rollback(self, reason: str = "The new source reads badly."):
        return rollback(self.records, self.versions, self.model, actor="quinn", reason=reason, at=AT)

    def live(self) -> tuple[str, str | None]:
        """Give the version in the records and the sha256 of MLflow's champion."""
        champion = self.records.champion(self.model)
        meant = self.versions.find(self.model, champion.adapter_sha256)
        alias = self.versions.champion(self.model)
        return champion.version, champion.adapter_sha256 if alias is not None and alias == meant else alias

    def without_mlflow(self) -> "Ward":
        """Give the same ward with a tracking server that is not there."""
        (self.directory / "no-folder").write_text("a file")
        uri = f"sqlite:///{self.directory / 'no-folder' / 'mlflow.db'}"
        return replace(self, versions=ModelVersions(tracking_uri=uri, artifact_root=self.versions.artifact_root))


def cohorts() -> list[HeldOutScores]:
    generator = np.random.default_rng(1)
    truth = (np.arange(200) % 2).astype(float)
    weak = np.clip(0.5 + 0.2 * (truth - 0.5) + 0.2 * generator.standard_normal(200), 0, 1)[:, None]
    strong = np.clip(weak + 0.3 * (truth - 0.5)[:, None], 0, 1)
    locks = [lock_cohort(locked_cohort(truth), name=kind, kind=kind) for kind in ("old", "new")]
    return [
        HeldOutScores(
            name=lock.name,
            kind=lock.kind,
            digest=lock.digest,
            labels=truth[:, None],
            champion=weak,
            challenger=strong,
            patients=np.arange(200).astype(str),
        )
        for lock in locks
    ]


def locked_cohort(truth: np.ndarray) -> Cohort:
    n = len(truth)
    return Cohort(
        task=Task.BINARY,
        classes=("no", "yes"),
        study_uid=np.arange(n).astype(str),
        patient_key=np.arange(n).astype(str),
        times=np.full(n, np.datetime64("2026-05-01", "us")),
        scores=np.full((n, 1), 0.5),
        labels=truth[:, None],
    )


def open_ward(directory: Path, mlflow: Path, model: str) -> Ward:
    records = open_records(f"sqlite:///{directory / 'wardround.db'}")
    versions = ModelVersions(tracking_uri=f"sqlite:///{mlflow / 'mlflow.db'}", artifact_root=directory / "mlartifacts")
    return Ward(model=model, directory=directory, records=records, versions=versions)


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One MLflow database a session: its first creation takes 10 to 18 seconds."""
    folder = tmp_path_factory.getbasetemp() / "mlflow"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def new_ward(mlflow_store: Path, tmp_path: Path) -> Callable[[], Ward]:
    """Return a function that opens a new hospital, each under a model name of its own in one MLflow."""
    made: list[int] = []

    def make() -> Ward:
        made.append(1)
        directory = tmp_path / f"ward-{len(made)}"
        directory.mkdir()
        ward = open_ward(directory, mlflow_store, f"{tmp_path.name}-{len(made)}")
        ward.records.register_model(ward.model, ModelSettings(), AT)
        for name, role in (("emma", "engineer"), ("quinn", "quality officer"), ("carl", "clinician")):
            ward.records.add_user(name, role, HASH, AT)
        for kind in ("old", "new"):
            truth = (np.arange(200) % 2).astype(float)
            ward.records.lock_held_out(ward.model, lock_cohort(locked_cohort(truth), name=kind, kind=kind), AT)
        return ward

    return make


@pytest.fixture
def ward(new_ward: Callable[[], Ward]) -> Ward:
    ward = new_ward()
    install(ward.records, ward.versions, ward.model, adapter=ward.adapter("first"), actor="emma", at=AT)
    return ward


def test_the_first_champion_is_taken_over_once(new_ward, tmp_path):
    ward = new_ward()
    outside = tmp_path / "live.safetensors"
    outside.write_bytes(b"live weights")
    outside.with_suffix(".json").write_text("{}")
    for _ in range(2):
        first = install(ward.records, ward.versions, ward.model, adapter=outside, actor="emma", at=AT)
    assert (first.champion.version, first.champion.kind, first.champion.number, first.pending) == ("1", "first", 1, "")
    assert ward.versions.adapter(first.champion.adapter_sha256).read_bytes() == b"live weights"
    assert ward.live() == ("1", first.champion.adapter_sha256)
    assert len(ward.records.champion_history(ward.model)) == 1
    with pytest.raises(PromotionRefused, match="has a champion already, version 1; another one needs the gate"):
        install(ward.records, ward.versions, ward.model, adapter=ward.adapter("other"), actor="emma", at=AT)


def test_an_approved_challenger_goes_live_and_mlflow_holds_its_papers(ward):
    report = ward.versions.report(ward.model, WEEK)
    report.parent.mkdir(parents=True)
    report.write_text("<html></html>")
    decision_id = ward.approved("second")
    done = ward.promote(decision_id)
    assert (done.champion.version, done.champion.kind, done.champion.decision_id) == ("2", "promote", decision_id)
    assert done.champion.reason == "approved by quinn, quality officer: Reviewed and approved."
    assert ward.live() == ("2", done.champion.adapter_sha256)
    papers = {path.name: path for path in (ward.directory / "mlartifacts").rglob("*") if path.is_file()}
    assert {"plan.json", "run.json", "decision.json", "signatures.json", "champion.json", report.name} <= set(papers)
    assert papers[f"{done.champion.adapter_sha256}.safetensors"].read_bytes() == b"second"
    assert json.loads(papers["decision.json"].read_text())["policy"]["margin"] == 0.02
    assert [event.kind for event in ward.records.events(ward.model)][-2:] == ["champion.moved", "champion.projected"]
    assert ward.records.verify_events().ok


def test_promoting_again_changes_nothing(ward):
    decision_id = ward.approved("second")
    first = ward.promote(decision_id)
    events = len(ward.records.events())
    again = ward.promote(decision_id, at=AT + timedelta(days=1))
    assert again == first
    assert len(ward.records.events()) == events


def test_nothing_goes_live_without_an_approval(ward):
    decision = ward.judged("second")
    with pytest.raises(SignatureRefused, match="nobody has approved"):
        ward.promote(decision.decision_id)
    refusal = {"user": "carl", "password": PASSWORD, "meaning": "Too few women.", "at": AT}
    reject(ward.records, decision.decision_id, **refusal)
    with pytest.raises(SignatureRefused, match="carl refused"):
        ward.promote(decision.decision_id)
    assert ward.live()[0] == "1"


@pytest.mark.parametrize("actor", ["", "nobody", "left"])
def test_only_known_people_act(ward, actor):
    ward.records.add_user("left", "quality officer", HASH, AT)
    with sqlite3.connect(ward.directory / "wardround.db") as connection:
        connection.execute("UPDATE users SET active = 0 WHERE name = 'left'")
    decision_id = ward.approved("second")
    for act in (
        lambda: promote(ward.records, ward.versions, decision_id, actor=actor, at=AT),
        lambda: rollback(ward.records, ward.versions, ward.model, actor=actor, reason="x", at=AT),
        lambda: install(ward.records, ward.versions, "m", adapter=ward.adapter("first"), actor=actor, at=AT),
    ):
        with pytest.raises(PromotionRefused, match="is not a person who may act here"):
            act()


def test_another_adapter_file_than_the_one_judged_does_not_go_live(ward):
    decision_id = ward.approved("second")
    path = ward.versions.adapter(ward.records.decision(decision_id).adapter_sha256)
    path.write_bytes(b"seconD")
    with pytest.raises(PromotionRefused, match="not the one judged; restore it"):
        ward.promote(decision_id)
    path.unlink()
    with pytest.raises(PromotionRefused, match=r"is not in .* restore it"):
        ward.promote(decision_id)
    assert ward.live()[0] == "1"


def test_a_cohort_that_is_not_locked_as_judged_stops_the_promotion(ward):
    decision_id = ward.approved("second")
    with sqlite3.connect(ward.directory / "wardround.db") as connection:
        connection.execute("DROP TRIGGER held_out_refuse_delete")
        connection.execute("DELETE FROM held_out WHERE name = 'old'")
    with pytest.raises(PromotionRefused, match="held-out cohort old is not locked as it was judged"):
        ward.promote(decision_id)


def test_a_decision_edited_after_it_was_signed_does_not_go_live(ward):
    decision_id = ward.approved("second")
    other = ward.adapter("evil").stem
    with sqlite3.connect(ward.directory / "wardround.db") as connection:
        connection.execute("DROP TRIGGER decisions_refuse_update")
        sha256 = ward.records.decision(decision_id).adapter_sha256
        connection.execute("UPDATE decisions SET content = replace(content, ?, ?)", (sha256, other))
    with pytest.raises(SignatureRefused, match="nobody has approved"):
        ward.promote(decision_id)
    assert ward.live()[0] == "1"


def test_two_approved_challengers_of_one_champion_do_not_both_go_live(ward):
    one, other = ward.approved("second"), ward.approved("third")
    ward.promote(one)
    with pytest.raises(SignatureRefused, match="judged against version 1, but 2 is live now"):
        ward.promote(other)


def test_promotions_at_once_have_one_winner(ward):
    decisions = [ward.approved(f"challenger {i}") for i in range(4)]
    outcomes: list[str] = []

    dark = ward.without_mlflow().versions

    def go(decision_id: str) -> None:
        own = replace(ward, records=open_records(f"sqlite:///{ward.directory / 'wardround.db'}"), versions=dark)
        try:
            promote(own.records, own.versions, decision_id, actor="quinn", at=AT)
            outcomes.append("live")
        except (StaleChampion, SignatureRefused):
            outcomes.append("stale")

    threads = [threading.Thread(target=go, args=(decision_id,)) for decision_id in decisions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["live", "stale", "stale", "stale"]
    assert [move.version for move in ward.records.champion_history(ward.model)] == ["1", "2"]
    reconcile(ward.records, ward.versions, at=AT)
    assert ward.live() == ("2", ward.records.champion(ward.model).adapter_sha256)


def test_rollback_brings_the_earlier_version_back_step_by_step(ward):
    ward.promote(ward.approved("second"))
    ward.promote(ward.approved("third"))
    back = ward.rollback()
    assert (back.champion.version, back.champion.kind) == ("2", "rollback")
    assert ward.live() == ("2", ward.adapter("second").stem)
    assert ward.rollback("Still bad.").champion.version == "1"
    with pytest.raises(PromotionRefused, match="no earlier version to go back to"):
        ward.rollback("And again.")
    fourth = ward.promote(ward.approved("fourth"))
    assert fourth.champion.version == "4"
    assert ward.rollback().champion.version == "1"
    assert [move.version for move in ward.records.champion_history(ward.model)] == ["1", "2", "3", "2", "1", "4", "1"]


def test_what_was_rolled_back_does_not_return_by_its_old_approval(ward):
    decision_id = ward.approved("second")
    ward.promote(decision_id)
    ward.rollback()
    with pytest.raises(PromotionRefused, match="was promoted and rolled back; plan, adapt and judge again"):
        ward.promote(decision_id)


def test_rollback_wants_a_reason_and_the_file(ward):
    with pytest.raises(PromotionRefused, match="states its reason"):
        ward.rollback(" ")
    ward.promote(ward.approved("second"))
    ward.adapter("first").unlink()
    with pytest.raises(PromotionRefused, match="restore it from MLflow"):
        ward.rollback()


def test_without_mlflow_everything_happens_and_mlflow_is_brought_after(ward):
    dark = ward.without_mlflow()
    decision_id = dark.approved("second")
    done = dark.promote(decision_id)
    assert (done.champion.version, done.mlflow_version) == ("2", "")
    assert "the records stand" in done.pending
    assert dark.promote(decision_id).champion == done.champion
    back = dark.rollback("It reads badly.")
    assert dark.rollback("It reads badly.").champion == back.champion  # taken up again, not a second step
    kinds = [event.kind for event in ward.records.events(ward.model)]
    assert kinds.count("champion.projection_pending") == 2
    assert kinds.count("champion.projected") == 1
    assert all(one.pending for one in reconcile(dark.records, dark.versions, at=AT))
    assert [one.pending for one in reconcile(ward.records, ward.versions, at=AT)] == [""]
    assert ward.live() == ("1", ward.adapter("first").stem)


def test_an_alias_moved_outside_is_told_and_repaired(ward):
    ward.promote(ward.approved("second"))
    meant = ward.versions.champion(ward.model)
    ward.versions.set_champion(ward.model, "1")
    (done,) = reconcile(ward.records, ward.versions, at=AT)
    assert (done.mlflow_version, ward.versions.champion(ward.model)) == (meant, meant)
    told = [event for event in ward.records.events(ward.model) if event.kind == "alias.moved_outside"]
    assert [json.loads(event.payload)["found"] for event in told] == ["1"]
    reconcile(ward.records, ward.versions, at=AT)
    assert len([e for e in ward.records.events(ward.model) if e.kind == "alias.moved_outside"]) == 1


def test_a_version_deleted_in_mlflow_is_registered_again(ward):
    from mlflow import MlflowClient

    champion = ward.promote(ward.approved("second")).champion
    MlflowClient(tracking_uri=ward.versions.tracking_uri).delete_registered_model(ward.model)
    assert ward.versions.champion(ward.model) is None
    reconcile(ward.records, ward.versions, at=AT)
    assert ward.live() == ("2", champion.adapter_sha256)


moves = st.lists(st.sampled_from(["promote", "rollback"]), max_size=12)


@given(moves)
def test_lineage_is_what_the_live_version_stands_on(steps):
    """Against the plain definition: a stack."""
    stack, newest, history = ["1"], 1, [_move("1", "first")]
    for step in steps:
        if step == "promote":
            newest += 1
            stack.append(str(newest))
            history.append(_move(str(newest), "promote"))
        elif len(stack) > 1:
            stack.pop()
            history.append(_move(stack[-1], "rollback"))
    assert [move.version for move in lineage(history)] == stack
    assert lineage(history)[-1].version == history[-1].version


def _move(version: str, kind: str) -> ChampionRecord:
    return ChampionRecord(
        model="m",
        number=0,
        version=version,
        adapter_sha256="",
        decision_id="",
        kind=kind,
        actor="",
        reason="",
        since=AT,
    )


class Killed(BaseException):
    """Stands for a process that dies between two lines: nothing of the product catches it."""


def die_at(line: int, act: Callable[[], Any]) -> bool:
    """Run an act and die before its line-th line in promotion.py; tells whether it died."""
    seen = 0

    def trace(frame: FrameType, what: str, _: Any) -> Any:
        nonlocal seen
        if frame.f_code.co_filename != registry.promotion.__file__:
            return None
        if what == "line":
            seen += 1
            if seen == line:
                raise Killed
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except Killed:
        return True
    finally:
        sys.settrace(before)
    return False


def dies_and_converges(ward: Ward, line: int) -> bool:
    """Die at a line of a promotion, and then of a rollback; what follows must always be whole."""
    decision_id = ward.approved("second")
    died = die_at(line, lambda: ward.promote(decision_id))
    assert ward.records.verify_events().ok
    assert [move.version for move in ward.records.champion_history(ward.model)] in (["1"], ["1", "2"])
    ward.promote(decision_id)
    assert ward.live() == ("2", ward.adapter("second").stem)
    died = die_at(line, ward.rollback) or died
    assert [move.version for move in ward.records.champion_history(ward.model)] in (["1", "2"], ["1", "2", "1"])
    reconcile(ward.records, ward.versions, at=AT)
    live = ward.records.champion(ward.model)
    assert ward.live() == (live.version, live.adapter_sha256)
    if live.version == "2":
        ward.rollback()
    assert [move.version for move in ward.records.champion_history(ward.model)] == ["1", "2", "1"]
    assert ward.live() == ("1", ward.adapter("first").stem)
    assert ward.records.verify_events().ok
    return died


@pytest.mark.parametrize("line", [3, 9, 14, 22, 30, 45])
def test_killed_at_a_line_it_converges(ward, line):
    assert dies_and_converges(ward, line), "the fault never fired"


@pytest.mark.fault
def test_killed_at_every_line_it_converges(new_ward):
    line = 1
    while True:
        ward = new_ward()
        install(ward.records, ward.versions, ward.model, adapter=ward.adapter("first"), actor="emma", at=AT)
        if not dies_and_converges(ward, line):
            break
        line += 1
    assert line > 60


@pytest.mark.fault
@pytest.mark.parametrize("where", ["find", "register", "set_champion"])
def test_a_process_killed_on_its_way_to_mlflow_converges(ward, where):
    decision_id = ward.approved("second")
    code = f"""
        import os, signal
        from datetime import UTC, datetime
        from pathlib import Path
        from registry.model_versions import ModelVersions
        from registry.promotion import promote
        from registry.records import open_records
        class Dying(ModelVersions):
            def {where}(self, *args):
                os.kill(os.getpid(), signal.SIGKILL)
        records = open_records({f"sqlite:///{ward.directory / 'wardround.db'}"!r})
        folder = Path({str(ward.versions.artifact_root)!r})
        versions = Dying(tracking_uri={ward.versions.tracking_uri!r}, artifact_root=folder)
        promote(records, versions, {decision_id!r}, actor="quinn", at=datetime(2026, 5, 4, 9, tzinfo=UTC))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, env=os.environ, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert ward.records.champion(ward.model).version == "2"
    reconcile(ward.records, ward.versions, at=AT)
    assert ward.live() == ("2", ward.adapter("second").stem)


def test_no_row_goes_round_the_signature(ward):
    """The database itself refuses a promotion without an approval under its decision."""
    decision = ward.judged("second")
    row = replace(ward.records.champion(ward.model), version="2", kind="promote", decision_id=decision.decision_id)
    with pytest.raises(RecordsError, match="a promotion needs an approval"):
        ward.records.move_champion(row, expected="1")
    assert ward.live()[0] == "1"
