"""MMD against a naive double loop, and its error rates when a patient has several images."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from monitor import kernels
from monitor.kernels import BANDWIDTHS, permutation_mmd
from monitor.permutations import relabel_patients


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


def naive_kernel(values, bandwidths=None):
    n = len(values)
    squared = [[sum((values[i] - values[j]) ** 2) for j in range(n)] for i in range(n)]
    median = np.median([d for row in squared for d in row if d > 0])
    variances = [factor * median for factor in BANDWIDTHS] if bandwidths is None else np.square(bandwidths)
    return [[np.mean([np.exp(-d / (2 * variance)) for variance in variances]) for d in row] for row in squared]


def naive_means(kernel, patients, is_current):
    """Average a kernel within the current side, within the other, and between; never within a patient."""
    now, before = np.flatnonzero(is_current), np.flatnonzero(~is_current)
    return [
        np.mean([kernel[i][j] for i in first for j in second if patients[i] != patients[j]])
        for first, second in ((now, now), (before, before), (now, before))
    ]


def naive_mmd(*arguments):
    now, before, between = naive_means(*arguments)
    return now + before - 2 * between


def small_world(seed):
    rng = np.random.default_rng(seed)
    patients = np.array([0, 0, 1, 2, 2, 2, 3, 4, 4, 5, 6])
    current = np.array([False] * 4 + [True] * 3)
    return rng.normal(size=(11, 3)) + current[patients][:, None], patients, current


@pytest.mark.parametrize("bandwidths", [None, (0.7,), (1.0, 3.0)])
@pytest.mark.parametrize("at_once", [1, 4, 512])
def test_statistic_effect_and_p_value_are_those_of_a_double_loop(monkeypatch, bandwidths, at_once):
    monkeypatch.setattr(kernels, "ROWS_AT_ONCE", at_once)
    monkeypatch.setattr(kernels, "RELABELLINGS_AT_ONCE", 7 * at_once)
    values, patients, current = small_world(0)
    is_current, kernel = current[patients], naive_kernel(values, bandwidths)
    statistic, effect, p = permutation_mmd(
        values, patients, is_current, permutations=59, generator=np.random.default_rng(7), bandwidths=bandwidths
    )
    assert statistic == pytest.approx(naive_mmd(kernel, patients, is_current), abs=1e-6)

    relabelled = relabel_patients(current, 59, np.random.default_rng(7))[1:]
    reached = sum(naive_mmd(kernel, patients, sides[patients]) >= statistic - 1e-6 for sides in relabelled)
    assert p == (reached + 1) / 60

    now, before, _ = naive_means(kernel, patients, is_current)
    assert effect == pytest.approx(np.sqrt(statistic / (1 - (now + before) / 2)), abs=1e-6)
    assert effect > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("bandwidths", [(4.0,), (2.0, 5.0, 11.0)])
def test_the_statistic_is_alibi_detects_on_the_same_kernel(bandwidths):
    rng = np.random.default_rng(10)
    before, now = (draw(rng, n, shift=shift, width=32).astype(np.float32) for n, shift in ((300, 0), (120, 0.1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # alibi-detect's own
        from alibi_detect.cd import MMDDrift

        peer = MMDDrift(before, backend="pytorch", sigma=np.array(bandwidths), n_permutations=1, device="cpu")
        assert peer._detector.kernel.sigma.tolist() == pytest.approx(bandwidths)
        theirs = peer.predict(now)["data"]["distance"]
    ours = permutation_mmd(
        np.concatenate([before, now]),
        np.arange(420),
        np.arange(420) >= 300,
        permutations=9,
        generator=rng,
        bandwidths=bandwidths,
    )[0]
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert ours > 1e-3


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
            (1e9 - 3e4 * values, patients, is_current),
            (values * 1e-30, patients, is_current),
        )
    )
    for statistic, effect, p in others:
        assert (statistic, effect**2) == pytest.approx((told[0], told[1] ** 2), abs=2e-6)
        assert p == told[2]
    assert 0 < told[2] <= 1


def test_the_order_of_a_patients_images_does_not_decide_the_bandwidth():
    rng = np.random.default_rng(11)
    values, patients = draw(rng, 700, images=3, within=2), np.arange(700).repeat(3)
    order = rng.permutation(2100)
    told, other = (
        permutation_mmd(v, p, p >= 400, permutations=9, generator=np.random.default_rng(0))
        for v, p in ((values, patients), (values[order], patients[order]))
    )
    assert other == pytest.approx(told, abs=1e-6)


def test_with_few_patients_a_relabelling_that_is_the_observed_one_counts_as_reached():
    """Four against four patients have 35 partitions: no p-value may fall much below 1/35."""
    rng = np.random.default_rng(12)
    for seed in range(20):
        before, now = (draw(rng, 4, shift=shift, images=3, within=0.2) for shift in (0, 50))
        p = compare(before, now, seed=seed, permutations=999, patients=np.arange(8).repeat(3))[2]
        assert binom.ppf(1e-5, 999, 1 / 35) <= 1000 * p - 1 <= binom.ppf(1 - 1e-5, 999, 1 / 35)


def test_one_patient_on_a_side_is_refused_and_the_values_stay_as_they_are():
    values, patients, current = small_world(1)
    values.flags.writeable = patients.flags.writeable = False
    permutation_mmd(values, patients, current[patients], permutations=9, generator=np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"^1 of 7 patients are current; each side needs two$"):
        permutation_mmd(values, patients, patients == 2, permutations=9, generator=np.random.default_rng(0))


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("row", [0, 5])
def test_one_value_that_is_not_finite_is_refused(broken, row):
    values, patients, current = small_world(1)
    values[row, 2] = broken
    with pytest.raises(ValueError, match="must be finite"):
        permutation_mmd(values, patients, current[patients], permutations=9, generator=np.random.default_rng(0))


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
