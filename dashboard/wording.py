"""Results in plain sentences, for a reader who is not an engineer. Values in, text out; nothing is escaped here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from continual.plans import AdaptationPlan, AdaptationRun, RunState
from dashboard.names import (
    STRATEGY_MEANINGS,
    day,
    days,
    detector_words,
    feature_words,
    metric_words,
    plural,
    reword,
    sentence,
    strategy_words,
    value_words,
)
from dashboard.palette import KIND_WORDS, SOURCE_WORDS, VERDICT_WORDS
from monitor.cohorts import Window
from monitor.results import Harm, Source, SubgroupGap, Verdict, WindowReport
from registry.decisions import GateDecision
from registry.entries import AlarmEntry, BatchSummary, QuarantinedRow

LOSS = re.compile(r"(\w+) loss (\w+) (.+)")
REASON_WORDS = {
    "not_finite_score": "score is not a number",
    "score_out_of_range": "score outside 0 to 1",
    "scores_sum": "scores do not add up to 1",
    "not_finite_embedding": "embedding is not a number",
    "naive_time": "time without a time zone",
    "bad_time": "time cannot be read",
    "unknown_class": "class is not known",
    "missing_value": "a value is missing",
    "image_missing": "image file is missing",
    "image_unreadable": "image cannot be read",
    "key_conflict": "same study, other content",
    "bad_row": "row cannot be read",
    "purged patient": "patient was removed for ever",
    "path_outside": "image path leads outside the export",
    "unknown_study": "study is not known here",
    "not_asked": "study stands on no worklist",
    "readers_disagree": "readers disagree",
    "labelled_differently": "labelled differently before",
}


def tell_headline(reports: Sequence[WindowReport]) -> str:
    """Say the verdict of the newest window and since when it has been so."""
    n, start = len(_run_of_verdict(reports)), _run_of_verdict(reports)[0].window.start
    weeks = "this is the first window of it" if n == 1 else f"for {n} windows in a row"
    return {
        Verdict.DRIFT: f"Something changed. Drift since {day(start)}: {weeks}.",
        Verdict.NO_DRIFT: f"Nothing unusual. No drift since {day(start)}"
        + (", in the newest window." if n == 1 else f": {weeks}."),
        Verdict.NOT_ENOUGH_DATA: "The newest window holds too little data to judge. That is not an all-clear.",
    }[reports[-1].verdict]


def tell_alarm(entries: Sequence[AlarmEntry], window: Window) -> str:
    """Say whether an alarm is open after a window, since when, and how near one is if not."""
    here = next((entry for entry in entries if entry.window == window), None)
    if here is None:
        return ""
    since = here.state.open_since
    if since is not None:
        return f"An alarm is open since {day(since.start)}."
    share = here.state.log_evidence / here.state.log_threshold if here.state.log_threshold else 0.0
    return f"No alarm is open; the evidence stands at {min(max(share, 0.0), 1.0):.0%} of what raises one."


def tell_since_when(reports: Sequence[WindowReport]) -> str:
    """Say when the present state began and what was before."""
    mine = _run_of_verdict(reports)
    before = reports[: len(reports) - len(mine)]
    word = VERDICT_WORDS[reports[-1].verdict].capitalize()
    said = f"{word} since {day(mine[0].window.start)}, {plural(len(mine), 'window')} so far."
    return said + (f" Before that: {VERDICT_WORDS[before[-1].verdict]}." if before else " Nothing was watched before.")


def tell_change(report: WindowReport) -> str:
    """Say which kinds of thing changed in a window and in what, or else why nothing is said to have changed."""
    moved = [result for result in report.results if result.verdict is Verdict.DRIFT]
    if report.verdict is not Verdict.DRIFT or not moved:
        return reword(report.reason)
    told = []
    for kind, words in KIND_WORDS.items():
        if features := list(dict.fromkeys(feature_words(r.feature) for r in moved if r.kind is kind)):
            told.append(f"{words[0].lower() + words[1:]} ({', '.join(features)})")
    return f"Changed: {', '.join(told)}."


def tell_for_whom(report: WindowReport) -> str:
    """Say which subgroups fell behind, or else which attribute value carries the change."""
    hit = [gap for gap in report.gaps if gap.verdict is Verdict.DRIFT]
    if hit:
        worst = sorted({f"{gap.attribute} {gap.value} ({metric_words(gap.metric)})" for gap in hit})
        return f"The gap to everyone else changed for {', '.join(worst[:3])}{' and others' if len(worst) > 3 else ''}."
    carried = ""
    top = next((c for c in report.contributions if c.beyond_chance and not c.suppressed), None)
    if report.verdict is Verdict.DRIFT and top and top.share_reference is not None and top.share_current is not None:
        carried = (
            f"Mostly studies with {value_words(top.attribute, top.value)}: {top.share_reference:.0%} of the reference, "
            f"{top.share_current:.0%} now. "
        )
    if any(gap.verdict is Verdict.NO_DRIFT for gap in report.gaps):
        return carried + "No subgroup fell behind beyond chance."
    return carried + "Whether a subgroup fell behind could not be judged."


def tell_how_bad(measured: Harm | None, estimated: Harm | None) -> str:
    """Say what one figure lost, measured where labels allow it, else estimated."""
    for harm, how in ((measured, ""), (estimated, " That is an estimate: labels are missing.")):
        if harm is not None and harm.loss is not None and harm.current is not None and harm.reference is not None:
            sure = harm.sure or (harm.high is not None and harm.high < 0)
            beyond = "beyond chance" if sure else "within chance"
            way = f"{abs(harm.loss):.3f} {'worse' if harm.loss > 0 else 'better'}, {beyond}"
            return (
                f"{sentence(metric_words(harm.metric))} {harm.current:.3f}, in the reference {harm.reference:.3f}: "
                f"{way if abs(harm.loss) >= 0.0005 else 'the same'}.{how}"
            )
    reason = measured.reason if measured is not None else ""
    return "The harm cannot be told yet" + (f": {reason}." if reason else ".")


def tell_other_losses(harms: Sequence[Harm], metric: str) -> str:
    """Say which other measured figures are surely worse; nothing when there are none."""
    others = [h for h in harms if h.metric != metric and h.source is Source.REALISED and h.sure]
    told = [f"{metric_words(harm.metric)} by {harm.loss:.3f}" for harm in others]
    return f"Surely worse: {', '.join(told)}." if told else ""


def tell_how_sure(report: WindowReport, false_alarms: float) -> str:
    """Say on how many comparisons and patients the verdict rests, and how often such a verdict is a false alarm."""
    judged = [result for result in report.results if result.verdict is not Verdict.NOT_ENOUGH_DATA]
    found = sum(result.verdict is Verdict.DRIFT for result in judged)
    rests = f"{plural(report.patients, 'patient')}, {report.n_labelled} of {plural(report.n, 'study')} labelled."
    if not judged:
        return f"Not at all: no comparison could be made. {rests}"
    return (
        f"{found} of {len(judged)} comparisons differ beyond chance. Of a year of quiet windows about "
        f"{false_alarms:g} may be called drift. {rests}"
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
    where = sentence(f"{metric_words(gap.metric)} of {gap.attribute} {gap.value}")
    if gap.change is None or gap.reference_gap is None or gap.gap is None:
        return f"{where}: {gap.reason}."
    way = "fell" if gap.change < 0 else "rose"
    return (
        f"{where} {way} against everyone else's by {abs(gap.change):.3f} since the reference "
        f"(from {gap.reference_gap:+.3f} to {gap.gap:+.3f}), beyond chance."
    )


def tell_unjudged(gap: SubgroupGap) -> str:
    """Say why a subgroup could not be judged."""
    said = gap.reason
    for code, words in (
        ("reference: ", "in the reference, "),
        ("inside: ", "in the group "),
        ("outside: ", "outside it "),
    ):
        said = said.replace(code, words, 1)
    return reword(said)


def name_plan(plan: AdaptationPlan) -> str:
    """Name a plan in a list: what is proposed, for which windows, against which version."""
    windows = sorted(plan.windows)
    span = f" for {days(Window(start=windows[0].start, end=windows[-1].end))}" if windows else ""
    return f"{sentence(plan.treatment.value)}{span}, against version {plan.champion_version}"


def tell_evidence(plan: AdaptationPlan) -> list[str]:
    """Say what a plan rests on, one sentence a window."""
    told: dict[str, list[str]] = {}
    for line in plan.evidence:
        window, _, rest = line.partition(" ")
        detector, _, feature = rest.partition(" ")
        loss = LOSS.fullmatch(rest)
        if loss:
            words = f"{SOURCE_WORDS.get(loss[1], loss[1])}, {metric_words(loss[2])} of {loss[3]} is worse"
        else:
            words = f"{feature_words(feature)} ({detector_words(detector)})" if feature else rest
        told.setdefault(window, []).append(words)
    return [reword(f"{window}: {'; '.join(words)}") for window, words in told.items()]


def tell_run(run: AdaptationRun) -> str:
    """Say what a strategy's adapter gained on the new and lost on the old."""
    name = sentence(strategy_words(run.name))
    if run.state is RunState.STOPPED:
        return f"{name} was stopped and can be resumed: {run.reason}. The champion was not touched."
    if run.state is RunState.FAILED:
        return f"{name} did not finish: {run.reason}. The champion was not touched."
    if meaning := STRATEGY_MEANINGS.get(run.strategy):
        name += f" ({meaning})"
    if run.treatment.keeps_network:
        return f"{name}: {run.told}. Who ranks above whom stays as it was, so that nothing can be forgotten."
    before = run.matrix[-2][-1] if len(run.matrix) > 1 else None
    after = run.matrix[-1][-1] if run.matrix else None
    gained = (
        f"went from {before:.3f} to {after:.3f} on the new"
        if before is not None and after is not None
        else "could not be compared on the new"
    )
    if run.forgetting is None:
        return f"{name} {gained}; what it forgot could not be measured."
    kept = "and lost nothing" if run.forgetting <= 0.0005 else f"and lost {run.forgetting:.3f}"
    return f"{name} {gained}, {kept} on what was known before (AUROC)."


def tell_consequence(decision: GateDecision) -> str:
    """Say what happens after either answer."""
    return (
        f"If you approve, this adapter may be promoted and then answers every study in place of version "
        f"{decision.champion_version}; going back is one step. If you refuse, it can never go live and version "
        f"{decision.champion_version} stays."
    )


def tell_arrivals(batches: Sequence[BatchSummary], quarantined: Sequence[QuarantinedRow]) -> str:
    """Say how many rows came in, and why some were not taken."""
    if not batches:
        return "No export has been read yet."
    received, accepted = (sum(getattr(batch, name) for batch in batches) for name in ("received", "accepted"))
    known, late = (sum(getattr(batch, name) for batch in batches) for name in ("duplicate", "labelled"))
    said = f"{plural(received, 'row')} in {plural(len(batches), 'export')}, {accepted:,} accepted"
    said += f", {late:,} brought labels later" if late else ""
    said += f", {known:,} known already" if known else ""
    if not quarantined:
        return f"{said}. None is in quarantine."
    reasons = Counter(REASON_WORDS.get(row.reason, row.reason) for row in quarantined)
    told = ", ".join(f"{reason} ({n})" for reason, n in reasons.most_common())
    return f"{said}, {len(quarantined):,} in quarantine: {told}."


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
