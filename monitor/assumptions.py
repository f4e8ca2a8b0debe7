"""What an estimate without labels rests on, and whether it seems to hold: named in words where it does not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.stats import betabinom, norm

from monitor.calibration import LogisticFit, calibrate_in_the_large, recalibrate, score_logit
from monitor.cohorts import Cohort
from monitor.intervals import Floats
from monitor.measures import Answers, Basis

ALPHA = 0.01
"""Each assumption is doubted where a true one would be in one case of a hundred."""

LEAST_PATIENTS = 20
LEAST_EACH_CLASS = 5
LEAST_SHARE = 0.02
"""Part of a window that must lie outside the reference's scores before it is worth a word."""

FAR, LEAST_FAR = 0.01, 0.05
"""Part of the reference's patients that counts as far from the others, and of a window's before it is worth a word."""
ROUNDING = 1e-9
MOST_ROWS = 2_000
"""Reference studies, and patients of a window, that are looked at; more would only cost time."""


def check_assumptions(
    reference: Answers,
    current: Answers,
    differences: Mapping[str, tuple[float, float]],
    fit: LogisticFit | None,
) -> tuple[str, ...]:
    """Name every assumption of an estimate without labels that does not seem to hold.

    Args:
        reference: answers that the estimate was calibrated on.
        current: answers of the window, with whatever labels there are.
        differences: by measure, the estimated figure minus the realised, with its standard error.
        fit: the calibration on the labelled reference; None where there is none.
    """
    told = [
        _tell_unseen(reference, current),
        _tell_calibration(reference, current, fit) if fit is not None else "",
        _tell_concept(differences),
    ]
    return tuple(words for words in told if words)


def tell_unseen_images(reference: Cohort, current: Cohort, generator: Generator) -> str:
    """Say if patients of a window have images unlike any of the reference, by the embeddings; empty if not.

    A patient, by one study drawn, is far if its nearest reference study of another patient is farther than that of all
    but ``FAR`` of the reference's own patients. Of n patients as ever a beta-binomial number is far (Wilks 1941).
    """
    if reference.embeddings is None or current.embeddings is None:
        return ""
    rows = generator.permutation(len(reference))[:MOST_ROWS]
    drawn = generator.permutation(len(current))
    drawn = drawn[np.unique(current.patient_key[drawn], return_index=True)[1]][:MOST_ROWS]
    keys = np.concatenate([reference.patient_key[rows], current.patient_key[drawn]])
    owners, now = np.split(np.unique(keys, return_inverse=True)[1], [len(rows)])
    known = reference.embeddings[rows].astype(np.float64)
    first = np.unique(owners, return_index=True)[1]
    m, n = len(first), len(drawn)
    if min(m, n) < LEAST_PATIENTS:
        return ""
    usual = _nearest(known[first], owners[first], known, owners)
    seen = _nearest(current.embeddings[drawn].astype(np.float64), now, known, owners)
    beyond = max(1, int(FAR * (m + 1)))
    far = int(np.count_nonzero(seen > np.sort(usual)[-beyond]))
    if far < LEAST_FAR * n or betabinom.sf(far - 1, n, beyond, m - beyond + 1) > ALPHA:
        return ""
    return f"unseen region: {far / n:.0%} of the patients have images unlike any that the reference showed"


def _nearest(values: Floats, owners: NDArray[np.intp], known: Floats, others: NDArray[np.intp]) -> Floats:
    """Give the squared distance of each row (n, width) to the nearest of ``known`` (m, width) of another patient."""
    sizes = (known**2).sum(axis=1)
    distances = (values**2).sum(axis=1)[:, None] + sizes - 2 * values @ known.T
    distances[distances < ROUNDING * sizes.mean()] = 0.0
    distances[owners[:, None] == others] = np.inf
    return np.asarray(distances.min(axis=1))


def _tell_unseen(reference: Answers, current: Answers) -> str:
    """Scores beyond all that the reference showed: there the calibration is a guess."""
    if not len(reference.scores) or not len(current.scores):
        return ""
    outside = (current.scores < reference.scores.min()) | (current.scores > reference.scores.max())
    # of a patient one study counts, for many have more chances to lie outside than the reference's patients had
    alone = np.unique(current.patients, return_index=True)[1]
    patients, n = int(np.count_nonzero(outside[alone])), len(alone)
    # what lies beyond the extremes of m patients has a Beta(2, m - 1) share of any distribution (Wilks 1941)
    m = max(reference.count_patients(), 2)
    if outside.mean() < LEAST_SHARE or betabinom.sf(patients - 1, n, 2, m - 1) > ALPHA:
        return ""
    return f"unseen region: {outside.mean():.0%} of the scores lie beyond all that the reference showed"


def _tell_calibration(reference: Answers, current: Answers, fit: LogisticFit) -> str:
    """A score that no longer means what it meant: labels of the window against the reference's calibration."""
    known, now = reference.carrying(Basis.LABELLED), current.carrying(Basis.LABELLED)
    if now.count_patients() < LEAST_PATIENTS or _fewest(known) < LEAST_EACH_CLASS or _fewest(now) < LEAST_EACH_CLASS:
        return ""
    chances = fit.apply(now.scores)
    weight = chances * (1 - chances)
    # the fit on the reference is not exact either: what it moves in the window counts as noise
    pull = np.array([1.0, (weight @ score_logit(now.scores)) / weight.sum()])
    intercept, influences = calibrate_in_the_large(chances, now.labels)
    if _beyond(intercept, _variance(influences, now) + _variance(fit.influences @ pull, known)):
        way = "more" if intercept > 0 else "less"
        return f"calibration lost: {now.finding} is {way} frequent than the scores say (intercept {intercept:+.2f})"
    slope = recalibrate(chances, now.labels)
    noise = _variance(fit.influences[:, 1], known) / max(fit.slope**2, 1e-12)
    if slope is not None and _beyond(slope.slope - 1, _variance(slope.influences[:, 1], now) + noise):
        way = "extreme" if slope.slope < 1 else "cautious"
        return f"calibration lost: scores are too {way} for what labels show (slope {slope.slope:.2f})"
    return ""


def _tell_concept(differences: Mapping[str, tuple[float, float]]) -> str:
    """Labels given scores changed: the realised loss is beyond what the estimate can explain."""
    bound = float(norm.isf(ALPHA / (2 * max(len(differences), 1))))
    beyond = [name for name, (size, error) in differences.items() if error > 0 and abs(size) > bound * error]
    return f"concept drift suspected: labels show another {', '.join(beyond)} than the scores explain" if beyond else ""


def _beyond(value: float, variance: float) -> bool:
    """Tell whether a fitted figure differs from 0 beyond chance."""
    return bool(np.isfinite(value)) and variance > 0 and abs(value) > float(norm.isf(ALPHA / 2)) * np.sqrt(variance)


def _variance(influences: Floats, answers: Answers) -> float:
    """Sum the squared influences of patients."""
    by_patient, n = np.bincount(answers.patients, weights=influences), answers.count_patients()
    return float((by_patient**2).sum()) * n / max(n - 1, 1)


def _fewest(answers: Answers) -> int:
    return min(answers.count_patients(side) for side in (Basis.POSITIVE, Basis.NEGATIVE))
