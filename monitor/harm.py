"""How much a change costs: performance lost since the reference, realised where labels exist, estimated elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from scipy.special import expit, logit

from monitor.cohorts import Cohort, Window
from monitor.intervals import Difference, Estimate, Floats, Form, Measured, draw_both, replicate
from monitor.measures import Answers, Basis, answers_of, compute_all, estimate
from monitor.performance import count_labelled, report_metric
from monitor.policies import DriftPolicy
from monitor.results import Evaluation, Harm, Source

HARM_MEASURES = ("auroc", "sensitivity", "specificity", "accuracy")
MINIMUM_EACH_CLASS = 5
EDGE = 1e-6
"""Scores are held this far from 0 and 1 before their logit is taken."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compared:
    """One measure before and now, and what was lost between."""

    before: Estimate
    now: Estimate
    loss: Measured


def measure_harm(
    reference: Cohort, current: Cohort, *, window: Window, policy: DriftPolicy, generator: Generator
) -> tuple[Harm, ...]:
    """Measure what each finding lost since the reference: AUROC, sensitivity, specificity and accuracy.

    First as realised by the labels of the window, then as estimated without them. Loss is reference
    minus current; its interval resamples patients, those seen on both sides together. A loss is sure
    where its interval lies above 0 also at the level that all losses of a source share (Bonferroni). A row
    that cannot be computed stays, with its reason. ``n`` counts the studies the current figure rests on.
    """
    counts, first, second = draw_both(reference.patient_key, current.patient_key, policy.resamples, generator)
    pairs = list(zip(answers_of(reference, first), answers_of(current, second), strict=True))
    harms: list[Harm] = []
    for source, compare in ((Source.REALISED, compare_realised), (Source.ESTIMATED, compare_estimated)):
        found = [
            (name, now.finding, compared)
            for before, now in pairs
            for name, compared in compare(before, now, counts, policy.minimum_patients).items()
        ]
        measured = sum(compared.loss.value is not None for _, _, compared in found)
        strict = 1 - (1 - policy.level) / max(measured, 1)
        levels = policy.level, strict
        harms += [
            _write(name, compared, finding=finding, source=source, window=window, levels=levels)
            for name, finding, compared in found
        ]
    return tuple(harms)


def headline_harm(harms: Sequence[Harm]) -> Harm | None:
    """Pick the loss to name first: of the realised ones that are sure the surest, else the AUROC's; None if neither.

    A loss is the surer the farther its interval lies above 0.
    """
    realised = [harm for harm in harms if harm.source is Source.REALISED and harm.low is not None]
    sure = [harm for harm in realised if harm.sure]
    return max(sure, key=lambda harm: harm.low or 0.0, default=next((h for h in realised if h.metric == "auroc"), None))


def estimate_performance(
    cohort: Cohort, *, reference: Cohort, name: str, model_version: str, policy: DriftPolicy, generator: Generator
) -> Evaluation:
    """Estimate, without labels, how well a model does on a cohort, from scores calibrated on a labelled reference.

    It holds as long as a calibrated score means what it meant in the reference: it sees harm by
    other cases, not by another relation between image and truth (concept drift).
    """
    counts, first, second = draw_both(reference.patient_key, cohort.patient_key, policy.resamples, generator)
    pairs = zip(answers_of(reference, first), answers_of(cohort, second), strict=True)
    metrics = [
        report_metric(measure, now.finding, compared.now, policy.level)
        for before, now in pairs
        for measure, compared in compare_estimated(before, now, counts, policy.minimum_patients).items()
    ]
    return Evaluation(
        model_version=model_version,
        cohort=name,
        source=Source.ESTIMATED,
        n=len(cohort),
        patients=cohort.patients,
        n_labelled=count_labelled(cohort),
        metrics=tuple(metrics),
    )


def compare_realised(
    reference: Answers, current: Answers, counts: Floats, minimum_patients: int
) -> dict[str, Compared]:
    """Compare the measures of one finding by the labels of both sides."""
    before, now = (estimate(answers, HARM_MEASURES, counts) for answers in (reference, current))
    patients = current.carrying(Basis.LABELLED).count_patients()
    if 0 < patients < minimum_patients:
        reason = f"{patients} labelled patients, {minimum_patients} are needed"
        now = {name: _absent(figure, reason) for name, figure in now.items()}
    return {
        name: Compared(before=before[name], now=now[name], loss=Difference(first=before[name], second=now[name]))
        for name in HARM_MEASURES
    }


def compare_estimated(
    reference: Answers, current: Answers, counts: Floats, minimum_patients: int
) -> dict[str, Compared]:
    """Compare the measures of one finding without the labels of the window.

    Confidence-based estimation (CBPE): each score becomes the probability of a positive by Platt
    scaling on the labelled reference, and every measure its value over those probabilities. The same
    estimate on the reference itself gives the loss, so that a poor fit of the calibration cancels;
    the current figure is the realised reference minus that loss. Each resample calibrates anew.
    """
    known = reference.carrying(Basis.LABELLED)
    realised = estimate(known, HARM_MEASURES, counts)
    reason = _explain_impossible(known, current, minimum_patients)
    if reason:
        return {
            name: Compared(before=figure, now=_absent(figure, reason), loss=_absent(figure, reason))
            for name, figure in realised.items()
        }
    values = _expected_values(known, current, counts)
    compared: dict[str, Compared] = {}
    for name, figure, (before, now) in zip(HARM_MEASURES, realised.values(), values, strict=True):
        studies, patients = len(current.scores), min(figure.patients, current.count_patients())
        expected = [
            replace(
                figure, value=float(side[0]), replicates=side[1:], form=Form.LOGIT, studies=studies, patients=patients
            )
            for side in (before, now)
        ]
        shown = np.clip(np.append(figure.value or 0.0, figure.replicates) - (before - now), 0, 1)
        compared[name] = Compared(
            before=figure,
            now=replace(expected[1], value=float(shown[0]), replicates=shown[1:]),
            loss=Difference(first=expected[0], second=expected[1]),
        )
    return compared


def fit_calibration(scores: Floats, labels: Floats, weights: Floats, start: Floats | None = None) -> Floats:
    """Fit Platt scaling under each weighting; shape (b, 2): intercept and slope over the logit of the score.

    ``scores`` (n,), ``labels`` (n,) of 0 and 1, ``weights`` (b, n). Platt's targets (1999),
    (N⁺+1)/(N⁺+2) and 1/(N⁻+2), keep the fit finite when the classes are separated. Newton's method
    to convergence, or, given a ``start`` (2,) that all weightings share, two steps from it: enough
    for the resamples of a bootstrap (Davidson and MacKinnon 1999).
    """
    x = _logit(scores)
    yes = weights @ labels
    no = weights.sum(axis=1) - yes
    target = np.where(labels == 1, ((yes + 1) / (yes + 2))[:, None], (1 / (no + 2))[:, None])
    fitted = np.zeros((len(weights), 2)) if start is None else np.tile(start, (len(weights), 1))
    for _ in range(100 if start is None else 2):
        step = _newton_step(x, target, weights, fitted)
        fitted = fitted + step
        if np.abs(step).max() < 1e-10:
            break
    return fitted


def apply_calibration(fitted: Floats, scores: Floats) -> Floats:
    """Turn scores (n,) into probabilities of a positive under each fit (b, 2); shape (b, n)."""
    return np.asarray(expit(fitted[:, :1] + fitted[:, 1:] * _logit(scores)))


def _expected_values(reference: Answers, current: Answers, counts: Floats) -> Floats:
    """Expect each measure on both sides; shape (measures, 2, 1 + b), first without resampling."""
    once = np.ones((1, counts.shape[1]))
    start = fit_calibration(reference.scores, reference.labels, once[:, reference.patients])[0]

    def measure(*weights: Floats) -> Floats:
        fitted = fit_calibration(reference.scores, reference.labels, weights[0], start)
        sides = [replace(answers, labels=apply_calibration(fitted, answers.scores)) for answers in (reference, current)]
        return np.stack(
            [compute_all(side, HARM_MEASURES)(heavy) for side, heavy in zip(sides, weights, strict=True)], axis=2
        )

    values = replicate(measure, np.concatenate([once, counts]), reference.patients, current.patients)
    return np.moveaxis(values, 0, 2)


def _newton_step(x: Floats, target: Floats, weights: Floats, fitted: Floats) -> Floats:
    said = expit(fitted[:, :1] + fitted[:, 1:] * x)
    pull, curve = weights * (target - said), weights * said * (1 - said)
    uphill, slope = pull.sum(axis=1), pull @ x
    flat, mixed, steep = curve.sum(axis=1), curve @ x, curve @ x**2
    ridge = 1e-9 * (flat + steep) + 1e-12
    flat, steep = flat + ridge, steep + ridge
    determinant = flat * steep - mixed**2
    step = np.stack([steep * uphill - mixed * slope, flat * slope - mixed * uphill], axis=1) / determinant[:, None]
    farthest = np.abs(step[:, :1] + step[:, 1:] * np.array([x.min(), x.max()])).max(axis=1)
    return np.asarray(step * np.minimum(1, 4 / np.maximum(farthest, 4))[:, None])


def _logit(scores: Floats) -> Floats:
    return np.asarray(logit(np.clip(scores, EDGE, 1 - EDGE)))


def _absent(figure: Estimate, reason: str) -> Estimate:
    return replace(figure, value=None, reason=figure.reason or reason)


def _explain_impossible(reference: Answers, current: Answers, minimum_patients: int) -> str:
    for side in (Basis.POSITIVE, Basis.NEGATIVE):
        patients = reference.carrying(side).count_patients()
        if patients < MINIMUM_EACH_CLASS:
            return (
                f"scores cannot be calibrated: {patients} labelled {side} patients in the reference, "
                f"{MINIMUM_EACH_CLASS} are needed"
            )
    patients = current.count_patients()
    return f"{patients} patients, {minimum_patients} are needed" if patients < minimum_patients else ""


def _write(
    name: str, compared: Compared, *, finding: str, source: Source, window: Window, levels: tuple[float, float]
) -> Harm:
    """Write a loss down; ``levels`` are that of the interval shown and the stricter one at which a loss is sure."""
    (low, high), (least, most) = (compared.loss.interval(level) for level in levels)
    return Harm(
        window=window,
        metric=name,
        finding=finding,
        source=source,
        reference=compared.before.value,
        current=compared.now.value,
        loss=compared.loss.value,
        low=low,
        high=high,
        level=levels[0],
        sure=least is not None and least > 0,
        n=compared.now.studies,
        reason=_say(compared, least, most, source),
    )


def _say(compared: Compared, low: float | None, high: float | None, source: Source) -> str:
    if compared.before.reason:
        return f"reference: {compared.before.reason}"
    if compared.now.reason:
        return f"window: {compared.now.reason}"
    if low is None or high is None:
        return "one patient alone gives no interval"
    change = "worse than in the reference" if low > 0 else "better than in the reference" if high < 0 else ""
    caveat = ", if scores still mean what they meant there" if source is Source.ESTIMATED else ""
    return (change or "no sure change from the reference") + caveat
