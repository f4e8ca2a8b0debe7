"""What every figure shares: safe text, marks, whiskers, named rows and one calm look."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard.palette import LABEL, LINE, UNKNOWN, VERDICT_COLOURS, VERDICT_MARKS
from monitor.cohorts import Window
from monitor.results import Verdict

QUIET_BAR = {"displayModeBar": False}
"""How pages show a figure: without the bar of tools."""

ROW = 30
"""Pixels a row of a figure takes."""

SIZE = 13
"""Pixels of the words in a figure."""

PANELS = 3
"""Panels beside each other; more begin a new line."""

LONGEST = 60
Interval = tuple[float | None, float | None, float | None]


def safe(text: str, longest: int = LONGEST) -> str:
    """Cut a text from data and take its markup away: Plotly reads a dialect of HTML in every label."""
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return escape(cut).replace("\n", " ")


def panels(titles: Sequence[str], *, beside: float, below: float) -> tuple[go.Figure, list[dict[str, int]]]:
    """Lay out one panel a title, PANELS on a line with one y axis for all; also where each is, for drawing into it.

    ``beside`` is the gap between two of a line, ``below`` that between lines as a share of one line's height.
    """
    columns = min(PANELS, len(titles))
    lines = -(-len(titles) // columns)
    figure = make_subplots(
        rows=lines,
        cols=columns,
        shared_yaxes="all",
        horizontal_spacing=beside,
        vertical_spacing=below / lines,
        subplot_titles=list(titles),
    )
    return figure, [{"row": place // columns + 1, "col": place % columns + 1} for place in range(len(titles))]


def spread(windows: Sequence[Window], most: int = 14) -> list[Window]:
    """Thin out tick marks so that they do not run into each other."""
    return list(windows[:: -(-len(windows) // most) or 1])


def mark(verdict: Verdict, size: int) -> dict[str, Any]:
    """Give the mark that a verdict has everywhere."""
    colour = VERDICT_COLOURS[verdict]
    return {"color": colour, "size": size, "symbol": VERDICT_MARKS[verdict], "line": {"width": 2, "color": colour}}


def dot(colour: str, *, filled: bool = True) -> dict[str, Any]:
    """Give a plain round mark; an empty one is what was before, or what is only estimated."""
    symbol = "circle" if filled else "circle-open"
    return {"color": colour, "size": 12, "symbol": symbol, "line": {"width": 2.5, "color": colour}}


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


def column_at_right(
    figure: go.Figure, title: str, texts: Sequence[str], *, width: int = 110, colours: Sequence[str] = ()
) -> go.Figure:
    """Write one text a row, beside the figure, where no mark can run into it."""
    for row, text in enumerate([*map(safe, texts), f"<i>{safe(title)}</i>"]):
        place = {"y": row, "yref": "y"} if row < len(texts) else {"y": 1, "yref": "paper", "yanchor": "bottom"}
        font = {"size": SIZE, "color": colours[row] if row < len(colours) else LABEL}
        figure.add_annotation(
            x=1, xref="paper", xanchor="left", xshift=10, text=text, showarrow=False, font=font, **place
        )
    return figure.update_layout(margin_r=width)


def name_days(figure: go.Figure, windows: Sequence[Window]) -> None:
    """Name each window by its first day, under its middle."""
    shown = spread(windows)
    figure.update_xaxes(
        showgrid=False,
        tickvals=[window.middle for window in shown],
        ticktext=[f"{window.start.day} {window.start:%b}" for window in shown],
        title="first day of the window",
    )


def zero_line(figure: go.Figure) -> None:
    """Draw where nothing differs."""
    figure.update_xaxes(zeroline=True, zerolinewidth=2, zerolinecolor=UNKNOWN)


def finish(figure: go.Figure, height: int) -> go.Figure:
    """Give a figure the common look; colours of text and paper come from the page's theme, light or dark."""
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 16, "t": 36, "b": 8},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": SIZE}},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="closest",
        dragmode=False,
    )
    words = {"size": SIZE, "color": LABEL}
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(gridcolor=LINE, automargin=True, fixedrange=True, tickfont=words, title_font=words)
    return figure.update_yaxes(zeroline=False)
