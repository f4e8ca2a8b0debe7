"""Watch one window: every comparison, corrected together, and one verdict in a plain sentence."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from monitor.asked_columns import GAPS
from monitor.attribution import attribute_drift
from monitor.cohorts import MISSING, Cohort, Window
from monitor.comparisons import Background, Question, answer, list_questions
from monitor.detectors import Outcome, Sample, is_constant
from monitor.examples import show_examples
from monitor.harm import measure_harm
from monitor.label_shift import estimate_prevalence
from monitor.multiplicity import holm_thresholds
from monitor.performance import evaluate
from monitor.policies import DriftPolicy
from monitor.results import DriftResult, Verdict, WindowReport
from monitor.sentences import CONSTANT, tell_report
from monitor.subgroups import measure_gaps
from monitor.suppression import suppress_report

EXAMPLES = 12
SCREEN = 0.1
"""P-value of a first look above which a comparison is plainly quiet."""

FEW_OR_NEARLY_ALL = ("few", "nearly all")
"""Shares that few patients would be counted by."""

Tell = Callable[[str], None]


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
        n_labels=int((~np.isnan(current.labels)).sum()),
        results=results,
        evaluations=(evaluation,),
        gaps=gaps,
        harms=harms,
        contributions=contributions,
        examples=examples,
        prevalences=prevalences,
    )
    # the reason is read far from the figures, in logs and mails: it never quotes a small cell
    return replace(report, reason=tell_report(suppress_report(report, policy.smallest_cell)))


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
            smallest=policy.smallest_cell,
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
    question: Question, outcome: Outcome | str, window: Window, *, threshold: float, least: float, smallest: int
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
        reason=outcome
        if isinstance(outcome, str)
        else _tell_outcome(outcome, threshold, least) + _remark(question, smallest),
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


def _remark(question: Question, smallest: int) -> str:
    """Say what a person should know beside the figures: all alike, more or less missing, or a category that is new.

    A new category of few patients is not named.
    """
    if is_constant(question.current):
        return f"; {CONSTANT}"
    remark = f"; {told}" if (told := _tell_missing(question, smallest)) else ""
    current = question.current
    if current.values.dtype.kind not in "US":
        return remark
    new = np.setdiff1d(current.values, [*question.reference.values, MISSING])
    counts = [_count_patients(current, current.values == value) for value in new]
    named = [str(value) for value, n in zip(new, counts, strict=True) if n >= smallest][:5]
    rest = [f"values of fewer than {smallest} patients"] if any(n < smallest for n in counts) else []
    return f"{remark}; never seen in the reference: {', '.join([*named, *rest])}" if len(new) else remark


def _tell_missing(question: Question, smallest: int) -> str:
    """Say how much is missing, where that is not the same share to a percent; a share of few patients is not told."""
    if question.missing is None:
        return ""
    before, now = (
        _tell_share(share, side, smallest)
        for share, side in zip(question.missing, (question.reference, question.current), strict=True)
    )
    feature = question.feature.removeprefix(GAPS)
    of = "" if now in FEW_OR_NEARLY_ALL else " of"
    return f"{feature} is missing in {now}{of} studies, {before} in the reference" if before != now else ""


def _tell_share(share: float, side: Sample, smallest: int) -> str:
    missing = side.values == MISSING
    if 0 < _count_patients(side, missing) < smallest:
        return FEW_OR_NEARLY_ALL[0]
    return FEW_OR_NEARLY_ALL[1] if 0 < _count_patients(side, ~missing) < smallest else f"{100 * share:.0f} %"


def _count_patients(side: Sample, rows: NDArray[np.bool_]) -> int:
    return len(np.unique(side.patients[rows]))
