"""From estimates to the truth: labels that come weeks later are watched, held against the estimates, and remembered."""

from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from dashboard.calibration_charts import estimate_errors
from flows.ingesting import ingest_export
from flows.rounds import RoundOrder, run_round
from flows.screens import show_batch, show_status
from flows.status import status_of
from flows.ward import Ward, open_ward
from flows.watching import windows_to_watch
from monitor.alarms import replay, weigh_window
from monitor.cohorts import Window
from monitor.reconciliation import reconcile
from monitor.results import Harm, Source, WindowReport

START = datetime(2026, 1, 5, tzinfo=UTC)
WEEK = timedelta(weeks=1)
REFERENCE_WEEKS, PATIENTS = 4, 60
SETTINGS = """
[models.m]
attributes = ["site"]
reference = "2026-01-05/2026-02-02"
[drift]
alibi_detect = false
evidently = false
permutations = 99
resamples = 100
"""


def week(number: int) -> Window:
    start = START + (REFERENCE_WEEKS + number) * WEEK
    return Window(start=start, end=start + WEEK)


def export(folder: Path, number: int, *, labelled: bool, wrong: float = 0.3, labelled_at: str = "") -> Path:
    """Write one week, counted from the end of the reference: scores fit the labels, but for the part that is wrong."""
    generator = np.random.default_rng(100 + number)
    truth = generator.random(PATIENTS) < 0.5
    scores = 1 / (1 + np.exp(-generator.normal(np.where(truth, 2, -2), 1.5)))
    labels = truth ^ (generator.random(PATIENTS) < (wrong if number >= 0 else 0.05))
    frame = pd.DataFrame(
        {
            "study_uid": [f"s{number}-{i}" for i in range(PATIENTS)],
            "patient_key": [f"p{number}-{i}" for i in range(PATIENTS)],
            "produced_at": [(week(number).start + timedelta(hours=2 * i)).isoformat() for i in range(PATIENTS)],
            "score": scores.round(6),
            "label": np.where(labels, "yes", "no") if labelled else "",
            "site": "A",
            "labelled_at": labelled_at,
        }
    )
    path = folder / f"week{number}{'-truth' if labelled else ''}.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture
def ward(tmp_path: Path) -> Ward:
    """Give a ward with a labelled reference."""
    (tmp_path / "wardround.toml").write_text(SETTINGS, encoding="utf-8")
    ward = open_ward(tmp_path)
    for number in range(-REFERENCE_WEEKS, 0):
        ingest_export(export(tmp_path, number, labelled=True), model="m", ward=ward, at=week(0).start)
    return ward


def live(ward: Ward, *exports: Path, at: datetime) -> list[WindowReport]:
    return list(run_round(ward, RoundOrder(model="m", exports=exports, windows=None), at=at).reports)


def loss(report: WindowReport, source: Source, metric: str = "accuracy") -> Harm:
    return next(harm for harm in report.harms if (harm.source, harm.metric) == (source, metric))


def test_the_truth_is_held_against_estimates_and_widens_later_ones(ward: Ward, tmp_path: Path) -> None:
    for number in range(5):
        (report,) = live(ward, export(tmp_path, number, labelled=False), at=week(number).end)
        assert loss(report, Source.REALISED).loss is None
        assert loss(report, Source.ESTIMATED).loss is not None
    assert reconcile(ward.records.reports("m")) == ()
    assert windows_to_watch(ward, "m", until=week(4).end) == []

    at = week(4).end + WEEK / 2
    told = live(ward, *(export(tmp_path, number, labelled=True) for number in range(4)), at=at)
    assert [report.window for report in told] == [week(number) for number in range(4)]  # the fifth waits for its truth
    reports = ward.records.reports("m")
    assert [report.n_labelled for report in reports] == [PATIENTS] * 4 + [0]
    assert all(loss(report, Source.REALISED).loss is not None for report in told)
    errors = [error for error in reconcile(reports) if error.metric == "accuracy"]
    assert [error.window for error in errors] == [week(number) for number in range(4)]
    assert all(error.error > 0.05 for error in errors)  # nothing in the scores tells that labels turned

    figure = estimate_errors(reconcile(reports), {})
    assert {len(trace.x) for trace in figure.data if trace.name == "estimated minus measured"} == {4}

    (sixth,) = live(ward, export(tmp_path, 5, labelled=False), at=week(5).end)
    before, after = (loss(report, Source.ESTIMATED) for report in (reports[4], sixth))
    assert before.past_error == 0
    assert after.past_error > 0.1
    assert width(after) > width(before)

    evidences = [weigh_window(report.window, report.results) for report in ward.records.reports("m")]
    assert [entry.state for entry in ward.records.alarms("m")] == replay(evidences, ward.settings.drift)
    watched = [event.subject for event in ward.records.events(kind="window.watched")]
    assert watched == [week(n).key for n in (0, 1, 2, 3, 4, 0, 1, 2, 3, 5)]
    assert ward.records.verify_events().ok


def width(harm: Harm) -> float:
    assert harm.low is not None
    assert harm.high is not None
    return harm.high - harm.low


def test_the_same_truth_again_makes_no_window_due(ward: Ward, tmp_path: Path) -> None:
    live(ward, export(tmp_path, 0, labelled=False), at=week(0).end)
    truth = export(tmp_path, 0, labelled=True)
    assert len(live(ward, truth, at=week(0).end)) == 1
    assert live(ward, truth, at=week(0).end) == []
    other = truth.rename(tmp_path / "again.csv")
    other.write_text(other.read_text() + "\n", encoding="utf-8")
    assert live(ward, other, at=week(0).end) == []


def test_status_tells_coverage_and_latency(ward: Ward, tmp_path: Path) -> None:
    live(ward, export(tmp_path, 0, labelled=False), at=week(0).end)
    (window,) = status_of(ward)["m"]["windows"]
    assert window["labels"] == {**window["labels"], "studies": PATIENTS, "labelled": 0, "half_days": None}
    moment = week(0).start + timedelta(days=12)
    live(ward, export(tmp_path, 0, labelled=True, labelled_at=moment.isoformat()), at=week(0).end + WEEK)
    arrival = ward.records.label_arrival("m", week(0))
    assert (arrival.studies, arrival.labelled, arrival.waiting) == (PATIENTS, PATIENTS, 0)
    # studies come every two hours: the 30th shortest wait is that of the study number 30
    assert arrival.half_days == pytest.approx(12 - 30 / 12)
    assert arrival.most_days == pytest.approx(12 - 6 / 12)
    (window, empty) = status_of(ward)["m"]["windows"]
    assert empty["labels"]["studies"] == 0
    assert (window["labels"]["half_days"], window["labelled"]) == (arrival.half_days, PATIENTS)
    assert f"{PATIENTS} of {PATIENTS} studies are labelled (100%). Half of them are after 9.5 days" in shown(ward)


def shown(ward: Ward) -> str:
    console = Console(width=200, record=True, file=StringIO())
    show_status(console, status_of(ward))
    return console.export_text()


def test_an_intake_says_how_many_rows_brought_labels(ward: Ward, tmp_path: Path) -> None:
    for labelled, told in ((False, "60 accepted, 0 known"), (True, "0 accepted, labels added to 60, 0 known already")):
        path = export(tmp_path, 0, labelled=labelled)
        console = Console(width=200, record=True, file=StringIO())
        show_batch(console, ingest_export(path, model="m", ward=ward, at=week(0).end))
        assert told in console.export_text()
