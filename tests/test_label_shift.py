"""The new prevalence without labels: by hand, by simulated coverage, and with a check of what it assumes."""

from datetime import UTC, datetime

import numpy as np
import pytest
from scipy.stats import binom

from monitor.cohorts import Cohort, Window
from monitor.label_shift import estimate_prevalence
from monitor.policies import DriftPolicy
from monitor.tasks import Task

WEEK = Window(start=datetime(2026, 1, 5, tzinfo=UTC), end=datetime(2026, 1, 12, tzinfo=UTC))
POLICY = DriftPolicy(resamples=200)
CLASSES = {Task.BINARY: ("no", "yes"), Task.MULTI_CLASS: ("a", "b", "c"), Task.MULTI_LABEL: ("x", "y")}


def make_cohort(task, scores, labels, *, first=0, images=1, classes=None) -> Cohort:
    n = len(scores)
    return Cohort(
        task=task,
        classes=classes or CLASSES[task],
        study_uid=np.array([f"s{first + i}" for i in range(n)]),
        patient_key=np.array([f"p{first + i // images}" for i in range(n)]),
        times=np.full(n, np.datetime64("2026-01-05", "us")),
        scores=np.asarray(scores, dtype=float).reshape(n, -1),
        labels=np.asarray(labels, dtype=float).reshape(n, -1),
    )


def binary(rng, patients, prevalence, *, first=0, images=1, shift=0.0) -> Cohort:
    """Draw patients whose score depends on the class alone; ``shift`` makes the sick look otherwise."""
    sick = (rng.random(patients) < prevalence).repeat(images)
    evidence = rng.normal(np.where(sick, 1.2 + shift, -1.2), 1) + 0.3 * rng.normal(size=len(sick))
    return make_cohort(Task.BINARY, 1 / (1 + np.exp(-evidence)), sick, first=first, images=images)


def estimate(reference, current, seed=0, policy=POLICY):
    return estimate_prevalence(reference, current, window=WEEK, policy=policy, generator=np.random.default_rng(seed))


def test_two_classes_by_hand():
    """Sick score 0.8 on average, healthy 0.2; a mean of 0.5 is an even mixture."""
    labels = np.r_[np.ones(20), np.zeros(60)]
    scores = np.where(labels == 1, 0.8, 0.2) + np.tile([0.05, -0.05], 40)
    scores = np.round(scores, 2)
    now = np.r_[np.full(15, 0.85), np.full(15, 0.75), np.full(15, 0.25), np.full(15, 0.15)]
    (found,) = estimate(
        make_cohort(Task.BINARY, scores, labels), make_cohort(Task.BINARY, now, np.full(60, np.nan), first=1000)
    )
    assert (found.finding, found.reference, found.n, found.patients) == ("yes", 0.25, 60, 60)
    assert found.estimate == pytest.approx(0.5)
    assert found.low < 0.5 < found.high
    assert found.fits > 0.05


@pytest.mark.parametrize("images", [1, 4])
def test_the_interval_covers_the_new_prevalence_as_often_as_it_says(images):
    rng, runs, covered = np.random.default_rng(images), 150, 0
    for seed in range(runs):
        reference = binary(rng, 120, 0.3, images=images)
        (found,) = estimate(reference, binary(rng, 80, 0.6, first=1000, images=images), seed)
        covered += found.low <= 0.6 <= found.high
    assert binom.ppf(1e-4, runs, 0.93) <= covered


def test_the_check_of_the_assumption_is_quiet_where_it_holds_and_loud_where_it_does_not():
    rng, runs = np.random.default_rng(2), 100
    held, broken = [], []
    for seed in range(runs):
        reference = binary(rng, 150, 0.4)
        held.append(estimate(reference, binary(rng, 80, 0.7, first=1000), seed)[0].fits)
        broken.append(estimate(reference, binary(rng, 80, 0.4, first=1000, shift=3.0), seed)[0].fits)
    assert np.sum(np.array(held) <= 0.05) <= binom.ppf(1 - 1e-4, runs, 0.05)
    assert np.mean(np.array(broken) <= 0.05) > 0.5


def test_several_classes_sum_to_one_and_are_found_together():
    rng = np.random.default_rng(3)

    def draw(n, shares, first=0):
        classes = rng.choice(3, n, p=shares)
        evidence = 2.0 * np.eye(3)[classes] + rng.normal(size=(n, 3))
        scores = np.exp(evidence) / np.exp(evidence).sum(axis=1, keepdims=True)
        return make_cohort(Task.MULTI_CLASS, scores, classes, first=first)

    found = estimate(draw(2000, [0.6, 0.3, 0.1]), draw(2000, [0.2, 0.3, 0.5], first=5000))
    assert [shift.finding for shift in found] == ["a", "b", "c"]
    assert sum(shift.estimate for shift in found) == pytest.approx(1)
    for shift, truth in zip(found, (0.2, 0.3, 0.5), strict=True):
        assert shift.low - 0.02 <= truth <= shift.high + 0.02
        assert shift.high - shift.low < 0.15


def draw_dependent(rng, n, shares, weight, *, first=0, images=2) -> Cohort:
    """Draw patients of four classes, the last answered like the even mixture of the first two but for ``weight``."""
    said = np.array([[0.55, 0.2, 0.15, 0.1], [0.15, 0.55, 0.2, 0.1], [0.15, 0.15, 0.6, 0.1], [0.05, 0.05, 0.1, 0.8]])
    said[3] = (1 - weight) * said[:2].mean(axis=0) + weight * said[3]
    classes = rng.choice(4, n, p=shares)
    own = np.array([rng.dirichlet(6 * said[one]) for one in classes]).repeat(images, axis=0)
    scores = 0.8 * own + 0.2 * rng.dirichlet(np.ones(4), len(own))
    classes = classes.repeat(images)
    return make_cohort(Task.MULTI_CLASS, scores, classes, first=first, images=images, classes=("a", "b", "c", "d"))


def test_a_class_answered_like_a_mixture_of_others_is_refused_though_every_two_differ():
    rng = np.random.default_rng(8)
    reference = draw_dependent(rng, 800, [0.25] * 4, 0.0)
    found = estimate(reference, draw_dependent(rng, 200, [0.25] * 4, 0.0, first=5000))
    assert {(shift.estimate, shift.low, shift.n, shift.patients) for shift in found} == {(None, None, 400, 200)}
    assert {shift.reason for shift in found} == {
        "the model's answers do not tell a, b and d apart enough, by 800 patients in the reference"
    }


def test_two_classes_that_are_answered_alike_are_named():
    rng = np.random.default_rng(9)

    def draw(n, first=0):
        classes = rng.integers(0, 3, n)
        evidence = 2.0 * np.eye(3)[np.where(classes == 2, 1, classes)] + rng.normal(size=(n, 3))
        scores = np.exp(evidence) / np.exp(evidence).sum(axis=1, keepdims=True)
        return make_cohort(Task.MULTI_CLASS, scores, classes, first=first)

    found = estimate(draw(600), draw(100, first=5000))
    assert {shift.reason for shift in found} == {
        "the model's answers do not tell b and c apart enough, by 600 patients in the reference"
    }


@pytest.mark.slow
def test_intervals_cover_where_the_columns_of_four_classes_lean_on_each_other():
    rng, runs, answered = np.random.default_rng(10), 150, 0
    covered = np.zeros(4)
    truth = np.array([0.15, 0.15, 0.2, 0.5])
    for seed in range(runs):
        reference = draw_dependent(rng, 400, [0.25] * 4, 0.5)
        found = estimate(reference, draw_dependent(rng, 150, truth, 0.5, first=5000), seed)
        if found[0].estimate is not None:
            answered += 1
            covered += [shift.low <= share <= shift.high for shift, share in zip(found, truth, strict=True)]
    assert answered > 0.9 * runs
    assert (covered >= binom.ppf(1e-4, answered, 0.93)).all()


def test_every_finding_of_a_multi_label_model_is_asked_alone():
    rng = np.random.default_rng(4)

    def draw(n, shares, first=0):
        labels = (rng.random((n, 2)) < shares).astype(float)
        scores = 1 / (1 + np.exp(-(3 * labels - 1.5 + rng.normal(size=(n, 2)))))
        return make_cohort(Task.MULTI_LABEL, scores, labels, first=first)

    found = estimate(draw(1000, [0.2, 0.5]), draw(1000, [0.5, 0.5], first=5000))
    assert [shift.finding for shift in found] == ["x", "y"]
    assert [shift.estimate for shift in found] == pytest.approx([0.5, 0.5], abs=0.06)


@pytest.mark.parametrize(
    ("reference", "current", "told"),
    [
        (lambda r: binary(r, 100, 0.5), lambda r: binary(r, 6, 0.5, first=1000), "6 patients, 20 are needed"),
        (
            lambda r: make_cohort(Task.BINARY, r.random(60), np.r_[np.ones(3), np.zeros(57)]),
            lambda r: binary(r, 40, 0.5, first=1000),
            "3 patients of class yes in the reference, 5 are needed",
        ),
        (
            lambda r: make_cohort(Task.BINARY, r.random(100), r.integers(0, 2, 100)),
            lambda r: binary(r, 40, 0.5, first=1000),
            "the model's answers do not tell no and yes apart enough, by 100 patients in the reference",
        ),
    ],
    ids=["few now", "few of a class", "no separation"],
)
def test_what_cannot_be_told_says_why(reference, current, told):
    rng = np.random.default_rng(5)
    (found,) = estimate(reference(rng), current(rng))
    assert (found.estimate, found.low, found.fits) == (None, None, None)
    assert found.reason == told


def test_shares_stay_between_nothing_and_all():
    rng = np.random.default_rng(6)
    for prevalence in (0.0, 1.0):
        (found,) = estimate(binary(rng, 200, 0.5), binary(rng, 60, prevalence, first=1000))
        assert 0 <= found.low <= found.estimate <= found.high <= 1
        assert abs(found.estimate - prevalence) < 0.15
