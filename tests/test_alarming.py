"""The alarm of a ward: followed from stored reports alone, kept in the records, told in the chain."""

import io
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.alarming import follow_alarm
from flows.explaining import explain
from flows.ingesting import ingest_export
from flows.screens import alarms_text, show_explanation
from flows.starting import start_ward
from flows.status import status_of
from flows.ward import Ward, open_ward, reference_of
from flows.watching import watch
from monitor import comparisons
from monitor.alarms import replay, weigh_window
from monitor.cohorts import Window
from monitor.column_reference import LEAST_PATIENTS
from monitor.results import DriftKind, DriftResult, Verdict, WindowReport
from registry.entries import windows_open
from registry.settings import FILE_NAME

pytestmark = [
    # avalanche 0.6 imports a package that says at import that nobody maintains it; nothing of it is used
    pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained:DeprecationWarning"),
]

START = datetime(2026, 1, 5, tzinfo=UTC)
AT = datetime(2026, 6, 1, tzinfo=UTC)


def week(number: int) -> Window:
    return Window(start=START + timedelta(weeks=number), end=START + timedelta(weeks=number + 1))


def report(number: int, p: float | None, *, effect: float = 0.5) -> WindowReport:
    result = DriftResult(
        window=week(number),
        detector="ks",
        kind=DriftKind.BEHAVIOUR,
        feature="uncertainty",
        verdict=Verdict.NO_DRIFT if p else Verdict.NOT_ENOUGH_DATA,
        statistic=p and effect,
        effect=p and effect,
        effect_name="distance",
        p_value=p,
        threshold=0.001,
        n_reference=100,
        n_current=50,
        patients_reference=100,
        patients_current=50,
        reason="",
        least_effect=0.2,
    )
    return WindowReport(
        model="m",
        window=week(number),
        verdict=Verdict.NO_DRIFT,
        reason="",
        n=50,
        patients=50,
        n_labelled=0,
        results=(result,),
        evaluations=(),
        gaps=(),
        harms=(),
        contributions=(),
    )


@pytest.fixture
def ward(tmp_path: Path) -> Ward:
    start_ward(tmp_path, "m", at=AT)
    settings = (tmp_path / FILE_NAME).read_text(encoding="utf-8")
    (tmp_path / FILE_NAME).write_text(settings.replace("# reference =", "reference ="), encoding="utf-8")
    return open_ward(tmp_path)


def live(ward: Ward, *p_values: float | None) -> None:
    for number, p in enumerate(p_values):
        ward.records.save_report(report(number, p), AT)
        follow_alarm(ward, "m", week(number), at=AT)


def told(ward: Ward) -> list[tuple[str, str]]:
    return [(event.kind, event.subject) for event in ward.records.events() if event.kind.startswith("alarm.")]


def test_an_alarm_is_raised_kept_and_closed_and_each_is_an_event(ward: Ward) -> None:
    live(ward, 0.5, 1e-3, 1e-3, 0.8, 0.9)
    entries = ward.records.alarms("m")
    assert [entry.open for entry in entries] == [False, False, True, True, False]
    assert told(ward) == [("alarm.raised", week(2).key), ("alarm.closed", week(4).key)]
    assert [windows_open(entries, week(number)) for number in range(5)] == [0, 0, 1, 2, 0]
    raised = next(event for event in ward.records.events() if event.kind == "alarm.raised")
    assert json.loads(raised.payload)["leading"] == "ks on uncertainty"
    assert ward.records.verify_events().ok


def test_the_state_is_what_anybody_computes_from_the_stored_reports(ward: Ward) -> None:
    live(ward, 0.3, None, 0.04, 0.9, 1e-3)
    evidences = [weigh_window(one.window, one.results) for one in ward.records.reports("m")]
    assert [entry.state for entry in ward.records.alarms("m")] == replay(evidences, ward.settings.drift)


def test_following_twice_adds_nothing(ward: Ward) -> None:
    live(ward, 0.5, 1e-3, 1e-3)
    before = (ward.records.alarms("m"), told(ward), ward.records.verify_events().n)
    follow_alarm(ward, "m", week(0), at=AT)
    assert (ward.records.alarms("m"), told(ward), ward.records.verify_events().n) == before


def test_a_window_that_is_watched_again_changes_all_later_ones(ward: Ward) -> None:
    live(ward, 0.5, 1e-3, 1e-3)
    ward.records.save_report(report(1, 0.9), AT)
    follow_alarm(ward, "m", week(1), at=AT)
    assert [entry.open for entry in ward.records.alarms("m")] == [False, False, False]


def test_quiet_windows_join_and_those_of_an_alarm_do_not(ward: Ward) -> None:
    live(ward, 0.5, 1e-3, 1e-3, 0.8)
    assert [entry.joined for entry in ward.records.alarms("m")] == [True, True, False, False]


def test_a_trifle_raises_nothing_however_sure_it_is(ward: Ward) -> None:
    for number in range(6):
        ward.records.save_report(replace(report(number, 1e-3, effect=0.1)), AT)
        follow_alarm(ward, "m", week(number), at=AT)
    assert not any(entry.open for entry in ward.records.alarms("m"))


def test_a_version_restored_starts_anew_whichever_window_is_followed(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = {week(number): name for number, name in enumerate(("1", "1", "2", "1", "1"))}
    monkeypatch.setattr("flows.alarming.version_in", lambda ward, model, window: version[window])
    live(ward, 0.04, 0.04, 0.5, 0.04, 0.5)
    once = ward.records.alarms("m")
    assert once[3].state.log_evidence == pytest.approx(once[0].state.log_evidence)
    follow_alarm(ward, "m", week(0), at=AT)
    assert ward.records.alarms("m") == once


def test_a_large_reference_is_sketched_once_and_its_answers_are_those_of_sketching_anew(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest_export(small.export(0), model=small.model, ward=small.ward, at=AT)
    patients = reference_of(small.ward, small.model, "1").patients
    assert patients >= LEAST_PATIENTS
    monkeypatch.setattr(comparisons, "MOST_PERMUTED", patients)
    kept = small.directory / "references"
    anew = watch(small.ward, small.model, small.weeks[0], at=AT)
    assert not list(kept.glob("*.npz"))  # the reference's patients alone are not more
    monkeypatch.setattr(comparisons, "MOST_PERMUTED", patients - 1)
    first = watch(small.ward, small.model, small.weeks[0], at=AT)
    (path,) = kept.glob("*.npz")
    written = path.stat().st_mtime_ns
    assert watch(small.ward, small.model, small.weeks[0], at=AT) == first
    assert (path.stat().st_mtime_ns, [*kept.glob("*.npz")]) == (written, [path])
    assert first.results == anew.results


def test_the_status_counts_the_alarms_of_a_year_beside_the_budget(ward: Ward) -> None:
    live(ward, 0.5, 1e-3, 1e-3, 0.8, 0.9)
    alarms = status_of(ward)["m"]["alarms"]
    assert alarms == {"of_a_year": 1, "false_alarms_per_year": 1.0, "open_since": None}
    for number in range(60, 62):
        ward.records.save_report(report(number, 1e-3), AT)
        follow_alarm(ward, "m", week(number), at=AT)
    later = status_of(ward)["m"]["alarms"]
    assert (later["of_a_year"], later["open_since"]) == (1, week(61).key)
    assert alarms_text(later).plain.startswith("Alarms in the year up to now: 1; false ones the policy bears with: 1 a")
    assert "open since" in alarms_text(later).plain


def test_the_policy_is_explained_for_the_reference_of_the_live_version_and_shown_in_plain_words(ward: Ward) -> None:
    live(ward, 0.5, 0.6)
    told = explain(ward, "m")
    assert (told.situation.patients_reference, told.situation.patients, told.situation.comparisons) == (100, 50, 1)
    screen = Console(width=100, record=True, file=io.StringIO())
    show_explanation(screen, told)
    text = screen.export_text()
    assert "A change that is there from the first window on, compared with 100 patients:" in text
    assert "A change that begins after 55 windows, 385 days, compared with" in text
    assert text.count("large (0.8 standard deviations)") == 2


def test_reports_are_read_from_a_moment_on(ward: Ward) -> None:
    live(ward, 0.5, 0.6, 0.7)
    assert [one.window for one in ward.records.reports("m", since=week(1).start)] == [week(1), week(2)]
