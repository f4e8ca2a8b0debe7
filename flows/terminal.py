"""What every command shares: its options, how it opens the ward, shows a result, and tells an error in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

FIRST, ROUND, TREAT, SIGN, LOOK = "Start here", "Watch", "Treat", "Sign and promote", "Look"

Directory = Annotated[
    Path, typer.Option("--dir", envvar="WARDROUND_DIR", help="Folder that holds wardround.toml and everything stored.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables for people.")]
Model = Annotated[str, typer.Option("--model", "-m", help="Which model; may be left out when there is only one.")]
Who = Annotated[str, typer.Option("--by", help="Your user name, as `wardround user add` wrote it.")]

screen = Console(emoji=False)
warnings_screen = Console(stderr=True, emoji=False)


@contextmanager
def opened(directory: Path) -> Iterator[Any]:
    """Open the ward of a folder, with progress on the terminal and errors in one line."""
    with errors_in_one_line():
        from flows.progress import show_progress
        from flows.ward import open_ward

        with show_progress(warnings_screen):
            yield open_ward(directory)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Tell a failure whose message is for the user in one line, exit code 2; an interruption is exit code 130."""
    from flows.failures import KNOWN

    try:
        yield
    except KNOWN as error:
        text = " ".join(str(error).split())  # one line, whatever a library put into it
        warnings_screen.print(f"[bold red]Error:[/bold red] {escape(text)}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        warnings_screen.print("Interrupted. What was committed is kept; run the same command to go on.")
        raise typer.Exit(130) from None


def model_named(ward: Any, name: str) -> str:
    """Give the model that was named, or the only one."""
    models: list[str] = list(ward.settings.models)
    if not name and len(models) == 1:
        return models[0]
    if not name and models:
        raise ValueError(f"there are several models ({', '.join(models)}); name one with --model")
    ward.settings.model(name)
    return name


def show(as_json: bool, value: Any, write: Any) -> None:
    """Print a value as JSON, or let ``write`` show it on the screen."""
    if as_json:
        print_json(plain(value))
    else:
        write(screen, value)


def print_json(value: Any) -> None:
    """Print JSON for programs."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")


def plain(value: Any) -> Any:
    """Turn our values into what JSON knows."""
    from flows.status import plain as to_plain

    return to_plain(value)


def escape(text: str) -> str:
    """Keep rich from reading brackets as markup."""
    return text.replace("[", r"\[")
