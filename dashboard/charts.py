"""Figures of one window and of the record: values in, a Plotly figure out. No clock, no records, no Streamlit."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard.drawing import (
    ROW,
    column_at_right,
    dot,
    finish,
    mark,
    name_rows,
    safe,
    whiskers,
    zero_line,
)
from dashboard.names import detector_words, feature_words, metric_words, number, value_words
from dashboard.palette import (
    BEFORE,
    ESTIMATE,
    KIND_WORDS,
    LINE,
    NOW,
    SOURCE_WORDS,
    UNKNOWN,
    VERDICT_COLOURS,
    VERDICT_WORDS,
)
from monitor.results import Contribution, DriftResult, Harm, PrevalenceShift, Source, SubgroupGap, Verdict
from registry.audit import Event

PAIR = 0.15
"""How far two marks of one row stand apart, in rows."""


def drift_effects(results: Sequence[DriftResult], *, least: float) -> go.Figure:
    """Draw the effect size of every comparison as a bar, by kind, coloured by verdict, with a mark at what counts.

    ``least`` stands in where a comparison's own least effect is not known.
    """
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
            hovertext=[safe(shown[i].reason, 200) for i in rows],
            hoverinfo="text",
        )
    figure.add_scatter(
        x=[result.least_effect or least for result in shown],
        y=list(range(len(shown))),
        mode="markers",
        name="the least that counts",
        marker={"symbol": "line-ns", "size": 16, "line": {"width": 2.5, "color": UNKNOWN}},
        hovertemplate="%{x:.2f}<extra></extra>",
    )
    name_rows(figure, [f"{KIND_WORDS[r.kind]}: {_feature(r)}" for r in shown])
    widest = max([1.0, *(result.effect or 0.0 for result in shown)])
    figure.update_xaxes(title="size of the change (0: none)", range=[0, widest])
    figure = finish(figure, 130 + ROW * len(shown)).update_yaxes(showgrid=False)
    return column_at_right(figure, "if by chance", [_p_value(result.p_value) for result in shown])


def prevalences(shifts: Sequence[PrevalenceShift]) -> go.Figure:
    """Draw how frequent each finding was in the reference, and is now by estimate with its interval."""
    shown = list(shifts)[::-1]
    figure = go.Figure()
    rows = list(range(len(shown)))
    figure.add_scatter(
        x=[shift.reference for shift in shown],
        y=rows,
        mode="markers",
        name="in the reference",
        marker=dot(BEFORE, filled=False),
        hovertemplate="%{x:.1%}<extra></extra>",
    )
    figure.add_scatter(
        x=[shift.estimate for shift in shown],
        y=rows,
        error_x=whiskers([(shift.estimate, shift.low, shift.high) for shift in shown]),
        mode="markers",
        name="now, estimated without labels",
        marker=dot(ESTIMATE),
        hovertemplate="%{x:.1%}<extra></extra>",
    )
    name_rows(figure, [shift.finding for shift in shown])
    figure.update_xaxes(title="share of the studies", tickformat=".0%", range=[-0.03, 1.03])
    return finish(figure, 120 + ROW * len(shown)).update_layout(showlegend=True)


def losses(harms: Sequence[Harm]) -> go.Figure:
    """Draw what each figure lost since the reference with its interval; right of the line is worse.

    One row a figure: measured above, estimated below, so that the two can be compared.
    """
    known = [harm for harm in harms if harm.loss is not None]
    names = list(dict.fromkeys((harm.metric, harm.finding) for harm in known))[::-1]
    figure = go.Figure()
    for source, colour, aside in ((Source.REALISED, NOW, PAIR), (Source.ESTIMATED, ESTIMATE, -PAIR)):
        mine = [harm for harm in known if harm.source is source]
        if mine:
            figure.add_scatter(
                x=[harm.loss for harm in mine],
                y=[names.index((harm.metric, harm.finding)) + aside for harm in mine],
                error_x=whiskers([(harm.loss, harm.low, harm.high) for harm in mine]),
                mode="markers",
                name=SOURCE_WORDS[source],
                marker=dot(colour, filled=source is Source.REALISED),
                hovertext=[f"{number(harm.reference)} before, {number(harm.current)} now" for harm in mine],
                hoverinfo="text",
            )
    zero_line(figure)
    several = len({finding for _, finding in names}) > 1
    name_rows(figure, [metric_words(name) + (f" of {finding}" if several else "") for name, finding in names])
    figure.update_xaxes(title="← better          loss since the reference          worse →", tickformat="+.2f")
    return finish(figure, 120 + 38 * len(names)).update_layout(showlegend=True)


def attribution(contributions: Sequence[Contribution], most: int = 8) -> go.Figure:
    """Draw each attribute value's share in the reference and now, the most changed first."""
    shown = [c for c in contributions if not c.suppressed][:most][::-1]
    figure = go.Figure()
    for row, c in enumerate(shown):
        ends = [c.share_reference, c.share_current]
        figure.add_scatter(
            x=ends, y=[row, row], mode="lines", line={"color": LINE, "width": 5}, showlegend=False, hoverinfo="skip"
        )
    for name, colour, filled, shares in (
        ("in the reference", BEFORE, False, [c.share_reference for c in shown]),
        ("in this window", NOW, True, [c.share_current for c in shown]),
    ):
        figure.add_scatter(
            x=shares,
            y=list(range(len(shown))),
            mode="markers",
            name=name,
            marker=dot(colour, filled=filled),
            hovertemplate="%{x:.0%}<extra></extra>",
        )
    name_rows(figure, [value_words(c.attribute, c.value) for c in shown])
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
        marker=dot(NOW),
        hovertext=[f"{number(gap.inside)} inside, {number(gap.outside)} everyone else" for gap in shown],
        hoverinfo="text",
        row=1,
        col=1,
    )
    for verdict in (Verdict.DRIFT, Verdict.NO_DRIFT):
        rows = [i for i, gap in enumerate(shown) if gap.verdict is verdict]
        if not rows:
            continue
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
    name_rows(figure, [f"{gap.attribute} {gap.value} ({_studies(gap)})" for gap in shown])
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


def _studies(gap: SubgroupGap) -> str:
    return "number suppressed" if gap.n is None else f"{gap.n} studies"


def _feature(result: DriftResult) -> str:
    return f"{feature_words(result.feature)} ({detector_words(result.detector)})"


def _p_value(p: float | None) -> str:
    return "" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
