"""The status: plain JSON for programs, one line a window, and one sentence that says who must act."""

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.screens import show_status
from flows.status import headline, plain, status_of
from flows.ward import open_ward
from monitor.cohorts import Window
from monitor.policies import DriftPolicy
from monitor.results import Evaluation, Metric, Source, Verdict
from registry.agenda import next_step
from registry.approvals import approve, reject
from registry.promotion import promote, rollback

pytestmark = [
    # avalanche 0.6 imports a package that says at import that nobody maintains it; nothing of it is used
    pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained:DeprecationWarning"),
    # MLflow's own tables use a loader strategy that SQLAlchemy 2.1 deprecates
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"),
]

AT = datetime(2026, 3, 3, tzinfo=UTC)
OFFICER, PASSWORD = "quinn.quality", "correct horse battery"


def test_the_status_is_plain_json_that_reads_back_as_it_was(treated: Any) -> None:
    status = status_of(treated.ward)
    assert json.loads(json.dumps(status, allow_nan=False)) == status
    state = status[treated.model]
    assert [window["verdict"] for window in state["windows"]] == ["NO_DRIFT", "NO_DRIFT", "DRIFT", "DRIFT"]
    assert [window["window"] for window in state["windows"]] == [window.key for window in treated.weeks]
    assert (state["champion"]["version"], state["champion"]["kind"]) == ("1", "first")
    assert [batch["accepted"] for batch in state["batches"]] == [160, 80, 80, 80, 80]
    assert (state["quarantined"], state["signatures"]) == (0, [])
    assert {plan["plan_id"] for plan in state["plans"]} >= {run["plan_id"] for run in state["runs"]}
    assert {decision["run_id"] for decision in state["decisions"]} == {run["run_id"] for run in state["runs"]}
    assert all(decision["reasons"] for decision in state["decisions"])


def test_the_status_of_an_empty_ward_has_everything_empty(tmp_path: Path) -> None:
    (tmp_path / "wardround.toml").write_text("[models.a]\n[models.b]\n")
    status = status_of(open_ward(tmp_path))
    assert list(status) == ["a", "b"]
    empty = {name: value for name, value in status["a"].items() if name != "next"}
    assert not any(empty.values())


def test_a_headline_is_one_window_in_one_line(tell_story: Callable[[int], Any]) -> None:
    hospital = tell_story(7)
    drifted, unlabelled = (headline(report, DriftPolicy()) for report in hospital.records.reports("tumour-on-mri")[5:7])
    assert drifted["verdict"] is Verdict.DRIFT
    assert "mmd embedding" in drifted["drifted"]
    assert drifted["auroc_loss_low"] < drifted["auroc_loss"] < drifted["auroc_loss_high"]
    assert (unlabelled["auroc"], unlabelled["auroc_loss"], unlabelled["labelled"]) == (None, None, 0)


def test_calibration_and_discrimination_of_a_window_are_in_its_line(tell_story: Callable[[int], Any]) -> None:
    metric = Metric(name="calibration_slope", finding="yes", value=0.8, low=0.6, high=1.0, level=0.95, n=80)
    measured = Evaluation(
        model_version="1",
        cohort="week",
        source=Source.REALISED,
        n=88,
        patients=70,
        n_labelled=80,
        metrics=(metric,),
    )
    hospital = tell_story(1)
    (report,) = hospital.records.reports("tumour-on-mri")
    hospital.records.save_report(replace(report, evaluations=(measured,)), AT + timedelta(days=365))
    (told,) = status_of(open_ward(hospital.directory))["tumour-on-mri"]["windows"][0]["metrics"]
    assert (told["name"], told["low"], told["value"], told["high"], told["n"]) == ("calibration_slope", 0.6, 0.8, 1, 80)


def test_a_headline_carries_every_part_of_its_streams_and_every_reason(tell_story: Callable[[int], Any]) -> None:
    hospital = tell_story(7)
    reports = hospital.records.reports("tumour-on-mri")
    drifted, unlabelled = (plain(headline(report, DriftPolicy(), alarm_windows=2)) for report in reports[5:7])
    scores = {stream["name"]: stream["score"] for stream in drifted["streams"]}
    assert drifted["headline"]["score"] == min(scores.values()) < 100
    assert sum(len(stream["parts"]) for stream in drifted["streams"]) >= len(reports[5].results)
    assert drifted["severity"]["grade"] in {"act", "stop"}
    assert any("beyond chance" in reason for reason in drifted["severity"]["reasons"])
    performance = next(stream for stream in unlabelled["streams"] if stream["name"] == "realised performance")
    assert (performance["score"], performance["told"][:11]) == (None, "not judged:")


def test_the_screen_names_what_sets_each_stream_and_says_what_was_not_judged(tell_story: Callable[[int], Any]) -> None:
    hospital = tell_story(7)
    screen = Console(width=80, record=True, file=io.StringIO())
    show_status(screen, status_of(open_ward(hospital.directory)))
    text = screen.export_text()
    assert "headline" in text
    assert "not judged" in text
    assert re.search(r"realised performance\s+not judged", text)
    assert "Act: a person must look" in text or "Stop: do not rely" in text or "Watch: something moved" in text
    assert max(map(len, text.splitlines())) <= 80


def test_values_become_words_and_identities_are_among_them(treated: Any) -> None:
    (plan, *_) = treated.ward.records.plans(treated.model)
    told = plain(plan)
    assert told["plan_id"] == plan.plan_id
    assert told["windows"] == [window.key for window in plan.windows]
    window = Window(start=AT, end=AT + timedelta(hours=1))
    assert plain({1: (window, Verdict.DRIFT, AT, Path("a"), None)}) == {
        "1": [window.key, "DRIFT", AT.isoformat(), "a", None]
    }


# ---- who must act


def sentence(small: Any) -> str:
    return next_step(small.ward.records, small.model)


def passed(small: Any) -> str:
    return next(d.decision_id for d in small.ward.records.decisions(small.model) if d.promote)


def sign(small: Any, act: Callable[..., Any]) -> None:
    act(small.ward.records, passed(small), user=OFFICER, password=PASSWORD, meaning="Read.", at=AT)


def test_without_a_champion_an_engineer_installs_one(tmp_path: Path) -> None:
    (tmp_path / "wardround.toml").write_text("[models.a]\n")
    assert "wardround promote --first FILE" in next_step(open_ward(tmp_path).records, "a")


def test_before_the_first_window_somebody_watches(small: Any) -> None:
    assert sentence(small) == "No window has been watched yet: wardround watch"


def test_in_quiet_weeks_nobody_needs_to_act(small: Any) -> None:
    small.live(1)
    assert sentence(small) == "Nobody needs to act."


def test_what_passed_waits_for_a_person_and_then_for_its_promotion(treated: Any) -> None:
    assert sentence(treated) == f"A person who did not propose it signs or refuses: {passed(treated)}"
    sign(treated, approve)
    assert f"wardround promote {passed(treated)}" in sentence(treated)


def test_what_was_refused_does_not_wait(treated: Any) -> None:
    sign(treated, reject)
    assert "every adapter for this drift was refused" in sentence(treated)


def test_what_was_rolled_back_does_not_wait_for_promotion_again(treated: Any) -> None:
    ward = treated.ward
    sign(treated, approve)
    promote(ward.records, ward.versions, passed(treated), actor=OFFICER, at=AT)
    rollback(ward.records, ward.versions, treated.model, actor=OFFICER, reason="It reads badly.", at=AT)
    assert passed(treated) not in sentence(treated)


def test_a_drift_that_nobody_has_planned_for_points_to_the_plan(small: Any) -> None:
    small.live(1)
    records = small.ward.records
    (report,) = records.reports(small.model)
    records.save_report(replace(report, verdict=Verdict.DRIFT), AT)
    assert "wardround plan says what the evidence asks for" in sentence(small)
