"""Watch one window: every comparison, corrected together, and one verdict in a plain sentence."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from monitor.asked_columns import GAPS
from monitor.attribution import attribute_drift
from monitor.cohorts import MISSING, Cohort, Window
from monitor.comparisons import Background, Question, answer, list_questions
from monitor.detectors import Outcome, is_constant
from monitor.examples import show_examples
from monitor.harm import headline_harm, measure_harm
from monitor.label_shift import estimate_prevalence
from monitor.multiplicity import holm_thresholds
from monitor.performance import evaluate
from monitor.policies import DriftPolicy
from monitor.results import DriftResult, Verdict, WindowReport
from monitor.subgroups import measure_gaps

EXAMPLES = 12
SCREEN = 0.1
"""P-value of a first look above which a comparison is plainly quiet."""

Tell = Callable[[str], None]
CONSTANT = "every study of the window has the same embedding: is preprocessing upstream broken?"


def watch_window(  # noqa: PLR0913 - a visit needs both sides, whose they are, and the rules
    reference: Cohort,
    current: Cohort,
    *,
    model: str,
    model_version: str,
    window: Window,
    policy: DriftPolicy,
    background: Background | None = None,
    progress: Tell = lambda what: None,
) -> WindowReport:
    """Compare a window with the reference: drift of every kind, performance, gaps, harm and attribution.

    All p-values of the window are corrected together (Holm), so that ``policy.drift_alpha(window)`` is the
    false-alarm probability of the whole window. Drift is measured against the ``background``, without one against the
    reference with the policy's least effect; performance, gaps and harm always against the reference. The same
    cohorts, background and policy give the same report.
    """
    background = background or Background(cohort=reference)
    number = int(hashlib.sha256(window.key.encode()).hexdigest()[:8], 16)
    comparing, generator = (np.random.default_rng([policy.seed, number, part]) for part in range(2))
    results = _detect(background, current, window, policy, comparing, progress)
    progress("performance")
    evaluation = evaluate(current, name=window.key, model_version=model_version, policy=policy, generator=generator)
    progress("subgroups")
    gaps = measure_gaps(reference, current, window=window, policy=policy, generator=generator)
    progress("harm")
    harms = measure_harm(
        reference, current, window=window, policy=policy, generator=generator, history=background.errors
    )
    contributions = attribute_drift(reference, current, window=window, generator=generator)
    progress("prevalence")
    prevalences = estimate_prevalence(reference, current, window=window, policy=policy, generator=generator)
    verdict = headline_verdict(results)
    drifted = verdict is Verdict.DRIFT
    examples = show_examples(reference, current, most=EXAMPLES, generator=generator) if drifted else ()
    report = WindowReport(
        model=model,
        window=window,
        verdict=verdict,
        reason="",
        n=len(current),
        patients=current.patients,
        n_labelled=int(current.labelled.sum()),
        results=results,
        evaluations=(evaluation,),
        gaps=gaps,
        harms=harms,
        contributions=contributions,
        examples=examples,
        prevalences=prevalences,
    )
    return replace(report, reason=_sentence(report))


def headline_verdict(results: Sequence[DriftResult]) -> Verdict:
    """Say DRIFT if any comparison does, NOT_ENOUGH_DATA if none could be made, else NO_DRIFT."""
    verdicts = {result.verdict for result in results}
    if Verdict.DRIFT in verdicts:
        return Verdict.DRIFT
    return Verdict.NO_DRIFT if Verdict.NO_DRIFT in verdicts else Verdict.NOT_ENOUGH_DATA


def _detect(
    background: Background,
    current: Cohort,
    window: Window,
    policy: DriftPolicy,
    generator: np.random.Generator,
    progress: Tell,
) -> tuple[DriftResult, ...]:
    questions = list(list_questions(background.cohort, current, policy))
    found: list[Outcome | str] = []
    alpha = policy.drift_alpha(window)
    # Holm's first step needs p-values below alpha / m, which so many permutations can reach.
    enough = max(policy.permutations, math.ceil(2 * len(questions) / alpha))
    for question in questions:
        progress(f"{question.detector} on {question.feature}")
        found.append(_answer_in_two_steps(question, enough, policy, generator, background))
    thresholds = iter(holm_thresholds([outcome.p_value for outcome in found if isinstance(outcome, Outcome)], alpha))
    return tuple(
        _judge(
            question,
            outcome,
            window,
            threshold=next(thresholds) if isinstance(outcome, Outcome) else alpha,
            least=background.least_effect(question, policy),
        )
        for question, outcome in zip(questions, found, strict=True)
    )


def _answer_in_two_steps(
    question: Question, enough: int, policy: DriftPolicy, generator: np.random.Generator, background: Background
) -> Outcome | str:
    """Look closer only where a first look is not plainly quiet: most of a window's comparisons are.

    Both p-values are valid and the second is independent of the first, so the one that is given is valid too: at most
    alpha of quiet comparisons have a second of alpha or less, and a first above SCREEN is given as it is.
    """
    first = answer(question, policy.permutations, policy, generator, background)
    if isinstance(first, str) or first.p_value > SCREEN or enough <= policy.permutations:
        return first
    return answer(question, enough, policy, generator, background)


def _judge(
    question: Question, outcome: Outcome | str, window: Window, *, threshold: float, least: float
) -> DriftResult:
    """Write a comparison down with its verdict; a text is why it could not be made."""
    reference, current = question.reference, question.current
    made = outcome if isinstance(outcome, Outcome) else None
    return DriftResult(
        window=window,
        detector=question.detector,
        kind=question.kind,
        feature=question.feature,
        verdict=_verdict(made, threshold, least),
        statistic=made.statistic if made else None,
        effect=made.effect if made else None,
        effect_name=made.effect_name if made else "",
        p_value=made.p_value if made else None,
        threshold=threshold,
        n_reference=len(reference),
        n_current=len(current),
        patients_reference=len(np.unique(reference.patients)),
        patients_current=len(np.unique(current.patients)),
        reason=outcome if isinstance(outcome, str) else _tell_outcome(outcome, threshold, least) + _remark(question),
        least_effect=least,
    )


def _verdict(outcome: Outcome | None, threshold: float, least: float) -> Verdict:
    if outcome is None:
        return Verdict.NOT_ENOUGH_DATA
    return Verdict.DRIFT if outcome.p_value <= threshold and outcome.effect >= least else Verdict.NO_DRIFT


def _tell_outcome(outcome: Outcome, threshold: float, least: float) -> str:
    told = f"{outcome.effect_name} {outcome.effect:.3f}, p = {outcome.p_value:.2g}"
    if outcome.p_value <= threshold and outcome.effect < least:
        told += f": surely there, but smaller than {least:.3g}, the least that counts"
    return told


def _remark(question: Question) -> str:
    """Say what a person should know beside the figures: all alike, more or less missing, or a category that is new."""
    if is_constant(question.current):
        return f"; {CONSTANT}"
    remark = f"; {told}" if (told := _tell_missing(question)) else ""
    if question.current.values.dtype.kind not in "US":
        return remark
    new = np.setdiff1d(question.current.values, [*question.reference.values, MISSING])
    return f"{remark}; never seen in the reference: {', '.join(map(str, new[:5]))}" if len(new) else remark


def _tell_missing(question: Question) -> str:
    """Say how much is missing, where that is not the same share to a percent."""
    if question.missing is None:
        return ""
    before, now = (f"{share:.0%}".replace("%", " %") for share in question.missing)
    feature = question.feature.removeprefix(GAPS)
    return f"{feature} is missing in {now} of studies, {before} in the reference" if before != now else ""


def _sentence(report: WindowReport) -> str:
    if not report.n:
        return "No study arrived in this window."
    if report.verdict is Verdict.NOT_ENOUGH_DATA:
        return f"{report.n} studies of {report.patients} patients are too few to judge: {report.results[0].reason}."
    if report.verdict is Verdict.NO_DRIFT:
        return _quiet_sentence(report)
    drifted = [result for result in report.results if result.verdict is Verdict.DRIFT]
    kinds = list(dict.fromkeys(result.kind.value for result in drifted))
    features = list(dict.fromkeys(result.feature for result in drifted))
    alike = f" {CONSTANT.capitalize()}" if any(CONSTANT in result.reason for result in drifted) else ""
    gone = [told for result in drifted for told in result.reason.split("; ") if " is missing in " in told]
    missing = f" {'; '.join(gone)}." if gone else ""
    changed = f"Changed: {', '.join(kinds)} ({', '.join(features)}).{alike}{missing}"
    return f"{changed}{_harm_sentence(report)}{_carrier_sentence(report)}"


def _quiet_sentence(report: WindowReport) -> str:
    """Say that nothing changed, and what that does not cover: changes too small to count, comparisons not made."""
    results = report.results
    small = dict.fromkeys(r.feature for r in results if r.p_value is not None and r.p_value <= r.threshold)
    unknown = dict.fromkeys(f"{r.feature} ({r.reason})" for r in results if r.verdict is Verdict.NOT_ENOUGH_DATA)
    beyond = f"by enough to count; surely but slightly changed: {', '.join(small)}" if small else "beyond chance"
    not_judged = f" Not judged: {', '.join(unknown)}." if unknown else ""
    studies = f"{report.n} studies of {report.patients} patients"
    return f"Nothing in {studies} differs from the reference {beyond}.{not_judged}"


def _harm_sentence(report: WindowReport) -> str:
    harm = headline_harm(report.harms)
    if harm is None or harm.current is None or harm.reference is None:
        return " Without labels the loss is only estimated."
    sure = "surely worse" if harm.sure else "not surely worse"
    metric = "AUROC" if harm.metric == "auroc" else harm.metric.capitalize()
    return f" {metric} {harm.current:.3f} against {harm.reference:.3f} in the reference, {sure}."


def _carrier_sentence(report: WindowReport) -> str:
    """Say where the drift sits, if that is beyond chance: in a value that came or went, or within one."""
    top = next(iter(report.contributions), None)
    if top is None or not top.beyond_chance or top.share_reference is None or top.share_current is None:
        return ""
    value = f"{top.attribute} = {top.value}"
    if top.p_within is not None and (top.p_share is None or top.p_within < top.p_share):
        return f" Images of {value} look other than they did."
    return f" Most of it sits in {value}: {top.share_reference:.0%} of the reference, {top.share_current:.0%} now."
