"""Between windows, in a ward: what was stored is followed, a warning is told once, and a verdict takes its place."""

import json
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from flows.between import follow
from flows.rounds import RoundOrder, run_round
from flows.screens import show_status, show_streams
from flows.starting import start_ward
from flows.status import WARNED, status_of
from flows.ward import Ward, open_ward
from flows.watching import watch
from monitor.cohorts import Prediction, Window
from registry.settings import FILE_NAME

START = datetime(2026, 1, 5, tzinfo=UTC)
WEEK = timedelta(days=7)
THIS_WEEK = Window(start=START + 5 * WEEK, end=START + 6 * WEEK)
NOW = THIS_WEEK.start + timedelta(days=4)
TESTS = '["alibi_online_cvm", "alibi_online_fet"]'


def open_home(home: Path, tests: str = TESTS, alibi: str = "true") -> Ward:
    start_ward(home, "m", at=START)
    settings = (home / FILE_NAME).read_text(encoding="utf-8")
    settings = settings.replace('# reference = "2026-01-05/2026-03-30"', 'reference = "2026-01-05/2026-02-02"')
    settings = settings.replace("online_detectors = []", f"online_detectors = {tests}\nevidently = false")
    settings = settings.replace("alibi_detect = true", f"alibi_detect = {alibi}")
    (home / FILE_NAME).write_text(settings.replace("per_year = 1 ", "per_year = 12 "), encoding="utf-8")
    return open_ward(home)


def ingest(ward: Ward, begin: datetime, patients: int, name: str, *, moved: float = 0.0) -> None:
    """Add one study a patient, an hour apart."""
    rng = np.random.default_rng(len(name))
    scores = 1 / (1 + np.exp(1 - moved - rng.normal(size=patients)))
    batch = ward.records.begin_batch("m", name, name, begin)
    predictions = [
        Prediction(
            model="m",
            study_uid=f"{name}-{i}",
            patient_key=f"{name}-{i}",
            produced_at=begin + timedelta(hours=i),
            scores=(float(score),),
            labels=(None,),
        )
        for i, score in enumerate(scores)
    ]
    ward.records.add_predictions(batch, predictions, begin)
    ward.records.finish_batch(batch, begin)


def told(ward: Ward) -> list[Any]:
    return ward.records.events("m", kind=WARNED)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.mark.slow
def test_a_warning_is_told_once_shown_by_the_status_and_gives_way_to_the_verdict(home: Path) -> None:
    ward = open_home(home)
    ingest(ward, START, 400, "history")
    ingest(ward, START + 4 * WEEK, 80, "week")
    watch(ward, "m", Window(start=START + 4 * WEEK, end=START + 5 * WEEK), at=NOW)
    ingest(ward, THIS_WEEK.start, 90, "now", moved=2.5)
    reports = follow(ward, "m", at=NOW)
    assert [report.feature for report in reports] == ["score yes", "predicted yes"]
    assert {report.window for report in reports} == {THIS_WEEK}
    assert all(report.since is not None and report.warned_at <= NOW for report in reports)
    # 80 patients a week, two streams, twelve false warnings a year: 696 patients, rounded up
    assert {report.expected_run for report in reports} == {1024}
    events = told(ward)
    assert [(event.subject, event.at) for event in events] == [(THIS_WEEK.key, NOW)] * 2
    assert json.loads(events[0].payload)["since"] == reports[0].since.isoformat()

    later = follow(open_ward(home), "m", at=NOW + timedelta(hours=20))
    assert later == reports
    assert len(told(ward)) == 2
    warnings = status_of(ward)["m"]["warnings"]
    assert [warning["reason"] for warning in warnings] == [report.reason for report in reports]
    assert json.loads(json.dumps(warnings)) == warnings

    screen = Console(width=400, file=StringIO())
    show_streams(screen, reports)
    show_status(screen, status_of(ward))
    shown = screen.file.getvalue()
    assert shown.count(reports[0].reason) == 2
    assert f"Early warning: {reports[1].reason}" in shown

    watch(ward, "m", THIS_WEEK, at=THIS_WEEK.end)
    assert status_of(ward)["m"]["warnings"] == []
    assert ward.records.verify_events().ok


@pytest.mark.slow
def test_a_round_follows_too_and_a_quiet_stream_is_no_event(home: Path) -> None:
    ward = open_home(home)
    ingest(ward, START, 400, "history")
    ingest(ward, THIS_WEEK.start, 30, "now")
    outcome = run_round(ward, RoundOrder(model="m", windows=None), at=NOW)
    assert [report.patients for report in outcome.streams] == [30, 30]
    assert told(ward) == []
    assert run_round(ward, RoundOrder(model="m", windows=()), at=NOW).streams == ()


@pytest.mark.parametrize(("tests", "alibi"), [("[]", "true"), (TESTS, "false")])
def test_nothing_is_followed_unless_it_is_asked_for(home: Path, tests: str, alibi: str) -> None:
    ward = open_home(home, tests, alibi)
    ingest(ward, START, 200, "history")
    ingest(ward, THIS_WEEK.start, 30, "now", moved=3)
    assert follow(ward, "m", at=NOW) == ()
    assert told(ward) == []


@pytest.mark.parametrize(
    "at", [START + 3 * WEEK, THIS_WEEK.start, THIS_WEEK.start + timedelta(days=2)], ids=["early", "now", "nobody"]
)
def test_without_studies_since_the_last_window_there_is_nothing_to_follow(home: Path, at: datetime) -> None:
    ward = open_home(home)
    assert follow(ward, "m", at=at) == ()
    ingest(ward, START, 200, "history")
    assert follow(ward, "m", at=at) == ()


def test_a_test_that_there_is_not_is_named(home: Path) -> None:
    ward = open_home(home, '["alibi_online_wish"]')
    ingest(ward, START, 200, "history")
    ingest(ward, THIS_WEEK.start, 30, "now")
    with pytest.raises(ValueError, match="no online test 'alibi_online_wish'; there are alibi_online_mmd"):
        follow(ward, "m", at=NOW)
