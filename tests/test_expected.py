"""Influences against brute force: what a patient's weight does to a figure, and standard errors against a bootstrap."""

import numpy as np
import pytest
from scipy.special import expit

from monitor.calibration import fit_platt, score_logit
from monitor.expected import Expected, Ordered, measure_alikeness, measure_expected, measure_known
from monitor.measures import Answers

NAMES = ("auroc", "sensitivity", "specificity", "accuracy")


def answers(scores, labels, patients=None) -> Answers:
    scores = np.asarray(scores, dtype=float)
    owner = np.arange(len(scores)) if patients is None else np.asarray(patients)
    return Answers(
        finding="tumour",
        scores=scores,
        said=(scores >= 0.5).astype(float),
        labels=np.asarray(labels, dtype=float),
        patients=owner.astype(np.intp),
    )


def sides(rng, patients=(60, 40), images=2) -> tuple[Answers, Answers]:
    made = []
    for count, first in zip(patients, (0, patients[0]), strict=True):
        owner = np.arange(count).repeat(images)
        evidence = rng.normal(-0.3, 1.5, count)[owner] + rng.normal(0, 0.4, len(owner))
        scores = np.round(expit(evidence), 2)  # ties
        made.append(answers(scores, rng.random(len(owner)) < expit(evidence), owner + first))
    return made[0], made[1]


def by_hand(scores, said, chances, name) -> float:
    if name == "auroc":
        wins = pairs = 0.0
        for i in range(len(scores)):
            for j in range(len(scores)):
                if i != j:
                    pair = chances[i] * (1 - chances[j])
                    pairs += pair
                    wins += pair * ((scores[i] > scores[j]) + (scores[i] == scores[j]) / 2)
        return wins / pairs
    return {
        "sensitivity": (chances * said).sum() / chances.sum(),
        "specificity": ((1 - chances) * (1 - said)).sum() / (1 - chances).sum(),
        "accuracy": (chances * said + (1 - chances) * (1 - said)).mean(),
    }[name]


@pytest.mark.parametrize("name", NAMES)
def test_values_are_expectations_over_calibrated_scores(name):
    known, now = sides(np.random.default_rng(0), images=1)
    fit = fit_platt(known.scores, known.labels)
    found = measure_expected(Ordered.of(now), (name,), fit, known, 100)[name].value
    chances = expit(fit.intercept + fit.slope * score_logit(now.scores))
    assert found == pytest.approx(by_hand(now.scores, now.said, chances, name), abs=1e-12)
    assert measure_known(Ordered.of(known), (name,), 100)[name].value == pytest.approx(
        by_hand(known.scores, known.said, known.labels, name), abs=1e-12
    )


@pytest.mark.parametrize("name", NAMES)
def test_influences_add_up_to_nothing(name):
    known, now = sides(np.random.default_rng(1))
    fit = fit_platt(known.scores, known.labels)
    for figure in (
        measure_known(Ordered.of(known), (name,), 100)[name],
        measure_expected(Ordered.of(now), (name,), fit, known, 100)[name],
    ):
        assert figure.influence.shape == (100,)
        assert figure.influence.sum() == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_standard_errors_are_those_of_a_bootstrap_that_calibrates_anew(name):
    rng = np.random.default_rng(2)
    known, now = sides(rng, patients=(150, 120))
    fit = fit_platt(known.scores, known.labels)
    formula = measure_expected(Ordered.of(now), (name,), fit, known, 270)[name].standard_error
    rows = [[np.flatnonzero(side.patients == p) for p in np.unique(side.patients)] for side in (known, now)]
    values = []
    for _ in range(400):
        drawn = [np.concatenate([mine[i] for i in rng.integers(len(mine), size=len(mine))]) for mine in rows]
        again = fit_platt(known.scores[drawn[0]], known.labels[drawn[0]])
        part = answers(now.scores[drawn[1]], np.zeros(len(drawn[1])))
        values.append(measure_expected(Ordered.of(part), (name,), again, known, len(drawn[1]) + 270)[name].value)
    assert formula == pytest.approx(np.std(values, ddof=1), rel=0.15)


def test_figures_correlate_as_far_as_they_share_patients():
    known, now = sides(np.random.default_rng(3))
    fit = fit_platt(known.scores, known.labels)
    one = measure_expected(Ordered.of(now), ("accuracy",), fit, known, 100)["accuracy"]
    assert one.correlation(one) == pytest.approx(1)
    assert one.correlation(Expected(value=0.0, influence=np.zeros(100), by_fit=np.zeros(100))) == 0


def test_how_labels_scatter_by_hand():
    """Four studies of which two are one patient's; accuracy is a mean, sensitivity a ratio of sums."""
    known, _ = sides(np.random.default_rng(4))
    fit = fit_platt(known.scores, known.labels)
    now = answers([0.9, 0.6, 0.3, 0.2], np.zeros(4), [0, 1, 1, 2])
    p = fit.apply(now.scores)
    deviation, sign = np.sqrt(p * (1 - p)), np.array([1, 1, -1, -1])
    hit = (p[0] + p[1]) / p.sum()
    moves = {"accuracy": sign * deviation / 4, "sensitivity": (now.said - hit) * deviation / p.sum()}
    for name, move in moves.items():
        for alike in (0.0, 0.4, 1.0):
            found = measure_expected(Ordered.of(now), (name,), fit, known, 100, alike=alike)[name].label_variance
            assert found == pytest.approx(move @ move + alike * 2 * move[1] * move[2])


@pytest.mark.parametrize("images", [1, 3])
def test_how_labels_scatter_is_what_drawing_them_shows(images):
    """Labels drawn again and again for the same scores; those of one patient all by the same luck."""
    rng = np.random.default_rng(5)
    known, now = sides(rng, patients=(100, 200), images=images)
    fit = fit_platt(known.scores, known.labels)
    chances, owner = fit.apply(now.scores), now.patients - now.patients.min()
    found = measure_expected(Ordered.of(now), NAMES, fit, known, 300)
    drawn = [(rng.random(200)[owner] < chances).astype(float) for _ in range(1000)]
    for name in NAMES:
        values = [measure_known(Ordered.of(answers(now.scores, y)), (name,), 600)[name].value for y in drawn]
        assert found[name].value == pytest.approx(np.mean(values), abs=0.01)
        if images == 1:
            assert found[name].label_variance == pytest.approx(np.var(values), rel=0.15)
        else:  # one luck for different scores makes labels a little less than wholly alike
            assert np.var(values) < 1.1 * found[name].label_variance < 1.8 * np.var(values)


@pytest.mark.parametrize(("shared", "bounds"), [(True, (0.75, 1)), (False, (0, 0.1))])
def test_how_alike_labels_of_one_patient_are_is_found_in_the_reference(shared, bounds):
    rng = np.random.default_rng(6)
    owner = np.arange(400).repeat(3)
    evidence = rng.normal(-0.3, 1.5, 400)[owner] + rng.normal(0, 0.4, 1200)
    luck = rng.random(400)[owner] if shared else rng.random(1200)
    known = answers(expit(evidence), luck < expit(evidence), owner)
    low, high = bounds
    assert low <= measure_alikeness(known, fit_platt(known.scores, known.labels)) <= high
    alone = answers(known.scores, known.labels)
    assert measure_alikeness(alone, fit_platt(known.scores, known.labels)) == 1
