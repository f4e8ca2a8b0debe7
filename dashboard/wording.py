"""Results in plain sentences, for a reader who is not an engineer. Values in, text out; nothing is escaped here."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from continual.plans import AdaptationPlan, AdaptationRun, RunState
from dashboard.palette import METRIC_WORDS, VERDICT_WORDS
from monitor.cohorts import Window
from monitor.results import Harm, SubgroupGap, Verdict, WindowReport
from registry.audit import Event
from registry.decisions import GateDecision
from registry.entries import BatchSummary, ChampionRecord, QuarantinedRow

REASON_WORDS = {
    "not_finite_score": "score is not a number",
    "score_out_of_range": "score outside 0 to 1",
    "naive_time": "time without a time zone",
    "bad_time": "time cannot be read",
    "unknown_class": "class is not known",
    "missing_value": "a value is missing",
    "image_missing": "image file is missing",
    "image_unreadable": "image cannot be read",
    "key_conflict": "same study, other content",
    "bad_row": "row cannot be read",
    "path_outside": "image path leads outside the export",
}
EVENT_WORDS = {
    "model.registered": "model registered",
    "predictions.added": "predictions added",
    "rows.quarantined": "rows put in quarantine",
    "ingest.finished": "export read",
    "window.watched": "week watched",
    "plan.made": "treatment proposed",
    "adapter.trained": "adapter trained",
    "held_out.locked": "held-out cohort locked",
    "held_out.looked_at": "held-out cohort looked at",
    "gate.decided": "gate decided",
    "decision.signed": "decision signed",
    "signature.wrong_password": "wrong password",
    "champion.moved": "champion changed",
    "champion.projected": "MLflow told of champion",
    "champion.projection_pending": "MLflow could not be told",
    "alias.moved_outside": "MLflow changed by others",
    "user.added": "person added",
}
MOVE_WORDS = {"first": "taken over as it was", "promote": "promoted", "rollback": "rolled back to"}


def metric_words(name: str) -> str:
    """Name a metric as a reader would."""
    return METRIC_WORDS.get(name, name)


def number(value: float | None) -> str:
    """Write a figure, or a dash where there is none."""
    return "–" if value is None else f"{value:.3f}"


def days(window: Window) -> str:
    """Write a window as its days: 4 May – 11 May 2026."""
    return f"{window.start.day} {window.start:%b} – {window.end.day} {window.end:%b %Y}"


def day(moment: datetime) -> str:
    """Write a moment as its day: 4 May 2026."""
    return f"{moment.day} {moment:%B %Y}"


def plural(n: int, word: str) -> str:
    """Write a count with its noun: 1 study, 2 studies."""
    many = f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"
    return f"{n} {word if n == 1 else many}"


def tell_headline(reports: Sequence[WindowReport]) -> str:
    """Say the verdict of the newest window and since when it has been so."""
    n, start = len(_run_of_verdict(reports)), _run_of_verdict(reports)[0].window.start
    weeks = "this is the first window of it" if n == 1 else f"for {n} windows in a row"
    return {
        Verdict.DRIFT: f"Something changed. Drift since {day(start)}: {weeks}.",
        Verdict.NO_DRIFT: f"Nothing unusual. No drift since {day(start)}"
        + (": the newest window." if n == 1 else f": {weeks}."),
        Verdict.NOT_ENOUGH_DATA: "The newest window holds too little data to judge. That is not an all-clear.",
    }[reports[-1].verdict]


def tell_since_when(reports: Sequence[WindowReport]) -> str:
    """Say when the present state began and what was before."""
    mine = _run_of_verdict(reports)
    before = reports[: len(reports) - len(mine)]
    word = VERDICT_WORDS[reports[-1].verdict].capitalize()
    said = f"{word} since {day(mine[0].window.start)} ({plural(len(mine), 'window')})."
    return said + (f" Before: {VERDICT_WORDS[before[-1].verdict]}." if before else " Nothing was watched before.")


def tell_for_whom(report: WindowReport) -> str:
    """Say which subgroups fell behind, or else which attribute value carries the change."""
    hit = [gap for gap in report.gaps if gap.verdict is Verdict.DRIFT]
    if hit:
        worst = sorted({f"{gap.attribute} {gap.value} ({metric_words(gap.metric)})" for gap in hit})
        return f"The gap to everyone else changed for {', '.join(worst[:3])}{' and others' if len(worst) > 3 else ''}."
    carried = ""
    if report.verdict is Verdict.DRIFT and report.contributions:
        top = report.contributions[0]
        carried = (
            f"Mostly studies with {top.attribute} = {top.value}: {top.share_reference:.0%} of the reference, "
            f"{top.share_current:.0%} now. "
        )
    if any(gap.verdict is Verdict.NO_DRIFT for gap in report.gaps):
        return carried + "No subgroup fell behind beyond chance."
    return carried + "Whether a subgroup fell behind could not be judged."


def tell_how_bad(measured: Harm | None, estimated: Harm | None) -> str:
    """Say what one figure lost, measured where labels allow it, else estimated."""
    for harm, how in ((measured, ""), (estimated, " That is an estimate: labels are missing.")):
        if harm is not None and harm.loss is not None and harm.current is not None and harm.reference is not None:
            sure = harm.low is not None and harm.low > 0
            word = "worse" if harm.loss > 0 else "better"
            beyond = "beyond chance" if sure or (harm.high is not None and harm.high < 0) else "within chance"
            return (
                f"{metric_words(harm.metric)} {harm.current:.3f}, {harm.reference:.3f} in the reference: "
                f"{abs(harm.loss):.3f} {word}, {beyond}.{how}"
            )
    reason = measured.reason if measured is not None else ""
    return "The harm cannot be told yet" + (f": {reason}." if reason else ".")


def tell_how_sure(report: WindowReport, alpha: float) -> str:
    """Say on how many comparisons and patients the verdict rests, and how often such a verdict is a false alarm."""
    judged = [result for result in report.results if result.verdict is not Verdict.NOT_ENOUGH_DATA]
    found = sum(result.verdict is Verdict.DRIFT for result in judged)
    rests = f"{plural(report.patients, 'patient')}, {report.n_labelled} of {plural(report.n, 'study')} labelled."
    if not judged:
        return f"Not at all: no comparison could be made. {rests}"
    return (
        f"{found} of {len(judged)} comparisons differ beyond chance. A quiet window is called drift "
        f"in {alpha:.0%} of cases. {rests}"
    )


def tell_proposal(plans: Sequence[AdaptationPlan], decisions: Sequence[GateDecision], champion: str) -> str:
    """Say what is proposed against the champion of today, and what the gate says of it."""
    mine = [plan for plan in plans if plan.champion_version == champion]
    if not mine:
        return "Nothing is proposed."
    plan = mine[-1]
    said = f"{plan.treatment.value.capitalize()}, proposed by {plan.proposed_by}."
    judged = [decision for decision in decisions if decision.plan_id == plan.plan_id]
    if judged:
        passed = sum(decision.promote for decision in judged)
        said += f" The gate judged {plural(len(judged), 'adapter')}: {passed} passed."
    return said


def tell_gap(gap: SubgroupGap) -> str:
    """Say how a subgroup's gap changed."""
    where = f"{metric_words(gap.metric).capitalize()} of {gap.attribute} {gap.value}"
    if gap.change is None or gap.reference_gap is None or gap.gap is None:
        return f"{where}: {gap.reason}."
    way = "fell" if gap.change < 0 else "rose"
    return (
        f"{where} {way} against everyone else's by {abs(gap.change):.3f} since the reference "
        f"(from {gap.reference_gap:+.3f} to {gap.gap:+.3f}), beyond chance."
    )


def tell_run(run: AdaptationRun) -> str:
    """Say what a strategy's adapter gained on the new and lost on the old."""
    if run.state is RunState.FAILED:
        return f"{run.strategy} did not finish: {run.reason}. The champion was not touched."
    before = run.matrix[-2][-1] if len(run.matrix) > 1 else None
    after = run.matrix[-1][-1] if run.matrix else None
    gained = (
        f"went from {before:.3f} to {after:.3f} on the new"
        if before is not None and after is not None
        else "could not be compared on the new"
    )
    if run.forgetting is None:
        return f"{run.strategy} {gained}; what it forgot could not be measured."
    kept = "and lost nothing" if run.forgetting <= 0.0005 else f"and lost {run.forgetting:.3f}"
    return f"{run.strategy} {gained}, {kept} on what was known before (AUROC)."


def tell_consequence(decision: GateDecision) -> str:
    """Say what happens after either answer."""
    return (
        f"If you approve, this adapter may be promoted and then answers every study in place of version "
        f"{decision.champion_version}; going back is one step. If you refuse, it can never go live and version "
        f"{decision.champion_version} stays."
    )


def tell_move(move: ChampionRecord) -> str:
    """Say one change of champion."""
    word = MOVE_WORDS.get(move.kind, move.kind)
    if move.kind == "rollback":
        return f"{day(move.since)}: {word} version {move.version} by {move.actor}. {move.reason}"
    return f"{day(move.since)}: version {move.version} {word} by {move.actor}. {move.reason}"


def tell_arrivals(batches: Sequence[BatchSummary], quarantined: Sequence[QuarantinedRow]) -> str:
    """Say how many rows came in, and why some were not taken."""
    if not batches:
        return "No export has been read yet."
    received, accepted = (sum(getattr(batch, name) for batch in batches) for name in ("received", "accepted"))
    known = sum(batch.duplicate for batch in batches)
    said = f"{plural(received, 'row')} in {plural(len(batches), 'export')}, {accepted} accepted"
    said += f", {known} known already" if known else ""
    if not quarantined:
        return f"{said}. None is in quarantine."
    reasons = Counter(REASON_WORDS.get(row.reason, row.reason) for row in quarantined)
    told = ", ".join(f"{reason} ({n})" for reason, n in reasons.most_common())
    return f"{said}, {len(quarantined)} in quarantine: {told}."


def tell_event(event: Event) -> str:
    """Say what happened in one event."""
    tell = EVENT_SENTENCES.get(event.kind)
    return tell(event.subject, json.loads(event.payload)) if tell else event.subject


def tell_window(report: WindowReport) -> str:
    """Name a window in a list: its days and its verdict."""
    return f"{days(report.window)}: {VERDICT_WORDS[report.verdict]}"


def _run_of_verdict(reports: Sequence[WindowReport]) -> list[WindowReport]:
    """Give the newest windows that share one verdict, oldest first."""
    mine: list[WindowReport] = []
    for report in reversed(reports):
        if report.verdict is not reports[-1].verdict:
            break
        mine.insert(0, report)
    return mine


def _tell_watched(subject: str, content: dict[str, Any]) -> str:
    verdict = content.get("verdict", "")
    return f"{subject}: {VERDICT_WORDS.get(verdict, verdict)}, {content.get('studies')} studies"


def _tell_trained(subject: str, content: dict[str, Any]) -> str:
    forgotten = content.get("forgetting")
    told = "not measured" if forgotten is None else f"{forgotten:+.3f}"
    return f"{subject}: {str(content.get('state')).lower()}, forgetting {told}"


def _tell_quarantined(subject: str, content: dict[str, Any]) -> str:
    reasons = content.get("reasons", {})
    return f"{subject}: " + ", ".join(f"{REASON_WORDS.get(reason, reason)} ({n})" for reason, n in reasons.items())


EVENT_SENTENCES: dict[str, Callable[[str, dict[str, Any]], str]] = {
    "window.watched": _tell_watched,
    "adapter.trained": _tell_trained,
    "rows.quarantined": _tell_quarantined,
    "predictions.added": lambda subject, content: f"{subject}: {content.get('accepted')} accepted",
    "ingest.finished": lambda subject, content: (
        f"{subject}: {content.get('accepted')} of {content.get('received')} rows accepted"
    ),
    "plan.made": lambda subject, content: f"{subject}: {content.get('treatment')}. {content.get('reason')}",
    "gate.decided": lambda subject, content: f"{subject} {'may be signed' if content.get('promote') else 'refused'}",
    "decision.signed": lambda subject, content: (
        f"{'Approved' if content.get('approved') else 'Refused'} {subject}: {content.get('meaning')}"
    ),
    "champion.moved": lambda subject, content: (
        f"From version {content.get('from') or 'none'} to {subject}: {content.get('reason')}"
    ),
    "user.added": lambda subject, content: f"{subject}, {content.get('role')}",
}
"""What an event's payload says, in words; a kind that is not here is told by its subject."""
