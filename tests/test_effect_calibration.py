"""The least effect that counts: an order statistic of the reference's own stretches, no patient on both sides."""

import math

import numpy as np
import pytest

from monitor.cohorts import Cohort
from monitor.comparisons import calibrate
from monitor.effect_calibration import calibrate_effects, draw_stretches
from monitor.policies import DriftPolicy
from monitor.tasks import Task

POLICY = DriftPolicy(minimum_effect=0.1, effect_quantile=0.9, embedding_detectors=("mmd",), minimum_patients=5)


def make_cohort(patients=60, images=2, seed=0) -> Cohort:
    rng = np.random.default_rng(seed)
    n = patients * images
    owner = rng.permutation(n) // images
    return Cohort(
        task=Task.BINARY,
        classes=("no", "yes"),
        study_uid=np.array([f"s{i}" for i in range(n)]),
        patient_key=np.array([f"p{i}" for i in owner]),
        times=np.datetime64("2026-01-05", "us") + rng.permutation(n) * np.timedelta64(1, "h"),
        scores=rng.random((n, 1)),
        labels=rng.integers(0, 2, (n, 1)).astype(float),
        attributes={"age": rng.normal(60, 10, n)},
        embeddings=rng.normal(size=(n, 4)).astype(np.float32),
    )


def stretches(cohort, patients, repeats=10, seed=0):
    return list(draw_stretches(cohort, patients=patients, repeats=repeats, generator=np.random.default_rng(seed)))


def test_a_stretch_is_consecutive_has_the_patients_asked_for_and_shares_none():
    cohort = make_cohort()
    for rest, stretch in stretches(cohort, 12):
        assert stretch.patients == 12
        assert not set(rest.patient_key) & set(stretch.patient_key)
        span = (cohort.times >= stretch.times.min()) & (cohort.times <= stretch.times.max())
        assert span.sum() == len(stretch)
        assert set(rest.patient_key) | set(stretch.patient_key) == set(cohort.patient_key)


def test_at_most_half_of_the_reference_is_taken_and_one_patient_has_no_stretch():
    assert {stretch.patients for _, stretch in stretches(make_cohort(20), 500)} == {10}
    assert stretches(make_cohort(1), 5) == []


def test_the_least_effect_is_an_order_statistic_and_never_below_the_policys():
    effects = iter(np.random.default_rng(1).permutation(39) / 100)
    found = calibrate_effects(
        make_cohort(),
        lambda rest, stretch: {"large": float(next(effects)), "small": 0.02},
        patients=10,
        policy=POLICY,
        generator=np.random.default_rng(0),
        repeats=39,
    )
    assert found == {"large": pytest.approx(0.35), "small": 0.1}  # the 36th of 39 values


def test_the_next_stretch_stays_below_as_often_as_promised():
    rng, runs, below = np.random.default_rng(2), 300, 0
    for _ in range(runs):
        drawn = iter(rng.random(40))
        bound = calibrate_effects(
            make_cohort(20),
            lambda rest, stretch, drawn=drawn: {"x": float(next(drawn))},
            patients=5,
            policy=POLICY,
            generator=rng,
            repeats=40,
        )["x"]
        below += rng.random() <= bound
    assert below >= runs * 0.9 - 4 * math.sqrt(runs * 0.09)


def test_a_figure_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="must be finite"):
        calibrate_effects(
            make_cohort(),
            lambda rest, stretch: {"x": math.nan},
            patients=10,
            policy=POLICY,
            generator=np.random.default_rng(0),
        )


def test_every_comparison_of_a_window_is_calibrated_on_the_reference_itself():
    found = calibrate(make_cohort(), 15, POLICY, np.random.default_rng(0))
    assert {"mmd on embedding", "ks on score yes", "ks on uncertainty", "ks on age"} <= set(found)
    assert all(effect >= 0.1 for effect in found.values())
    assert found == calibrate(make_cohort(), 15, POLICY, np.random.default_rng(0))
    larger = calibrate(make_cohort(400), 150, POLICY, np.random.default_rng(0))
    assert larger["ks on age"] <= found["ks on age"]
