"""How much a change costs: performance lost since the reference, realised where labels exist, estimated elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from scipy.stats import norm

from monitor.assumptions import check_assumptions
from monitor.calibration import fit_platt
from monitor.cohorts import Cohort, Window
from monitor.expected import measure_expected, measure_known
from monitor.intervals import Difference, Estimate, Floats, Form, Measured, draw_both
from monitor.measures import Answers, Basis, answers_of, describe, estimate
from monitor.policies import DriftPolicy
from monitor.reconciliation import EstimationError, past_error
from monitor.results import Harm, Source

HARM_MEASURES = ("auroc", "sensitivity", "specificity", "accuracy")
MINIMUM_EACH_CLASS = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compared:
    """One measure before and now, and what was lost between."""

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
    minus current; its interval counts patients, those seen on both sides together, and for an estimate also what
    the estimator's errors in ``history`` were beyond sampling; it is about the loss in the population, and leaves out
    by how much the labels of these few studies will differ from it. A loss is sure where its interval lies above 0 also
    at the level that all losses of a source share (Bonferroni). A row that cannot be computed stays, with its reason.
    ``n`` counts the studies the current figure rests on; ``assumptions`` names what an estimate rests on and
    that does not seem to hold.
    """
    counts, first, second = draw_both(reference.patient_key, current.patient_key, policy.resamples, generator)
    harms: list[tuple[str, str, Source, Compared, float]] = []
    doubts: dict[str, tuple[str, ...]] = {}
    for before, now in zip(answers_of(reference, first), answers_of(current, second), strict=True):
        realised = compare_realised(before, now, counts, policy.minimum_patients)
        estimated = compare_estimated(before, now, counts.shape[1], policy.minimum_patients)
        doubts[now.finding] = check_assumptions(before, now, _differences(realised, estimated))
        for name in HARM_MEASURES:
            harms.append((name, now.finding, Source.REALISED, realised[name], 0.0))
            error = past_error(history, name, now.finding)
            harms.append((name, now.finding, Source.ESTIMATED, estimated[name], error))
    return tuple(
        _write(*harm, window=window, levels=_levels(harms, source, policy), doubts=doubts)
        for source in Source
        for harm in harms
        if harm[2] is source
    )


def _levels(
    harms: Sequence[tuple[str, str, Source, Compared, float]], source: Source, policy: DriftPolicy
) -> tuple[float, float]:
    """Give the level of the interval shown, and the stricter one at which a loss is sure."""
    measured = sum(compared.loss.value is not None for _, _, whence, compared, _ in harms if whence is source)
    return policy.level, 1 - (1 - policy.level) / max(measured, 1)


def _differences(realised: Mapping[str, Compared], estimated: Mapping[str, Compared]) -> dict[str, tuple[float, float]]:
    """Give, where both are known, what labels show beyond the estimate, with its standard error."""
    found: dict[str, tuple[float, float]] = {}
    for name in HARM_MEASURES:
        truth, guess = realised[name], estimated[name]
        if truth.loss.value is not None and guess.loss.value is not None:
            variance = sum(side.spread**2 for side in (truth.before, truth.now, guess.now))
            found[name] = truth.loss.value - guess.loss.value, float(np.sqrt(variance))
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
    patients = current.carrying(Basis.LABELLED).count_patients()
    if 0 < patients < minimum_patients:
        reason = f"{patients} labelled patients, {minimum_patients} are needed"
        now = {name: _absent(figure, reason) for name, figure in now.items()}
    return {
        name: Compared(before=before[name], now=now[name], loss=Difference(first=before[name], second=now[name]))
        for name in HARM_MEASURES
    }


def compare_estimated(
    reference: Answers, current: Answers, patients: int, minimum_patients: int
) -> dict[str, Compared]:
    """Compare the measures of one finding without the labels of the window.

    Each score becomes the chance of a positive by Platt scaling on the labelled reference, and every measure its
    expectation over those chances (``monitor.expected``). The same estimate on the reference itself gives the loss,
    so that a poor fit of the calibration cancels; the current figure is the realised reference minus that loss.
    """
    known = reference.carrying(Basis.LABELLED)
    reason = _explain_impossible(known, current, minimum_patients)
    if reason:
        return {name: _impossible(known, name, reason) for name in HARM_MEASURES}
    fit = fit_platt(known.scores, known.labels)
    compared: dict[str, Compared] = {}
    sides = [measure_expected(side, HARM_MEASURES, fit, known, patients) for side in (known, current)]
    answered = current.count_patients()
    for name in HARM_MEASURES:
        realised = measure_known(known, name, patients)
        before, now = (side[name] for side in sides)
        figure = describe(known, name, realised.value)
        fewest = min(figure.patients, answered)
        expected = [
            replace(
                figure,
                value=side.value,
                form=Form.LOGIT,
                studies=len(current.scores),
                patients=fewest,
                standard_error=side.standard_error,
            )
            for side in (before, now)
        ]
        shown = realised - (before - now)
        compared[name] = Compared(
            before=replace(figure, standard_error=realised.standard_error),
            now=replace(expected[1], value=min(max(shown.value, 0.0), 1.0), standard_error=shown.standard_error),
            loss=Difference(first=expected[0], second=expected[1], correlation=before.correlation(now)),
        )
    return compared


def _impossible(known: Answers, name: str, reason: str) -> Compared:
    figure = describe(known, name, measure_known(known, name, int(known.patients.max(initial=0)) + 1).value)
    absent = _absent(figure, reason)
    return Compared(before=figure, now=absent, loss=absent)


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


def _write(  # noqa: PLR0913 - a row of a table
    name: str,
    finding: str,
    source: Source,
    compared: Compared,
    error: float,
    *,
    window: Window,
    levels: tuple[float, float],
    doubts: Mapping[str, tuple[str, ...]],
) -> Harm:
    """Write a loss down; ``levels`` are that of the interval shown and the stricter one at which a loss is sure."""
    (low, high), (least, most) = (_widen(compared.loss, level, error) for level in levels)
    estimated = source is Source.ESTIMATED and compared.loss.value is not None
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
        past_error=error,
        assumptions=doubts[finding] if estimated else (),
    )


def _widen(loss: Measured, level: float, error: float) -> tuple[float | None, float | None]:
    """Bound a loss, its distance to each bound lengthened at right angles by the estimator's own past error."""
    low, high = loss.interval(level)
    if loss.value is None or low is None or high is None or not error:
        return low, high
    reach = float(norm.ppf(0.5 + level / 2)) * error
    return loss.value - float(np.hypot(loss.value - low, reach)), loss.value + float(np.hypot(high - loss.value, reach))


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
