"""Figures of what scores and estimates are worth: reliability, the Brier score's parts, errors of estimates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard.drawing import SIZE, dot, finish, name_days, safe, whiskers
from dashboard.names import days, metric_words
from dashboard.palette import ESTIMATE, LABEL, LINE, LOOK, NOW, QUIET, UNKNOWN
from monitor.cohorts import Window
from monitor.reconciliation import EstimationError
from monitor.reliability import ReliabilityBin

NORMAL = 1.96
BAND = "rgba(181, 101, 154, 0.18)"
"""ESTIMATE, pale: what estimates were off by before."""


def reliability(bins: Sequence[ReliabilityBin]) -> go.Figure:
    """Draw, for studies with about the same score, how often the finding is there; the diagonal is perfect."""
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", name="perfect", line={"color": UNKNOWN, "dash": "dash"}, hoverinfo="skip"
    )
    figure.add_scatter(
        x=[one.said for one in bins],
        y=[one.seen for one in bins],
        error_y=whiskers([(one.seen, one.low, one.high) for one in bins]),
        mode="lines+markers",
        name="this window",
        line={"color": NOW, "width": 1},
        marker=dot(NOW),
        customdata=[(one.patients, one.studies) for one in bins],
        hovertemplate="score %{x:.2f}, true %{y:.2f}<br>%{customdata[0]} patients, %{customdata[1]} studies"
        "<extra></extra>",
    )
    figure.update_xaxes(title="mean score (what the model says)", range=[-0.06, 1.06])
    figure.update_yaxes(title="share that has it", range=[-0.06, 1.06], showgrid=True)
    return finish(figure, 340).update_layout(showlegend=True)


def brier_parts(parts: Sequence[tuple[str, float]], total: float) -> go.Figure:
    """Draw how the Brier score adds up, line by line: what raises it in one colour, what lowers it in the other."""
    names, values = [name for name, _ in parts], [value for _, value in parts]
    figure = go.Figure(
        go.Waterfall(
            y=[*names, "Brier score"],
            x=[*values, total],
            orientation="h",
            measure=[*("relative" for _ in parts), "total"],
            text=[*(f"{value:+.3f}" for value in values), f"{total:.3f}"],
            textposition="outside",
            textfont={"size": SIZE, "color": LABEL},
            increasing={"marker": {"color": LOOK}},
            decreasing={"marker": {"color": QUIET}},
            totals={"marker": {"color": NOW}},
            connector={"line": {"color": LINE}},
            hoverinfo="skip",
            cliponaxis=False,
        )
    )
    figure.update_yaxes(autorange="reversed").update_xaxes(nticks=5)
    most = 1.25 * max(sum(value for value in values if value > 0), total)  # room for the figure beside the longest
    return (
        finish(figure, 340).update_layout(showlegend=False).update_xaxes(range=[0, most]).update_yaxes(showgrid=False)
    )


def estimate_errors(errors: Sequence[EstimationError], past: Mapping[tuple[Window, str, str], float]) -> go.Figure:
    """Draw what each estimate was off by once labels had come, one panel a figure.

    Whiskers are what chance allows; the band is the estimator's own error as known before that window, by which its
    interval was widened (``past``, a standard deviation by window, metric and finding).
    """
    names = list(dict.fromkeys((error.metric, error.finding) for error in errors))
    several = len({finding for _, finding in names}) > 1
    windows = sorted({error.window for error in errors})
    titles = [safe(metric_words(metric) + (f" of {finding}" if several else "")) for metric, finding in names]
    lines = -(-len(names) // 2)
    figure = make_subplots(
        rows=lines,
        cols=2,
        shared_xaxes="all",
        shared_yaxes="all",
        subplot_titles=titles,
        vertical_spacing=0.16 / max(1, lines - 1),
    )
    for place, name in enumerate(names):
        mine = [error for error in errors if (error.metric, error.finding) == name]
        reach = [NORMAL * past.get((error.window, *name), 0.0) for error in mine]
        at = {"row": place // 2 + 1, "col": place % 2 + 1}
        figure.add_bar(
            x=[error.window.middle for error in mine],
            y=[2 * by for by in reach],
            base=[-by for by in reach],
            width=[1e3 * (error.window.end - error.window.start).total_seconds() for error in mine],
            marker={"color": BAND, "line": {"width": 0}},
            name="past error of the estimates, 95 %",
            legendgroup="band",
            showlegend=not place,
            hoverinfo="skip",
            **at,
        )
        figure.add_scatter(
            x=[error.window.middle for error in mine],
            y=[error.error for error in mine],
            error_y={
                "type": "data",
                "array": [NORMAL * error.variance**0.5 for error in mine],
                "thickness": 2,
                "width": 0,
            },
            mode="markers",
            name="estimated minus measured",
            legendgroup="error",
            showlegend=not place,
            marker={"size": 9, "color": ESTIMATE},
            customdata=[days(error.window) for error in mine],
            hovertemplate="%{customdata}: %{y:+.3f}<extra></extra>",
            **at,
        )
    figure.add_hline(y=0, line={"color": UNKNOWN, "width": 2})
    name_days(figure, windows)
    figure.update_xaxes(title="")
    figure.update_annotations(font={"size": SIZE, "color": LABEL})
    figure.update_yaxes(tickformat="+.2f", nticks=6)
    return finish(figure, 130 + 150 * lines).update_layout(showlegend=True, margin_t=70, legend_y=1.12)
