"""Figures of the streams and their headline, of one window and over all. Values in, a Plotly figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard.drawing import ROW, SIZE, column_at_right, finish, name_days, name_rows, safe
from dashboard.names import days, part_words, reword
from dashboard.palette import LABEL, LOOK, QUIET, UNKNOWN
from monitor.cohorts import Window
from monitor.streams import ALIKE, Part, StreamScore

MOST_SAID, LEAST_SAID = 64, 16
"""Letters that fit beside a bar of no length, and beside one of almost full length."""

PANEL = 62
"""Pixels a stream takes over time."""

NOT_JUDGED = "not judged"


def stream_scores(rows: Sequence[StreamScore | Part]) -> go.Figure:
    """Draw scores as bars from 0 to 100 with what sets each in words; one that could not be judged says so."""
    shown = list(rows)[::-1]
    figure = go.Figure()
    figure.add_bar(
        y=list(range(len(shown))),
        x=[row.score for row in shown],
        orientation="h",
        width=0.62,
        marker_color=[QUIET if row.score == ALIKE else LOOK for row in shown],
        hovertext=[safe(_tell(row), 200) for row in shown],
        hoverinfo="text",
        showlegend=False,
    )
    for place, row in enumerate(shown):
        if row.score != ALIKE:
            figure.add_annotation(
                x=row.score or 0.0,
                y=place,
                text=safe(_tell_shortly(row), max(LEAST_SAID, int(MOST_SAID * (1 - (row.score or 0.0) / ALIKE)))),
                xanchor="left",
                xshift=6,
                showarrow=False,
                font={"size": SIZE, "color": LABEL},
            )
    name_rows(figure, [part_words(row.name) for row in shown])
    figure.update_xaxes(title="100: as in the reference; 50: a change twice the least that counts", range=[0, 100])
    figure = finish(figure, 90 + ROW * len(shown)).update_yaxes(showgrid=False)
    return column_at_right(figure, "of 100", ["–" if row.score is None else f"{row.score:.0f}" for row in shown])


def streams_by_week(windows: Sequence[Window], scores: Mapping[str, Sequence[float | None]]) -> go.Figure:
    """Draw the score of the headline and of each stream over the windows, one panel each; what is missing is a ring."""
    figure = make_subplots(rows=len(scores), cols=1, shared_xaxes=True, vertical_spacing=0.05)
    for row, (name, values) in enumerate(scores.items(), start=1):
        told = [NOT_JUDGED if value is None else f"{value:.0f} of 100" for value in values]
        figure.add_bar(
            x=[window.middle for window in windows],
            y=list(values),
            width=[0.3e3 * (window.end - window.start).total_seconds() for window in windows],
            marker_color=[QUIET if value == ALIKE else LOOK for value in values],
            text=["" if value is None or value == ALIKE else f"{value:.0f}" for value in values],
            textposition="outside",
            textfont={"size": SIZE, "color": LABEL},
            cliponaxis=False,
            hovertext=[f"{days(window)}, {safe(name)}: {said}" for window, said in zip(windows, told, strict=True)],
            hoverinfo="text",
            showlegend=False,
            row=row,
            col=1,
        )
        missing = [window for window, value in zip(windows, values, strict=True) if value is None]
        figure.add_scatter(
            x=[window.middle for window in missing],
            y=[50] * len(missing),
            mode="markers",
            marker={"symbol": "circle-open", "size": 14, "color": UNKNOWN, "line": {"width": 2}},
            name=NOT_JUDGED,
            hovertext=[f"{days(window)}, {safe(name)}: {NOT_JUDGED}" for window in missing],
            hoverinfo="text",
            legendgroup=NOT_JUDGED,
            showlegend=bool(missing) and not any(trace.showlegend for trace in figure.data),
            row=row,
            col=1,
        )
        figure.update_yaxes(range=[0, 105], tickvals=[50], ticktext=[safe(name)], row=row, col=1)
    name_days(figure, windows)
    figure.update_xaxes(title="")
    figure.update_xaxes(title="first day of the window", row=len(scores), col=1)
    return finish(figure, 90 + PANEL * len(scores)).update_layout(bargap=0.3)


def _tell(row: StreamScore | Part) -> str:
    if isinstance(row, StreamScore) and row.worst is not None and row.score != ALIKE:
        return f"{part_words(row.worst.name)}: {reword(row.worst.told)}"
    told = reword(row.told)
    return told if row.score is not None or told.startswith(NOT_JUDGED) else f"{NOT_JUDGED}: {told or 'no figure'}"


def _tell_shortly(row: StreamScore | Part) -> str:
    """Name the worst part of a stream; its figures stand among the parts."""
    return part_words(row.worst.name) if isinstance(row, StreamScore) and row.worst is not None else _tell(row)
