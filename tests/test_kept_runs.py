"""What was kept, from a real run to every screen: stored with it, told on the page and on the terminal."""

import io
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from streamlit.testing.v1 import AppTest

from flows.kept_screens import kept_table, show_kept
from flows.screens import show_runs
from flows.status import plain
from flows.treating import measure_treatment
from flows.ward import score_with
from monitor.cohorts import Cohort
from registry.approvals import approve
from registry.held_out import PatientRole, roles_of
from registry.rows import RunRow
from tests.conftest import MODEL, OFFICER, PASSWORD, WEEKS, Hospital, SmallWard, decide, kept_of, plan_of, run_of

pytestmark = pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained:DeprecationWarning")


# --- stored with the run


def test_a_run_is_measured_against_the_champion_on_every_stage(treated: SmallWard) -> None:
    ward = treated.ward
    runs = ward.records.runs(treated.model)
    assert len(runs) >= 2
    for run in runs:
        kept = run.kept
        assert kept is not None
        assert kept.stages == run.experiences
        matrix = kept.matrix("auroc")
        assert matrix is not None
        assert np.allclose(np.array(matrix.values, float), np.array(run.matrix, float))
        assert kept.summaries[0].forgetting.value == pytest.approx(run.forgetting)
        assert kept.summaries[0].backward_transfer.value == pytest.approx(run.backward_transfer)
        assert {row.attribute for row in kept.changes} == {"", "kind", "site"}
        assert RunRow.of(run, WEEKS[0].start).value() == run


def test_only_reference_patients_are_asked(treated: SmallWard) -> None:
    ward = treated.ward
    asked: list[Cohort] = []
    run = ward.records.runs(treated.model)[0]
    plan, champion = ward.records.plan(run.plan_id), ward.records.champion_history(treated.model)[0]

    def ask(cohort: Cohort) -> Cohort:
        asked.append(cohort)
        return score_with(ward, plan.model, cohort, champion.adapter_sha256)

    kept = measure_treatment(ward, plan, before=ask, after=ask)
    assert kept.stages[: len(run.experiences) - 1] == run.experiences[:-1]
    assert kept.triple.learning.value == 0
    assert len(asked) == 2 * len(kept.stages)
    for cohort in asked:
        assert set(roles_of(cohort.patient_key, ward.settings.roles)) == {PatientRole.REFERENCE}


def test_a_run_of_an_earlier_wardround_is_read_without_it() -> None:
    run = run_of(plan_of(), "replay", old=0.93, new=0.92)
    row = RunRow.of(replace(run, kept=None), WEEKS[0].start)
    row.content = json.dumps({name: value for name, value in json.loads(row.content).items() if name != "kept"})
    assert row.value() == replace(run, kept=None)


# --- on the terminal


def shown(value: Any, width: int = 80) -> str:
    screen = Console(file=io.StringIO(), width=width)
    value(screen)
    return screen.file.getvalue()  # type: ignore[attr-defined]


def test_the_terminal_fits_and_says_for_whom() -> None:
    kept = kept_of(("2026-01-05/2026-03-30", "2026-04-27/2026-05-18"), old=0.871, new=0.938)
    text = shown(lambda screen: show_kept(screen, kept))
    assert max(map(len, text.splitlines())) <= 80
    lines = [line.split() for line in text.splitlines()]
    assert [
        "known",
        "2026-01-05",
        "–",
        "03-30",
        "120",
        "0.934",
        "→",
        "0.871",
        "-0.063",
        "-0.079",
        "to",
        "-0.047",
        "73/10",
    ] in lines
    assert [line[:2] for line in lines if line[:1] in (["sex"], ["site"])] == [
        *(["sex", "F"], ["sex", "M"], ["site", "clinic"]),
    ] * 2
    assert "suppressed" in text
    assert "retention 0.871 (champion 0.934)" in text
    assert kept_table(kept).row_count == 8


def test_runs_are_shown_with_and_without_what_was_kept() -> None:
    run = run_of(plan_of(), "naive", old=0.871, new=0.938)
    failed = replace(run, seed=1, matrix=(), kept=None, reason="the disk is full")
    text = shown(lambda screen: show_runs(screen, [run, failed]))
    assert text.count("kept and lost against the champion") == 1
    assert json.loads(json.dumps(plain(run)))["kept"]["flips"][0]["negative"]["value"] == pytest.approx(0.073)


# --- on the page


def page() -> AppTest:
    def body() -> None:
        from dashboard.adaptation_page import show

        show()

    app = AppTest.from_function(body, default_timeout=30)
    app.session_state["model"] = "tumour-on-mri"
    return app.run()


def said(app: AppTest) -> str:
    assert not app.exception
    kinds = ("markdown", "caption", "info", "error")
    return "\n".join(str(element.value) for kind in kinds for element in app.get(kind)).replace("\\", "")


@pytest.fixture
def hospital(tell_story: Any) -> Hospital:
    told: Hospital = tell_story(7)
    return told


def test_the_page_tells_what_was_lost_and_for_whom(hospital: Hospital) -> None:
    app = page()
    text = said(app)
    assert "went from 0.934 to 0.871 (-0.063, -0.079 to -0.047): **worse beyond chance**" in text
    assert "3 subgroups surely lost" not in text
    assert "2 subgroups surely lost." in text
    assert "**Retention.** On everything known before the adapter reaches 0.871" in text
    assert "Brier score: 0.033 → 0.065 (+0.032, +0.016 to +0.048)" in text
    strategy = next(group for group in app.get("button_group") if group.label == "Strategy")
    strategy.set_value(1).run()
    assert "No subgroup surely lost." not in said(app)
    assert "1 subgroup surely lost." in said(app)


def test_the_page_shows_another_stage_and_figure_when_asked(hospital: Hospital) -> None:
    app = page()
    next(group for group in app.get("button_group") if group.label == "Measured on").set_value(1).run()
    assert "No subgroup surely lost." in said(app)
    next(group for group in app.get("button_group") if group.label == "Figure").set_value("brier").run()
    assert "Brier score: how far the scores lie from the truth" in said(app)


def test_what_is_suppressed_is_nowhere_on_the_page(hospital: Hospital) -> None:
    app = page()
    tables = [frame.value for frame in app.dataframe]
    (table,) = [frame for frame in tables if "subgroup" in frame]
    clinic = table[table["subgroup"] == "site clinic"]
    assert len(clinic) == 8
    assert clinic[["champion", "adapter", "change", "low", "high", "studies"]].isna().all(axis=None)
    assert set(clinic["turned right"]) == {"not known"}


def test_a_run_before_these_figures_existed_says_so(hospital: Hospital) -> None:
    plan = replace(plan_of(), evidence=("2026-05-11/2026-05-18 mmd embedding",))
    run = replace(run_of(plan, "replay", old=0.9, new=0.9), kept=None)
    hospital.records.save_plan(plan, WEEKS[6].end + timedelta(days=1))
    hospital.records.save_run(run, WEEKS[6].end + timedelta(days=1))
    assert "trained before Wardround measured subgroups" in said(page())


def test_a_plan_after_a_promotion_shows_the_steps_before(hospital: Hospital) -> None:
    from dashboard.kept_view import find_steps

    records, at = hospital.records, WEEKS[7].end
    run = replace(run_of(plan_of(), "ewc", old=0.934, new=0.93), seed=1)
    decision = decide(run, old=0.0, new=0.078)
    records.save_run(run, at)
    records.save_decision(decision, at)
    approve(records, decision.decision_id, user=OFFICER, password=PASSWORD, meaning="Better.", at=at)
    first = records.champion(MODEL)
    assert first is not None
    promoted = {"version": "2", "kind": "promote", "decision_id": decision.decision_id, "since": at}
    records.move_champion(replace(first, adapter_sha256=run.adapter_sha256, **promoted), expected="1")
    plan = replace(plan_of(), champion_version="2", windows=(WEEKS[8],))
    records.save_plan(plan, at)
    kept = kept_of((*run.experiences, WEEKS[8].key), old=0.92, new=0.9)
    later = replace(run_of(plan, "replay", old=0.92, new=0.9), experiences=kept.stages, kept=kept)
    steps = find_steps(later, kept, records)
    assert [step.name for step in steps] == ["version 1", "version 2", "adapter"]
    old, new = run.experiences
    assert steps[0].figures[new][0] == 0.852
    assert [step.figures[old][0] for step in steps] == [0.934, 0.934, 0.92]
    assert WEEKS[8].key not in steps[0].figures
    records.save_run(replace(later, matrix=kept.matrices[0].values), at)
    app = page()
    assert not app.exception
    specs = [json.loads(chart.proto.spec) for chart in app.get("plotly_chart")]
    assert any(
        spec["layout"].get("xaxis", {}).get("ticktext") == ["version 1", "version 2", "adapter"] for spec in specs
    )
