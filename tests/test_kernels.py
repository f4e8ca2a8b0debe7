"""MMD against a naive double loop, and its error rates when a patient has several images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from monitor.kernels import BANDWIDTHS, permutation_mmd
from monitor.permutations import contrasts


def draw(rng, patients, *, shift=0.0, images=1, within=0.0, width=6):
    values = (rng.normal(size=(patients, width)) + shift).repeat(images, axis=0)
    return values + within * rng.normal(size=values.shape)


def compare(before, now, *, permutations=99, seed=0, patients=None):
    """Test two samples; each row is a patient of its own unless told otherwise."""
    values = np.concatenate([before, now])
    patients = np.arange(len(values)) if patients is None else np.asarray(patients)
    is_current = np.arange(len(values)) >= len(before)
    return permutation_mmd(
        values, patients, is_current, permutations=permutations, generator=np.random.default_rng(seed)
    )


def naive_kernel(values):
    n = len(values)
    squared = [[sum((values[i] - values[j]) ** 2) for j in range(n)] for i in range(n)]
    median = np.median([d for row in squared for d in row if d > 0])
    return [[np.mean([np.exp(-d / (2 * factor * median)) for factor in BANDWIDTHS]) for d in row] for row in squared]


def mean_over(kernel, first, second, skip=lambda i, j: False):
    return np.mean([kernel[i][j] for i in first for j in second if not skip(i, j)])


def naive_mmd(kernel, is_current):
    now, before = np.flatnonzero(is_current), np.flatnonzero(~is_current)
    return mean_over(kernel, now, now) + mean_over(kernel, before, before) - 2 * mean_over(kernel, now, before)


def test_statistic_effect_and_p_value_are_those_of_a_double_loop():
    rng = np.random.default_rng(0)
    patients = np.array([0, 0, 1, 2, 2, 2, 3, 4, 4, 5, 6])
    current = np.array([False] * 4 + [True] * 3)
    is_current, values = current[patients], rng.normal(size=(11, 3)) + current[patients][:, None]
    kernel = naive_kernel(values)
    statistic, effect, p = permutation_mmd(
        values, patients, is_current, permutations=59, generator=np.random.default_rng(7)
    )
    assert statistic == pytest.approx(naive_mmd(kernel, is_current), abs=1e-12)

    relabelled = contrasts(np.bincount(patients).astype(float), current, 59, np.random.default_rng(7))[1:] > 0
    reached = sum(naive_mmd(kernel, sides[patients]) >= statistic - 1e-12 for sides in relabelled)
    assert p == (reached + 1) / 60

    def same_patient(i, j):
        return patients[i] == patients[j]

    now, before = np.flatnonzero(is_current), np.flatnonzero(~is_current)
    within = [mean_over(kernel, side, side, same_patient) for side in (now, before)]
    unbiased = sum(within) - 2 * mean_over(kernel, now, before)
    assert effect == pytest.approx(np.sqrt(max(unbiased, 0) / (1 - sum(within) / 2)), abs=1e-12)
    assert effect > 0


@given(st.integers(0, 2**32 - 1), st.tuples(st.integers(4, 12), st.integers(4, 12)))
def test_swapping_the_sides_the_order_of_rows_and_moving_everything_change_nothing(seed, sizes):
    rng = np.random.default_rng(seed)
    values = np.concatenate([draw(rng, sizes[0], images=2, within=0.5), draw(rng, sizes[1], shift=0.5)])
    patients = np.r_[np.arange(sizes[0]).repeat(2), sizes[0] + np.arange(sizes[1])]
    is_current, order = patients >= sizes[0], rng.permutation(len(values))
    told, *others = (
        permutation_mmd(*arguments, permutations=19, generator=np.random.default_rng(seed))
        for arguments in (
            (values, patients, is_current),
            (values, patients, ~is_current),
            (values[order], patients[order], is_current[order]),
            (100 - 3 * values, patients, is_current),
        )
    )
    for other in others:
        assert other == pytest.approx(told, abs=1e-7)
    assert 0 < told[2] <= 1


def test_the_p_value_is_never_zero():
    rng = np.random.default_rng(1)
    before, now = draw(rng, 60), draw(rng, 40, shift=9)
    for permutations in (9, 99, 999):
        assert compare(before, now, permutations=permutations)[2] == 1 / (permutations + 1)


def test_nothing_that_varies_is_no_difference():
    assert compare(np.ones((8, 3)), np.ones((6, 3))) == (pytest.approx(0, abs=1e-12), 0, 1)


@pytest.mark.parametrize("n", [1000, pytest.param(4000, marks=pytest.mark.slow)])
def test_the_effect_of_a_shift_does_not_grow_with_n_and_is_none_without_a_shift(n):
    rng = np.random.default_rng(2)
    small = np.mean([compare(draw(rng, 100), draw(rng, 100, shift=0.4), permutations=9)[1] for _ in range(20)])
    large = compare(draw(rng, n // 2), draw(rng, n // 2, shift=0.4), permutations=9)[1]
    assert small == pytest.approx(large, abs=0.04)
    assert large > 0.3
    assert compare(draw(rng, n // 2), draw(rng, n // 2), permutations=9)[1] < 0.04


def test_copies_of_an_image_leave_the_effect_as_it_is():
    rng = np.random.default_rng(3)
    before, now = draw(rng, 40), draw(rng, 30, shift=0.5)
    copied = compare(before.repeat(4, axis=0), now.repeat(4, axis=0), patients=np.arange(70).repeat(4))
    assert copied[1:] == pytest.approx(compare(before, now)[1:], abs=0.01)


@pytest.mark.parametrize("within", [0.0, 0.3], ids=["identical", "alike"])
def test_several_images_a_patient_keep_the_false_alarm_rate_and_permuting_rows_would_not(within):
    rng, runs = np.random.default_rng(4), 400
    owner = np.arange(30).repeat(4)
    by_patient, by_row = np.empty(runs), np.empty(runs)
    for seed in range(runs):
        before, now = (draw(rng, patients, images=4, within=within) for patients in (18, 12))
        by_patient[seed] = compare(before, now, seed=seed, patients=owner)[2]
        by_row[seed] = compare(before, now, seed=seed, permutations=19)[2]
    for alpha in (0.05, 0.2):
        least, most = binom.ppf([1e-4, 1 - 1e-4], runs, alpha)
        assert least <= (by_patient <= alpha).sum() <= most
        assert (by_row <= alpha).sum() > 2 * most


def test_a_planted_shift_is_found():
    rng = np.random.default_rng(5)
    owner = np.arange(100).repeat(2)
    found = [
        compare(draw(rng, 60, images=2, within=0.3), draw(rng, 40, shift=0.5, images=2, within=0.3), patients=owner)[2]
        <= 0.01
        for _ in range(40)
    ]
    assert np.mean(found) >= 0.9
