"""The studies that show a drift: the ones that were moved, one a patient, no copies, with true nearest neighbours."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from monitor.cohorts import Cohort
from monitor.examples import NEIGHBOURS, show_examples
from monitor.tasks import Task


def make_cohort(values, patients, prefix) -> Cohort:
    n = len(values)
    return Cohort(
        task=Task.BINARY,
        classes=("no", "yes"),
        study_uid=np.array([f"{prefix}{i}" for i in range(n)]),
        patient_key=np.array([str(p) for p in patients]),
        times=np.full(n, np.datetime64("2026-01-05", "us")),
        scores=np.full((n, 1), 0.5),
        labels=np.full((n, 1), np.nan),
        embeddings=np.asarray(values, dtype=np.float32),
    )


def sides(seed=0, images=2):
    rng = np.random.default_rng(seed)
    before = rng.normal(size=(120, 10))
    now = rng.normal(size=(60, 10))
    now[40:] += 3.0
    return (
        make_cohort(before, [f"r{i // images}" for i in range(120)], "r"),
        make_cohort(now, [f"c{i // images}" for i in range(60)], "c"),
    )


def show(reference, current, most=6):
    return show_examples(reference, current, most=most, generator=np.random.default_rng(0))


def test_what_was_moved_is_shown_plainest_first_and_one_a_patient():
    reference, current = sides()
    found = show(reference, current)
    numbers = [int(example.study_uid[1:]) for example in found]
    assert len(found) == 6
    assert min(numbers) >= 40
    assert len({number // 2 for number in numbers}) == 6
    scores = [example.score for example in found]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] > 1


def test_neighbours_are_the_nearest_reference_studies_of_other_patients():
    reference, current = sides()
    for example in show(reference, current):
        row = int(example.study_uid[1:])
        distances = cdist(current.embeddings[[row]], reference.embeddings)[0]
        assert len(example.neighbours) == NEIGHBOURS
        assert example.neighbours[0] == f"r{distances.argmin()}"
        assert list(example.distances) == sorted(example.distances)
        assert example.distances[0] == pytest.approx(distances.min())
        assert len({int(uid[1:]) // 2 for uid in example.neighbours}) == NEIGHBOURS


def test_copies_are_shown_once():
    reference, current = sides(images=1)
    values = current.embeddings.copy()
    values[40:58] = values[40]
    copies = make_cohort(values, current.patient_key, "c")
    numbers = [int(example.study_uid[1:]) for example in show(reference, copies)]
    assert sum(40 <= number < 58 for number in numbers) == 1


def test_without_embeddings_or_enough_patients_there_is_nothing_to_show():
    reference, current = sides()
    few = current.select(np.arange(6))
    assert show(reference, few) == ()
    assert show(few, reference) == ()
    assert show(reference.select(np.arange(0)), current) == ()
