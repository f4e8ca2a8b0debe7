"""How grave a window is: watch, act or stop, by a table that a person can read and never by one p-value.

| grade | when any of these holds |
|---|---|
| stop | a realised loss beyond chance, of at least ``stop_loss`` |
| | a subgroup fell behind everyone else, beyond chance, by at least ``stop_loss`` |
| act | a realised loss beyond chance, of at least ``tolerated_loss`` |
| | a subgroup fell behind everyone else, beyond chance, by at least ``tolerated_loss`` |
| | an open alarm with an estimated loss beyond chance, of at least ``tolerated_loss`` |
| | an alarm open for ``PERSISTENT`` windows or more while realised performance is not known |
| | an open alarm with a change of at least ``GRAVE`` times the least that counts while performance is not known |
| watch | an open alarm, a window called DRIFT, any other loss or change of a subgroup beyond chance |
| not enough data | nothing of all that, and the window could not be judged |
| quiet | nothing of all that |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from monitor.policies import DriftPolicy
from monitor.results import Harm, Source, SubgroupGap, Verdict, WindowReport

PERSISTENT = 3
GRAVE = 3.0
WORSE_WHEN_LOWER = ("auroc", "sensitivity", "specificity", "accuracy")


class Grade(StrEnum):
    """How grave it is, and so what a person does."""

    QUIET = "quiet"
    NOT_ENOUGH_DATA = "not enough data"
    WATCH = "watch"
    ACT = "act"
    STOP = "stop"


GRADE_WORDS = {
    Grade.QUIET: "Quiet: nobody needs to look.",
    Grade.NOT_ENOUGH_DATA: "Not enough data to grade.",
    Grade.WATCH: "Watch: something moved; look at the next window.",
    Grade.ACT: "Act: a person must look into it now.",
    Grade.STOP: "Stop: do not rely on the model until somebody has looked.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Severity:
    """A grade, and each rule of the table that holds, the gravest first, in a sentence with its figures."""

    grade: Grade
    reasons: tuple[str, ...]


def grade_window(report: WindowReport, policy: DriftPolicy, *, alarm_windows: int = 0) -> Severity:
    """Grade a window by the table of this module.

    Args:
        report: what was measured in the window.
        policy: whose ``tolerated_loss`` and ``stop_loss`` are compared with.
        alarm_windows: for how many windows in a row, this one included, an alarm is open; 0: none is.
    """
    found: dict[Grade, list[str]] = {Grade.STOP: [], Grade.ACT: [], Grade.WATCH: []}
    for size, told in (*_losses(report), *_fallen_subgroups(report)):
        found[_by_size(size, policy)].append(told)
    if alarm_windows:
        found[_grade_alarm(report, policy, alarm_windows)].append(_tell_alarm(report, alarm_windows))
    if report.verdict is Verdict.DRIFT:
        found[Grade.WATCH].append("the window differs from the reference beyond chance")
    found[Grade.WATCH] += _slight(report)
    reasons = tuple(reason for grade in found for reason in found[grade])
    grade = next((grade for grade in found if found[grade]), None)
    if grade is None and report.verdict is Verdict.NOT_ENOUGH_DATA:
        return Severity(grade=Grade.NOT_ENOUGH_DATA, reasons=(report.reason,))
    return Severity(grade=grade or Grade.QUIET, reasons=reasons)


def _by_size(size: float, policy: DriftPolicy) -> Grade:
    if size >= policy.stop_loss:
        return Grade.STOP
    return Grade.ACT if size >= policy.tolerated_loss else Grade.WATCH


def _losses(report: WindowReport) -> Iterator[tuple[float, str]]:
    """Give every realised loss beyond chance, with its size."""
    for harm in report.harms:
        if harm.sure and harm.loss is not None and harm.source is Source.REALISED:
            yield harm.loss, f"{_name(harm)} is lower by {harm.loss:.3f}, beyond chance"


def _fallen_subgroups(report: WindowReport) -> Iterator[tuple[float, str]]:
    """Give every subgroup that fell behind everyone else since the reference, with by how much."""
    for gap in report.gaps:
        if gap.verdict is Verdict.DRIFT and gap.change is not None and gap.change < 0 and _harms(gap):
            what = f"{gap.metric} of {gap.finding} of {gap.attribute} {gap.value}"
            yield -gap.change, f"{what} fell behind everyone else's by {-gap.change:.3f}, beyond chance"


def _slight(report: WindowReport) -> Iterator[str]:
    """Name what is beyond chance and harms nobody for sure: estimated losses, changes of a subgroup of other kinds."""
    for harm in report.harms:
        if harm.sure and harm.loss is not None and harm.source is Source.ESTIMATED:
            yield f"{_name(harm)} is estimated to be lower by {harm.loss:.3f}, beyond chance"
    for gap in report.gaps:
        if gap.verdict is Verdict.DRIFT and gap.change is not None and not _harms(gap):
            yield f"{gap.metric} of {gap.finding} of {gap.attribute} {gap.value} moved by {gap.change:+.3f}"


def _harms(gap: SubgroupGap) -> bool:
    return gap.metric in WORSE_WHEN_LOWER


def _grade_alarm(report: WindowReport, policy: DriftPolicy, windows: int) -> Grade:
    estimated = [harm for harm in report.harms if harm.source is Source.ESTIMATED and harm.sure]
    if any(harm.loss is not None and harm.loss >= policy.tolerated_loss for harm in estimated):
        return Grade.ACT
    known = any(harm.source is Source.REALISED and harm.loss is not None for harm in report.harms)
    unseen = not known and (windows >= PERSISTENT or _largest(report) >= GRAVE)
    return Grade.ACT if unseen else Grade.WATCH


def _tell_alarm(report: WindowReport, windows: int) -> str:
    size = _largest(report)
    larger = f", the largest change {size:.1f} times the least that counts" if size else ""
    return f"an alarm is open for {windows} window{'s' * (windows != 1)}{larger}"


def _largest(report: WindowReport) -> float:
    """Give the largest change in units of the least that counts; 0 without one."""
    sizes = [
        result.effect / result.least_effect
        for result in report.results
        if result.verdict is Verdict.DRIFT and result.effect is not None and result.least_effect > 0
    ]
    return max(sizes, default=0.0)


def _name(harm: Harm) -> str:
    return f"{harm.metric} of {harm.finding}"
