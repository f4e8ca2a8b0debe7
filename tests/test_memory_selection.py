"""What is worth keeping for rehearsal: balanced rankings, exact greedy choices, and limits."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from continual.experiences import Experience
from continual.memory_selection import (
    SELECTIONS,
    MemoryPolicy,
    cover,
    herd,
    mean_token,
    measure_difficulty,
    rank_for_rehearsal,
)
from continual.policies import AdaptationPolicy


def stage(rows: list[tuple[int, str, int]], *, width: int = 3, seed: int = 0) -> Experience:
    """Make a stage of (label, stratum, patient) rows with random tokens."""
    generator = np.random.default_rng(seed)
    return Experience(
        name="stage",
        tokens=generator.normal(size=(len(rows), 2, width)).astype(np.float16),
        labels=np.array([[float(label)] for label, _, _ in rows]),
        patient_key=np.array([f"p{patient}" for _, _, patient in rows]),
        strata=np.array([stratum for _, stratum, _ in rows]),
    )


def rank(experience: Experience, selection: str, seed: int = 0, **more: Any) -> np.ndarray:
    difficulty = np.random.default_rng(1).random(len(experience)) if selection == "hardest" else None
    return rank_for_rehearsal(experience, np.random.default_rng(seed), selection, difficulty, **more)


studies = st.lists(st.tuples(st.integers(0, 1), st.sampled_from("AB"), st.integers(0, 5)), min_size=1, max_size=40)


@given(studies, st.sampled_from(SELECTIONS), st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_every_beginning_is_balanced_over_groups_and_patients(
    rows: list[tuple[int, str, int]], selection: str, seed: int, most: int
) -> None:
    experience = stage(rows)
    ranking = rank(experience, selection, seed, most=most)
    assert sorted(ranking) == list(range(len(rows)))
    groups = [f"{label}{stratum}" for label, stratum, _ in rows]
    sizes = {group: groups.count(group) for group in groups}
    for end in range(1, len(rows) + 1):
        kept = ranking[:end]
        counts = {group: sum(groups[row] == group for row in kept) for group in sizes}
        assert all(counts[one] >= min(counts[other] - 1, sizes[one]) for one in sizes for other in sizes)
        for group in sizes:
            mine = [rows[row][2] for row in range(len(rows)) if groups[row] == group]
            taken = [rows[row][2] for row in kept if groups[row] == group]
            most_taken = max((taken.count(patient) for patient in taken), default=0)
            assert all(taken.count(patient) >= min(most_taken - 1, mine.count(patient)) for patient in set(mine))


def test_herding_keeps_the_mean_by_the_book() -> None:
    points = np.array([[0.0], [1.0], [2.0], [9.0]], dtype=np.float32)
    # 2 is nearest to 3; of the pairs with it, 1.5 (with 1) is nearer to 3 than 5.5 (with 9) and 1 (with 0)
    assert herd(points, np.array([3.0], np.float32), 3).tolist() == [2, 1, 3]
    assert herd(points, np.array([3.0], np.float32), 10).tolist() == [2, 1, 3, 0]


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_each_step_of_herding_is_the_best_one_there_is(seed: int, most: int) -> None:
    points = np.random.default_rng(seed).normal(size=(12, 3)).astype(np.float32)
    target = points.mean(axis=0)
    chosen = herd(points, target, most)
    for step, row in enumerate(chosen):
        before = points[chosen[:step]].sum(axis=0, dtype=np.float64)
        open_ = [i for i in range(12) if i not in chosen[:step]]
        gaps = {i: float(np.linalg.norm(target - (before + points[i]) / (step + 1))) for i in open_}
        assert gaps[int(row)] <= min(gaps.values()) + 1e-5


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_k_centre_covers_within_twice_the_best_radius(seed: int, most: int) -> None:
    from itertools import combinations

    points = np.random.default_rng(seed).normal(size=(9, 2)).astype(np.float32)

    def radius(centres: tuple[int, ...]) -> float:
        return float(np.linalg.norm(points[:, None] - points[list(centres)], axis=2).min(axis=1).max())

    chosen = tuple(int(row) for row in cover(points, points.mean(axis=0), most))
    assert len(set(chosen)) == most
    assert radius(chosen) <= 2 * min(radius(others) for others in combinations(range(9), most)) + 1e-4


def test_herding_comes_nearer_to_the_mean_than_chance() -> None:
    rows = [(0, "", patient) for patient in range(300)]
    experience = stage(rows, width=8)
    means = mean_token(experience.tokens)

    def gap(ranking: np.ndarray) -> float:
        return float(np.linalg.norm(means[ranking[:20]].mean(axis=0) - means.mean(axis=0)))

    chance = [gap(rank(experience, "reservoir", seed)) for seed in range(50)]
    assert gap(rank(experience, "herding", most=20)) < min(chance)


def test_the_hardest_are_taken_but_never_outliers_and_at_most_every_other_one() -> None:
    rows = [(0, "", patient) for patient in range(100)]
    difficulty = np.arange(100, dtype=np.float64)
    difficulty[:5] += 1000  # wrong labels, say
    ranking = rank_for_rehearsal(stage(rows), np.random.default_rng(0), "hardest", difficulty)
    assert set(range(5)) == set(ranking[-5:])
    kept = set(ranking[:20].tolist())
    assert len(kept & set(range(85, 100))) >= 10
    assert len(kept & set(range(5, 85))) >= 5


def test_the_hardest_cannot_be_found_without_losses() -> None:
    with pytest.raises(ValueError, match="hardest needs the finite loss of each of 2 studies"):
        rank_for_rehearsal(stage([(0, "", 0), (1, "", 1)]), np.random.default_rng(0), "hardest")
    with pytest.raises(ValueError, match="there is no selection 'best'; choose one of reservoir"):
        rank_for_rehearsal(stage([(0, "", 0)]), np.random.default_rng(0), "best")


def test_difficulty_is_the_mean_log_loss_of_what_is_known() -> None:
    nan = float("nan")
    losses = measure_difficulty(
        np.array([[0.5, 0.9], [0.2, 1.0], [0.3, 0.3]]), np.array([[1, nan], [0, 1], [nan, nan]])
    )
    assert losses == pytest.approx([np.log(2), -np.log(0.8) / 2, 0.0], abs=1e-9)


def test_a_site_of_few_studies_is_not_drowned_by_a_large_one() -> None:
    rows = [(i % 2, "large", i) for i in range(200)] + [(i % 2, "small", 1000 + i) for i in range(10)]
    for selection in SELECTIONS:
        kept = rank(stage(rows), selection, most=40)[:40]
        assert sum(rows[row][1] == "small" for row in kept) == 10, selection


def test_both_limits_hold() -> None:
    policy = MemoryPolicy(studies=100, megabytes=1)
    assert policy.limit(1) == 100
    assert policy.limit(2**20) == 1
    assert policy.limit(2**15) == 32
    assert policy.limit(2**21) == 0


def test_a_policy_is_checked_and_shapes_a_training() -> None:
    with pytest.raises(ValidationError, match="there is no selection 'newest'"):
        MemoryPolicy(selection="newest")
    read = AdaptationPolicy.model_validate({"memory": {"studies": 40}})
    assert read.memory == MemoryPolicy(studies=40)
    assert read.recipe == AdaptationPolicy(memory=MemoryPolicy(studies=40)).recipe
    assert read.recipe != AdaptationPolicy().recipe
