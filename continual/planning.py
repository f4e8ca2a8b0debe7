"""From reports to the smallest treatment that helps. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from continual.label_uses import OpenWorklist, missing_labels, tell_missing
from continual.plans import AdaptationPlan, AdaptationPolicy, Treatment
from monitor.results import DriftResult, Harm, Source, Verdict, WindowReport


def plan_adaptation(  # noqa: PLR0913 - the evidence has so many parts
    reports: Sequence[WindowReport],
    *,
    model: str,
    champion_version: str,
    policy: AdaptationPolicy,
    labelled: int,
    proposed_by: str,
    waiting: Sequence[OpenWorklist] = (),
) -> AdaptationPlan | None:
    """Choose a treatment from the champion's reports; None where the last window that has a verdict is quiet.

    ``labelled`` counts the labelled studies of learning patients in the drifted windows, ``waiting`` are worklists
    that have not come back. The adapter is
    updated only when drift is there in enough consecutive windows, harm is sure, and labels suffice;
    otherwise the plan says to watch longer, and what is missing. A window with NOT_ENOUGH_DATA neither
    breaks a row of drifted windows nor counts in it.
    """
    drifted = _drifted_at_the_end([report for report in reports if report.model == model])
    if not drifted:
        return None
    found = [(report, result) for report in drifted for result in report.results if result.verdict is Verdict.DRIFT]
    harms = [harm for report in drifted for harm in _sure_harms(report)]
    lacking = _what_is_lacking(len(drifted), harms, labelled, policy, waiting)
    treatment = Treatment.WATCH_LONGER if lacking else Treatment.UPDATE_ADAPTER
    return AdaptationPlan(
        model=model,
        windows=tuple(report.window for report in drifted),
        treatment=treatment,
        strategies=() if lacking else policy.strategies,
        evidence=(*(_name_result(result) for _, result in found), *(_name_harm(harm) for harm in harms)),
        reason=_explain(drifted, [result for _, result in found], harms, lacking, labelled),
        proposed_by=proposed_by,
        champion_version=champion_version,
    )


def _drifted_at_the_end(reports: Sequence[WindowReport]) -> list[WindowReport]:
    """Find the consecutive DRIFT windows that end the history."""
    decided = [r for r in sorted(reports, key=lambda r: r.window) if r.verdict is not Verdict.NOT_ENOUGH_DATA]
    quiet = [i for i, report in enumerate(decided) if report.verdict is Verdict.NO_DRIFT]
    return decided[quiet[-1] + 1 :] if quiet else decided


def _sure_harms(report: WindowReport) -> list[Harm]:
    """Keep the losses beyond chance; where the truth is known, estimates do not count."""
    known = {
        (harm.metric, harm.finding) for harm in report.harms if harm.source is Source.REALISED and harm.low is not None
    }
    return [
        harm
        for harm in report.harms
        if harm.sure and (harm.source is Source.REALISED or (harm.metric, harm.finding) not in known)
    ]


def _what_is_lacking(
    windows: int, harms: Sequence[Harm], labelled: int, policy: AdaptationPolicy, waiting: Sequence[OpenWorklist]
) -> str:
    """Say why the adapter is not updated yet; empty where nothing is lacking."""
    if windows < policy.drifted_windows:
        return f"{policy.drifted_windows} consecutive windows with drift are asked for before anything is changed"
    if not harms:
        return "no loss of performance is sure, realised or estimated, so that a change could only risk what works"
    if labelled < policy.minimum_labels:
        return tell_missing(missing_labels(labelled, policy.minimum_labels, waiting), policy.labels)
    return ""


def _explain(
    drifted: Sequence[WindowReport],
    results: Sequence[DriftResult],
    harms: Sequence[Harm],
    lacking: str,
    labelled: int,
) -> str:
    parts = [_tell_drift(drifted, results)]
    if harms:
        parts.append(_tell_harm(max(harms, key=lambda harm: (harm.source is Source.REALISED, harm.low or 0))))
    if lacking:
        parts.append(f"Watch longer: {lacking}.")
    else:
        parts.append(
            "Watching longer is not enough: the drift persists and patients lose by it. "
            f"Update the adapter with {labelled} labelled studies."
        )
    return " ".join(parts)


def _tell_drift(drifted: Sequence[WindowReport], results: Sequence[DriftResult]) -> str:
    count = f"{len(drifted)} consecutive windows" if len(drifted) > 1 else "one window"
    span = f"{drifted[0].window.start:%Y-%m-%d} to {drifted[-1].window.end:%Y-%m-%d}"
    if not results:
        return f"Drift in {count} ({span})."
    strongest = max(results, key=lambda result: result.effect or 0)
    return (
        f"Drift in {count} ({span}); strongest in {strongest.feature} ({strongest.kind}, {strongest.detector}, "
        f"{strongest.effect_name} {strongest.effect or 0:.2f}, p {strongest.p_value or 0:.3g})."
    )


def _tell_harm(harm: Harm) -> str:
    finding = f" for {harm.finding}" if harm.finding else ""
    studies = "" if harm.n is None else f"{harm.n} studies, "
    return (
        f"{harm.source.capitalize()} {harm.metric}{finding} is lower by {harm.loss or 0:.3f} "
        f"({harm.level:.0%} interval {harm.low or 0:.3f} to {harm.high or 0:.3f}, {studies}{harm.window.key})."
    )


def _name_result(result: DriftResult) -> str:
    return f"{result.window.key} {result.detector} {result.feature}"


def _name_harm(harm: Harm) -> str:
    return " ".join(filter(None, (harm.window.key, harm.source, "loss", harm.metric, harm.finding)))
