"""What a measure would be if labels were known: its expectation over calibrated scores, and how sure that is.

Confidence-based estimation: each score becomes the chance of the finding by Platt scaling on a labelled reference, and
every measure its expectation over those chances. All figures are smooth functions of averages, so that the effect
of each study on each of them (its influence) gives standard errors in closed form, with patients as clusters,
whatever n is (Huber's sandwich; for areas DeLong's placements).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from monitor.calibration import LogisticFit, score_logit
from monitor.delong import Ranks, place_studies, rank_studies
from monitor.intervals import Floats
from monitor.measures import Answers, rate_parts

LEAST_REPEATED = 20
"""Patients with several labelled studies; fewer do not tell how alike labels of one patient are."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Expected:
    """A figure and the influence of every patient on it, (patients,), which sum to about 0.

    For an expectation, ``by_fit`` (patients,) is the part of the influence that comes through the calibration and
    remains when the scores are given, and ``label_variance`` is by how much labels will then scatter around it.
    """

    value: float
    influence: Floats
    by_fit: Floats
    label_variance: float = 0.0

    @property
    def standard_error(self) -> float:
        """Its standard error over patients."""
        return float(np.sqrt(covary(self.influence, self.influence)))

    def correlation(self, other: Expected) -> float:
        """Correlate two figures over the same patients."""
        scale = self.standard_error * other.standard_error
        return float(np.clip(covary(self.influence, other.influence) / scale, -1, 1)) if scale > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ordered:
    """Answers with the order of their scores, found once for every figure."""

    answers: Answers
    ranks: Ranks

    @classmethod
    def of(cls, answers: Answers) -> Ordered:
        """Sort once."""
        return cls(answers=answers, ranks=rank_studies(answers.scores))


def measure_known(side: Ordered, names: Sequence[str], patients: int) -> dict[str, Expected]:
    """Measure by known labels: auroc, sensitivity, specificity, accuracy; ``patients`` are all that are numbered."""
    found: dict[str, Expected] = {}
    for name in names:
        value, influence, _ = _influences(side, name)
        mine = _by_patient(influence, side.answers.patients, patients)
        found[name] = Expected(value=value, influence=mine, by_fit=np.zeros(1))
    return found


def measure_expected(
    side: Ordered, names: Sequence[str], fit: LogisticFit, fitted_on: Answers, patients: int, *, alike: float = 1.0
) -> dict[str, Expected]:
    """Expect measures over scores calibrated by a fit; the patients it was fitted on have their influence too.

    Args:
        side: whose scores are calibrated; its labels are not looked at.
        names: of the measures: auroc, sensitivity, specificity, accuracy.
        fit: the calibration, with the influence of each study of ``fitted_on``.
        fitted_on: the labelled studies of the reference.
        patients: all that both sides' ``patients`` number together.
        alike: how alike labels of one patient are, given scores (``measure_alikeness``).
    """
    logits, owners = score_logit(side.answers.scores), side.answers.patients
    chances = np.asarray(expit(fit.intercept + fit.slope * logits))
    calibrated, curve = replace(side, answers=replace(side.answers, labels=chances)), chances * (1 - chances)
    steep, noise = curve * logits, np.sqrt(curve)
    found: dict[str, Expected] = {}
    for name in names:
        value, influence, slopes = _influences(calibrated, name)
        pull = np.array([slopes @ curve, slopes @ steep])
        by_fit = _by_patient(fit.influences @ pull, fitted_on.patients, patients)
        found[name] = Expected(
            value=value,
            influence=_by_patient(influence, owners, patients) + by_fit,
            by_fit=by_fit,
            label_variance=_vary_labels(slopes * noise, owners, alike),
        )
    return found


def vary_from_truth(realised: Expected, before: Expected, now: Expected) -> float:
    """Give the variance of an estimate, ``realised`` minus ``before`` plus ``now``, about what labels will show.

    The estimate and the truth rest on the same studies: how their scores were drawn cancels, and what remains is
    the reference's luck and the scatter of the labels. Patients of both sides count as two.
    """
    luck = realised.influence - before.influence + now.by_fit
    return covary(luck, luck) + now.label_variance


def measure_alikeness(answers: Answers, fit: LogisticFit) -> float:
    """Correlate what the labels of one patient's studies show beyond their chances; 1 where too few tell.

    The mean product of residuals over all pairs of studies of a patient, over that of their standard deviations.
    ``answers`` are labelled.
    """
    chances = fit.apply(answers.scores)
    off, noise = answers.labels - chances, np.sqrt(chances * (1 - chances))
    if np.count_nonzero(np.bincount(answers.patients) > 1) < LEAST_REPEATED:
        return 1.0
    over, under = _multiply_pairs(off, answers.patients), _multiply_pairs(noise, answers.patients)
    return min(max(over / under, 0.0), 1.0) if under > 0 else 1.0


def covary(first: Floats, second: Floats) -> float:
    """Give the covariance of two figures from the influences (patients,) of the same patients."""
    carrying = int(np.count_nonzero(first if first is second else (first != 0) | (second != 0)))
    return float(np.vdot(first, second)) * carrying / max(carrying - 1, 1)


def _vary_labels(moves: Floats, patients: NDArray[np.intp], alike: float) -> float:
    """Give the variance of a sum over labels whose standard deviations move it so; alike within a patient."""
    return float(np.vdot(moves, moves)) + alike * _multiply_pairs(moves, patients)


def _multiply_pairs(values: Floats, patients: NDArray[np.intp]) -> float:
    """Add up the products over all pairs of different studies of one patient."""
    sums = np.bincount(patients, weights=values)
    return float(np.vdot(sums, sums)) - float(np.vdot(values, values))


def _influences(side: Ordered, name: str) -> tuple[float, Floats, Floats]:
    """Give a measure over labels or chances (n,), the influence of each study's weight, and of its label."""
    answers = side.answers
    if not len(answers.scores):
        return float("nan"), answers.scores, answers.scores
    if name == "auroc":
        placed = place_studies(side.ranks, answers.labels)
        with_it, without = placed.influences
        return placed.area, with_it + without, placed.slopes
    (yes, among_yes), (no, among_no) = rate_parts(answers, name)
    rise, grow = yes - no, among_yes - among_no
    under = among_no + grow * answers.labels
    total = float(under.sum())
    if not total > 0:
        return float("nan"), np.zeros(len(under)), np.zeros(len(under))
    over = no + rise * answers.labels
    value = float(over.sum()) / total
    return value, np.asarray((over - value * under) / total), np.asarray((rise - value * grow) / total)


def _by_patient(values: Floats, owners: NDArray[np.intp], patients: int) -> Floats:
    return np.bincount(owners, weights=values, minlength=patients).astype(np.float64, copy=False)
