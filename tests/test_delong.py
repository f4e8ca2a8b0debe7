"""AUROC variances in closed form against hand arithmetic, brute force and the bootstrap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from monitor.delong import measure_areas, place_studies


def draw(rng, n=80, ties=False):
    labels = (rng.random(n) < 0.4).astype(float)
    first = labels + rng.normal(size=n)
    second = 0.7 * first + 0.5 * labels + 0.5 * rng.normal(size=n)
    scores = np.stack([first, second], axis=1)
    return (np.round(scores, 1) if ties else scores), labels


def by_definition(scores, labels):
    """DeLong's structural components, one pair at a time."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    wins = (positive[:, None, :] > negative[None, :, :]) + 0.5 * (positive[:, None, :] == negative[None, :, :])
    tens, ones = wins.mean(axis=1), wins.mean(axis=0)
    return wins.mean(axis=(0, 1)), np.cov(tens.T) / len(positive) + np.cov(ones.T) / len(negative)


@pytest.mark.parametrize("ties", [False, True])
def test_areas_and_covariances_are_delongs(ties):
    scores, labels = draw(np.random.default_rng(0), ties=ties)
    found = measure_areas(scores, labels)
    values, covariance = by_definition(scores, labels)
    assert found.values == pytest.approx(values, abs=1e-12)
    assert found.values == pytest.approx([roc_auc_score(labels, column) for column in scores.T], abs=1e-12)
    assert found.covariance == pytest.approx(covariance, abs=1e-12)


@given(st.integers(0, 2**32 - 1))
def test_the_area_is_scikit_learns_whatever_ties(seed):
    scores, labels = draw(np.random.default_rng(seed), n=30, ties=True)
    if 0 < labels.sum() < len(labels):
        assert place_studies(scores[:, 0], labels).area == pytest.approx(roc_auc_score(labels, scores[:, 0]))


def test_chances_give_the_expected_area():
    rng = np.random.default_rng(1)
    scores, chances = rng.integers(0, 5, 12) / 4, rng.random(12)
    wins = pairs = 0.0
    for i in range(12):
        for j in range(12):
            if i != j:
                pair = chances[i] * (1 - chances[j])
                pairs += pair
                wins += pair * ((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
    assert place_studies(scores, chances).area == pytest.approx(wins / pairs, abs=1e-12)


def test_slopes_are_derivatives_by_the_chances():
    rng = np.random.default_rng(2)
    scores, chances = rng.integers(0, 6, 15) / 5, rng.random(15)
    slopes, step = place_studies(scores, chances).slopes, 1e-6
    for i in range(15):
        up, down = chances.copy(), chances.copy()
        up[i], down[i] = up[i] + step, down[i] - step
        numeric = (place_studies(scores, up).area - place_studies(scores, down).area) / (2 * step)
        assert slopes[i] == pytest.approx(numeric, abs=1e-6)


@pytest.mark.parametrize("images", [1, 4])
def test_standard_errors_are_those_over_patients(images):
    rng = np.random.default_rng(3)
    owner = np.arange(120).repeat(images)
    labels = (rng.random(120) < 0.4)[owner].astype(float)
    scores = (labels + rng.normal(0, 1, 120)[owner] + rng.normal(0, 0.3, len(owner)))[:, None]
    found = measure_areas(scores, labels, owner)
    rows = [np.flatnonzero(owner == p) for p in range(120)]
    areas = []
    for _ in range(500):
        drawn = np.concatenate([rows[p] for p in rng.integers(120, size=120)])
        areas.append(roc_auc_score(labels[drawn], scores[drawn, 0]))
    assert np.sqrt(found.covariance[0, 0]) == pytest.approx(np.std(areas, ddof=1), rel=0.15)


def test_two_models_on_the_same_studies_are_compared_with_what_they_share():
    rng = np.random.default_rng(4)
    scores, labels = draw(rng, n=200)
    found = measure_areas(scores, labels)
    difference = found.difference(0, 1)
    low, high = difference.interval(0.95)
    assert difference.value == pytest.approx(found.values[0] - found.values[1])
    error = np.sqrt(found.covariance[0, 0] + found.covariance[1, 1] - 2 * found.covariance[0, 1])
    assert (high - low) / 2 == pytest.approx(1.97 * error, rel=0.1)
    assert low < difference.value < high


def test_an_interval_covers_the_area_as_often_as_it_says():
    rng, runs, covered = np.random.default_rng(5), 300, 0
    truth = 0.9213503964748575  # P(N(2, 1) > N(0, 1)) = Phi(2 / sqrt(2))
    for _ in range(runs):
        labels = np.r_[np.ones(30), np.zeros(50)]
        scores = (2 * labels + rng.normal(size=80))[:, None]
        low, high = measure_areas(scores, labels).estimate(0).interval(0.95)
        covered += low <= truth <= high
    assert 0.92 * runs <= covered


@pytest.mark.parametrize(
    ("scores", "labels", "told"),
    [
        (np.ones((4, 1)), np.array([1.0, 0, 0, 0]), "two patients with and two without"),
        (np.ones((4, 1)), np.array([1.0, 0, 2, 0]), "labels are 0 or 1"),
        (np.full((4, 1), np.nan), np.array([1.0, 0, 1, 0]), "must be numbers"),
        (np.ones(4), np.array([1.0, 0, 1, 0]), r"scores are \(n, k\)"),
    ],
)
def test_what_has_no_variance_is_refused(scores, labels, told):
    with pytest.raises(ValueError, match=told):
        measure_areas(scores, labels)
