"""Progress on everything over two seconds: a bar on a terminal, a line per step elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Column

Progress = Callable[[str, int, int], None]


def keep_quiet(what: str, done: int, total: int) -> None:
    """Report no progress."""


#: Told to by every step of this process; a context variable, so that it reaches through Prefect's flows.
current_progress: ContextVar[Progress] = ContextVar("current_progress", default=keep_quiet)


@contextmanager
def show_progress(console: Console) -> Iterator[Progress]:
    """Show the progress of everything done inside, on ``console``."""
    if not console.is_terminal:
        with _set(_tell_lines(console)) as progress:
            yield progress
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", table_column=Column(min_width=20)),  # wraps: figures beside it stay whole
        BarColumn(bar_width=20, table_column=Column(no_wrap=True)),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=console, transient=True) as bars:
        shown = bars.add_task("Starting", total=None)
        label = ""

        def tell(what: str, done: int, total: int) -> None:
            nonlocal label
            if _step(what) != label:  # what was done before this step began says nothing about its speed
                bars.reset(shown, completed=done, total=total or None)
                label = _step(what)
            bars.update(shown, description=what, completed=done, total=total or None)

        with _set(tell):
            yield tell


@contextmanager
def _set(progress: Progress) -> Iterator[Progress]:
    token = current_progress.set(progress)
    try:
        yield progress
    finally:
        current_progress.reset(token)


def _step(what: str) -> str:
    """Name the step that is told of: what stands before a colon; behind it stands how it is going."""
    return what.split(":", maxsplit=1)[0]


def _tell_lines(console: Console) -> Progress:
    """Write one line a step, and at most one every ten seconds within a step: a log file stays readable."""
    last = ("", 0.0)

    def tell(what: str, done: int, total: int) -> None:
        nonlocal last
        name = _step(what)
        if name == last[0] and time.monotonic() - last[1] < 10:
            return
        last = (name, time.monotonic())
        console.print(f"  {what}{f' ({done} of {total})' if total else ''}", style="dim", markup=False, highlight=False)

    return tell
