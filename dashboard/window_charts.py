"""Figures over time, one column a window: performance, kinds of change, subgroups. Values in, a Plotly figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard.drawing import ROW, Interval, finish, mark, name_days, safe, whiskers
from dashboard.names import days, feature_words, metric_words
from dashboard.palette import (
    BEFORE,
    ESTIMATE,
    KIND_WORDS,
    NOW,
    SOURCE_WORDS,
    UNKNOWN,
    VERDICT_WORDS,
)
from monitor.cohorts import Window
from monitor.results import DriftResult, Harm, Source, SubgroupGap, Verdict, WindowReport
from registry.entries import ChampionRecord

ASIDE = 0.09
"""How far the estimate stands beside the measured figure, in lengths of a window, so that no whisker hides another."""


def week_by_week(
    reports: Sequence[WindowReport], champions: Sequence[ChampionRecord], *, metric: str, finding: str
) -> go.Figure:
    """Draw one performance figure by window, measured and estimated with intervals, over a strip of verdicts.

    A dashed line is the reference's figure; a vertical line marks where another version went live. A
    window without a figure leaves a gap in the line.
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.86, 0.14], vertical_spacing=0.06)
    for source, colour, dash in ((Source.REALISED, NOW, "solid"), (Source.ESTIMATED, ESTIMATE, "dot")):
        harms = [harm_of(report, source, metric, finding) for report in reports]
        if any(harm is not None and harm.current is not None for harm in harms):
            figure.add_scatter(
                x=[_place(report.window, source) for report in reports],
                y=[None if harm is None else harm.current for harm in harms],
                error_y=whiskers([_around(harm) for harm in harms]),
                name=SOURCE_WORDS[source],
                mode="lines+markers",
                connectgaps=False,
                line={"color": colour, "dash": dash, "width": 2},
                marker={"size": 9, "symbol": "circle" if source is Source.REALISED else "circle-open"},
                customdata=[days(report.window) for report in reports],
                hovertemplate="%{customdata}: %{y:.3f}<extra></extra>",
                row=1,
                col=1,
            )
    _draw_reference(figure, reports, metric, finding)
    _draw_strip(figure, reports)
    _mark_champions(figure, reports, champions)
    figure.update_yaxes(title=safe(metric_words(metric)), row=1, col=1, range=_range_of(figure))
    figure.update_yaxes(visible=False, range=[0, 1], row=2, col=1)
    _name_windows(figure, reports)
    figure.update_xaxes(title="", row=1, col=1)
    return finish(figure, 420)


def kinds_by_week(reports: Sequence[WindowReport]) -> go.Figure:
    """Draw, for every kind of change (rows) and window (columns), whether it was found; the marks are the verdicts'."""
    cells = {
        (report.window, words): mine
        for report in reports
        for kind, words in KIND_WORDS.items()
        if (mine := [result for result in report.results if result.kind is kind])
    }
    verdicts = {place: _worst([result.verdict for result in mine]) for place, mine in cells.items()}
    told = {place: _tell_results(mine) for place, mine in cells.items()}
    return _grid(reports, list(KIND_WORDS.values()), verdicts, told)


def gaps_by_week(reports: Sequence[WindowReport], finding: str) -> go.Figure:
    """Draw, for every attribute (rows) and window (columns), whether a subgroup of it moved; marks are the verdicts'.

    Drift if any of its subgroups moved in any figure; not enough data only if none could be judged.
    """
    names = list(dict.fromkeys(gap.attribute for report in reports for gap in report.gaps))
    cells = {
        (report.window, name): mine
        for report in reports
        for name in names
        if (mine := [gap for gap in report.gaps if gap.attribute == name and gap.finding == finding])
    }
    verdicts = {place: _worst([gap.verdict for gap in mine]) for place, mine in cells.items()}
    told = {place: _tell_gaps(mine) for place, mine in cells.items()}
    return _grid(reports, names, verdicts, told)


def harm_of(report: WindowReport, source: Source, metric: str, finding: str) -> Harm | None:
    """Look up the loss of one figure in a report."""
    return next(
        (h for h in report.harms if (h.source, h.metric, h.finding) == (source, metric, finding)),
        None,
    )


def _around(harm: Harm | None) -> Interval:
    """Give the figure now with its own interval; an estimate's says where labels will put it."""
    return (None, None, None) if harm is None else (harm.current, harm.current_low, harm.current_high)


def _grid(
    reports: Sequence[WindowReport],
    names: Sequence[str],
    verdicts: Mapping[tuple[Window, str], Verdict],
    told: Mapping[tuple[Window, str], str],
) -> go.Figure:
    """Draw one mark a row and window; rows stand by place, for a name may look like a number."""
    rows = [name for name in names if any(name == row for _, row in verdicts)][::-1]
    figure = go.Figure()
    for verdict in Verdict:
        mine = [place for place, said in verdicts.items() if said is verdict]
        if not mine:
            continue
        figure.add_scatter(
            x=[window.middle for window, _ in mine],
            y=[rows.index(name) for _, name in mine],
            mode="markers",
            name=VERDICT_WORDS[verdict],
            marker=mark(verdict, 17),
            hovertext=[f"{days(window)}: {told[window, name]}" for window, name in mine],
            hoverinfo="text",
            showlegend=True,
        )
    figure.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=[safe(name) for name in rows], range=[-0.6, len(rows) - 0.4]
    )
    _name_windows(figure, reports)
    return finish(figure, 120 + ROW * len(rows))


def _name_windows(figure: go.Figure, reports: Sequence[WindowReport]) -> None:
    """Name each window by its first day, under its middle."""
    name_days(figure, [report.window for report in reports])


def _place(window: Window, source: Source) -> object:
    aside = ASIDE if source is Source.ESTIMATED else 0.0
    return window.middle + aside * (window.end - window.start)


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
                x=[report.window.middle for report in mine],
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
                y=0.25,
                yref="paper",
                xanchor="left",
                text=f"version {safe(champion.version)} live",
                showarrow=False,
            )


def _range_of(figure: go.Figure) -> list[float]:
    """Make room for every figure and both ends of its interval."""
    known = []
    for trace in (trace for trace in figure.data if trace.xaxis == "x"):
        above, below = trace.error_y.array, trace.error_y.arrayminus
        for place, value in enumerate(trace.y):
            if value is not None:
                known += [value + (above[place] if above else 0.0), value - (below[place] if below else 0.0)]
    if not known:
        return [0.5, 1.0]
    room = max(0.02, 0.08 * (max(known) - min(known)))
    return [max(-0.005, min(known) - room), min(1.005, max(known) + room)]


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    return min(verdicts, key=list(Verdict).index)


def _tell_results(results: Sequence[DriftResult]) -> str:
    moved = list(dict.fromkeys(feature_words(r.feature) for r in results if r.verdict is Verdict.DRIFT))
    return safe(", ".join(moved), 200) if moved else VERDICT_WORDS[_worst([r.verdict for r in results])]


def _tell_gaps(gaps: Sequence[SubgroupGap]) -> str:
    moved = list(dict.fromkeys(f"{gap.value} ({metric_words(gap.metric)})" for gap in gaps if _moved(gap)))
    return safe(", ".join(moved), 200) if moved else VERDICT_WORDS[_worst([gap.verdict for gap in gaps])]


def _moved(gap: SubgroupGap) -> bool:
    return gap.verdict is Verdict.DRIFT
