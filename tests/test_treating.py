"""Plan, adapt, gate: what is learned from, what it is judged on, and when each step refuses."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from continual.adapter_files import read_outputs, save_adapter
from continual.plans import RunState
from continual.policies import Treatment
from flows.doctor import examine
from flows.ingesting import ingest_export
from flows.treating import choose, judge, may_climb, name_of, propose, stages_of, treat
from flows.ward import StepRefused, adapter_of, backbone_of, reference_of, score_with, windows_of
from flows.watching import watch
from monitor.cohorts import Window
from monitor.results import Source
from registry.approvals import approve
from registry.decisions import GateDecision
from registry.held_out import HeldOutChanged, PatientRole, roles_of
from registry.promotion import promote, rollback
from tests.conftest import SMALL_SETTINGS, WEEK, SmallWard, build_small_ward

pytestmark = [
    # avalanche 0.6 imports a package that says at import that nobody maintains it; nothing of it is used
    pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained:DeprecationWarning"),
    # MLflow's own tables use a loader strategy that SQLAlchemy 2.1 deprecates
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"),
]

AT = datetime(2026, 3, 3, tzinfo=UTC)
OFFICER, PASSWORD = "quinn.quality", "correct horse battery"
REFERENCE = Window.from_key("2026-01-05/2026-02-02")


def plan_of(treated: Any) -> Any:
    return treated.ward.records.plans(treated.model)[-1]


def run_of(treated: Any, strategy: str) -> Any:
    return next(run for run in treated.ward.records.runs(treated.model) if run.strategy == strategy)


def promoted(treated: Any, decision: GateDecision | None = None) -> None:
    ward = treated.ward
    if decision is None:
        (decision,) = [d for d in ward.records.decisions(treated.model) if d.promote]
    signed = {"user": OFFICER, "password": PASSWORD, "meaning": "Reviewed.", "at": AT}
    approve(ward.records, decision.decision_id, **signed)
    promote(ward.records, ward.versions, decision.decision_id, actor=OFFICER, at=AT)


def sql(treated: Any, statement: str, *values: str) -> int:
    with closing(sqlite3.connect(treated.directory / "wardround.db")) as connection, connection:
        return connection.execute(statement, values).rowcount


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["head", "analytic"])
def test_a_ward_whose_adapter_reads_embeddings_is_treated_like_any_other(tmp_path: Path, kind: str) -> None:
    chosen = f'adapter = "{kind}"\nblocks = 0\nrandom_features = 16'
    build_small_ward(tmp_path / "ward", SMALL_SETTINGS.replace("blocks = 2", chosen))
    treated = SmallWard(directory=tmp_path / "ward")
    treated.live(4)
    ward = treated.ward
    runs = ward.records.runs(treated.model)
    assert {(run.strategy, run.adapter, run.state) for run in runs} == {
        (strategy, kind, RunState.FINISHED) for strategy in ("naive", "replay")
    }
    assert len(ward.records.decisions(treated.model)) == 2
    if kind == "analytic":  # one exact solution, whatever the strategy
        assert len({run.adapter_sha256 for run in runs}) == 1


# ---- what is learned, in which order


def test_a_plan_learns_the_drifted_windows_after_the_reference(treated: Any) -> None:
    plan = plan_of(treated)
    assert plan.treatment is Treatment.UPDATE_ADAPTER
    assert plan.windows == tuple(treated.weeks[2:])
    assert stages_of(treated.ward, plan) == [(REFERENCE,), tuple(treated.weeks[2:])]
    assert run_of(treated, "replay").experiences == (REFERENCE.key, name_of(treated.weeks[2:]))


def test_after_a_promotion_its_windows_are_learned_and_after_a_rollback_they_are_not(treated: Any) -> None:
    ward, later = treated.ward, replace(plan_of(treated), windows=(Window.from_key("2026-03-09/2026-03-16"),))
    promoted(treated)
    assert windows_of(ward, treated.model, "2") == tuple(treated.weeks[2:])
    assert stages_of(ward, later) == [(REFERENCE,), tuple(treated.weeks[2:]), later.windows]
    rollback(ward.records, ward.versions, treated.model, actor=OFFICER, reason="It reads badly.", at=AT)
    assert stages_of(ward, later) == [(REFERENCE,), later.windows]


# ---- propose


def test_the_same_proposal_keeps_who_made_it_first(treated: Any) -> None:
    assert propose(treated.ward, treated.model, by=OFFICER, at=AT) == plan_of(treated)
    assert plan_of(treated).proposed_by == "emma.engineer"


def test_without_drift_there_is_nothing_to_propose(small: Any) -> None:
    small.live(1)
    assert propose(small.ward, small.model, by="emma.engineer", at=AT) is None


# ---- treat


def test_a_run_keeps_the_card_of_the_backbone_it_stands_on(treated: Any) -> None:
    run = run_of(treated, "naive")
    assert run.backbone is not None
    assert run.backbone == backbone_of(treated.ward, treated.model).card
    assert run.backbone.sha256 == run.backbone_sha256
    shown = next(each for each in examine(treated.ward.settings) if each.name == f"last run of {treated.model}")
    assert shown.ok
    assert run.backbone.library in shown.text
    assert "licence: none (random numbers)" in shown.text


def test_a_finished_run_is_not_trained_again_but_a_lost_adapter_is_brought_back(treated: Any) -> None:
    run = run_of(treated, "naive")
    assert treat(treated.ward, plan_of(treated), "naive", at=AT) == run
    path = treated.ward.adapters / f"{run.adapter_sha256}.safetensors"
    content = path.read_bytes()
    path.unlink()
    assert treat(treated.ward, plan_of(treated), "naive", at=AT).adapter_sha256 == run.adapter_sha256
    assert path.read_bytes() == content
    assert treated.ward.records.runs(treated.model)[0] == run


def test_a_plan_to_watch_longer_trains_nothing(treated: Any) -> None:
    waiting = replace(plan_of(treated), treatment=Treatment.WATCH_LONGER, strategies=())
    with pytest.raises(StepRefused, match="says “watch longer”: there is nothing to train"):
        treat(treated.ward, waiting, "naive", at=AT)


def test_a_plan_and_a_run_for_a_version_that_is_not_live_are_refused(treated: Any) -> None:
    plan, run = plan_of(treated), run_of(treated, "replay")
    promoted(treated)
    with pytest.raises(StepRefused, match="was made for version 1, which is not live; plan again"):
        treat(treated.ward, plan, "replay", at=AT)
    with pytest.raises(StepRefused, match="was trained from version 1, which is not live any more"):
        judge(treated.ward, run, at=AT)


def test_studies_that_came_without_images_are_told(treated: Any) -> None:
    sql(treated, "UPDATE predictions SET image = '', image_sha256 = ''")
    with pytest.raises(StepRefused, match=r"came without images, .* ingest an image column"):
        treat(treated.ward, plan_of(treated), "ewc", at=AT)


def test_lost_features_stop_a_run_and_name_the_cure(treated: Any) -> None:
    """The champion stays as it is, and once the features are back the training can begin."""
    ward, champion = treated.ward, treated.ward.records.champion(treated.model)
    for shard in ward.features_of(treated.model).directory.glob("*.arrow"):
        shard.rename(shard.with_suffix(".lost"))
    run = treat(treated.ward, plan_of(treated), "ewc", at=AT)
    assert (run.state, run.adapter_sha256) == (RunState.STOPPED, "")
    assert "`wardround ingest`" in run.reason
    assert treated.ward.records.champion(treated.model) == champion
    for shard in ward.features_of(treated.model).directory.glob("*.lost"):
        shard.rename(shard.with_suffix(".arrow"))
    assert treat(treated.ward, plan_of(treated), "ewc", at=AT).state is RunState.FINISHED
    assert not list((treated.directory / "checkpoints").glob("*"))


# ---- judge


def test_a_held_out_study_that_was_changed_stops_the_gate(treated: Any) -> None:
    (lock, *_) = treated.ward.records.held_out(treated.model)
    study = lock.manifest[0].split('"')[1]
    sql(treated, "DROP TRIGGER labels_refuse_update")
    mine = "(SELECT id FROM predictions WHERE study_uid = ?)"
    turned = "UPDATE labels SET labels = CASE labels WHEN '[0]' THEN '[1]' ELSE '[0]' END WHERE prediction_id IN "
    assert sql(treated, turned + mine, study)
    looks = treated.ward.records.looks(treated.model)
    with pytest.raises(HeldOutChanged, match=rf"1 \w+ \({study}\)|1 changed"):
        judge(treated.ward, run_of(treated, "replay"), at=AT)
    assert treated.ward.records.looks(treated.model) == looks


def test_a_lock_that_was_rewritten_stops_the_gate(treated: Any) -> None:
    """As somebody with the file would do it: the protecting trigger, if there is one, goes first."""
    with closing(sqlite3.connect(treated.directory / "wardround.db")) as connection, connection:
        named = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'held_out'")
        for (name,) in named.fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("UPDATE held_out SET manifest = '[]'")
    with pytest.raises(ValueError, match="does not hash to its digest"):
        judge(treated.ward, run_of(treated, "replay"), at=AT)


def test_studies_that_arrive_after_the_lock_are_not_judged_on(treated: Any) -> None:
    ward, run = treated.ward, run_of(treated, "replay")
    (before,) = [d for d in ward.records.decisions(treated.model) if d.run_id == run.run_id]
    names = np.array([f"late-{i}" for i in range(20)])
    late = names[roles_of(names, ward.settings.roles) == PatientRole.HELD_OUT][0]
    row = pd.read_csv(treated.export(3)).iloc[[0]].assign(study_uid="late", patient_key=late)
    row.to_csv(treated.directory / "late.csv", index=False)
    assert ingest_export(treated.directory / "late.csv", model=treated.model, ward=ward, at=AT).accepted == 1
    assert judge(ward, run, at=AT) == before


def test_a_run_that_failed_has_nothing_to_judge(treated: Any) -> None:
    failed = replace(run_of(treated, "naive"), state=RunState.FAILED, reason="the loss is not finite")
    with pytest.raises(StepRefused, match=r"did not finish \(the loss is not finite\); there is nothing to judge"):
        judge(treated.ward, failed, at=AT)


def test_nobody_who_was_learned_from_is_judged_on(treated: Any) -> None:
    locked = {patient for lock in treated.ward.records.held_out(treated.model) for patient in lock.patients}
    roles = roles_of(np.array(sorted(locked)), treated.ward.settings.roles)
    assert len(locked) > 40
    assert set(roles) == {PatientRole.HELD_OUT}


# ---- choose


def test_the_best_over_all_stages_is_recommended_and_of_equals_the_one_that_forgets_less(treated: Any) -> None:
    decisions = treated.ward.records.decisions(treated.model)
    (passed,) = [decision for decision in decisions if decision.promote]
    run = run_of(treated, "replay")

    def offer(name: str, *figures: float | None, forgetting: float | None = 0.0) -> tuple[Any, Any]:
        other = replace(run, strategy=name, matrix=((0.9, 0.5), figures), forgetting=forgetting)
        return replace(passed, run_id=other.run_id), other

    def best(*offers: tuple[Any, Any]) -> str:
        chosen = choose([decision for decision, _ in offers], [other for _, other in offers])
        assert chosen is not None
        return next(other.strategy for decision, other in offers if decision == chosen)

    assert best(offer("a", 0.9, 0.7), offer("b", 0.8, 0.9)) == "b"
    assert best(offer("a", 0.9, 0.8, forgetting=0.02), offer("b", 0.8, 0.9, forgetting=0.01)) == "b"
    assert best(offer("a", None, 0.8), offer("b", None, None)) == "a"


def test_what_the_gate_refused_is_never_recommended(treated: Any) -> None:
    records = treated.ward.records
    decisions, runs = records.decisions(treated.model), records.runs(treated.model)
    chosen = choose(decisions, runs)
    assert chosen is not None
    assert chosen.promote
    assert choose([decision for decision in decisions if not decision.promote], runs) is None
    assert choose([], runs) is None


# ---- the smaller steps of the ladder


def step_of(treated: Any, treatment: Treatment) -> Any:
    plan = replace(plan_of(treated), treatment=treatment, strategies=())
    treated.ward.records.save_plan(plan, AT)
    return plan


def free_head(treated: Any) -> Any:
    """Let the head move, as it may outside of most tests."""
    path = treated.directory / "wardround.toml"
    path.write_text(path.read_text().replace("head_hold = 1e6", "head_hold = 2.0"))
    return treated


def test_where_a_new_head_is_enough_it_is_proposed_made_and_judged_before_any_training(treated: Any) -> None:
    ward = free_head(treated).ward
    plan = propose(ward, treated.model, by="emma.engineer", at=AT)
    assert plan is not None
    assert plan.treatment is Treatment.REFIT_HEAD
    assert [verdict.enough for verdict in plan.rungs] == [False] * 4 + [True]
    run = treat(ward, plan, at=AT)
    assert (run.state, run.strategy, run.name, run.treatment) == (
        RunState.FINISHED,
        "",
        "refit the head",
        Treatment.REFIT_HEAD,
    )
    assert run.run_id.endswith("-refit-the-head-0")
    old, new = run.matrix[-1]
    assert old is not None
    assert new is not None
    assert min(old, new) > 0.9
    assert treat(ward, plan, at=AT) == run
    path = ward.adapters / f"{run.adapter_sha256}.safetensors"
    content = path.read_bytes()
    path.unlink()
    assert treat(ward, plan, at=AT).adapter_sha256 == run.adapter_sha256
    assert path.read_bytes() == content
    decision = judge(ward, run, at=AT)
    assert {check.metric for check in decision.checks if check.name == "superiority"} == {"auroc"}


def test_other_outputs_keep_the_order_and_are_judged_in_what_they_mend(treated: Any) -> None:
    ward, plan = treated.ward, step_of(treated, Treatment.MOVE_THRESHOLD)
    run = treat(ward, plan, at=AT)
    assert run.state is RunState.FINISHED
    assert run.mends in ("sensitivity", "specificity")
    assert run.forgetting == 0
    decision = judge(ward, run, at=AT)
    (kept,) = [check for check in decision.checks if check.name == "non-inferiority"]
    assert (kept.difference, kept.low, kept.high, kept.passed) == (0, 0, 0, True)
    assert {check.metric for check in decision.checks if check.name == "superiority"} == {run.mends}
    assert {check.metric for check in decision.checks if check.name == "exchange"} == {"balanced_accuracy"}
    sha256 = run.adapter_sha256
    thresholds = read_outputs(ward.adapters / f"{sha256}.safetensors", sha256).thresholds
    assert len(thresholds) == 1
    assert score_with(ward, treated.model, reference_of(ward, treated.model, "1"), sha256).thresholds == thresholds


def test_a_moved_threshold_is_what_later_windows_are_measured_by(treated: Any) -> None:
    """Of the sick half score 0.6 and half 0.8, all others 0.1: at 0.5 nobody sick is missed, at 0.7 half of them."""
    ward, run = treated.ward, run_of(treated, "replay")
    trained = adapter_of(ward, treated.model, run.adapter_sha256)
    moved = save_adapter(replace(trained, outputs=replace(trained.outputs, thresholds=(0.7,))), ward.adapters)
    run = replace(run, seed=1, adapter_sha256=moved)
    ward.records.save_run(run, AT)
    promoted(treated, judge(ward, run, at=AT))
    week = Window(start=treated.weeks[3].end + WEEK, end=treated.weeks[3].end + 2 * WEEK)
    frame = pd.read_csv(treated.export(3))
    sick = (frame["label"] == "yes").to_numpy()
    scores = np.where(sick, np.where(np.cumsum(sick) % 2, 0.6, 0.8), 0.1)
    later = [moment.isoformat() for moment in pd.to_datetime(frame["produced_at"]) + 2 * WEEK]
    told = {"produced_at": later, "study_uid": frame["study_uid"] + "-later", "model_version": "2", "score": scores}
    frame.assign(**told).to_csv(treated.directory / "later.csv", index=False)
    ingest_export(treated.directory / "later.csv", model=treated.model, ward=ward, at=week.end)
    report = watch(ward, treated.model, week, at=week.end)
    (found,) = [h for h in report.harms if h.metric == "sensitivity" and h.source is Source.REALISED]
    assert found.current == pytest.approx(np.mean(scores[sick] >= 0.7))
    assert found.current == pytest.approx(0.5, abs=0.02)
    reference = score_with(ward, treated.model, reference_of(ward, treated.model, "2"), moved)
    yes = reference.labels[:, 0] == 1
    assert found.reference == pytest.approx(np.mean(reference.scores[yes, 0] >= 0.7))


def test_what_the_labels_do_not_carry_is_a_failed_run_and_tried(treated: Any) -> None:
    """Scores that point the wrong way in the new windows cannot be calibrated; the next step is due."""
    ward, plan = treated.ward, step_of(treated, Treatment.RECALIBRATE)
    run = treat(ward, plan, at=AT)
    assert (run.state is RunState.FAILED) == bool(run.reason)
    if run.state is RunState.FINISHED:
        assert not judge(ward, run, at=AT).promote
    assert may_climb(ward, plan)


def test_a_step_that_trains_nothing_takes_no_strategy_and_one_that_trains_needs_one(treated: Any) -> None:
    with pytest.raises(StepRefused, match="“recalibrate”, which takes no strategy"):
        treat(treated.ward, step_of(treated, Treatment.RECALIBRATE), "replay", at=AT)
    with pytest.raises(StepRefused, match="takes one of the strategies naive, replay"):
        treat(treated.ward, plan_of_update(treated), at=AT)


def plan_of_update(treated: Any) -> Any:
    plans = treated.ward.records.plans(treated.model)
    return next(plan for plan in plans if plan.treatment is Treatment.UPDATE_ADAPTER)
