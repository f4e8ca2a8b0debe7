"""The commands `wardround labels request` and `wardround labels import`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from flows.terminal import AsJson, Directory, Model, model_named, opened, show

if TYPE_CHECKING:
    from flows.labelling import RequestedLabels
    from flows.readings import ImportSummary

labels = typer.Typer(
    help="Ask the reading room for the labels that are missing, and take in what it read.", no_args_is_help=True
)


@labels.command("request")
def request(  # noqa: PLR0913, PLR0917 - one parameter an option
    n: Annotated[
        int | None, typer.Option("--n", help="How many studies to read; default: as many as labels are missing.")
    ] = None,
    window: Annotated[
        list[str] | None,
        typer.Option(help="A window as 2026-03-30/2026-04-06; several times; default: those of the current plan."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; default: DIR/worklists/WORKLIST.csv.")] = None,
    again: Annotated[str, typer.Option(help="Write this worklist once more, without what is labelled by now.")] = "",
    by: Annotated[str, typer.Option(help="Your user name; it stands in the record.")] = "",
    model: Model = "",
    directory: Directory = Path(),
    as_json: AsJson = False,
) -> None:
    """Write a worklist of studies for readers, as a CSV with empty columns for the label, the reader and the time.

    Part of it is drawn at random from patients that nothing is ever learned from: it shows, without bias, how well the
    model does. The rest is chosen to learn from: studies that the model is unsure of and that differ from each other.
    The file does not say which is which, nor what the model answered, so that nothing sways the reader.
    """
    with opened(directory) as ward:
        from flows.labelling import request_labels, write_again
        from registry.settings import read_window

        name = model_named(ward, model)
        if again:
            show(as_json, write_again(ward, name, again, out), show_request)
            return
        windows = [read_window(one) for one in window or ()]
        now = datetime.now(UTC)
        show(as_json, request_labels(ward, name, n=n, windows=windows, out=out, by=by, at=now), show_request)


@labels.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="The worklist as it came back, whole or in part: a CSV.")],
    model: Model = "",
    directory: Directory = Path(),
    as_json: AsJson = False,
) -> None:
    """Take in a worklist that readers filled. Importing it twice changes nothing; it may come back in parts.

    Rows without a label are left for later. Rows that cannot be used, or contradict each other or what is stored, go
    to quarantine with a reason, and exit code 5 says so.
    """
    with opened(directory) as ward:
        from flows.readings import import_labels

        summary = import_labels(file, model=model_named(ward, model), ward=ward, at=datetime.now(UTC))
        show(as_json, summary, show_import)
        if summary.conflict or summary.quarantined:
            raise typer.Exit(5)


def show_request(screen: Console, done: RequestedLabels) -> None:
    """Show what was written, how it was drawn, and what readers may answer."""
    wrote = f"Wrote {done.path}: worklist {done.worklist_id}, {done.studies} studies."
    screen.print(Text(wrote, "bold"), soft_wrap=True)
    screen.print(
        Text(
            f"{done.random} drawn at random from {done.frame} to measure by, {done.chosen} chosen to learn from. "
            "The file does not say which is which."
        )
    )
    for name, count in done.subgroups.items():
        screen.print(Text(f"  {name}: {'few' if count is None else count}"))
    if done.random + done.chosen < done.asked:
        screen.print(Text(f"{done.asked} were asked for; no more may be drawn from these windows.", "yellow"))
    into = done.columns[0] if len(done.columns) == 1 else ", ".join(done.columns)
    screen.print(Text(f"Readers write {' or '.join(done.answers)} into {into}, their name, and when they read it."))
    screen.print(Text(f"Next: wardround labels import {done.path}", "dim"), soft_wrap=True)


def show_import(screen: Console, done: ImportSummary) -> None:
    """Show what became of every row, and what is still missing."""
    screen.print(
        f"{done.received} rows: {done.accepted} labels taken in, {done.duplicate} known already, {done.empty} empty, "
        f"{done.conflict} in conflict, {done.quarantined} in quarantine.",
        highlight=False,
    )
    for reason, count in done.reasons.items():
        screen.print(Text(f"  {reason.replace('_', ' ')}: {count}", "yellow"))
    if done.needed:
        screen.print(Text(f"{done.needed}."))
