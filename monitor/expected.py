"""What a measure would be if labels were known: its expectation over calibrated scores, and how sure that is.

Confidence-based estimation: each score becomes the chance of the finding by Platt scaling on a labelled reference, and
every measure its expectation over those chances. All figures are smooth functions of averages, so that the effect
of each patient on each of them (its influence) gives standard errors and correlations in closed form, with
patients as clusters, whatever n is (Huber's sandwich; for areas DeLong's placements).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from monitor.calibration import LogisticFit, score_logit
from monitor.delong import place_studies
from monitor.intervals import Floats
from monitor.measures import Answers, rate_terms


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Expected:
    """A figure and the influence of every patient on it, (patients,), which sum to about 0."""

    value: float
    influence: Floats

    def __sub__(self, other: Expected) -> Expected:
        """Subtract; what both sides share cancels patient by patient."""
        return Expected(value=self.value - other.value, influence=self.influence - other.influence)

    @property
    def standard_error(self) -> float:
        """Its standard error over patients."""
        return float(np.sqrt(self.covariance(self)))

    def covariance(self, other: Expected) -> float:
        """Give the covariance of two figures over the same patients."""
        carrying = int(((self.influence != 0) | (other.influence != 0)).sum())
        return float(self.influence @ other.influence) * carrying / max(carrying - 1, 1)

    def correlation(self, other: Expected) -> float:
        """Correlate two figures over the same patients."""
        scale = self.standard_error * other.standard_error
        return float(np.clip(self.covariance(other) / scale, -1, 1)) if scale > 0 else 0.0


def measure_known(answers: Answers, name: str, patients: int) -> Expected:
    """Measure by known labels; ``patients`` are all that ``answers.patients`` numbers."""
    value, own, _ = _influences(answers, name)
    return Expected(value=value, influence=_by_patient(own, answers.patients, patients))


def measure_expected(
    answers: Answers, names: Sequence[str], fit: LogisticFit, fitted_on: Answers, patients: int
) -> dict[str, Expected]:
    """Expect measures over scores calibrated by a fit; the patients it was fitted on have their influence too.

    Args:
        answers: whose scores are calibrated; their labels are not looked at.
        names: of the measures: auroc, sensitivity, specificity, accuracy.
        fit: the calibration, with the influence of each study of ``fitted_on``.
        fitted_on: the labelled studies of the reference.
        patients: all that both sides' ``patients`` number together.
    """
    logits = score_logit(answers.scores)
    chances = np.asarray(expit(fit.intercept + fit.slope * logits))
    calibrated, curve = replace(answers, labels=chances), chances * (1 - chances)
    found: dict[str, Expected] = {}
    for name in names:
        value, own, slopes = _influences(calibrated, name)
        pull = np.array([slopes @ curve, (slopes * curve) @ logits])
        influence = _by_patient(own, answers.patients, patients)
        influence += _by_patient(fit.influences @ pull, fitted_on.patients, patients)
        found[name] = Expected(value=value, influence=influence)
    return found


def _influences(answers: Answers, name: str) -> tuple[float, Floats, Floats]:
    """Give a measure over labels or chances (n,), the influence of each study's weight, and of its chance."""
    if not len(answers.scores):
        return float("nan"), answers.scores, answers.scores
    if name == "auroc":
        placed = place_studies(answers.scores, answers.labels)
        with_it, without = placed.influences
        return placed.area, with_it + without, placed.slopes
    over, under = rate_terms(answers, name)
    total = under.sum()
    value = float(over.sum() / total) if total > 0 else float("nan")
    if not total > 0:
        return value, np.zeros(len(over)), np.zeros(len(over))
    sure, sure_under = rate_terms(replace(answers, labels=np.ones(len(over))), name)
    none, none_under = rate_terms(replace(answers, labels=np.zeros(len(over))), name)
    slopes = (sure - none) - value * (sure_under - none_under)
    return value, np.asarray((over - value * under) / total), np.asarray(slopes / total)


def _by_patient(values: Floats, owners: NDArray[np.intp], patients: int) -> Floats:
    return np.bincount(owners, weights=values, minlength=patients).astype(np.float64)
