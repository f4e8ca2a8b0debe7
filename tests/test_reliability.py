"""The reliability diagram: exact shares, bins of enough patients, intervals that hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from monitor.cohorts import Cohort
from monitor.policies import DriftPolicy
from monitor.reliability import bin_reliability
from monitor.tasks import Task


def cohort(scores, labels, patients=None) -> Cohort:
    n = len(scores)
    return Cohort(
        task=Task.BINARY,
        classes=("no", "yes"),
        study_uid=np.arange(n).astype(np.str_),
        patient_key=np.arange(n).astype(np.str_) if patients is None else np.asarray(patients).astype(np.str_),
        times=np.full(n, np.datetime64("2026-01-05", "us")),
        scores=np.asarray(scores, dtype=float)[:, None],
        labels=np.asarray(labels, dtype=float)[:, None],
    )


def bins_of(*columns, smallest=5, resamples=200):
    policy = DriftPolicy(smallest_cell=smallest, resamples=resamples)
    return bin_reliability(cohort(*columns), policy=policy, generator=np.random.default_rng(0))


def test_bins_are_scikit_learns_of_equal_numbers():
    rng = np.random.default_rng(1)
    scores = rng.random(400)
    labels = rng.random(400) < scores
    found = bins_of(scores, labels)
    seen, said = calibration_curve(labels, scores, n_bins=10, strategy="quantile")
    assert [one.seen for one in found] == pytest.approx(seen)
    assert [one.said for one in found] == pytest.approx(said)
    assert sum(one.studies for one in found) == 400


def test_too_few_patients_give_no_bin_and_unlabelled_studies_count_in_none():
    assert bins_of([0.1, 0.2, 0.9], [0, 0, 1]) == ()
    assert bins_of([0.1] * 12, [np.nan] * 12) == ()
    found = bins_of(np.linspace(0, 1, 20), [0, 1] * 5 + [np.nan] * 10)
    assert sum(one.studies for one in found) == 10
    assert max(one.said for one in found) < 0.5


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1), st.integers(0, 30)), min_size=1, max_size=60))
def test_every_bin_holds_enough_patients_and_bins_are_in_order(rows):
    scores, labels, patients = zip(*rows, strict=True)
    found = bins_of(scores, labels, patients, smallest=4, resamples=100)
    assert all(one.patients >= 4 for one in found)
    assert [one.said for one in found] == sorted(one.said for one in found)
    assert bool(found) is (len(set(patients)) >= 4)
    assert all(one.low is None or one.low <= one.seen <= one.high for one in found)


def test_intervals_hold_the_truth_as_often_as_they_say_though_patients_send_several_studies():
    rng, hits, n = np.random.default_rng(5), 0, 0
    for _ in range(60):
        level = rng.random(60).repeat(4)
        scores = np.clip(level + rng.normal(0, 0.001, 240), 0, 1)
        labels = (rng.random(60) < level[::4]).repeat(4)  # one truth a patient: four studies say no more than one
        for one in bins_of(scores, labels, np.arange(60).repeat(4)):
            hits += one.low <= one.said <= one.high
            n += 1
    assert hits / n >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / n)
