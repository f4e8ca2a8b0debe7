"""Does a score of 0.7 mean 70 in 100? Calibration errors, the parts of the Brier score, and logistic recalibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from monitor.intervals import Floats, sum_by_patient

BINS = 10
EDGE = 1e-6
"""Scores are held this far from 0 and 1 before their logit is taken."""

MANY, START = 20_000, 4_000
"""Beyond so many studies, about so many give a logistic fit its start."""

Bins = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LogisticFit:
    """The chance of a finding as expit(intercept + slope · logit(score)), fitted to n studies.

    ``influences`` (n, 2) say by how much intercept and slope move with the weight of each study.
    """

    intercept: float
    slope: float
    influences: Floats

    def apply(self, scores: Floats) -> Floats:
        """Turn scores (n,) into chances of the finding (n,)."""
        return np.asarray(expit(self.intercept + self.slope * score_logit(scores)))


def score_logit(scores: Floats) -> Floats:
    """Take the logit of scores, held off 0 and 1."""
    return np.asarray(logit(np.clip(scores, EDGE, 1 - EDGE)))


def fit_platt(scores: Floats, labels: Floats) -> LogisticFit:
    """Fit Platt scaling; ``scores`` (n,), ``labels`` (n,) of 0 and 1.

    Platt's targets (1999), (N⁺+1)/(N⁺+2) and 1/(N⁻+2), keep the fit finite when the classes are separated.
    """
    yes = labels.sum()
    target = np.where(labels == 1, (yes + 1) / (yes + 2), 1 / (len(labels) - yes + 2))
    return _fit_logistic(score_logit(scores), target)


def recalibrate(scores: Floats, labels: Floats) -> LogisticFit | None:
    """Fit Cox's logistic recalibration (1958) by maximum likelihood; calibrated scores give intercept 0 and slope 1.

    A slope below 1 says that scores are too extreme. ``scores`` (n,), ``labels`` (n,) of 0 and 1. None where
    the likelihood has no maximum: one class only, or classes that the score separates.
    """
    x = score_logit(scores)
    with_it, without = x[labels == 1], x[labels == 0]
    separated = not len(with_it) or not len(without) or with_it.min() >= without.max() or with_it.max() <= without.min()
    return None if separated else _fit_logistic(x, labels)


def calibrate_in_the_large(scores: Floats, labels: Floats) -> tuple[float, Floats]:
    """Fit the intercept that the logit of the score lacks when the slope is held at 1, and its influences (n,).

    Above 0 the finding is more frequent than the scores say. NaN with one class only.
    """
    x, intercept = score_logit(scores), 0.0
    if labels.min() == labels.max():
        return float("nan"), np.zeros_like(x)
    for _ in range(100):
        said = expit(x + intercept)
        step = float(np.clip((labels - said).sum() / (said * (1 - said)).sum(), -4, 4))
        intercept += step
        if abs(step) < 1e-12:
            break
    said = expit(x + intercept)
    return intercept, np.asarray((labels - said) / (said * (1 - said)).sum())


def bin_by_width(scores: Floats) -> Bins:
    """Put scores into ten bins of equal width, [0, 0.1), …, [0.9, 1] (Guo et al. 2017)."""
    return np.minimum((scores * BINS).astype(np.intp), BINS - 1)


def bin_by_mass(scores: Floats) -> Bins:
    """Put scores into at most ten bins of equal numbers of studies; equal scores share a bin."""
    edges = np.unique(np.quantile(scores, np.arange(1, BINS) / BINS)) if len(scores) else np.empty(0)
    return np.searchsorted(edges, scores, side="right")


def spread_over_bins(values: Floats, bins: Bins) -> Floats:
    """Set each study's value into the column of its bin; shape (n, bins)."""
    spread = np.zeros((len(values), BINS))
    spread[np.arange(len(values)), bins] = values
    return spread


def debiased_calibration_error(scores: Floats, labels: Floats, patients: NDArray[np.intp]) -> float:
    """Measure the root mean square calibration error over ten bins of equal mass, without what chance adds.

    Kumar, Liang and Ma (2019): from the squared distance of each bin its sampling variance is taken, ȳ(1-ȳ)/(n-1)
    with one study a patient; here it is the variance over patients. ``scores``, ``labels`` (0 or 1) and
    ``patients`` have shape (n,). 0 where chance explains everything.
    """
    bins, total = bin_by_mass(scores), int(patients.max()) + 1
    tables = [
        sum_by_patient(spread_over_bins(column, bins), patients, total)
        for column in (np.ones(len(scores)), labels, scores)
    ]
    studies, positives, _ = tables
    n, yes, said = (table.sum(axis=0) for table in tables)
    seen = n > 0
    n, yes, said = n[seen], yes[seen], said[seen]
    rate, counted = yes / n, (studies[:, seen] > 0).sum(axis=0)
    noise = ((positives[:, seen] - rate * studies[:, seen]) ** 2).sum(axis=0) / n**2
    noise *= counted / np.maximum(counted - 1, 1)
    return float(np.sqrt(max(n @ ((said / n - rate) ** 2 - noise) / n.sum(), 0.0)))


def brier_terms(scores: Floats, labels: Floats) -> Floats:
    """Give what each study adds to the sums that ``split_brier`` needs; shape (n, 31)."""
    bins = bin_by_width(scores)
    columns = [spread_over_bins(values, bins) for values in (np.ones(len(scores)), scores, labels)]
    return np.concatenate([*columns, (scores - labels)[:, None] ** 2], axis=1)


def split_brier(totals: Floats) -> tuple[Floats, Floats, Floats]:
    """Split Brier scores into reliability, resolution and uncertainty: Brier = reliability - resolution + uncertainty.

    ``totals`` (b, 31) are weighted sums of ``brier_terms``; each part has shape (b,). Murphy (1973), over ten
    bins of equal width. Where scores differ inside a bin the identity holds exactly because the resolution is
    Stephenson, Coelho and Jolliffe's (2008), which takes up what varies inside the bins; with one distinct
    score a bin it is Murphy's.
    """
    studies, said, true = (totals[:, part * BINS : (part + 1) * BINS] for part in range(3))
    n = studies.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.where(studies > 0, (said - true) ** 2 / studies, 0.0)
        rate, reliability = true.sum(axis=1) / n, gap.sum(axis=1) / n
        uncertainty = rate * (1 - rate)
        return reliability, reliability + uncertainty - totals[:, -1] / n, uncertainty


def _fit_logistic(x: Floats, target: Floats) -> LogisticFit:
    """Fit intercept and slope by Newton's method, with steps that move no study's logit by more than 4.

    Of many studies some give the start, so that few steps over all remain; the maximum is the same.
    """
    fitted = np.zeros(2)
    if len(x) > MANY:
        some = slice(None, None, len(x) // START)
        fitted = _climb(x[some], target[some], fitted)
    fitted = _climb(x, target, fitted)
    said = expit(fitted[0] + fitted[1] * x)
    inverse, off = np.linalg.inv(_curvature(x, said)), target - said
    influences = np.stack([off * (row[0] + row[1] * x) for row in inverse], axis=1)
    return LogisticFit(intercept=float(fitted[0]), slope=float(fitted[1]), influences=influences)


def _climb(x: Floats, target: Floats, fitted: Floats) -> Floats:
    ends = np.array([x.min(), x.max()])
    for _ in range(100):
        said = expit(fitted[0] + fitted[1] * x)
        off = target - said
        step = np.linalg.solve(_curvature(x, said), np.array([off.sum(), off @ x]))
        fitted = fitted + step * min(1.0, 4 / max(np.abs(step[0] + step[1] * ends).max(), 4))
        if np.abs(step).max() < 1e-10:
            break
    return fitted


def _curvature(x: Floats, said: Floats) -> Floats:
    weight = said * (1 - said)
    steep = weight * x
    mixed = steep.sum()
    curve = np.array([[weight.sum(), mixed], [mixed, steep @ x]])
    return np.asarray(curve + np.eye(2) * (1e-9 * np.trace(curve) + 1e-12))
