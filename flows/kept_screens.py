"""What an adaptation kept and lost, on a terminal: one table a run, stage by stage, the worst subgroup first."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from continual.kept import Change, Figure, Flips, KeptAndLost, LearningTriple

BETTER, WORSE = "green", "bold yellow"


def show_kept(screen: Console, kept: KeptAndLost) -> None:
    """Show the AUROC and the flips on each stage, for everyone and each subgroup, and the triple in one line."""
    screen.print(kept_table(kept))
    screen.print(Text(triple_text(kept.triple)))
    told = (
        "Measured on reference patients, from whom nothing is learned; intervals are over patients, coloured where "
        "they leave out 0. Turned: of 1,000 answers, how many were right and are wrong now / the reverse. Accuracy, "
        "calibration and each finding: --json, or the dashboard."
    )
    screen.print(Text(told, "dim"))


def kept_table(kept: KeptAndLost) -> Table:
    """Draw one row a group: who, AUROC before and after, the change, answers of 1,000 that turned. Fits 80 columns."""
    table = Table("measured on", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("n", "AUROC", "change", f"{kept.level:.0%} interval", "turned"):
        table.add_column(heading, no_wrap=True)
    flips = {(flip.stage, flip.attribute, flip.value): flip for flip in kept.flips}
    for place, stage in enumerate(kept.stages):
        for row in _rows(kept, stage):
            name = Text(f"  {row.attribute} {row.value}") if row.attribute else _stage_name(kept, place)
            table.add_row(
                name,
                "–" if row.studies is None else str(row.studies),
                *_figures(row),
                _turned(flips[row.stage, row.attribute, row.value]),
            )
        table.add_section()
    return table


def triple_text(triple: LearningTriple) -> str:
    """Write learning, potential and retention (Burgon et al. 2026) in one line."""
    before = "" if triple.retained_before.value is None else f" (champion {triple.retained_before.value:.3f})"
    return (
        f"Learning {_signed(triple.learning)}, potential {_signed(triple.potential)}, retention "
        f"{'–' if triple.retention.value is None else f'{triple.retention.value:.3f}'}{before}."
    )


def _rows(kept: KeptAndLost, stage: str) -> Iterator[Change]:
    """Give everyone, then the subgroups, the worst change first, those without a figure last."""
    rows = [row for row in kept.changes if (row.stage, row.metric, row.finding) == (stage, "auroc", "")]
    yield from sorted(rows, key=lambda row: (bool(row.attribute), row.difference is None, row.difference or 0.0))


def _stage_name(kept: KeptAndLost, place: int) -> Text:
    start, _, end = kept.stages[place].partition("/")
    span = f"{start} – {end.removeprefix(start[:5])}" if end else start
    return Text(f"{'new' if place == len(kept.stages) - 1 else 'known'} {span}", "bold")


def _figures(row: Change) -> tuple[str, Text, Text]:
    """Write before → after, the change, and its interval or why there is none."""
    if row.champion is None or row.challenger is None or row.difference is None:
        return "–", Text("–"), Text("suppressed" if row.suppressed else "too few to tell", "dim")
    moved = f"{row.champion:.3f} → {row.challenger:.3f}"
    if row.low is None or row.high is None:
        return moved, Text(f"{row.difference:+.3f}"), Text("–")
    style = BETTER if row.low > 0 else WORSE if row.high < 0 else ""
    return moved, Text(f"{row.difference:+.3f}", style), Text(f"{row.low:+.3f} to {row.high:+.3f}", style)


def _turned(flips: Flips) -> str:
    shares = (flips.negative.value, flips.positive.value)
    return "/".join("–" if share is None else f"{1000 * share:.0f}" for share in shares)


def _signed(figure: Figure) -> str:
    if figure.value is None:
        return "–"
    ends = "" if figure.low is None or figure.high is None else f" ({figure.low:+.3f} to {figure.high:+.3f})"
    return f"{figure.value:+.3f}{ends}"
