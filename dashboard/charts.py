"""Every figure of the dashboard: values in, a Plotly figure out. No clock, no records, no Streamlit."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard.drawing import (
    ROW,
    Interval,
    finish,
    mark,
    middle,
    name_rows,
    safe,
    spread,
    whiskers,
    zero_line,
)
from dashboard.palette import BEFORE, ESTIMATE, KIND_WORDS, LINE, NOW, UNKNOWN, VERDICT_COLOURS, VERDICT_WORDS
from dashboard.wording import days, metric_words, number
from monitor.results import Contribution, DriftResult, Harm, Source, SubgroupGap, Verdict, WindowReport
from registry.audit import Event
from registry.entries import ChampionRecord

FEATURE_WORDS = {"embedding": "image embedding"}
DETECTOR_WORDS = {
    "mmd": "MMD",
    "ks": "KS",
    "chi_square": "chi-square",
    "alibi_mmd": "MMD, alibi",
    "alibi_lsdd": "LSDD",
    "alibi_classifier": "classifier",
}


def week_by_week(
    reports: Sequence[WindowReport], champions: Sequence[ChampionRecord], *, metric: str, finding: str
) -> go.Figure:
    """Draw one performance figure by window, realised and estimated with intervals, over a strip of verdicts.

    A dotted line is the reference's figure; a vertical line marks where another version went live.
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.86, 0.14], vertical_spacing=0.06)
    for source, colour, dash in ((Source.ESTIMATED, ESTIMATE, "dot"), (Source.REALISED, NOW, "solid")):
        harms = [(r, h) for r in reports if (h := harm_of(r, source, metric, finding)) and h.current is not None]
        if harms:
            figure.add_scatter(
                x=[middle(report.window) for report, _ in harms],
                y=[harm.current for _, harm in harms],
                error_y=whiskers([_around_current(harm) for _, harm in harms]),
                name="measured with labels" if source is Source.REALISED else "estimated without labels",
                mode="lines+markers",
                line={"color": colour, "dash": dash, "width": 2},
                marker={"size": 9, "symbol": "circle" if source is Source.REALISED else "circle-open"},
                customdata=[days(report.window) for report, _ in harms],
                hovertemplate="%{customdata}: %{y:.3f}<extra></extra>",
                row=1,
                col=1,
            )
    _draw_reference(figure, reports, metric, finding)
    _draw_strip(figure, reports)
    _mark_champions(figure, reports, champions)
    figure.update_yaxes(title=safe(metric_words(metric)), row=1, col=1, range=_range_of(figure))
    figure.update_yaxes(visible=False, range=[0, 1], row=2, col=1)
    figure.update_xaxes(tickformat="%-d %b", showgrid=False)
    figure.update_xaxes(tickvals=spread([middle(r.window) for r in reports]), row=2, col=1)
    return finish(figure, 400)


def kinds_by_week(reports: Sequence[WindowReport]) -> go.Figure:
    """Draw, for every kind of change (rows) and window (columns), whether it was found; the marks are the verdicts'."""
    kinds = [kind for kind in KIND_WORDS if any(r.kind is kind for report in reports for r in report.results)]
    figure = go.Figure()
    for verdict in Verdict:
        cells = [
            (report, kind, mine)
            for report in reports
            for kind in kinds
            if (mine := [r for r in report.results if r.kind is kind]) and _worst(mine) is verdict
        ]
        figure.add_scatter(
            x=[middle(report.window) for report, _, _ in cells],
            y=[KIND_WORDS[kind] for _, kind, _ in cells],
            mode="markers",
            name=VERDICT_WORDS[verdict],
            marker=mark(verdict, 17),
            hovertext=[_tell_cell(report, mine) for report, _, mine in cells],
            hoverinfo="text",
            showlegend=True,
        )
    figure.update_yaxes(categoryorder="array", categoryarray=[KIND_WORDS[kind] for kind in kinds][::-1])
    figure.update_xaxes(
        tickformat="%-d %b", showgrid=False, tickvals=spread([middle(report.window) for report in reports])
    )
    return finish(figure, 110 + ROW * len(kinds))


def drift_effects(results: Sequence[DriftResult], *, least: float) -> go.Figure:
    """Draw the effect size of every comparison as a bar, by kind, coloured by verdict; ``least`` is what counts."""
    ranks = list(KIND_WORDS)
    shown = sorted((r for r in results if r.effect is not None), key=lambda r: ranks.index(r.kind))[::-1]
    figure = go.Figure()
    for verdict in (Verdict.DRIFT, Verdict.NO_DRIFT):
        rows = [i for i, result in enumerate(shown) if result.verdict is verdict]
        figure.add_bar(
            y=rows,
            x=[shown[i].effect for i in rows],
            orientation="h",
            width=0.62,
            name=VERDICT_WORDS[verdict],
            marker_color=VERDICT_COLOURS[verdict],
            text=[f"  {_p_value(shown[i].p_value)}" for i in rows],
            textposition="outside",
            cliponaxis=False,
            hovertext=[safe(shown[i].reason, 200) for i in rows],
            hoverinfo="text",
        )
    figure.add_vline(x=least, line={"color": UNKNOWN, "width": 1.5, "dash": "dot"})
    name_rows(figure, [f"{KIND_WORDS[r.kind]}: {_feature(r)}" for r in shown])
    widest = max([1.0, *(result.effect or 0.0 for result in shown)])
    figure.update_xaxes(
        title="size of the change (0: none; dotted: the smallest that counts)", range=[0, widest * 1.12]
    )
    return finish(figure, 110 + ROW * len(shown))


def losses(harms: Sequence[Harm]) -> go.Figure:
    """Draw what each figure lost since the reference with its interval; right of the line is worse."""
    shown = [harm for harm in harms if harm.loss is not None][::-1]
    figure = go.Figure()
    for source, colour, symbol in ((Source.REALISED, NOW, "circle"), (Source.ESTIMATED, ESTIMATE, "circle-open")):
        rows = [i for i, harm in enumerate(shown) if harm.source is source]
        if rows:
            figure.add_scatter(
                x=[shown[i].loss for i in rows],
                y=rows,
                error_x=whiskers([(shown[i].loss, shown[i].low, shown[i].high) for i in rows]),
                mode="markers",
                name="measured with labels" if source is Source.REALISED else "estimated without labels",
                marker={"color": colour, "size": 11, "symbol": symbol, "line": {"width": 2}},
                hovertext=[f"{number(shown[i].reference)} before, {number(shown[i].current)} now" for i in rows],
                hoverinfo="text",
            )
    zero_line(figure)
    name_rows(figure, [f"{metric_words(harm.metric)} of {harm.finding}" for harm in shown])
    figure.update_xaxes(title="← better          loss since the reference          worse →", tickformat="+.2f")
    return finish(figure, 110 + ROW * len(shown))


def attribution(contributions: Sequence[Contribution], most: int = 8) -> go.Figure:
    """Draw each attribute value's share in the reference and now, the most changed first."""
    shown = list(contributions[:most])[::-1]
    figure = go.Figure()
    for row, c in enumerate(shown):
        ends = [c.share_reference, c.share_current]
        figure.add_scatter(
            x=ends, y=[row, row], mode="lines", line={"color": LINE, "width": 5}, showlegend=False, hoverinfo="skip"
        )
    for name, colour, symbol, shares in (
        ("in the reference", BEFORE, "circle-open", [c.share_reference for c in shown]),
        ("in this window", NOW, "circle", [c.share_current for c in shown]),
    ):
        figure.add_scatter(
            x=shares,
            y=list(range(len(shown))),
            mode="markers",
            name=name,
            marker={"color": colour, "size": 12, "symbol": symbol, "line": {"width": 2.5}},
            hovertemplate="%{x:.0%}<extra></extra>",
        )
    name_rows(figure, [f"{c.attribute} = {c.value}" for c in shown])
    figure.update_xaxes(title="share of the studies", tickformat=".0%", range=[-0.03, 1.03])
    return finish(figure, 110 + ROW * len(shown))


def gap_forest(gaps: Sequence[SubgroupGap]) -> go.Figure:
    """Draw each subgroup's gap to everyone else now and in the reference (left), and its change (right)."""
    shown = [gap for gap in gaps if gap.gap is not None][::-1]
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.05, column_widths=[0.55, 0.45])
    figure.add_scatter(
        x=[gap.reference_gap for gap in shown],
        y=list(range(len(shown))),
        mode="markers",
        name="gap in the reference",
        marker={"color": BEFORE, "size": 17, "symbol": "line-ns-open", "line": {"width": 3}},
        hovertemplate="in the reference %{x:+.3f}<extra></extra>",
        row=1,
        col=1,
    )
    figure.add_scatter(
        x=[gap.gap for gap in shown],
        y=list(range(len(shown))),
        error_x=whiskers([(gap.gap, gap.low, gap.high) for gap in shown]),
        mode="markers",
        name="gap now",
        marker={"color": NOW, "size": 11},
        hovertext=[f"{number(gap.inside)} inside, {number(gap.outside)} everyone else" for gap in shown],
        hoverinfo="text",
        row=1,
        col=1,
    )
    for verdict in (Verdict.DRIFT, Verdict.NO_DRIFT):
        rows = [i for i, gap in enumerate(shown) if gap.verdict is verdict]
        figure.add_scatter(
            x=[shown[i].change for i in rows],
            y=rows,
            error_x=whiskers([(shown[i].change, shown[i].change_low, shown[i].change_high) for i in rows]),
            mode="markers",
            name=f"change: {VERDICT_WORDS[verdict]}",
            marker=mark(verdict, 12),
            hovertext=[safe(shown[i].reason, 200) for i in rows],
            hoverinfo="text",
            row=1,
            col=2,
        )
    zero_line(figure)
    name_rows(figure, [f"{gap.attribute} {gap.value} ({gap.n} studies)" for gap in shown])
    figure.update_xaxes(tickformat="+.2f")
    figure.update_xaxes(title="← lower than everyone else       higher →", row=1, col=1)
    figure.update_xaxes(title="← fell since the reference       rose →", row=1, col=2)
    return finish(figure, 130 + ROW * len(shown))


def events_by_day(events: Sequence[Event], words: dict[str, str]) -> go.Figure:
    """Draw when what happened: one row a kind of event, one mark an event."""
    kinds = list(dict.fromkeys(event.kind for event in events))[::-1]
    figure = go.Figure(
        go.Scatter(
            x=[event.at for event in events],
            y=[kinds.index(event.kind) for event in events],
            mode="markers",
            marker={"color": NOW, "size": 9, "opacity": 0.75},
            hovertext=[
                f"{event.at:%d %b %Y, %H:%M} UTC, {safe(event.actor)}: {safe(event.subject)}" for event in events
            ],
            hoverinfo="text",
            showlegend=False,
        )
    )
    name_rows(figure, [words.get(kind, kind) for kind in kinds])
    figure.update_xaxes(tickformat="%-d %b %Y")
    return finish(figure, 60 + 24 * len(kinds))


def harm_of(report: WindowReport, source: Source, metric: str, finding: str) -> Harm | None:
    """Look up the loss of one figure in a report."""
    return next(
        (h for h in report.harms if (h.source, h.metric, h.finding) == (source, metric, finding)),
        None,
    )


def _draw_reference(figure: go.Figure, reports: Sequence[WindowReport], metric: str, finding: str) -> None:
    points = [
        (report.window, harm.reference)
        for report in reports
        if (harm := harm_of(report, Source.REALISED, metric, finding)) and harm.reference is not None
    ]
    if points:
        figure.add_scatter(
            x=[moment for window, _ in points for moment in (window.start, window.end)],
            y=[value for _, value in points for _ in range(2)],
            mode="lines",
            name="in the reference",
            line={"color": BEFORE, "width": 2, "dash": "dash", "shape": "hv"},
            hovertemplate="reference %{y:.3f}<extra></extra>",
            row=1,
            col=1,
        )


def _draw_strip(figure: go.Figure, reports: Sequence[WindowReport]) -> None:
    """Draw one mark a window under the performance, so that a window without labels shows its verdict too."""
    for verdict in Verdict:
        mine = [report for report in reports if report.verdict is verdict]
        if mine:
            figure.add_scatter(
                x=[middle(report.window) for report in mine],
                y=[0.5] * len(mine),
                mode="markers",
                name=VERDICT_WORDS[verdict],
                marker=mark(verdict, 17),
                hovertext=[f"{days(report.window)}: {VERDICT_WORDS[verdict]}, {report.n} studies" for report in mine],
                hoverinfo="text",
                row=2,
                col=1,
            )


def _mark_champions(figure: go.Figure, reports: Sequence[WindowReport], champions: Sequence[ChampionRecord]) -> None:
    if not reports:
        return
    first, last = reports[0].window.start, reports[-1].window.end
    for champion in champions:
        if first < champion.since <= last + timedelta(days=2):
            figure.add_shape(
                type="line", x0=champion.since, x1=champion.since, yref="paper", y0=0, y1=1, line={"color": UNKNOWN}
            )
            figure.add_annotation(
                x=champion.since,
                y=1,
                yref="paper",
                yanchor="bottom",
                text=f"version {safe(champion.version)} live",
                showarrow=False,
            )


def _range_of(figure: go.Figure) -> list[float]:
    known = [value for trace in figure.data if trace.xaxis == "x" for value in trace.y if value is not None]
    if not known:
        return [0.5, 1.0]
    room = max(0.05, 0.35 * (max(known) - min(known)))
    return [max(0.0, min(known) - room), min(1.005, max(known) + room)]


def _around_current(harm: Harm) -> Interval:
    """Turn the interval of a loss into one around the figure now: reference minus loss."""
    if harm.reference is None or harm.low is None or harm.high is None:
        return harm.current, None, None
    return harm.current, max(0.0, harm.reference - harm.high), min(1.0, harm.reference - harm.low)


def _tell_cell(report: WindowReport, results: Sequence[DriftResult]) -> str:
    moved = list(dict.fromkeys(_feature(r) for r in results if r.verdict is Verdict.DRIFT))
    return f"{days(report.window)}: " + (safe(", ".join(moved), 200) if moved else VERDICT_WORDS[_worst(results)])


def _worst(results: Sequence[DriftResult]) -> Verdict:
    return min((result.verdict for result in results), key=list(Verdict).index)


def _feature(result: DriftResult) -> str:
    detector = DETECTOR_WORDS.get(result.detector, result.detector)
    return f"{FEATURE_WORDS.get(result.feature, result.feature)} ({detector})"


def _p_value(p: float | None) -> str:
    return "" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
