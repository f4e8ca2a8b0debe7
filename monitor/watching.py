"""Watch one window: every comparison, corrected together, and one verdict in a plain sentence."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.attribution import attribute_drift
from monitor.cohorts import Cohort, Window
from monitor.detectors import NotEnoughData, Outcome, Sample, compare, is_constant
from monitor.harm import headline_harm, measure_harm
from monitor.multiplicity import holm_thresholds
from monitor.performance import evaluate
from monitor.policies import DriftPolicy
from monitor.results import DriftKind, DriftResult, Verdict, WindowReport
from monitor.subgroups import measure_gaps

Tell = Callable[[str], None]
CONSTANT = "every study of the window has the same embedding: is preprocessing upstream broken?"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Question:
    """One comparison to be made: a detector on a feature of both sides."""

    detector: str
    kind: DriftKind
    feature: str
    reference: Sample
    current: Sample


def watch_window(  # noqa: PLR0913 - a visit needs both sides, whose they are, and the rules
    reference: Cohort,
    current: Cohort,
    *,
    model: str,
    model_version: str,
    window: Window,
    policy: DriftPolicy,
    progress: Tell = lambda what: None,
) -> WindowReport:
    """Compare a window with the reference: drift of every kind, performance, gaps, harm and attribution.

    All p-values of the window are corrected together (Holm), so that ``policy.drift_alpha(window)`` is the
    false-alarm probability of the whole window. The same cohorts and policy give the same report.
    """
    generator = np.random.default_rng([policy.seed, int(hashlib.sha256(window.key.encode()).hexdigest()[:8], 16)])
    results = _detect(reference, current, window, policy, generator, progress)
    progress("performance")
    evaluation = evaluate(current, name=window.key, model_version=model_version, policy=policy, generator=generator)
    progress("subgroups")
    gaps = measure_gaps(reference, current, window=window, policy=policy, generator=generator)
    progress("harm")
    harms = measure_harm(reference, current, window=window, policy=policy, generator=generator)
    contributions = attribute_drift(reference, current, window=window)
    report = WindowReport(
        model=model,
        window=window,
        verdict=headline_verdict(results),
        reason="",
        n=len(current),
        patients=current.patients,
        n_labelled=int(current.labelled.sum()),
        results=results,
        evaluations=(evaluation,),
        gaps=gaps,
        harms=harms,
        contributions=contributions,
    )
    return replace(report, reason=_sentence(report))


def headline_verdict(results: Sequence[DriftResult]) -> Verdict:
    """Say DRIFT if any comparison does, NOT_ENOUGH_DATA if none could be made, else NO_DRIFT."""
    verdicts = {result.verdict for result in results}
    if Verdict.DRIFT in verdicts:
        return Verdict.DRIFT
    return Verdict.NO_DRIFT if Verdict.NO_DRIFT in verdicts else Verdict.NOT_ENOUGH_DATA


def _detect(
    reference: Cohort,
    current: Cohort,
    window: Window,
    policy: DriftPolicy,
    generator: np.random.Generator,
    progress: Tell,
) -> tuple[DriftResult, ...]:
    questions = list(_questions(reference, current, policy))
    answers: list[Outcome | str] = []
    alpha = policy.drift_alpha(window)
    # Holm's first step needs p-values below alpha / m, which so many permutations can reach.
    enough = max(policy.permutations, math.ceil(5 * len(questions) / alpha))
    for question in questions:
        progress(f"{question.detector} on {question.feature}")
        answers.append(_answer(question, enough, policy, generator))
    outcomes = [answer for answer in answers if isinstance(answer, Outcome)]
    thresholds = iter(holm_thresholds([outcome.p_value for outcome in outcomes], alpha))
    return tuple(
        _judge(question, answer, next(thresholds), window, policy)
        if isinstance(answer, Outcome)
        else _no_answer(question, answer, window, policy)
        for question, answer in zip(questions, answers, strict=True)
    )


def _questions(reference: Cohort, current: Cohort, policy: DriftPolicy) -> Iterator[_Question]:
    def ask(detector: str, kind: DriftKind, feature: str, before: NDArray[Any], now: NDArray[Any]) -> _Question:
        return _Question(
            detector=detector,
            kind=kind,
            feature=feature,
            reference=_known(before, reference.patient_key),
            current=_known(now, current.patient_key),
        )

    if reference.embeddings is not None or current.embeddings is not None:
        for name in policy.embedding_detectors:
            if policy.alibi_detect or not name.startswith("alibi_"):
                yield _Question(
                    detector=name,
                    kind=DriftKind.APPEARANCE,
                    feature="embedding",
                    reference=_embedded(reference),
                    current=_embedded(current),
                )
    for name, column_now in current.image_statistics.items():
        if name in reference.image_statistics:
            yield ask("ks", DriftKind.APPEARANCE, f"image {name}", reference.image_statistics[name], column_now)
    for column, finding in enumerate(current.findings):
        sides = reference.scores[:, column], current.scores[:, column]
        yield ask(policy.score_detector, DriftKind.BEHAVIOUR, f"score {finding}", *sides)
    uncertainties = _entropy(reference.scores), _entropy(current.scores)
    yield ask(policy.score_detector, DriftKind.BEHAVIOUR, "uncertainty", *uncertainties)
    for name, column_now in current.attributes.items():
        if name in reference.attributes and (not policy.acquisition or name in policy.acquisition + policy.case_mix):
            kind = DriftKind.CASE_MIX if name in policy.case_mix else DriftKind.ACQUISITION
            detector = "ks" if column_now.dtype.kind == "f" else "chi_square"
            yield ask(detector, kind, name, reference.attributes[name], column_now)
    labels = reference.binary_labels(), current.binary_labels()
    for column, finding in enumerate(current.findings):
        if not np.isnan(labels[1][:, column]).all():
            sides = labels[0][:, column], labels[1][:, column]
            yield ask("chi_square", DriftKind.CASE_MIX, f"prevalence {finding}", *sides)


def _known(values: NDArray[Any], patients: NDArray[np.str_]) -> Sample:
    """Leave out rows whose value is not known (yet)."""
    if values.dtype.kind == "f":
        known = ~np.isnan(values)
        return Sample(values=values[known], patients=patients[known])
    return Sample(values=values, patients=patients)


def _embedded(cohort: Cohort) -> Sample:
    """Give the embeddings; no rows for a cohort without images, so that its comparison answers NOT_ENOUGH_DATA."""
    if cohort.embeddings is None:
        return Sample(values=np.empty((0, 0)), patients=cohort.patient_key[:0])
    return Sample(values=cohort.embeddings.astype(np.float64), patients=cohort.patient_key)


def _entropy(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean binary entropy of each study's scores, in bits."""
    p = np.clip(scores, 1e-12, 1 - 1e-12)
    return np.asarray(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)).mean(axis=1))


def _answer(
    question: _Question, permutations: int, policy: DriftPolicy, generator: np.random.Generator
) -> Outcome | str:
    for side, sample in (("reference", question.reference), ("window", question.current)):
        if (patients := len(np.unique(sample.patients))) < policy.minimum_patients:
            return f"{patients} patients in the {side}, {policy.minimum_patients} needed"
    try:
        return compare(
            question.detector, question.reference, question.current, permutations=permutations, generator=generator
        )
    except NotEnoughData as error:
        return str(error)


def _judge(question: _Question, outcome: Outcome, threshold: float, window: Window, policy: DriftPolicy) -> DriftResult:
    significant = outcome.p_value <= threshold
    large = outcome.effect >= policy.minimum_effect
    told = f"{outcome.effect_name} {outcome.effect:.3f}, p = {outcome.p_value:.2g}"
    if significant and not large:
        told += f": surely there, but smaller than {policy.minimum_effect:g}, the least that counts"
    return _result(
        question,
        window,
        policy,
        verdict=Verdict.DRIFT if significant and large else Verdict.NO_DRIFT,
        statistic=outcome.statistic,
        effect=outcome.effect,
        effect_name=outcome.effect_name,
        p_value=outcome.p_value,
        threshold=threshold,
        reason=told + _remark(question),
    )


def _no_answer(question: _Question, reason: str, window: Window, policy: DriftPolicy) -> DriftResult:
    return _result(
        question,
        window,
        policy,
        verdict=Verdict.NOT_ENOUGH_DATA,
        statistic=None,
        effect=None,
        effect_name="",
        p_value=None,
        threshold=policy.drift_alpha(window),
        reason=reason,
    )


def _result(question: _Question, window: Window, policy: DriftPolicy, **figures: Any) -> DriftResult:
    reference, current = question.reference, question.current
    return DriftResult(
        window=window,
        detector=question.detector,
        kind=question.kind,
        feature=question.feature,
        n_reference=len(reference),
        n_current=len(current),
        patients_reference=len(np.unique(reference.patients)),
        patients_current=len(np.unique(current.patients)),
        least_effect=policy.minimum_effect,
        **figures,
    )


def _remark(question: _Question) -> str:
    """Say what a person should know beside the figures: everything alike, or a category that is new."""
    if is_constant(question.current):
        return f"; {CONSTANT}"
    if question.current.values.dtype.kind not in "US":
        return ""
    new = np.setdiff1d(question.current.values, question.reference.values)
    return f"; never seen in the reference: {', '.join(map(str, new[:5]))}" if len(new) else ""


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
    changed = f"Changed: {', '.join(kinds)} ({', '.join(features)}).{alike}"
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
    if not report.contributions:
        return ""
    top = report.contributions[0]
    return (
        f" Most of it sits in {top.attribute} = {top.value}: "
        f"{top.share_reference:.0%} of the reference, {top.share_current:.0%} now."
    )
