"""How much a change costs: performance lost since the reference, realised where labels exist, estimated elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from scipy.stats import norm

from monitor.assumptions import check_assumptions, tell_unseen_images
from monitor.calibration import LogisticFit, fit_platt
from monitor.cohorts import Cohort, Window
from monitor.expected import (
    Expected,
    Ordered,
    measure_alikeness,
    measure_expected,
    measure_known,
    vary_from_truth,
)
from monitor.intervals import Difference, Estimate, Floats, Form, Measured, draw_both
from monitor.measures import Answers, Basis, answers_of, describe, estimate
from monitor.policies import DriftPolicy
from monitor.reconciliation import EstimationError, PastError, past_error, vary_by_sampling
from monitor.results import Harm, Source

HARM_MEASURES = ("auroc", "sensitivity", "specificity", "accuracy")
MINIMUM_EACH_CLASS = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compared:
    """One measure before and now, and what was lost between.

    The error of an estimate ``now`` is that about what the labels of the same studies will show.
    """

    before: Estimate
    now: Estimate
    loss: Measured


def measure_harm(
    reference: Cohort,
    current: Cohort,
    *,
    window: Window,
    policy: DriftPolicy,
    generator: Generator,
    history: Sequence[EstimationError] = (),
) -> tuple[Harm, ...]:
    """Measure what each finding lost since the reference: AUROC, sensitivity, specificity and accuracy.

    First as realised by the labels of the window, then as estimated without them. Loss is reference
    minus current; its interval is about the loss in the population, and counts patients, those seen on both sides
    together. A loss is sure where its interval lies above 0 also at the level that all losses of a source share
    (Bonferroni). The interval of an estimated current figure is another: it says where the labels of these studies will
    put it once they come, with the scatter of the labels themselves. One interval for both would hide nearly every
    loss, as a hundred labels scatter more than what is estimated. Both contain what the estimator's errors in
    ``history`` were beyond sampling. A row that cannot be computed stays, with its reason. ``n`` counts the studies
    the current figure rests on; ``assumptions`` names what an estimate rests on and that does not seem to hold.
    """
    counts, first, second = draw_both(reference.patient_key, current.patient_key, policy.resamples, generator)
    harms: list[tuple[str, str, Source, Compared, PastError]] = []
    doubts: dict[str, tuple[str, ...]] = {}
    unseen = tell_unseen_images(reference, current, generator.spawn(1)[0])
    for before, now in zip(answers_of(reference, first), answers_of(current, second), strict=True):
        realised = compare_realised(before, now, counts, policy.minimum_patients)
        estimated, fit = compare_estimated(before, now, counts.shape[1], policy.minimum_patients)
        labelled = now.count_studies(Basis.LABELLED) / max(len(now.scores), 1)
        found = check_assumptions(before, now, _differences(realised, estimated, labelled), fit)
        doubts[now.finding] = (unseen, *found) if unseen else found
        for name in HARM_MEASURES:
            harms.append((name, now.finding, Source.REALISED, realised[name], PastError()))
            harms.append((name, now.finding, Source.ESTIMATED, estimated[name], past_error(history, name, now.finding)))
    return tuple(
        _write(*harm, window=window, levels=_levels(harms, source, policy), doubts=doubts)
        for source in Source
        for harm in harms
        if harm[2] is source
    )


def _levels(
    harms: Sequence[tuple[str, str, Source, Compared, PastError]], source: Source, policy: DriftPolicy
) -> tuple[float, float]:
    """Give the level of the interval shown, and the stricter one at which a loss is sure."""
    measured = sum(compared.loss.value is not None for _, _, whence, compared, _ in harms if whence is source)
    return policy.level, 1 - (1 - policy.level) / max(measured, 1)


def _differences(
    realised: Mapping[str, Compared], estimated: Mapping[str, Compared], labelled: float
) -> dict[str, tuple[float, float]]:
    """Give, where both are known, what labels show beyond the estimate, with its standard error."""
    found: dict[str, tuple[float, float]] = {}
    for name in HARM_MEASURES:
        truth, guess = realised[name], estimated[name]
        if truth.now.value is not None and guess.now.value is not None:
            variance = vary_by_sampling(guess.now.spread, truth.now.spread, 1 - labelled)
            found[name] = guess.now.value - truth.now.value, math.sqrt(variance)
    return found


def headline_harm(harms: Sequence[Harm]) -> Harm | None:
    """Pick the loss to name first: of the realised ones that are sure the surest, else the AUROC's; None if neither.

    A loss is the surer the farther its interval lies above 0.
    """
    realised = [harm for harm in harms if harm.source is Source.REALISED and harm.low is not None]
    sure = [harm for harm in realised if harm.sure]
    return max(sure, key=lambda harm: harm.low or 0.0, default=next((h for h in realised if h.metric == "auroc"), None))


def compare_realised(
    reference: Answers, current: Answers, counts: Floats, minimum_patients: int
) -> dict[str, Compared]:
    """Compare the measures of one finding by the labels of both sides."""
    before, now = (estimate(answers, HARM_MEASURES, counts) for answers in (reference, current))
    patients = current.count_patients(Basis.LABELLED)
    if 0 < patients < minimum_patients:
        reason = f"{patients} labelled patients, {minimum_patients} are needed"
        now = {name: _absent(figure, reason) for name, figure in now.items()}
    return {
        name: Compared(before=before[name], now=now[name], loss=Difference(first=before[name], second=now[name]))
        for name in HARM_MEASURES
    }


def compare_estimated(
    reference: Answers, current: Answers, patients: int, minimum_patients: int
) -> tuple[dict[str, Compared], LogisticFit | None]:
    """Compare the measures of one finding without the labels of the window; also the calibration this rests on.

    Each score becomes the chance of a positive by Platt scaling on the labelled reference, and every measure its
    expectation over those chances (``monitor.expected``). The same estimate on the reference itself gives the loss,
    so that a poor fit of the calibration cancels; the current figure is the realised reference minus that loss.
    """
    known = reference.carrying(Basis.LABELLED)
    reason = _explain_impossible(known, current, minimum_patients)
    if reason:
        return {name: _impossible(known, name, reason) for name in HARM_MEASURES}, None
    fit, ordered = fit_platt(known.scores, known.labels), Ordered.of(known)
    realised = measure_known(ordered, HARM_MEASURES, patients)
    before = measure_expected(ordered, HARM_MEASURES, fit, known, patients)
    alike = measure_alikeness(known, fit)
    now = measure_expected(Ordered.of(current), HARM_MEASURES, fit, known, patients, alike=alike)
    return {
        name: _foresee(describe(known, name, realised[name].value), realised[name], before[name], now[name], current)
        for name in HARM_MEASURES
    }, fit


def _foresee(figure: Estimate, realised: Expected, before: Expected, now: Expected, current: Answers) -> Compared:
    """Set an estimated figure beside the reference's, with two errors: about the population, and about labels to come.

    The loss is about the population, by both sides' expectations; the figure now is about the labels of these studies.
    """
    if figure.value is None:
        return Compared(before=figure, now=figure, loss=figure)
    seen = replace(figure, studies=len(current.scores), patients=min(figure.patients, current.count_patients()))
    first, second = (
        replace(seen, value=side.value, form=Form.LOGIT, standard_error=side.standard_error) for side in (before, now)
    )
    shown = figure.value - (before.value - now.value)
    error = float(np.sqrt(vary_from_truth(realised, before, now)))
    return Compared(
        before=figure,
        now=replace(seen, value=min(max(shown, 0.0), 1.0), form=Form.NORMAL, standard_error=error),
        loss=Difference(first=first, second=second, correlation=before.correlation(now)),
    )


def _impossible(known: Answers, name: str, reason: str) -> Compared:
    patients = int(known.patients.max(initial=0)) + 1
    figure = describe(known, name, measure_known(Ordered.of(known), (name,), patients)[name].value)
    absent = _absent(figure, reason)
    return Compared(before=figure, now=absent, loss=absent)


def _absent(figure: Estimate, reason: str) -> Estimate:
    return replace(figure, value=None, reason=figure.reason or reason)


def _explain_impossible(reference: Answers, current: Answers, minimum_patients: int) -> str:
    for side in (Basis.POSITIVE, Basis.NEGATIVE):
        patients = reference.count_patients(side)
        if patients < MINIMUM_EACH_CLASS:
            return (
                f"scores cannot be calibrated: {patients} labelled {side} patients in the reference, "
                f"{MINIMUM_EACH_CLASS} are needed"
            )
    patients = current.count_patients()
    return f"{patients} patients, {minimum_patients} are needed" if patients < minimum_patients else ""


def _write(  # noqa: PLR0913 - a row of a table
    name: str,
    finding: str,
    source: Source,
    compared: Compared,
    error: PastError,
    *,
    window: Window,
    levels: tuple[float, float],
    doubts: Mapping[str, tuple[str, ...]],
) -> Harm:
    """Write a loss down; ``levels`` are that of the interval shown and the stricter one at which a loss is sure."""
    (low, high), (least, most) = (_widen(compared.loss, level, error.size) for level in levels)
    estimated, now = source is Source.ESTIMATED and compared.loss.value is not None, compared.now
    spread = None if now.value is None else now.spread
    bounds = now.interval(levels[0]) if not estimated else _reach(now, levels[0], error)
    return Harm(
        window=window,
        metric=name,
        finding=finding,
        source=source,
        reference=compared.before.value,
        current=now.value,
        current_low=bounds[0],
        current_high=bounds[1],
        current_error=spread,
        loss=compared.loss.value,
        low=low,
        high=high,
        level=levels[0],
        sure=least is not None and least > 0,
        n=now.studies,
        reason=_say(compared, least, most, source),
        past_error=error.size,
        assumptions=doubts[finding] if estimated else (),
    )


def _widen(loss: Measured, level: float, error: float) -> tuple[float | None, float | None]:
    """Bound a loss, its distance to each bound lengthened at right angles by the estimator's own past error."""
    low, high = loss.interval(level)
    if loss.value is None or low is None or high is None or not error:
        return low, high
    reach = float(norm.ppf(0.5 + level / 2)) * error
    return loss.value - float(np.hypot(loss.value - low, reach)), loss.value + float(np.hypot(high - loss.value, reach))


def _reach(now: Estimate, level: float, error: PastError) -> tuple[float | None, float | None]:
    """Bound the figure that labels will show, past error included.

    Where there are past errors they are what is known of its spread: Student's t has as many degrees of freedom (as in
    the prediction intervals of Higgins, Thompson and Spiegelhalter 2009).
    """
    known = min(now.patients, error.windows + 1) if error.windows else now.patients
    low, high = replace(now, standard_error=math.hypot(now.spread, error.size), patients=known).interval(level)
    return (None, None) if low is None or high is None else (max(low, 0.0), min(high, 1.0))


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
