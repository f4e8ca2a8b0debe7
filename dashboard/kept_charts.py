"""The figures of what an adaptation kept and lost: curves, subgroups, flips, scores that come true, and the triple."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from continual.kept import Change, Figure, KeptAndLost, LearningTriple
from dashboard.drawing import (
    ROW,
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
from dashboard.kept_wording import PER, gained, per_thousand, stage_words, surely
from dashboard.names import metric_words, number, reword, value_words
from dashboard.palette import BEFORE, LABEL, LOOK, NOW, QUIET, UNKNOWN
from monitor.reliability import ReliabilityBin

SURE_COLOURS = {True: QUIET, False: LOOK, None: NOW}
SURE_MARKS = {True: "circle", False: "diamond", None: "circle"}
SURE_WORDS = {True: "surely better", False: "surely worse", None: "not told apart from no change"}
PALE_BAR = 0.35
"""How solid a bar is, so that its own whisker stands out from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One model in the order of learning: its AUROC on each stage that was measured."""

    name: str
    figures: Mapping[str, Interval]


def retention_curves(steps: Sequence[Step], stages: Sequence[str]) -> go.Figure:
    """Draw, for each stage, the AUROC after each learning step; the champion's figure is the line to hold.

    The last step is the challenger, the one before it the champion.
    """
    figure, places = panels([_panel(place, stages) for place in range(len(stages))], beside=0.05, below=0.42)
    for stage, at in zip(stages, places, strict=True):
        shown = [step.figures.get(stage, (None, None, None)) for step in steps]
        figure.add_scatter(
            x=list(range(len(steps))),
            y=[value for value, _, _ in shown],
            error_y=whiskers(shown),
            mode="lines+markers",
            line={"color": UNKNOWN, "width": 1},
            marker={**dot(NOW), "color": [BEFORE] * (len(steps) - 1) + [NOW], "line": {"width": 0}},
            customdata=[[_interval(one)] for one in shown],
            hovertemplate="%{customdata[0]}<extra></extra>",
            **at,
        )
        held = shown[-2][0] if len(shown) > 1 else None
        if held is not None:
            figure.add_hline(y=held, line={"color": BEFORE, "width": 2, "dash": "dash"}, **at)
    figure.update_xaxes(
        tickvals=list(range(len(steps))),
        ticktext=[safe(step.name) for step in steps],
        range=[-0.5, len(steps) - 0.5],
        showgrid=False,
    )
    ends = [end for step in steps for one in step.figures.values() for end in one if end is not None]
    if ends:
        figure.update_yaxes(range=[floor(20 * min(ends)) / 20 - 0.01, min(ceil(20 * max(ends)) / 20, 1.0) + 0.01])
    figure.update_yaxes(tickformat=".2f", nticks=6).update_yaxes(title="AUROC", col=1)
    figure = finish(figure, 40 + 250 * places[-1]["row"])
    figure.update_annotations(font={"size": SIZE, "color": LABEL})
    return figure.update_layout(showlegend=False, margin_t=52)


def subgroup_changes(changes: Sequence[Change]) -> go.Figure:
    """Draw challenger minus champion for everyone and each subgroup, the worst first, turned so that right is better.

    A subgroup whose figures may not be told keeps its row, at the end, and says so.
    """
    rows = sort_changes(changes)[::-1]
    figure = go.Figure()
    for sure in (None, True, False):
        mine = [i for i, row in enumerate(rows) if row.difference is not None and surely(row) is sure]
        if mine:
            figure.add_scatter(
                x=[gained(rows[i])[0] for i in mine],
                y=mine,
                error_x=whiskers([gained(rows[i]) for i in mine]),
                mode="markers",
                name=SURE_WORDS[sure],
                marker={"color": SURE_COLOURS[sure], "size": 12, "symbol": SURE_MARKS[sure]},
                hovertext=[_tell_group(rows[i]) for i in mine],
                hoverinfo="text",
            )
    zero_line(figure)
    name_rows(figure, [_group_name(row) for row in rows])
    figure.update_xaxes(tickformat="+.2f", title="← worse than the champion       better →", nticks=6)
    figure = finish(figure, 120 + ROW * len(rows))
    colours = [UNKNOWN if row.difference is None else LABEL for row in rows]
    return column_at_right(
        figure, "champion → adapter", [_before_after(row) for row in rows], width=140, colours=colours
    ).update_layout(showlegend=True)


def sort_changes(changes: Sequence[Change]) -> list[Change]:
    """Order rows for reading: everyone, then subgroups from the worst change to the best, then those without any."""
    return sorted(
        changes,
        key=lambda row: (
            bool(row.attribute),
            row.difference is None,
            gained(row)[0] or 0.0,
            row.attribute,
            row.value,
        ),
    )


def flips(kept: KeptAndLost) -> go.Figure:
    """Draw for each stage how many of 1,000 answers turned wrong, and how many turned right."""
    everyone = [flip for flip in kept.flips if not flip.attribute][::-1]
    figure = go.Figure()
    for name, colour, side in (("turned right", QUIET, "positive"), ("turned wrong", LOOK, "negative")):
        shares: list[Figure] = [getattr(flip, side) for flip in everyone]
        figure.add_bar(
            x=[None if share.value is None else PER * share.value for share in shares],
            y=list(range(len(everyone))),
            error_x=whiskers([_times(share) for share in shares]) | {"color": colour, "thickness": 3},
            orientation="h",
            name=name,
            marker={"color": colour, "opacity": PALE_BAR},
            width=0.36,
            hovertemplate=f"%{{x:.0f}} of {PER:,} {name}<extra></extra>",
        )
    name_rows(figure, [stage_words(kept, kept.stages.index(flip.stage)) for flip in everyone])
    figure.update_xaxes(title=f"of {PER:,} answers", rangemode="tozero", nticks=6)
    figure = finish(figure, 110 + 66 * len(everyone))
    texts = [f"{per_thousand(flip.negative)} wrong\n{per_thousand(flip.positive)} right" for flip in everyone]
    column_at_right(figure, "with interval", texts, width=170)
    for note, text in zip(figure.layout.annotations, texts, strict=False):
        note.update(text="<br>".join(safe(line) for line in text.split("\n")), align="left")
    return figure.update_layout(showlegend=True, barmode="group", legend={"traceorder": "reversed"})


def reliability_before_after(before: Sequence[ReliabilityBin], after: Sequence[ReliabilityBin]) -> go.Figure:
    """Draw how often scores came true, before and after; the diagonal is perfect."""
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", name="perfect", line={"color": UNKNOWN, "dash": "dash"}, hoverinfo="skip"
    )
    for name, bins, colour, filled in (("champion", before, BEFORE, False), ("adapter", after, NOW, True)):
        figure.add_scatter(
            x=[one.said for one in bins],
            y=[one.seen for one in bins],
            error_y=whiskers([(one.seen, one.low, one.high) for one in bins]),
            mode="lines+markers",
            name=name,
            line={"color": colour, "width": 1},
            marker={**dot(colour, filled=filled), "size": 9},
            customdata=[(one.patients, one.studies) for one in bins],
            hovertemplate="score %{x:.2f}, true %{y:.2f}<br>%{customdata[0]} patients, %{customdata[1]} studies"
            "<extra></extra>",
        )
    figure.update_xaxes(title="mean score (what the model says)", range=[-0.06, 1.06])
    figure.update_yaxes(title="share that has it", range=[-0.06, 1.06], showgrid=True)
    return finish(figure, 340).update_layout(showlegend=True)


def learning_triple(triple: LearningTriple) -> go.Figure:
    """Draw learning, potential and retention as three bars; the champion's retention is the line to hold."""
    changes = [end for f in (triple.learning, triple.potential) for end in (f.value, f.low, f.high) if end is not None]
    low, high = min([0.0, *changes]), max([0.05, *changes])
    room = 0.12 * (high - low)
    figure = make_subplots(rows=3, cols=1, vertical_spacing=0.2)
    bars = (
        ("learning", triple.learning, NOW),
        ("potential", triple.potential, BEFORE),
        ("retention", triple.retention, NOW),
    )
    for row, (name, one, colour) in enumerate(bars, start=1):
        figure.add_bar(
            x=[one.value],
            y=[0],
            error_x=whiskers([(one.value, one.low, one.high)]) | {"color": colour, "thickness": 3},
            orientation="h",
            marker={"color": colour, "opacity": PALE_BAR},
            width=0.7,
            hovertemplate=f"{name} %{{x:.3f}}<extra></extra>",
            row=row,
            col=1,
        )
        figure.update_yaxes(tickvals=[0], ticktext=[name], range=[-0.6, 0.6], showgrid=False, row=row, col=1)
        if row < 3:
            figure.update_xaxes(range=[low - room, high + room], tickformat="+.2f", nticks=6, row=row, col=1)
    figure.update_xaxes(range=[0.5, 1.0], tickformat=".2f", nticks=6, row=3, col=1)
    zero_line(figure)
    if (held := triple.retained_before.value) is not None:
        figure.add_vline(x=held, line={"color": BEFORE, "width": 3, "dash": "dash"}, row=3, col=1)
        note = {"text": "champion", "yanchor": "bottom", "showarrow": False, "font": {"size": SIZE, "color": LABEL}}
        figure.add_annotation(x=held, y=0.55, row=3, col=1, **note)
    return finish(figure, 290).update_layout(showlegend=False, margin_t=12)


def _times(share: Figure) -> Interval:
    ends = (share.value, share.low, share.high)
    value, low, high = (None if end is None else PER * end for end in ends)
    return value, low, high


def _panel(place: int, stages: Sequence[str]) -> str:
    age = "on the new" if place == len(stages) - 1 else "on what was known"
    return f"{age}<br>{safe(reword(stages[place]))}"


def _interval(one: Interval) -> str:
    value, low, high = one
    return number(value) if low is None else f"{number(value)} ({number(low)} to {number(high)})"


def _group_name(row: Change) -> str:
    if not row.attribute:
        return f"everyone ({row.studies} studies)"
    counted = "number suppressed" if row.studies is None else f"{row.studies} studies"
    return f"{value_words(row.attribute, row.value)} ({counted})"


def _before_after(row: Change) -> str:
    if row.difference is None:
        return "suppressed" if row.suppressed else "too few to tell"
    return f"{number(row.champion)} → {number(row.challenger)}"


def _tell_group(row: Change) -> str:
    value, low, high = gained(row)
    ends = "" if low is None or high is None else f" ({low:+.3f} to {high:+.3f})"
    return safe(f"{metric_words(row.metric)} {_before_after(row)}: {0.0 if value is None else value:+.3f}{ends}", 200)
