"""The README names every command, and no command that is not there."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from flows.command_line import application

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def commands_of(group: object, path: tuple[str, ...] = ()) -> Iterator[str]:
    for name, command in getattr(group, "commands", {}).items():
        if hasattr(command, "commands"):
            yield from commands_of(command, (*path, name))
        else:
            yield " ".join((*path, name))


COMMANDS = sorted(commands_of(typer.main.get_command(application)))
#: What a person types, in blocks of any kind, with lines that end in a backslash put together.
TYPED = re.findall(r"^\s*(?:\$ )?((?:pip install|uv run) .*)$", README.replace("\\\n", " "), re.MULTILINE)
#: Each use of our command in them, without what follows it on the line.
USES = [re.split(r" #|\||&&|;|>", use)[0] for line in TYPED for use in re.findall(r"uv run wardround (.*)", line)]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_named(command: str) -> None:
    assert re.search(rf"\bwardround {command}\b|`{command}\b", README), f"README does not name `{command}`"


def test_it_begins_with_the_two_commands() -> None:
    assert TYPED[:2] == ["pip install uv && uv run wardround demo", "pip install uv && uv run pytest"]


@pytest.mark.parametrize("use", USES)
def test_every_example_is_a_command_that_there_is_with_options_that_it_has(use: str) -> None:
    words = use.split()
    names = [name for name in COMMANDS if words[: len(name.split())] == name.split()]
    assert names, f"README shows `wardround {use}`, which is no command"
    command = typer.main.get_command(application)
    for word in names[0].split():
        command = command.commands[word]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    asked = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert asked <= known | {"--help", "-h"}


def test_every_python_example_is_python() -> None:
    for block in re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL):
        compile(block, "README.md", "exec")
