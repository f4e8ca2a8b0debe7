"""What every figure shares: safe text, marks, whiskers, named rows and one calm look."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape
from typing import Any

import plotly.graph_objects as go

from dashboard.palette import LINE, UNKNOWN, VERDICT_COLOURS, VERDICT_MARKS
from monitor.cohorts import Window
from monitor.results import Verdict

ROW = 30
"""Pixels a row of a figure takes."""

LONGEST = 60
Interval = tuple[float | None, float | None, float | None]


def safe(text: str, longest: int = LONGEST) -> str:
    """Cut a text from data and take its markup away: Plotly reads a dialect of HTML in every label."""
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return escape(cut).replace("\n", " ")


def middle(window: Window) -> datetime:
    """Give the moment where a window's mark stands."""
    return window.start + (window.end - window.start) / 2


def spread(moments: Sequence[datetime], most: int = 14) -> list[datetime]:
    """Thin out tick marks so that they do not run into each other."""
    return list(moments[:: -(-len(moments) // most) or 1])


def mark(verdict: Verdict, size: int) -> dict[str, Any]:
    """Give the mark that a verdict has everywhere."""
    colour = VERDICT_COLOURS[verdict]
    return {"color": colour, "size": size, "symbol": VERDICT_MARKS[verdict], "line": {"width": 2, "color": colour}}


def whiskers(rows: Sequence[Interval]) -> dict[str, Any]:
    """Turn rows of (value, low, high) into Plotly's error bars; an unknown end gets no whisker."""
    above = [0.0 if value is None or high is None else max(0.0, high - value) for value, _, high in rows]
    below = [0.0 if value is None or low is None else max(0.0, value - low) for value, low, _ in rows]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 2, "width": 0}


def name_rows(figure: go.Figure, names: Sequence[str]) -> None:
    """Name rows by place, not by category: two rows may have one name, and a name may look like a number."""
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=[safe(name) for name in names], range=[-0.7, len(names) - 0.3]
    )


def zero_line(figure: go.Figure) -> None:
    """Draw where nothing differs."""
    figure.update_xaxes(zeroline=True, zerolinewidth=2, zerolinecolor=UNKNOWN)


def finish(figure: go.Figure, height: int) -> go.Figure:
    """Give a figure the common look; colours of text and paper come from the page's theme, light or dark."""
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 16, "t": 28, "b": 8},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="closest",
        dragmode=False,
    )
    figure.update_xaxes(gridcolor=LINE, automargin=True, fixedrange=True)
    figure.update_yaxes(gridcolor=LINE, automargin=True, fixedrange=True)
    return figure
