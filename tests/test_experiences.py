"""Experiences, and what of them is kept for rehearsal."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from continual.experiences import Experience, order_for_rehearsal, share_memory, why_not_learnable
from monitor.tasks import Task


def make(labels: list[list[float]], patients: list[str] | None = None) -> Experience:
    n = len(labels)
    return Experience(
        name="stage",
        tokens=np.zeros((n, 2, 3), np.float16),
        labels=np.array(labels, dtype=np.float64).reshape(n, len(labels[0]) if n else 1),
        patient_key=np.array(patients if patients is not None else [f"p{i}" for i in range(n)], dtype=np.str_),
    )


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        make([[0], [1]], ["p0"])


def test_a_token_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        Experience(
            name="stage",
            tokens=np.full((1, 2, 3), np.inf, np.float16),
            labels=np.zeros((1, 1)),
            patient_key=np.array(["p"]),
        )


def test_only_studies_with_a_known_label_are_learned_from() -> None:
    nan = float("nan")
    kept = make([[0, nan], [nan, nan], [1, 1]]).labelled()
    assert kept.patient_key.tolist() == ["p0", "p2"]


@pytest.mark.parametrize(
    ("task", "labels", "reason"),
    [
        (Task.BINARY, [[0], [1]], ""),
        (Task.BINARY, [[1], [1]], "all 2 labelled studies of stage have the same label"),
        (Task.BINARY, [], "no labelled study"),
        (Task.MULTI_CLASS, [[0], [2]], ""),
        (Task.MULTI_CLASS, [[2], [2]], "same label"),
        (Task.MULTI_LABEL, [[0, 1, 0], [0, 0, 0]], ""),
        (Task.MULTI_LABEL, [[0, 1, 0], [0, 1, 0]], "same label"),
    ],
)
def test_an_experience_with_one_class_teaches_nothing(task: Task, labels: list[list[float]], reason: str) -> None:
    classes = ("no", "yes") if task is Task.BINARY else ("a", "b", "c")
    why = why_not_learnable(make(labels), task, classes)
    assert reason in why
    assert bool(why) == bool(reason)


studies = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), min_size=1, max_size=40)


@given(studies, st.integers(0, 2**32 - 1))
def test_every_beginning_of_the_ranking_is_balanced(rows: list[tuple[int, int]], seed: int) -> None:
    labels = np.array([[float(label)] for label, _ in rows])
    patients = np.array([f"{label}-{patient}" for label, patient in rows])
    ranking = order_for_rehearsal(labels, patients, np.random.default_rng(seed))
    assert sorted(ranking) == list(range(len(rows)))
    sizes = {label: int((labels == label).sum()) for label in np.unique(labels)}
    for end in range(1, len(rows) + 1):
        kept = ranking[:end]
        counts = {label: int((labels[kept] == label).sum()) for label in sizes}
        for one, n_one in counts.items():
            for other, n_other in counts.items():
                assert n_one >= min(n_other - 1, sizes[one]), (one, other)
        for label in sizes:
            per_patient = [
                (int(((patients == p) & (labels[:, 0] == label)).sum()), int((patients[kept] == p).sum()))
                for p in np.unique(patients[labels[:, 0] == label])
            ]
            most = max(taken for _, taken in per_patient)
            assert all(taken >= min(most - 1, there) for there, taken in per_patient)


def test_the_ranking_is_decided_by_the_generator() -> None:
    labels, patients = np.array([[0.0], [1.0]] * 20), np.arange(40).astype(str)
    first, again, other = (order_for_rehearsal(labels, patients, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("sizes", "total", "shares"),
    [
        ([100, 100], 50, [25, 25]),
        ([10, 100], 50, [10, 40]),
        ([100, 10, 100], 50, [20, 10, 20]),
        ([3, 4], 50, [3, 4]),
        ([100, 100, 100], 10, [3, 3, 4]),
        ([], 10, []),
    ],
)
def test_memory_is_shared_evenly_as_far_as_sizes_allow(sizes: list[int], total: int, shares: list[int]) -> None:
    assert share_memory(sizes, total) == shares


@given(st.lists(st.integers(0, 50), max_size=6), st.integers(1, 100))
def test_memory_is_used_up_and_never_exceeded(sizes: list[int], total: int) -> None:
    shares = share_memory(sizes, total)
    assert sum(shares) == min(total, sum(sizes))
    assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
    unfilled = [share for share, size in zip(shares, sizes, strict=True) if share < size]
    assert not unfilled or max(shares) - min(unfilled) <= 1
