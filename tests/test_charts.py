"""Figures hold the numbers of the records: they are read back from what is drawn; what is missing stays missing."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import plotly.graph_objects as go
import pytest

from dashboard import charts, treatment_charts, window_charts
from dashboard.drawing import LONGEST, safe, spread, whiskers
from dashboard.palette import (
    BEFORE,
    DARK,
    ESTIMATE,
    LABEL,
    LIGHT,
    LOOK,
    NOW,
    OUTCOME_COLOURS,
    QUIET,
    UNKNOWN,
    VERDICT_COLOURS,
)
from monitor.results import DriftKind, Source, Verdict, WindowReport
from registry.audit import Event
from registry.entries import ChampionRecord
from tests.conftest import MODEL, REFERENCE, UNLABELLED_WEEK, WEEKS, decide, plan_of, report_of, run_of

REPORTS = [report_of(window, number) for number, window in enumerate(WEEKS[:8])]
QUIET_WEEK, THIN, DRIFTED, UNLABELLED = REPORTS[0], REPORTS[1], REPORTS[4], REPORTS[UNLABELLED_WEEK]


def trace(figure: go.Figure, name: str) -> Any:
    (found,) = [each for each in figure.data if each.name == name]
    return found


def names(figure: go.Figure) -> list[str]:
    return [each.name for each in figure.data]


def weeks(reports: list[WindowReport] = REPORTS, champions: tuple[ChampionRecord, ...] = ()) -> go.Figure:
    return window_charts.week_by_week(reports, champions, metric="auroc", finding="yes")


# --- by window


def test_performance_is_the_records_and_a_missing_figure_is_a_gap_not_a_zero() -> None:
    for name, source in (("measured with labels", Source.REALISED), ("estimated without labels", Source.ESTIMATED)):
        drawn = trace(weeks(), name)
        harms = [window_charts.harm_of(report, source, "auroc", "yes") for report in REPORTS]
        assert list(drawn.y) == [harm.current for harm in harms]
        assert not drawn.connectgaps
    measured = trace(weeks(), "measured with labels")
    assert [place for place, value in enumerate(measured.y) if value is None] == [1, UNLABELLED_WEEK]
    assert 0 not in measured.y


def test_whiskers_reach_the_ends_of_the_interval_around_the_figure_now() -> None:
    drawn, harm = (
        trace(weeks(), "measured with labels"),
        window_charts.harm_of(DRIFTED, Source.REALISED, "auroc", "yes"),
    )
    top, bottom = drawn.y[4] + drawn.error_y.array[4], drawn.y[4] - drawn.error_y.arrayminus[4]
    assert top == pytest.approx(harm.current_high)
    assert bottom == pytest.approx(harm.current_low)


def test_every_whisker_lies_inside_the_picture() -> None:
    figure = weeks()
    low, high = figure.layout.yaxis.range
    for name in ("measured with labels", "estimated without labels"):
        drawn = trace(figure, name)
        for value, above, below in zip(drawn.y, drawn.error_y.array, drawn.error_y.arrayminus, strict=True):
            assert value is None or low <= value - below <= value + above <= high


def test_the_strip_shows_every_verdict_even_of_a_week_without_labels() -> None:
    figure = weeks()
    expected = {"drift": [4, 5, 6], "no drift": [0, 2, 3, 7], "not enough data": [1]}
    for name, places in expected.items():
        assert [moment.date() for moment in trace(figure, name).x] == [
            (WEEKS[place].start + timedelta(days=3)).date() for place in places
        ]


def test_the_reference_is_drawn_from_first_to_last_window() -> None:
    drawn = trace(weeks(), "in the reference")
    assert set(drawn.y) == {0.934}
    assert (drawn.x[0], drawn.x[-1]) == (WEEKS[0].start, WEEKS[7].end)


def test_a_window_is_named_by_its_first_day() -> None:
    assert weeks().layout.xaxis2.ticktext[:2] == ("30 Mar", "6 Apr")


def test_only_champions_that_came_while_watching_are_marked() -> None:
    first = ChampionRecord(
        model=MODEL,
        number=1,
        version="1",
        adapter_sha256="",
        decision_id="",
        kind="first",
        actor="",
        reason="",
        since=REFERENCE.start,
    )
    second = replace(first, number=2, version="2<b>", since=WEEKS[5].end)
    figure = weeks(champions=(first, second))
    assert [note.text for note in figure.layout.annotations] == ["version 2&lt;b&gt; live"]


@pytest.mark.parametrize("reports", [[], [THIN], [UNLABELLED], [QUIET_WEEK]], ids=["none", "thin", "unlabelled", "one"])
def test_few_or_no_windows_draw(reports: list[WindowReport]) -> None:
    low, high = weeks(reports).layout.yaxis.range
    assert low < high
    window_charts.kinds_by_week(reports)
    window_charts.gaps_by_week(reports, "yes")


def test_kinds_say_drift_where_one_comparison_drifted() -> None:
    figure = window_charts.kinds_by_week(REPORTS)
    rows = figure.layout.yaxis.ticktext
    assert rows == ("How the model answers", "Who is examined", "How images are taken", "How images look")
    drifted = {
        (moment, rows[row]) for moment, row in zip(trace(figure, "drift").x, trace(figure, "drift").y, strict=True)
    }
    assert len(drifted) == 9
    assert "Who is examined" not in {row for _, row in drifted}
    assert len(trace(figure, "not enough data").x) == 4


def test_gaps_say_drift_where_one_subgroup_moved_and_unknown_only_where_none_was_judged() -> None:
    figure = window_charts.gaps_by_week(REPORTS, "yes")
    rows = figure.layout.yaxis.ticktext
    assert {rows[row] for row in trace(figure, "drift").y} == {"age"}
    assert len(trace(figure, "drift").x) == 3
    assert "65+ (sensitivity)" in trace(figure, "drift").hovertext[0]
    assert [rows[row] for row in trace(figure, "not enough data").y].count("source") == 8


def test_many_windows_keep_ticks_readable() -> None:
    assert len(spread([*WEEKS] * 10)) <= 14
    assert spread(WEEKS) == WEEKS


# --- one window


def test_bars_are_the_effects_coloured_by_verdict() -> None:
    known = (replace(DRIFTED.results[0], least_effect=0.3), *DRIFTED.results[1:])
    figure = charts.drift_effects(known, least=0.1)
    for verdict, name in ((Verdict.DRIFT, "drift"), (Verdict.NO_DRIFT, "no drift")):
        bars = trace(figure, name)
        assert sorted(bars.x) == sorted(r.effect for r in DRIFTED.results if r.verdict is verdict)
        assert bars.marker.color == VERDICT_COLOURS[verdict]
    marks = trace(figure, "the least that counts")
    assert sorted(marks.x) == [0.1] * (len(marks.x) - 1) + [0.3]


def test_comparisons_that_could_not_be_made_are_no_bars_of_length_zero() -> None:
    assert sum(len(each.x) for each in charts.drift_effects(THIN.results, least=0.1).data) == 0


def test_how_often_chance_does_as_much_stands_beside_its_bar() -> None:
    results = [
        replace(DRIFTED.results[0], p_value=p, effect=0.5, kind=DriftKind.APPEARANCE) for p in (0.0002, 0.0234, 0.42)
    ]
    notes = {
        note.y: note.text for note in charts.drift_effects(results, least=0.1).layout.annotations if note.yref == "y"
    }
    assert notes == {2: "p &lt; 0.001", 1: "p = 0.023", 0: "p = 0.42"}


def test_losses_pair_measured_and_estimated_in_one_row() -> None:
    figure = charts.losses(DRIFTED.harms)
    assert figure.layout.yaxis.ticktext == ("specificity", "sensitivity", "AUROC")
    for source, name in ((Source.REALISED, "measured with labels"), (Source.ESTIMATED, "estimated without labels")):
        drawn = trace(figure, name)
        harms = [harm for harm in DRIFTED.harms if harm.source is source]
        assert list(drawn.x) == [harm.loss for harm in harms]
        assert [round(row) for row in drawn.y] == [2, 1, 0]
        assert drawn.error_x.array[0] == pytest.approx(harms[0].high - harms[0].loss)


def test_losses_of_a_week_without_labels_are_estimates_alone() -> None:
    assert names(charts.losses(UNLABELLED.harms)) == ["estimated without labels"]


def test_losses_of_several_findings_are_told_apart() -> None:
    harms = [replace(harm, finding=finding) for harm in DRIFTED.harms[:1] for finding in ("oedema", "nodule")]
    assert charts.losses(harms).layout.yaxis.ticktext == ("AUROC of nodule", "AUROC of oedema")


def test_attribution_shows_the_share_before_and_now() -> None:
    figure = charts.attribution(DRIFTED.contributions)
    assert list(trace(figure, "in the reference").x)[::-1] == [c.share_reference for c in DRIFTED.contributions]
    assert list(trace(figure, "in this window").x)[::-1] == [c.share_current for c in DRIFTED.contributions]
    assert figure.layout.yaxis.ticktext[-1] == "source = large"
    assert "age &gt; 62" in figure.layout.yaxis.ticktext


def test_gaps_are_drawn_with_their_interval_and_an_unknown_change_is_not_drawn() -> None:
    gaps = [gap for gap in DRIFTED.gaps if gap.metric == "sensitivity"]
    figure = charts.gap_forest(gaps)
    assert list(trace(figure, "gap now").x)[::-1] == [gap.gap for gap in gaps if gap.gap is not None]
    assert trace(figure, "gap in the reference").x[0] is None, "source = large was not in the reference"
    assert list(trace(figure, "change: drift").x) == [-0.21]
    assert trace(figure, "change: drift").error_x.arrayminus[0] == pytest.approx(0.1)
    assert len(trace(figure, "change: no drift").x) == 4


def test_every_event_is_one_mark_in_the_row_of_its_kind() -> None:
    events = [
        Event(
            seq=number,
            at=WEEKS[number].start,
            actor="emma",
            kind=kind,
            model=MODEL,
            subject="<b>x</b>",
            payload="{}",
            previous="",
            digest="",
        )
        for number, kind in enumerate(["plan.made", "window.watched", "plan.made"])
    ]
    figure = charts.events_by_day(events, {"plan.made": "treatment proposed"})
    (marks,) = figure.data
    assert figure.layout.yaxis.ticktext == ("window.watched", "treatment proposed")
    assert list(marks.y) == [1, 0, 1]
    assert list(marks.x) == [event.at for event in events]
    assert "&lt;b&gt;" in marks.hovertext[0]


# --- treatment and gate

RUN = run_of(plan_of(), "replay", old=0.933, new=0.927)
NAIVE = run_of(plan_of(), "naive", old=0.871, new=0.938)


def test_strategies_are_compared_with_the_champion_before() -> None:
    figure = treatment_charts.strategies_compared([NAIVE, RUN])
    before = [list(each.x) for each in figure.data if each.name == "champion before"]
    after = [list(each.x) for each in figure.data if each.name == "after learning"]
    assert before == [[0.934], [0.852]]
    assert after == [[0.871, 0.933], [0.938, 0.927]]
    assert figure.layout.yaxis.ticktext == ("replay", "naive", "champion before")
    assert max(figure.layout.xaxis2.tickvals) <= 1


def test_a_figure_that_could_not_be_measured_is_no_point() -> None:
    run = replace(RUN, matrix=((None, 0.852), (None, 0.927)))
    figure = treatment_charts.strategies_compared([run])
    assert [list(each.x) for each in figure.data] == [[None], [None], [0.852], [0.927]]
    assert figure.data[0].text == (" – ",)
    (table,) = treatment_charts.forgetting_matrix(run).data
    assert table.z[0][0] is None
    assert list(table.text[0]) == ["–", "0.852<br>0.83–0.87"]


def test_the_table_of_remembering_is_the_matrix_of_the_run() -> None:
    (table,) = treatment_charts.forgetting_matrix(RUN).data
    assert [list(row) for row in table.z] == [list(row) for row in RUN.matrix]


def test_losses_of_training_are_told_apart_without_new_colours() -> None:
    figure = treatment_charts.training_losses([NAIVE, RUN])
    assert [list(each.y) for each in figure.data] == [list(NAIVE.losses), list(RUN.losses)]
    assert {each.line.color for each in figure.data} == {NOW}
    assert len({each.line.dash for each in figure.data}) == 2


def test_checks_are_turned_so_that_right_is_better() -> None:
    decision = decide(RUN, old=-0.001, new=0.075)
    figure = treatment_charts.gate_checks(decision)
    drawn = dict(zip(trace(figure, "passed").y, trace(figure, "passed").x, strict=True))
    turned = [1, -1, -1, 1, -1, -1]
    expected = [sign * check.difference for sign, check in zip(turned, decision.checks, strict=True)]
    assert [drawn[row] for row in range(6)][::-1] == pytest.approx(expected)
    limits = trace(figure, "limit: the challenger must stay right of it")
    assert list(limits.x)[::-1] == [-0.02, -0.03, -0.05, 0.0, -0.03, -0.02]


def test_a_whisker_that_is_turned_keeps_its_ends() -> None:
    check = replace(decide(RUN, old=0, new=0.1).checks[1], difference=0.1, low=0.05, high=0.3)
    assert treatment_charts.gain_of(check) == (-0.1, -0.3, -0.05)
    assert treatment_charts.gain_of(replace(check, difference=None)) == (None, None, None)


def test_a_check_that_could_not_be_made_keeps_its_row_and_says_so() -> None:
    decision = decide(RUN, old=-0.001, new=0.075)
    unknown = replace(
        decision.checks[2], difference=None, low=None, high=None, champion=None, challenger=None, passed=False
    )
    figure = treatment_charts.gate_checks(replace(decision, checks=(*decision.checks[:2], unknown)))
    assert len(figure.layout.yaxis.ticktext) == 3
    notes = {note.y: note.text for note in figure.layout.annotations if note.yref == "y"}
    assert notes == {2: "0.931 → 0.930", 1: "0.081 → 0.081", 0: "could not be judged: refused"}
    assert 0 not in [row for each in figure.data for row in each.y]


# --- what all share


def test_an_unknown_end_has_no_whisker() -> None:
    bars = whiskers([(0.5, 0.4, 0.7), (None, None, None), (0.5, None, 0.6)])
    assert bars["array"] == pytest.approx([0.2, 0, 0.1])
    assert bars["arrayminus"] == pytest.approx([0.1, 0, 0])


def test_text_from_data_is_cut_and_escaped() -> None:
    assert safe("<a href='x'>") == "&lt;a href=&#x27;x&#x27;&gt;"
    assert len(safe("x" * 500)) == LONGEST


def test_a_colour_has_one_meaning() -> None:
    meanings = [LOOK, QUIET, UNKNOWN, BEFORE, NOW, ESTIMATE]
    assert len(set(meanings)) == len(meanings)
    assert VERDICT_COLOURS[Verdict.DRIFT] == OUTCOME_COLOURS[False] == LOOK
    assert VERDICT_COLOURS[Verdict.NO_DRIFT] == OUTCOME_COLOURS[True] == QUIET


@pytest.mark.parametrize("colour", [LOOK, QUIET, UNKNOWN, BEFORE, NOW, ESTIMATE, LABEL])
@pytest.mark.parametrize("background", [LIGHT, DARK])
def test_every_colour_stands_out_from_both_backgrounds(colour: str, background: str) -> None:
    lighter, darker = sorted((_luminance(colour), _luminance(background)), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 3


def _luminance(colour: str) -> float:
    """Give the relative luminance of WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
