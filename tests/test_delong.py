"""AUROC variances in closed form against hand arithmetic, brute force and the bootstrap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from monitor.delong import Placements, delong_error, place_studies, rank_studies
from monitor.intervals import draw_patients
from monitor.measures import Answers, estimate


def draw(rng, n=80, ties=False):
    labels = (rng.random(n) < 0.4).astype(float)
    scores = labels + rng.normal(size=n)
    return (np.round(scores, 1) if ties else scores), labels


def place(scores, chances) -> Placements:
    return place_studies(rank_studies(scores), chances)


def by_definition(scores, labels):
    """DeLong's structural components, one pair at a time."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    return np.var(wins.mean(axis=1), ddof=1) / len(positive) + np.var(wins.mean(axis=0), ddof=1) / len(negative)


@pytest.mark.parametrize("ties", [False, True])
def test_the_standard_error_is_delongs(ties):
    scores, labels = draw(np.random.default_rng(0), ties=ties)
    found = delong_error(scores, labels, np.arange(80))
    assert found == pytest.approx(np.sqrt(by_definition(scores, labels)), abs=1e-12)


@given(st.integers(0, 2**32 - 1))
def test_the_area_is_scikit_learns_whatever_ties(seed):
    scores, labels = draw(np.random.default_rng(seed), n=30, ties=True)
    if 0 < labels.sum() < len(labels):
        assert place(scores, labels).area == pytest.approx(roc_auc_score(labels, scores))


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
    assert place(scores, chances).area == pytest.approx(wins / pairs, abs=1e-12)


def test_slopes_are_derivatives_by_the_chances():
    rng = np.random.default_rng(2)
    scores, chances = rng.integers(0, 6, 15) / 5, rng.random(15)
    slopes, step = place(scores, chances).slopes, 1e-6
    for i in range(15):
        up, down = chances.copy(), chances.copy()
        up[i], down[i] = up[i] + step, down[i] - step
        numeric = (place(scores, up).area - place(scores, down).area) / (2 * step)
        assert slopes[i] == pytest.approx(numeric, abs=1e-6)


@pytest.mark.parametrize("images", [1, 4])
def test_standard_errors_are_those_over_patients(images):
    rng = np.random.default_rng(3)
    owner = np.arange(120).repeat(images)
    labels = (rng.random(120) < 0.4)[owner].astype(float)
    scores = labels + rng.normal(0, 1, 120)[owner] + rng.normal(0, 0.3, len(owner))
    rows = [np.flatnonzero(owner == p) for p in range(120)]
    areas = []
    for _ in range(500):
        drawn = np.concatenate([rows[p] for p in rng.integers(120, size=120)])
        areas.append(roc_auc_score(labels[drawn], scores[drawn]))
    assert delong_error(scores, labels, owner) == pytest.approx(np.std(areas, ddof=1), rel=0.15)


def test_the_reported_interval_of_an_area_is_delongs_and_covers_it_as_often_as_it_says():
    rng, runs, covered = np.random.default_rng(5), 300, 0
    truth = 0.9213503964748575  # P(N(2, 1) > N(0, 1)) = Phi(2 / sqrt(2))
    labels, owner = np.r_[np.ones(30), np.zeros(50)], np.arange(80)
    counts = draw_patients(np.zeros(80, dtype=np.intp), 2, rng)
    for _ in range(runs):
        scores = 2 * labels + rng.normal(size=80)
        answers = Answers(finding="f", scores=scores, said=scores > 1, labels=labels, patients=owner)
        figure = estimate(answers, ["auroc"], counts)["auroc"]
        assert figure.spread == delong_error(scores, labels, owner)
        low, high = figure.interval(0.95)
        covered += low <= truth <= high
    assert 0.92 * runs <= covered


def test_an_area_on_one_patient_of_a_class_has_no_standard_error():
    scores, labels = np.array([0.9, 0.8, 0.2, 0.1]), np.array([1.0, 1, 0, 0])
    assert delong_error(scores, labels, np.array([0, 0, 1, 2])) is None
    assert delong_error(scores, labels, np.array([0, 1, 2, 2])) is None
    assert delong_error(scores, labels, np.array([0, 1, 2, 3])) == 0
