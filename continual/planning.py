"""From reports to the smallest treatment that helps. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from continual.ladder import AtHand, Climb, climb
from continual.plans import AdaptationPlan, ExpectedHarm, RungVerdict
from continual.policies import AdaptationPolicy, Treatment
from monitor.results import DriftResult, Harm, Source, Verdict, WindowReport


def plan_adaptation(
    reports: Sequence[WindowReport],
    *,
    model: str,
    champion_version: str,
    policy: AdaptationPolicy,
    at_hand: AtHand,
    proposed_by: str,
) -> AdaptationPlan | None:
    """Choose a treatment from the champion's reports; None where the last window that has a verdict is quiet.

    Nothing is changed before drift is there in enough consecutive windows and a harm is outside the policy. Then it is
    the lowest step of the ladder that is expected to bring every harm inside (``continual.ladder``); where the labels
    do not carry it, the plan says to watch longer, and what is missing. A window with NOT_ENOUGH_DATA neither
    breaks a row of drifted windows nor counts in it.
    """
    drifted = find_drifted([report for report in reports if report.model == model])
    if not drifted:
        return None
    found = [(report, result) for report in drifted for result in report.results if result.verdict is Verdict.DRIFT]
    harms = [harm for report in drifted for harm in _sure_harms(report)]
    if len(drifted) < policy.drifted_windows:
        climbed = _wait(
            f"{policy.drifted_windows} consecutive windows with drift are asked for before anything changes"
        )
    else:
        kinds = [result.kind for _, result in found]
        climbed = climb(_outside(harms, policy), kinds, at_hand, policy)
    return AdaptationPlan(
        model=model,
        windows=tuple(report.window for report in drifted),
        treatment=climbed.taken,
        strategies=policy.strategies if climbed.taken is Treatment.UPDATE_ADAPTER else (),
        evidence=(*(_name_result(result) for _, result in found), *(_name_harm(harm) for harm in harms)),
        reason=_explain(drifted, [result for _, result in found], harms, climbed),
        proposed_by=proposed_by,
        champion_version=champion_version,
        rungs=climbed.verdicts,
    )


def _wait(lacking: str) -> Climb:
    verdict = RungVerdict(treatment=Treatment.WATCH_LONGER, enough=True, sentence=lacking)
    return Climb(verdicts=(verdict,), taken=Treatment.WATCH_LONGER)


def _outside(harms: Sequence[Harm], policy: AdaptationPolicy) -> list[ExpectedHarm]:
    """Give the sure losses that are larger than the policy bears, of each figure the largest."""
    found: dict[tuple[str, str], ExpectedHarm] = {}
    for harm in harms:
        bound, loss = policy.tolerated_loss.get(harm.metric), harm.loss or 0.0
        known = found.get((harm.metric, harm.finding))
        if bound is None or loss <= bound or (known is not None and known.loss >= loss):
            continue
        found[harm.metric, harm.finding] = ExpectedHarm(
            metric=harm.metric,
            finding=harm.finding,
            loss=loss,
            low=harm.low or 0.0,
            high=harm.high or loss,
            sure=True,
            patients=harm.n or 0,
        )
    return list(found.values())


def find_drifted(reports: Sequence[WindowReport]) -> list[WindowReport]:
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


def _explain(
    drifted: Sequence[WindowReport], results: Sequence[DriftResult], harms: Sequence[Harm], climbed: Climb
) -> str:
    parts = [_tell_drift(drifted, results)]
    if harms:
        parts.append(_tell_harm(max(harms, key=lambda harm: (harm.source is Source.REALISED, harm.low or 0))))
    first, last = climbed.verdicts[0], climbed.verdicts[-1]
    if climbed.lacking or first is last:
        parts.append(f"Watch longer: {climbed.lacking or last.sentence}.")
    else:
        parts.append(f"Watching longer is not enough: {first.sentence}.")
        taken = climbed.taken.value
        parts.append(f"{taken[:1].upper()}{taken[1:]}: {last.sentence}.")
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
