"""Calibration figures against scikit-learn, hand arithmetic and models that are calibrated by construction."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from monitor.calibration import (
    brier_terms,
    calibrate_in_the_large,
    debiased_calibration_error,
    fit_platt,
    recalibrate,
    score_logit,
    split_brier,
)
from monitor.cohorts import Cohort
from monitor.measures import Answers, answers_of, estimate
from monitor.tasks import Task


def calibrated(rng, n, spread=1.5):
    scores = expit(rng.normal(-0.3, spread, n))
    return scores, (rng.random(n) < scores).astype(float)


def plain_error(scores, labels) -> float:
    answers = Answers(
        finding="f", scores=scores, said=scores >= 0.5, labels=labels, patients=np.zeros(len(scores), dtype=np.intp)
    )
    return estimate(answers, ["ece"], np.ones((1, 1)))["ece"].value


def peer(scores, targets) -> tuple[float, float]:
    """Fit scikit-learn's unpenalised logistic regression to fractional targets."""
    x = np.repeat(score_logit(scores), 2)[:, None]
    weights = np.stack([targets, 1 - targets], axis=1).ravel()
    model = LogisticRegression(C=np.inf, tol=1e-12, max_iter=5000)
    model.fit(x, np.tile([1, 0], len(scores)), sample_weight=weights)
    return float(model.intercept_[0]), float(model.coef_[0, 0])


def test_recalibration_is_maximum_likelihood():
    scores, labels = calibrated(np.random.default_rng(0), 300)
    fit = recalibrate(scores, labels)
    assert (fit.intercept, fit.slope) == pytest.approx(peer(scores, labels), abs=1e-5)
    assert np.abs(fit.influences.sum(axis=0)).max() < 1e-8


def test_platt_scaling_uses_platts_targets():
    scores, labels = calibrated(np.random.default_rng(1), 120)
    yes = labels.sum()
    targets = np.where(labels == 1, (yes + 1) / (yes + 2), 1 / (120 - yes + 2))
    fit = fit_platt(scores, labels)
    assert (fit.intercept, fit.slope) == pytest.approx(peer(scores, targets), abs=1e-5)
    assert fit.apply(scores).sum() == pytest.approx(targets.sum(), abs=1e-6)


@pytest.mark.parametrize("center", [-0.5, -9.0])
def test_many_studies_are_fitted_to_the_same_maximum(center):
    rng = np.random.default_rng(6)
    scores = expit(rng.normal(center, 1.5, 60_000))
    labels = (rng.random(60_000) < scores).astype(float)
    fit = fit_platt(scores, labels)
    yes = labels.sum()
    targets = np.where(labels == 1, (yes + 1) / (yes + 2), 1 / (60_000 - yes + 2))
    off = targets - fit.apply(scores)
    assert off.sum() == pytest.approx(0, abs=1e-6)
    assert off @ score_logit(scores) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("scores", [np.r_[np.zeros(30), np.ones(30)], np.full(60, 0.7), np.r_[np.full(59, 1e-9), 1]])
def test_platt_scaling_stays_finite_where_the_likelihood_has_no_maximum(scores):
    fit = fit_platt(scores, np.r_[np.zeros(30), np.ones(30)])
    assert np.isfinite([fit.intercept, fit.slope]).all()
    assert np.isfinite(fit.apply(scores)).all()


def test_a_separated_or_single_class_has_no_recalibration():
    assert recalibrate(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1.0])) is None
    assert recalibrate(np.array([0.1, 0.2]), np.array([0, 0.0])) is None
    assert np.isnan(calibrate_in_the_large(np.array([0.1, 0.2]), np.zeros(2))[0])


def test_scores_that_are_too_extreme_or_too_low_are_told():
    rng = np.random.default_rng(2)
    scores, labels = calibrated(rng, 20_000)
    assert recalibrate(scores, labels).slope == pytest.approx(1, abs=0.05)
    assert recalibrate(expit(2 * logit(scores)), labels).slope == pytest.approx(0.5, abs=0.03)
    assert calibrate_in_the_large(scores, labels)[0] == pytest.approx(0, abs=0.06)
    assert calibrate_in_the_large(expit(logit(scores) - 0.7), labels)[0] == pytest.approx(0.7, abs=0.06)


def test_the_calibration_error_by_hand():
    scores, labels = np.array([0.05, 0.12, 0.18, 0.95]), np.array([0, 1, 0, 1.0])
    assert plain_error(scores, labels) == pytest.approx((0.05 + abs(0.30 - 1) + 0.05) / 4)


@pytest.mark.parametrize("images", [1, 4])
def test_a_calibrated_model_has_hardly_any_debiased_error_where_the_plain_one_shows_chance(images):
    rng, plain, debiased = np.random.default_rng(3), [], []
    for _ in range(60):
        owner = np.arange(200).repeat(images)
        scores = expit(rng.normal(-0.3, 1.5, 200))[owner]
        labels = (rng.random(200)[owner] < scores).astype(float)
        plain.append(plain_error(scores, labels))
        debiased.append(debiased_calibration_error(scores, labels, owner))
    assert np.median(debiased) < 0.03
    assert np.median(plain) > 0.05
    scores, labels = calibrated(rng, 5000)
    off = np.clip(scores + 0.1, 0, 1)
    assert debiased_calibration_error(off, labels, np.arange(5000)) == pytest.approx(0.1, abs=0.02)


def test_the_debiased_error_of_one_bin_is_kumars_formula():
    rng = np.random.default_rng(4)
    scores, labels = np.full(40, 0.6), (rng.random(40) < 0.3).astype(float)
    rate = labels.mean()
    squared = (0.6 - rate) ** 2 - rate * (1 - rate) / 39
    assert debiased_calibration_error(scores, labels, np.arange(40)) == pytest.approx(np.sqrt(max(squared, 0)))


@given(arrays(np.float64, 30, elements=st.floats(0, 1)), arrays(np.float64, 30, elements=st.sampled_from([0.0, 1.0])))
def test_the_parts_of_the_brier_score_add_up(scores, labels):
    totals = brier_terms(scores, labels).sum(axis=0, keepdims=True)
    reliability, resolution, uncertainty = (float(part[0]) for part in split_brier(totals))
    brier = brier_score_loss(labels, scores)
    assert reliability - resolution + uncertainty == pytest.approx(brier, abs=1e-12)
    assert uncertainty == pytest.approx(labels.mean() * (1 - labels.mean()))
    assert reliability >= 0


def test_murphys_parts_by_hand():
    scores, labels = np.array([0.2, 0.2, 0.2, 0.8, 0.8]), np.array([0, 0, 1, 1, 1.0])
    totals = brier_terms(scores, labels).sum(axis=0, keepdims=True)
    reliability, resolution, uncertainty = (float(part[0]) for part in split_brier(totals))
    assert reliability == pytest.approx((3 * (0.2 - 1 / 3) ** 2 + 2 * (0.8 - 1) ** 2) / 5)
    assert resolution == pytest.approx((3 * (1 / 3 - 0.6) ** 2 + 2 * (1 - 0.6) ** 2) / 5)
    assert uncertainty == pytest.approx(0.24)


def test_intervals_of_slope_and_intercept_cover_a_calibrated_model():
    rng, runs, names = np.random.default_rng(5), 150, ("calibration_slope", "calibration_intercept")
    covered = dict.fromkeys(names, 0)
    for seed in range(runs):
        scores, labels = calibrated(rng, 150)
        cohort = Cohort(
            task=Task.BINARY,
            classes=("no", "yes"),
            study_uid=np.arange(150).astype(str),
            patient_key=np.arange(150).astype(str),
            times=np.full(150, np.datetime64("2026-01-05", "us")),
            scores=scores[:, None],
            labels=labels[:, None],
        )
        counts = np.random.default_rng(seed).multinomial(150, np.full(150, 1 / 150), size=200).astype(float)
        for name, truth in zip(names, (1, 0), strict=True):
            low, high = estimate(answers_of(cohort)[0], names, counts)[name].interval(0.95)
            covered[name] += low <= truth <= high
    assert min(covered.values()) >= 0.88 * runs
