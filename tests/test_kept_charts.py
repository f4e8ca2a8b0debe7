"""The figures of what was kept and lost: what is drawn is what was measured, the worst first, nothing suppressed."""

from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import pytest

from continual.kept import KeptAndLost
from dashboard import kept_charts, treatment_charts
from dashboard.kept_charts import Step
from dashboard.kept_wording import per_thousand, tell_kept, tell_triple
from dashboard.palette import BEFORE, LOOK, NOW, QUIET
from tests.conftest import kept_of, plan_of, run_of

STAGES = ("2026-01-05/2026-03-30", "2026-04-27/2026-05-18")
KEPT = kept_of(STAGES, old=0.871, new=0.938)


def trace(figure: go.Figure, name: str) -> Any:
    (found,) = [each for each in figure.data if each.name == name]
    return found


def rows_of(kept: KeptAndLost, metric: str, stage: str = STAGES[0]) -> list[Any]:
    return [c for c in kept.changes if (c.stage, c.metric) == (stage, metric)]


def test_a_curve_holds_every_step_and_the_champions_line() -> None:
    row: dict[str, Any] = {STAGES[0]: (0.95, 0.93, 0.97)}
    after: dict[str, Any] = {STAGES[0]: (0.9, 0.88, 0.92), STAGES[1]: (0.8, None, None)}
    steps = [
        Step(name="version 1", figures=row),
        Step(name="version 2", figures=row),
        Step(name="adapter", figures=after),
    ]
    figure = kept_charts.retention_curves(steps, STAGES)
    old, new = figure.data
    assert list(old.y) == [0.95, 0.95, 0.9]
    assert list(old.error_y.array) == pytest.approx([0.02, 0.02, 0.02])
    assert list(new.y) == [None, None, 0.8]
    assert list(old.marker.color) == [BEFORE, BEFORE, NOW]
    assert [line.y0 for line in figure.layout.shapes] == [0.95]
    assert figure.layout.xaxis.ticktext == ("version 1", "version 2", "adapter")


def test_subgroups_are_drawn_the_worst_first_and_the_suppressed_last() -> None:
    figure = kept_charts.subgroup_changes(rows_of(KEPT, "auroc"))
    names = [name.partition(" (")[0] for name in figure.layout.yaxis.ticktext][::-1]
    assert names == ["everyone", "sex = F", "sex = M", "site = clinic"]
    worse = trace(figure, "surely worse")
    assert worse.marker.color == LOOK
    assert sorted(worse.x) == pytest.approx([0.871 - 0.934 - 0.03, 0.871 - 0.934, 0.871 - 0.934 + 0.03])
    assert 0 not in [row for each in figure.data for row in each.y]
    notes = {note.y: note.text for note in figure.layout.annotations if note.yref == "y"}
    assert (notes[0], notes[3]) == ("suppressed", "0.934 → 0.871")
    assert "number suppressed" in figure.layout.yaxis.ticktext[0]


def test_a_brier_score_is_turned_so_that_right_is_better() -> None:
    row = rows_of(KEPT, "brier")[0]
    assert row.difference > 0  # it rose, which is worse
    value, low, high = kept_charts.gained(row)
    assert (value, low, high) == (-row.difference, -row.high, -row.low)
    assert kept_charts.subgroup_changes([row]).data[0].x[0] == -row.difference


def test_flips_are_drawn_per_thousand_with_their_intervals() -> None:
    figure = kept_charts.flips(KEPT)
    wrong, right = trace(figure, "turned wrong"), trace(figure, "turned right")
    assert (wrong.marker.color, right.marker.color) == (LOOK, QUIET)
    assert list(wrong.x)[::-1] == pytest.approx([73, 10])
    assert list(right.x)[::-1] == pytest.approx([10, 96])
    assert list(wrong.error_x.array)[::-1] == pytest.approx([9, 9])
    assert "73 (64 to 82) wrong" in figure.layout.annotations[1].text


def test_reliability_shows_before_and_after() -> None:
    curve = KEPT.reliability[0]
    figure = kept_charts.reliability_before_after(curve.before, curve.after[:2])
    assert (len(trace(figure, "champion").x), len(trace(figure, "adapter").x)) == (5, 2)


def test_the_triple_is_three_bars_and_the_champions_line() -> None:
    figure = kept_charts.learning_triple(KEPT.triple)
    assert [each.x[0] for each in figure.data] == pytest.approx([0.938 - 0.852, 0.082, 0.871])
    assert 0.934 in [shape.x0 for shape in figure.layout.shapes]
    unknown = replace(KEPT.triple.learning, value=None, low=None, high=None, reason="not measured")
    figure = kept_charts.learning_triple(replace(KEPT.triple, retention=unknown, retained_before=unknown))
    assert figure.data[2].x == (None,)
    assert "cannot be told (not measured)" in tell_triple(replace(KEPT.triple, learning=unknown))["Learning"]


def test_the_matrix_names_its_intervals_where_they_are_known() -> None:
    run = run_of(plan_of(), "naive", old=0.871, new=0.938)
    (table,) = treatment_charts.forgetting_matrix(run).data
    assert [list(row) for row in table.text] == [
        ["0.934<br>0.91–0.95", "0.852<br>0.83–0.87"],
        ["0.871<br>0.85–0.89", "0.938<br>0.92–0.96"],
    ]
    (table,) = treatment_charts.forgetting_matrix(replace(run, kept=None)).data
    assert [list(row) for row in table.text] == [["0.934", "0.852"], ["0.871", "0.938"]]


def test_many_stages_begin_a_new_line_and_steps_nobody_recorded_take_no_row() -> None:
    stages = tuple(f"2026-0{month}-01/2026-0{month + 1}-01" for month in range(1, 6))
    matrix = (*((None,) * 5,) * 3, (0.8, 0.81, 0.82, 0.83, 0.7), (0.81, 0.8, 0.83, 0.82, 0.9))
    run = replace(run_of(plan_of(), "naive", old=0.9, new=0.9), experiences=stages, matrix=matrix, kept=None)
    figure = treatment_charts.forgetting_matrix(run)
    assert [list(row) for row in figure.data[0].z] == [list(row) for row in matrix[3:]]
    assert figure.layout.yaxis.ticktext == ("after learning<br>1 – 30 Apr 2026", "after learning<br>1 – 31 May 2026")
    compared = treatment_charts.strategies_compared([run])
    domains = {each.domain for each in compared.select_yaxes()}
    assert len(domains) == 2
    assert [list(each.x) for each in compared.data][1::2] == [[value] for value in matrix[-1]]


def test_the_sentence_is_about_all_findings_and_everyone() -> None:
    first = replace(KEPT.changes[0], finding="edema", champion=0.1, challenger=0.2)
    assert tell_kept(replace(KEPT, changes=(first, *KEPT.changes))) == tell_kept(KEPT)


def test_sentences_say_what_was_lost_before_the_figures_interval() -> None:
    new, old = tell_kept(KEPT)
    assert new.startswith(
        "On the new (27 Apr – 17 May 2026) the AUROC went from 0.852 to 0.938 (+0.086, +0.070 to +0.102)"
    )
    assert (
        "better beyond chance. Of 1,000 answers 10 that were right turned wrong, 96 that were wrong turned right."
        in new
    )
    assert "**worse beyond chance**" in old
    assert per_thousand(KEPT.flips[0].negative) == "73 (64 to 82)"


def test_a_triple_is_told_with_what_it_means() -> None:
    told = tell_triple(KEPT.triple)
    assert told["Learning"] == "On the new studies the adapter is 0.086 better than the champion (+0.070 to +0.102)."
    assert told["Potential"].startswith("The new studies had cost the champion 0.082 (+0.066 to +0.098): so much")
    assert told["Retention"].startswith(
        "On everything known before the adapter reaches 0.871 on average, the champion 0.934"
    )
    chance = replace(KEPT.triple.potential, low=-0.01)
    assert "which may be chance" in tell_triple(replace(KEPT.triple, potential=chance))["Potential"]
    nothing = replace(KEPT.triple.potential, value=-0.02)
    assert "nothing to win back" in tell_triple(replace(KEPT.triple, potential=nothing))["Potential"]
