"""What was kept and lost, in sentences: figures before intervals, and what they mean before either."""

from __future__ import annotations

from continual.kept import Change, Figure, Flips, KeptAndLost, LearningTriple
from dashboard.names import METRIC_WORDS, metric_words, number, reword, sentence

LOWER_IS_BETTER = ("brier", "ece_debiased", "ece")
NO_DIRECTION = ("calibration_slope", "calibration_intercept")
PER = 1000
"""Answers that flips are counted in: a share of 0.012 is 12 of 1,000."""


def tell_kept(kept: KeptAndLost) -> list[str]:
    """Say for each stage, the new one first, what became of the AUROC and how many answers turned."""
    told = []
    for place in range(len(kept.stages))[::-1]:
        change = kept.change(kept.stages[place], "auroc")
        flips = next((f for f in kept.flips if f.stage == kept.stages[place] and not f.attribute), None)
        where = f"On {stage_age(kept, place)} ({reword(kept.stages[place])})"
        told.append(f"{where} {_tell_change(change)}. {_tell_flips(flips)}".strip())
    return told


def tell_triple(triple: LearningTriple) -> dict[str, str]:
    """Say what learning, potential and retention came to, one sentence each."""
    return {
        "Learning": _tell_learning(triple.learning),
        "Potential": _tell_potential(triple.potential),
        "Retention": _tell_retention(triple),
    }


def stage_words(kept: KeptAndLost, place: int) -> str:
    """Name a stage by what it is and by its days."""
    return f"{stage_age(kept, place)}, {reword(kept.stages[place])}"


def stage_age(kept: KeptAndLost, place: int) -> str:
    """Say whether a stage is the new one."""
    return "the new" if place == len(kept.stages) - 1 else "what was known"


def gained(change: Change) -> tuple[float | None, float | None, float | None]:
    """Turn a change and its interval so that more is better."""
    if change.difference is None or change.metric not in LOWER_IS_BETTER:
        return change.difference, change.low, change.high
    low, high = (None if end is None else -end for end in (change.high, change.low))
    return -change.difference, low, high


def surely(change: Change) -> bool | None:
    """Tell whether the challenger is surely better (True) or surely worse (False); None where neither is sure."""
    if change.metric in NO_DIRECTION:
        return None
    _, low, high = gained(change)
    if low is not None and low > 0:
        return True
    return False if high is not None and high < 0 else None


def tell_calibration(change: Change) -> str:
    """Write one figure of calibration before and after."""
    name = sentence(METRIC_WORDS.get(change.metric, change.metric))
    if change.champion is None or change.challenger is None:
        return f"{name}: cannot be told ({change.reason or 'not measured'})"
    return f"{name}: {number(change.champion)} → {number(change.challenger)}{bounds(change)}"


def bounds(figure: Change | Figure) -> str:
    """Write a difference with its interval in brackets."""
    value = figure.difference if isinstance(figure, Change) else figure.value
    if value is None:
        return ""
    if figure.low is None or figure.high is None:
        return f" ({value:+.3f})"
    return f" ({value:+.3f}, {figure.low:+.3f} to {figure.high:+.3f})"


def per_thousand(share: Figure) -> str:
    """Write a share as so many of 1,000, with its interval."""
    if share.value is None:
        return "not known"
    if share.low is None or share.high is None:
        return f"{PER * share.value:.0f}"
    return f"{PER * share.value:.0f} ({PER * share.low:.0f} to {PER * share.high:.0f})"


def _tell_change(change: Change | None) -> str:
    if change is None or change.champion is None or change.challenger is None:
        return f"the AUROC could not be compared{f' ({change.reason})' if change and change.reason else ''}"
    meaning = {
        True: "better beyond chance",
        False: "**worse beyond chance**",
        None: "no difference beyond chance",
    }[surely(change)]
    moved = f"{metric_words('auroc')} went from {number(change.champion)} to {number(change.challenger)}"
    return f"the {moved}{bounds(change)}: {meaning}"


def _tell_flips(flips: Flips | None) -> str:
    if flips is None or flips.negative.value is None or flips.positive.value is None:
        return ""
    wrong, right = (PER * share for share in (flips.negative.value, flips.positive.value))
    return f"Of {PER:,} answers {wrong:.0f} that were right turned wrong, {right:.0f} that were wrong turned right."


def _tell_learning(figure: Figure) -> str:
    if figure.value is None:
        return f"What was learned cannot be told ({figure.reason})."
    if abs(figure.value) < 0.0005:
        return "On the new studies the adapter is as good as the champion was: nothing was learned."
    way = "better" if figure.value > 0 else "worse"
    return f"On the new studies the adapter is {abs(figure.value):.3f} {way} than the champion{_range(figure)}."


def _tell_potential(figure: Figure) -> str:
    if figure.value is None:
        return f"What there was to gain cannot be told ({figure.reason})."
    if figure.value <= 0:
        return (
            f"The champion did no worse on the new studies than on those before{_range(figure)}: nothing to win back."
        )
    chance = ", which may be chance" if figure.low is not None and figure.low <= 0 else ""
    return (
        f"The new studies had cost the champion {figure.value:.3f}{_range(figure)}{chance}: so much could be won back."
    )


def _tell_retention(triple: LearningTriple) -> str:
    after, before = triple.retention.value, triple.retained_before.value
    if after is None or before is None:
        return f"What was retained cannot be told ({triple.retention.reason})."
    return (
        f"On everything known before the adapter reaches {after:.3f} on average, the champion {before:.3f}"
        f"{bounds(triple.retention_change)}."
    )


def _range(figure: Figure) -> str:
    return "" if figure.low is None or figure.high is None else f" ({figure.low:+.3f} to {figure.high:+.3f})"
