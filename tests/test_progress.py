"""Progress: a readable log where nobody watches, a bar where somebody does."""

import io

import pytest
from rich.console import Console

from flows import progress
from flows.progress import current_progress, keep_quiet, show_progress


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)


def printed(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_one_line_a_step(clock: list[float]) -> None:
    screen = console(terminal=False)
    with show_progress(screen) as tell:
        tell("Reading week.csv", 256, 1000)
        tell("Training (naive): loss 0.700", 1, 6)
        tell("Watching 2026-03-30/2026-04-06: harm", 0, 0)
    assert printed(screen).splitlines() == [
        "  Reading week.csv (256 of 1000)",
        "  Training (naive): loss 0.700 (1 of 6)",
        "  Watching 2026-03-30/2026-04-06: harm",
    ]


def test_within_a_step_a_log_gets_at_most_one_line_in_ten_seconds(clock: list[float]) -> None:
    screen = console(terminal=False)
    with show_progress(screen) as tell:
        for second in range(25):
            tell(f"Training (naive): loss {1 / (1 + second):.3f}", second, 25)
            clock[0] += 1
    assert [line.partition(" (")[2][-9:] for line in printed(screen).splitlines()] == [
        "(0 of 25)",
        "10 of 25)",
        "20 of 25)",
    ]


def test_a_terminal_gets_a_bar_that_is_gone_in_the_end() -> None:
    screen = console(terminal=True)
    with show_progress(screen) as tell:
        tell("Reading week.csv", 256, 1000)
        tell("Training (naive): loss 0.700", 1, 6)
    assert "Training (naive): loss 0.700" in printed(screen)
    assert "1/6" in printed(screen)
    assert "\x1b[2K" in printed(screen)


@pytest.mark.parametrize("terminal", [False, True])
def test_who_works_inside_finds_it_and_nobody_does_afterwards(terminal: bool) -> None:
    assert current_progress.get() is keep_quiet
    with show_progress(console(terminal=terminal)) as tell:
        assert current_progress.get() is tell
    assert current_progress.get() is keep_quiet


def test_it_is_put_away_after_a_failure_too() -> None:
    with pytest.raises(ZeroDivisionError), show_progress(console(terminal=False)):
        raise ZeroDivisionError
    assert current_progress.get() is keep_quiet


def test_square_brackets_in_a_file_name_are_shown_as_they_are() -> None:
    screen = console(terminal=False)
    with show_progress(screen) as tell:
        tell("Reading [red]week[/red].csv", 0, 0)
    assert "Reading [red]week[/red].csv" in printed(screen)
