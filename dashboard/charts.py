"""Every figure of the dashboard: values in, a Plotly figure out. One colour has one meaning everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from continual.plans import AdaptationRun
from monitor.results import Contribution, DriftResult, Harm, Source, SubgroupGap, Verdict, WindowReport
from registry.decisions import GateDecision

# Okabe and Ito's palette: told apart with every kind of colour vision, and on a projector.
ALARM, CALM, UNKNOWN = "#D55E00", "#009E73", "#8592A3"
NOW, BEFORE, ESTIMATE = "#0072B2", "#8592A3", "#CC79A7"
VERDICT_COLOURS = {Verdict.DRIFT: ALARM, Verdict.NO_DRIFT: CALM, Verdict.NOT_ENOUGH_DATA: UNKNOWN}
VERDICT_WORDS = {
    Verdict.DRIFT: "drift",
    Verdict.NO_DRIFT: "no drift",
    Verdict.NOT_ENOUGH_DATA: "not enough data",
}
VERDICT_SYMBOLS = {Verdict.DRIFT: "diamond", Verdict.NO_DRIFT: "circle", Verdict.NOT_ENOUGH_DATA: "circle-open"}
GAP_WORDS = {
    Verdict.DRIFT: "changed",
    Verdict.NO_DRIFT: "not changed",
    Verdict.NOT_ENOUGH_DATA: "no reference to compare",
}
ROW_PIXELS = 34


def performance_timeline(reports: Sequence[WindowReport]) -> go.Figure:
    """Draw realised and estimated AUROC by window with intervals; each window's verdict is its mark."""
    figure = go.Figure()
    for source, colour, name in ((Source.ESTIMATED, ESTIMATE, "estimated"), (Source.REALISED, NOW, "realised")):
        points = [(report, harm) for report in reports if (harm := _harm(report, source)) is not None]
        if not points:
            continue
        figure.add_scatter(
            x=[report.window.start for report, _ in points],
            y=[harm.current for _, harm in points],
            error_y=_interval_of_current([harm for _, harm in points]),
            name=f"AUROC, {name}",
            mode="lines+markers",
            line={"color": colour, "dash": "dot" if source is Source.ESTIMATED else "solid"},
            marker={"size": 7 if source is Source.ESTIMATED else 1},
            hovertemplate="%{x|%d %b %Y}: %{y:.3f}<extra>" + name + "</extra>",
        )
    for verdict in Verdict:
        marked = [(r, h) for r in reports if r.verdict is verdict and (h := _harm(r, Source.REALISED)) is not None]
        if marked:
            figure.add_scatter(
                x=[report.window.start for report, _ in marked],
                y=[harm.current for _, harm in marked],
                mode="markers",
                name=VERDICT_WORDS[verdict],
                marker={"color": VERDICT_COLOURS[verdict], "size": 14, "symbol": VERDICT_SYMBOLS[verdict]},
                hovertemplate="%{x|%d %b %Y}<extra>" + VERDICT_WORDS[verdict] + "</extra>",
            )
    figure.update_yaxes(title="AUROC")
    return _calm(figure, 380)


def drift_effects(results: Sequence[DriftResult]) -> go.Figure:
    """Draw the effect size of every comparison as a bar, by kind, coloured by verdict."""
    shown = [result for result in results if result.effect is not None][::-1]
    figure = go.Figure()
    for verdict in (Verdict.DRIFT, Verdict.NO_DRIFT):
        mine = [result for result in shown if result.verdict is verdict]
        figure.add_bar(
            y=[_name(result) for result in mine],
            x=[result.effect for result in mine],
            orientation="h",
            name=VERDICT_WORDS[verdict],
            marker_color=VERDICT_COLOURS[verdict],
            text=[f"p = {result.p_value:.2g}" for result in mine],
            textposition="outside",
            cliponaxis=False,
            hovertext=[result.reason for result in mine],
            hoverinfo="text",
        )
    figure.update_yaxes(categoryorder="array", categoryarray=[_name(result) for result in shown])
    figure.update_xaxes(title="effect size (0: no change, 1: nothing in common)", range=[0, 1.15])
    return _calm(figure, 120 + ROW_PIXELS * len(shown))


def attribution(contributions: Sequence[Contribution], most: int = 10) -> go.Figure:
    """Draw each attribute value's share before and now, most changed first."""
    shown = list(contributions[:most])[::-1]
    names = [f"{c.attribute} = {c.value}" for c in shown]
    figure = go.Figure()
    for c, name in zip(shown, names, strict=True):
        line = {"color": UNKNOWN, "width": 3}
        figure.add_scatter(
            x=[c.share_reference, c.share_current], y=[name, name], mode="lines", line=line, showlegend=False
        )
    for label, colour, shares in (
        ("reference", BEFORE, [c.share_reference for c in shown]),
        ("this window", NOW, [c.share_current for c in shown]),
    ):
        marker = {"color": colour, "size": 12}
        figure.add_scatter(x=shares, y=names, mode="markers", name=label, marker=marker, hovertemplate="%{x:.0%}")
    figure.update_xaxes(title="share of studies", tickformat=".0%", range=[-0.03, 1.03])
    return _calm(figure, 120 + ROW_PIXELS * len(shown))


def gap_forest(gaps: Sequence[SubgroupGap]) -> go.Figure:
    """Draw each subgroup's gap to everyone else with its interval, and the reference's gap beside it."""
    shown = [gap for gap in gaps if gap.gap is not None][::-1]
    names = [f"{gap.attribute} {gap.value} (n={gap.n})" for gap in shown]
    figure = go.Figure()
    figure.add_scatter(
        x=[gap.reference_gap for gap in shown],
        y=names,
        mode="markers",
        name="gap in the reference",
        marker={"color": BEFORE, "size": 10, "symbol": "line-ns-open", "line": {"width": 3}},
        hovertemplate="%{x:+.3f}",
    )
    for verdict in Verdict:
        mine = [(gap, name) for gap, name in zip(shown, names, strict=True) if gap.verdict is verdict]
        if mine:
            figure.add_scatter(
                x=[gap.gap for gap, _ in mine],
                y=[name for _, name in mine],
                error_x=_asymmetric([(gap.gap, gap.low, gap.high) for gap, _ in mine]),
                mode="markers",
                name=f"gap now: {GAP_WORDS[verdict]}",
                marker={"color": VERDICT_COLOURS[verdict], "size": 11, "symbol": VERDICT_SYMBOLS[verdict]},
                hovertemplate="%{x:+.3f}",
            )
    figure.add_vline(x=0, line_color=UNKNOWN, line_width=1)
    figure.update_yaxes(categoryorder="array", categoryarray=names)
    figure.update_xaxes(title="← worse or fewer than everyone else      better or more →")
    return _calm(figure, 140 + ROW_PIXELS * len(shown))


def forgetting_matrix(run: AdaptationRun) -> go.Figure:
    """Draw AUROC on each experience (columns) after each learning step (rows)."""
    steps = [f"after {name}" for name in run.experiences[: len(run.matrix)]]
    text = [["–" if value is None else f"{value:.3f}" for value in row] for row in run.matrix]
    figure = go.Figure(
        go.Heatmap(
            z=[list(row) for row in run.matrix],
            x=[f"on {name}" for name in run.experiences],
            y=steps,
            text=text,
            texttemplate="%{text}",
            colorscale="Cividis",
            zmin=0.5,
            zmax=1,
            colorbar={"title": "AUROC"},
            hovertemplate="%{y}, %{x}: %{z:.3f}<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed")
    return _calm(figure, 160 + 60 * len(steps))


def strategies_compared(runs: Sequence[AdaptationRun]) -> go.Figure:
    """Draw the final AUROC of each strategy on every experience, with what the champion had before."""
    figure = go.Figure()
    if not runs:
        return _calm(figure, 200)
    colours = [BEFORE, NOW, ESTIMATE, CALM, ALARM]
    for index, experience in enumerate(runs[0].experiences):
        x = ["champion before", *(run.strategy for run in runs)]
        first = runs[0].matrix[0][index] if runs[0].matrix else None
        y = [first, *(run.matrix[-1][index] if run.matrix else None for run in runs)]
        figure.add_bar(
            x=x,
            y=y,
            name=f"on {experience}",
            marker_color=colours[index % len(colours)],
            text=["" if value is None else f"{value:.3f}" for value in y],
            hovertemplate="%{x}: %{y:.3f}",
        )
    known = [value for trace in figure.data for value in trace.y if value is not None]
    figure.update_yaxes(title="AUROC", range=[max(0.0, min(known, default=0.5) - 0.05), 1])
    figure.update_layout(barmode="group")
    return _calm(figure, 360)


def training_losses(runs: Sequence[AdaptationRun]) -> go.Figure:
    """Draw each run's loss by epoch."""
    figure = go.Figure()
    for run, colour in zip(runs, (ALARM, CALM, NOW, ESTIMATE, BEFORE) * len(runs), strict=False):
        epochs = list(range(1, len(run.losses) + 1))
        figure.add_scatter(x=epochs, y=list(run.losses), name=run.strategy, mode="lines+markers", line_color=colour)
    figure.update_xaxes(title="epoch", dtick=1)
    figure.update_yaxes(title="loss", rangemode="tozero")
    return _calm(figure, 300)


def gate_checks(decision: GateDecision) -> go.Figure:
    """Draw each check's difference with its interval against its margin."""
    shown = [check for check in decision.checks if check.difference is not None][::-1]
    names = [f"{check.name}: {check.metric}, {check.cohort}" for check in shown]
    figure = go.Figure()
    for passed, colour, word in ((True, CALM, "passed"), (False, ALARM, "failed")):
        mine = [(check, name) for check, name in zip(shown, names, strict=True) if check.passed is passed]
        if mine:
            figure.add_scatter(
                x=[check.difference for check, _ in mine],
                y=[name for _, name in mine],
                error_x=_asymmetric([(check.difference, check.low, check.high) for check, _ in mine]),
                mode="markers",
                name=word,
                marker={"color": colour, "size": 12, "symbol": "circle" if passed else "x"},
                hovertext=[check.reason for check, _ in mine],
                hoverinfo="text",
            )
    figure.add_scatter(
        x=[check.margin for check in shown],
        y=names,
        mode="markers",
        name="limit",
        marker={"color": BEFORE, "size": 18, "symbol": "line-ns-open", "line": {"width": 3}},
        hovertemplate="limit %{x:+.3f}<extra></extra>",
    )
    figure.add_vline(x=0, line_color=UNKNOWN, line_width=1)
    figure.update_yaxes(categoryorder="array", categoryarray=names)
    figure.update_xaxes(title="challenger minus champion")
    return _calm(figure, 140 + ROW_PIXELS * len(shown))


def _harm(report: WindowReport, source: Source) -> Harm | None:
    return next((h for h in report.harms if h.source is source and h.metric == "auroc" and h.current is not None), None)


def _interval_of_current(harms: Sequence[Harm]) -> dict[str, Any]:
    """Turn intervals of the loss into intervals around the current figure."""
    rows = []
    for harm in harms:
        if harm.current is None or harm.low is None or harm.high is None or harm.reference is None:
            rows.append((harm.current, None, None))
        else:
            rows.append((harm.current, harm.reference - harm.high, min(1.0, harm.reference - harm.low)))
    return _asymmetric(rows)


def _asymmetric(rows: Sequence[tuple[float | None, float | None, float | None]]) -> dict[str, Any]:
    above = [0.0 if value is None or high is None else max(0.0, high - value) for value, _, high in rows]
    below = [0.0 if value is None or low is None else max(0.0, value - low) for value, low, _ in rows]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.5}


def _name(result: DriftResult) -> str:
    return f"{result.kind.value}: {result.feature} ({result.detector})"


def _calm(figure: go.Figure, height: int) -> go.Figure:
    figure.update_layout(
        height=height,
        margin={"l": 10, "r": 20, "t": 30, "b": 10},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="closest",
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,0.2)", automargin=True)
    figure.update_yaxes(gridcolor="rgba(128,128,128,0.2)", automargin=True)
    return figure
