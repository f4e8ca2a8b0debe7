"""The figures of adapting and of the gate: what was learned, what was kept, and what the gate measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from continual.plans import AdaptationRun
from dashboard.drawing import (
    PANELS,
    SIZE,
    Interval,
    column_at_right,
    dot,
    finish,
    name_rows,
    panels,
    safe,
    whiskers,
    zero_line,
)
from dashboard.names import metric_words, number, reword, strategy_words
from dashboard.palette import (
    BEFORE,
    LABEL,
    NOW,
    OUTCOME_COLOURS,
    OUTCOME_MARKS,
    OUTCOME_WORDS,
    PALE,
    UNKNOWN,
)
from registry.decisions import GateCheck, GateDecision

LOSSES_ARE_HIGHER = ("calibration", "subgroup gap", "forgetting")
"""Checks whose difference is bad when it rises; a drawing turns them round, so that right is better everywhere."""

DASHES = ("solid", "dash", "dot", "dashdot")


def strategies_compared(runs: Sequence[AdaptationRun]) -> go.Figure:
    """Draw, for each experience (columns), the AUROC of the champion before and of every strategy's adapter (rows)."""
    names = list(runs[0].experiences)
    figure, places = panels([_title(i, names) for i in range(len(names))], beside=0.06, below=0.4)
    columns, lines = min(PANELS, len(names)), places[-1]["row"]
    for place, at in enumerate(places):
        before, after = _before(runs[0], place), [run.matrix[-1][place] for run in runs]
        _draw_points(figure, at, [before], rows=[len(runs)], before=before)
        _draw_points(figure, at, after, rows=range(len(runs))[::-1], before=before)
        known = [value for value in (before, *after) if value is not None]
        if before is not None:
            figure.add_vline(x=before, line={"color": BEFORE, "width": 2, "dash": "dash"}, **at)
        if known:
            room = max(0.03, 0.35 * (max(known) - min(known)))
            low, high = min(known) - room, max(known) + room
            figure.update_xaxes(range=[low, high], tickvals=_ticks(low, min(1.0, high), 7 - columns), **at)
        if place + columns >= len(names):  # the lowest of its column, or the words run into the next panel's title
            figure.update_xaxes(title="← worse    AUROC    better →", **at)
    name_rows(figure, [*(strategy_words(run.name) for run in reversed(runs)), "champion before"])
    figure.update_xaxes(tickformat=".2f", tickangle=0)
    figure.update_layout(showlegend=False)
    figure = finish(figure, 20 + lines * (130 + 34 * (len(runs) + 1)))
    figure.update_yaxes(showgrid=False).update_annotations(font={"size": SIZE + 1, "color": LABEL})
    return figure.update_layout(margin_t=44)


def forgetting_matrix(run: AdaptationRun) -> go.Figure:
    """Draw AUROC on each experience (columns) after each learning step (rows): down a column is remembering."""
    names = list(run.experiences)
    steps = [i for i, row in enumerate(run.matrix) if any(value is not None for value in row)]
    spans = _spans(run)
    figure = go.Figure(
        go.Heatmap(
            z=[list(run.matrix[i]) for i in steps],
            text=[
                [number(v) + span * (v is not None) for v, span in zip(run.matrix[i], spans[i], strict=True)]
                for i in steps
            ],
            texttemplate="%{text}",
            textfont={"size": SIZE + 1},
            colorscale=[[0, PALE], [1, NOW]],
            zmin=0.5,
            zmax=1,
            showscale=False,
            hovertemplate="%{text}<extra></extra>",
            xgap=3,
            ygap=3,
        )
    )
    figure.update_xaxes(
        tickvals=list(range(len(names))),
        ticktext=[_title(i, names) if len(names) <= PANELS else _narrow(names[i]) for i in range(len(names))],
        side="top",
        tickangle=0,
    )
    figure.update_yaxes(
        tickvals=list(range(len(steps))),
        ticktext=[f"after learning<br>{safe(reword(names[i]))}" for i in steps],
        autorange="reversed",
    )
    figure = finish(figure, 110 + 66 * len(steps))
    return figure.update_xaxes(showgrid=False).update_yaxes(showgrid=False)


def training_losses(runs: Sequence[AdaptationRun]) -> go.Figure:
    """Draw each run's loss by epoch; strategies differ by dash and label, colours keep their meaning."""
    figure = go.Figure()
    for place, run in enumerate(runs):
        figure.add_scatter(
            x=list(range(1, len(run.losses) + 1)),
            y=list(run.losses),
            name=safe(strategy_words(run.name)),
            mode="lines+markers",
            line={"color": NOW, "dash": DASHES[place % len(DASHES)], "width": 2},
            marker={"symbol": place % 4, "size": 8},
            hovertemplate="epoch %{x}: %{y:.3f}<extra></extra>",
        )
    figure.update_xaxes(title="epoch", dtick=max(1, max((len(run.losses) for run in runs), default=1) // 10))
    figure.update_yaxes(title="loss", rangemode="tozero")
    figure = finish(figure, 280)
    return figure.update_layout(showlegend=True)


def gate_checks(decision: GateDecision) -> go.Figure:
    """Draw what changes with the challenger, check by check, turned so that right is better, with each limit.

    A check that could not be made keeps its row and says so.
    """
    shown = decision.checks[::-1]
    figure = go.Figure()
    for passed in (True, False):
        rows = [i for i, check in enumerate(shown) if check.passed is passed and check.difference is not None]
        gains = [gain_of(shown[i]) for i in rows]
        if rows:
            figure.add_scatter(
                x=[gain for gain, _, _ in gains],
                y=rows,
                error_x=whiskers(gains),
                mode="markers",
                name=OUTCOME_WORDS[passed],
                marker={"color": OUTCOME_COLOURS[passed], "size": 13, "symbol": OUTCOME_MARKS[passed]},
                hovertext=[safe(reword(shown[i].reason), 300) for i in rows],
                hoverinfo="text",
            )
    measured = [i for i, check in enumerate(shown) if check.difference is not None]
    figure.add_scatter(
        x=[limit_of(shown[i]) for i in measured],
        y=measured,
        mode="markers",
        name="limit: the challenger must stay right of it",
        marker={"color": UNKNOWN, "size": 20, "symbol": "line-ns-open", "line": {"width": 4}},
        hovertemplate="limit %{x:+.3f}<extra></extra>",
    )
    zero_line(figure)
    name_rows(figure, [_check_name(check) for check in shown])
    figure.update_xaxes(title="← worse than the champion            better →", tickformat="+.2f")
    figure = finish(figure, 130 + 36 * len(shown))
    colours = [LABEL if check.difference is not None else OUTCOME_COLOURS[check.passed] for check in shown]
    return column_at_right(
        figure, "champion → challenger", [_figures(check) for check in shown], width=190, colours=colours
    )


def gain_of(check: GateCheck) -> Interval:
    """Turn a check's difference and interval so that more is better."""
    if check.difference is None:
        return None, None, None
    if check.name not in LOSSES_ARE_HIGHER and not (check.name == "superiority" and check.metric == "brier"):
        return check.difference, check.low, check.high
    low, high = (None if end is None else -end for end in (check.high, check.low))
    return -check.difference, low, high


def limit_of(check: GateCheck) -> float:
    """Place a check's limit on the axis where more is better: only superiority asks for a gain."""
    return check.margin if check.name == "superiority" else -check.margin


def _figures(check: GateCheck) -> str:
    """Write champion → challenger, or why there is nothing to write."""
    if check.name == "forgetting" and check.difference is not None:
        return f"{check.difference:.3f} forgotten" if check.difference > 0.0005 else "nothing forgotten"
    if check.difference is None:
        return "not asked by the policy" if check.passed else "could not be judged: refused"
    if check.champion is None or check.challenger is None:
        return f"{check.difference:+.3f}"
    return f"{number(check.champion)} → {number(check.challenger)}"


def _check_name(check: GateCheck) -> str:
    what = {
        "non-inferiority": f"keeps its {metric_words(check.metric)}",
        "superiority": f"gains {metric_words(check.metric)}",
        "calibration": f"stays calibrated ({metric_words(check.metric)})",
        "subgroup gap": f"keeps groups together{_group(check.metric)}",
        "exchange": "catches and spares as many",
        "forgetting": "forgets little",
    }.get(check.name, f"{check.name}: {check.metric}")
    return reword(f"{what}, {check.cohort}") if check.cohort else what


def _group(metric: str) -> str:
    name = metric.removeprefix("auroc gap of ")
    return f" ({name})" if name else ""


def _before(run: AdaptationRun, column: int) -> float | None:
    """Give what the champion had before the last learning step."""
    return run.matrix[-2][column] if len(run.matrix) > 1 else None


def _spans(run: AdaptationRun) -> list[list[str]]:
    """Write the interval of each figure of a run's matrix on a second line, nothing where none was measured."""
    known = run.kept.matrix("auroc") if run.kept is not None else None
    if known is None or len(known.values) != len(run.matrix):
        return [[""] * len(row) for row in run.matrix]
    ends = zip(run.matrix, known.low, known.high, strict=True)
    return [
        [
            "" if None in (value, low, high) else f"<br>{low:.2f}–{high:.2f}"
            for value, low, high in zip(*one, strict=True)
        ]
        for one in ends
    ]


def _narrow(name: str) -> str:
    """Write a stage over the lines of a narrow column."""
    return safe(reword(name)).replace(" – ", " –<br>")


def _title(place: int, names: Sequence[str]) -> str:
    age = "the new" if place == len(names) - 1 else "what was known"
    return f"on {age}<br>{safe(reword(names[place]))}"


def _ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Give a few round figures of a range; an AUROC above 1 is none."""
    step = next((step for step in (0.01, 0.02, 0.05, 0.1) if (high - low) / step < most), 0.2)
    return [round(i * step, 2) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _side(value: float | None, before: float | None) -> str:
    return "middle left" if value is not None and before is not None and value < before else "middle right"


def _draw_points(
    figure: go.Figure, at: dict[str, int], values: Sequence[float | None], *, rows: Sequence[int], before: float | None
) -> None:
    """Draw one mark a row; its figure stands on the side away from the champion's line."""
    champion = len(values) == 1 and values[0] is before
    figure.add_scatter(
        x=list(values),
        y=list(rows),
        mode="markers+text",
        name="champion before" if champion else "after learning",
        text=[f" {number(value)} " for value in values],
        textposition=[_side(value, before) for value in values],
        textfont={"size": SIZE},
        marker=dot(BEFORE if champion else NOW),
        hoverinfo="skip",
        cliponaxis=False,
        **at,
    )
