"""Column tests against SciPy, and their error rates when a patient has several images."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import jensenshannon
from scipy.stats import binom, chi2_contingency, ks_2samp, norm, wasserstein_distance

from monitor import columns
from monitor.columns import (
    permutation_chi_square,
    permutation_jensen_shannon,
    permutation_ks,
    permutation_psi,
    permutation_wasserstein,
    psi,
)
from monitor.permutations import contrasts, p_value

TESTS = {
    "ks": permutation_ks,
    "wasserstein": permutation_wasserstein,
    "chi_square": permutation_chi_square,
    "psi": permutation_psi,
    "jensen_shannon": permutation_jensen_shannon,
}
NUMERIC = ("ks", "wasserstein")


def compare(name, before, now, *, permutations=99, seed=0, patients=None):
    """Test two samples; each row is a patient of its own unless told otherwise."""
    values = np.concatenate([before, now])
    patients = np.arange(len(values)) if patients is None else np.asarray(patients)
    is_current = np.arange(len(values)) >= len(before)
    generator = np.random.default_rng(seed)
    return TESTS[name](values, patients, is_current, permutations=permutations, generator=generator)


def draw(name, rng, patients, *, shift=0.0, images=1, within=0.0):
    """Draw one column of studies: numbers, or yes and no; images of a patient are alike."""
    numbers = rng.normal(shift, 1, patients).repeat(images)
    numbers = numbers + within * rng.normal(size=len(numbers))
    return numbers if name in NUMERIC else np.where(numbers > 0, "yes", "no")


numbers = arrays(np.float64, st.integers(2, 40), elements=st.sampled_from([-1.5, 0, 0.1, 2, 2.5, 7]))
words = arrays("U1", st.integers(1, 40), elements=st.sampled_from("abc"))


@given(numbers, numbers)
def test_the_distance_is_that_of_scipys_ks_test_ties_included(before, now):
    statistic, effect, p = compare("ks", before, now, permutations=9)
    assert statistic == pytest.approx(ks_2samp(before, now, method="asymp").statistic, abs=1e-12)
    assert 0 <= effect <= statistic
    assert 0 < p <= 1


@given(numbers, numbers)
def test_the_distance_is_that_of_scipys_wasserstein_in_the_columns_unit(before, now):
    statistic, effect, _ = compare("wasserstein", before, now, permutations=9)
    assert statistic == pytest.approx(wasserstein_distance(before, now), abs=1e-12)
    assert effect >= 0


@given(words, words)
def test_shares_are_compared_as_scipy_compares_them_and_by_hand(before, now):
    categories = np.unique(np.concatenate([before, now]))
    counts = np.array([[(side == category).sum() for category in categories] for side in (now, before)], dtype=float)
    p, q = counts / counts.sum(axis=1, keepdims=True)
    statistic = compare("jensen_shannon", before, now, permutations=9)[0]
    assert statistic == pytest.approx(jensenshannon(p, q, base=2), abs=1e-7)
    p, q = (counts + 0.5) / (counts + 0.5).sum(axis=1, keepdims=True)
    assert compare("psi", before, now, permutations=9)[0] == pytest.approx(((p - q) * np.log(p / q)).sum(), abs=1e-12)


def test_the_stability_index_of_two_shares_by_hand():
    now, before = np.array([[29.5, 69.5]]), np.array([[49.5, 49.5]])
    assert psi(now, before)[0] == pytest.approx((0.3 - 0.5) * np.log(0.3 / 0.5) + (0.7 - 0.5) * np.log(0.7 / 0.5))


def test_numbers_are_counted_between_the_deciles_of_the_reference():
    before, now = np.arange(100.0), np.arange(50.0)
    p = np.array([0.2] * 5 + [0.0] * 5)
    assert compare("jensen_shannon", before, now, permutations=9)[0] == pytest.approx(
        jensenshannon(p, np.full(10, 0.1), base=2)
    )


@pytest.mark.parametrize("name", TESTS)
def test_an_effect_is_about_nothing_without_a_change_however_few(name):
    rng = np.random.default_rng(4)
    effects = [compare(name, draw(name, rng, 20), draw(name, rng, 12), seed=i)[1] for i in range(60)]
    changed = [compare(name, draw(name, rng, 20), draw(name, rng, 12, shift=2), seed=i)[1] for i in range(20)]
    assert np.median(effects) < 0.05
    assert np.median(changed) > 0.2


@given(words, words)
def test_the_statistic_is_pearsons_chi_square_and_the_effect_cramers_v_beyond_chance(before, now):
    statistic, effect, _ = compare("chi_square", before, now, permutations=9)
    categories = np.unique(np.concatenate([before, now]))
    table = np.array([[(side == category).sum() for category in categories] for side in (before, now)])
    peer = chi2_contingency(table, correction=False).statistic if len(categories) > 1 else 0
    assert statistic == pytest.approx(peer, abs=1e-9)
    assert 0 <= effect <= np.sqrt(peer / table.sum()) + 1e-9


@pytest.mark.parametrize("name", TESTS)
def test_the_statistic_counts_studies_however_many_a_patient_has(name):
    rng = np.random.default_rng(0)
    before, now = draw(name, rng, 30), draw(name, rng, 20, shift=1)
    one_each = compare(name, before, now)
    shared = compare(name, before, now, patients=np.r_[np.arange(30) // 3, 10 + np.arange(20) // 4])
    assert shared[0] == pytest.approx(one_each[0], abs=1e-12)


@pytest.mark.parametrize("name", TESTS)
@example(seed=536870913, sizes=(29, 18))  # equal shares: the statistic is 0 but for rounding
@given(seed=st.integers(0, 2**32 - 1), sizes=st.tuples(st.integers(4, 30), st.integers(4, 30)))
def test_swapping_the_sides_and_the_order_of_rows_change_nothing(name, seed, sizes):
    rng = np.random.default_rng(seed)
    before, now = draw(name, rng, sizes[0], images=2, within=0.5), draw(name, rng, sizes[1], shift=0.5)
    values, is_current = np.concatenate([before, now]), np.arange(len(before) + len(now)) >= len(before)
    patients = np.r_[np.arange(sizes[0]).repeat(2), sizes[0] + np.arange(sizes[1])]
    order = rng.permutation(len(values))
    told, swapped, shuffled = (
        TESTS[name](*arguments, permutations=19, generator=np.random.default_rng(seed))
        for arguments in (
            (values, patients, is_current),
            (values, patients, ~is_current),
            (values[order], patients[order], is_current[order]),
        )
    )
    assert swapped[::2] == pytest.approx(told[::2], abs=1e-9)  # an effect may be in units of the reference
    assert shuffled == pytest.approx(told, abs=1e-9)


@given(st.integers(0, 2**32 - 1))
def test_the_distance_knows_only_ranks(seed):
    rng = np.random.default_rng(seed)
    before, now = rng.normal(size=12), rng.normal(0.5, 1, size=9)
    assert compare("ks", np.exp(before), np.exp(now)) == compare("ks", before, now)


@pytest.mark.parametrize("name", TESTS)
def test_the_p_value_is_never_zero(name):
    rng = np.random.default_rng(1)
    before, now = draw(name, rng, 200, shift=-9), draw(name, rng, 100, shift=9)
    for permutations in (9, 99, 999):
        assert compare(name, before, now, permutations=permutations)[2] == 1 / (permutations + 1)


def test_a_p_value_counts_the_relabellings_that_reach_what_was_observed():
    assert p_value(np.array([3.0, 1, 3, 5])) == 3 / 4
    assert p_value(np.array([9.0, 1, 3, 5])) == 1 / 4
    assert p_value(np.array([0.0, 0, 0, 0])) == 1


def test_relabelling_keeps_the_number_of_patients_on_either_side():
    sizes, current = np.array([1.0, 4, 2, 2, 1]), np.array([True, False, False, True, False])
    weights = contrasts(sizes, current, 50, np.random.default_rng(0))
    assert weights.shape == (51, 5)
    assert weights[0] == pytest.approx([1 / 3, -1 / 7, -1 / 7, 1 / 3, -1 / 7])
    assert ((weights > 0).sum(axis=1) == 2).all()
    assert weights @ sizes == pytest.approx(np.zeros(51), abs=1e-12)
    assert np.where(weights > 0, weights, 0) @ sizes == pytest.approx(np.ones(51))
    assert len(np.unique(weights, axis=0)) == 10


def test_rows_are_summed_in_chunks_of_any_size(monkeypatch):
    rng = np.random.default_rng(2)
    before, now = rng.normal(size=40), rng.normal(0.3, 1, 30)
    whole = compare("ks", before, now)
    monkeypatch.setattr(columns, "CELLS_AT_ONCE", 300)
    assert compare("ks", before, now) == whole


@pytest.mark.parametrize(("n", "m"), [(7, 3), (13, 9), (29, 18), (11, 6)])
def test_exactly_equal_shares_are_no_evidence_whatever_is_lost_in_rounding(n, m):
    before, now = (np.repeat(["a", "b", "c"], [3 * k, k, k]) for k in (n, m))
    assert compare("chi_square", before, now) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-6), 1)


def test_rare_categories_and_a_constant_column_do_no_harm():
    assert compare("chi_square", np.array(["a"] * 40), np.array(["a"] * 30)) == (0, 0, 1)
    _, effect, p = compare("chi_square", np.array(["a"] * 40), np.array(["a"] * 29 + ["b"]), permutations=999)
    assert p > 0.3
    assert effect < 0.2


@pytest.mark.parametrize(("name", "truth"), [("ks", 2 * norm.cdf(0.3) - 1), ("chi_square", None)])
def test_the_effect_of_a_shift_does_not_grow_with_n_and_is_none_without_a_shift(name, truth):
    rng = np.random.default_rng(3)
    small, large = (
        np.mean([compare(name, draw(name, rng, n), draw(name, rng, n, shift=0.6))[1] for _ in range(runs)])
        for n, runs in ((200, 20), (4000, 2))
    )
    assert small == pytest.approx(large, abs=0.04)
    assert truth is None or large == pytest.approx(truth, abs=0.03)
    assert compare(name, draw(name, rng, 4000), draw(name, rng, 4000))[1] < 0.04


@pytest.mark.parametrize("within", [0.0, 0.3], ids=["identical", "alike"])
@pytest.mark.parametrize("name", TESTS)
def test_several_images_a_patient_keep_the_false_alarm_rate_and_permuting_rows_would_not(name, within):
    rng, runs = np.random.default_rng(4), 400
    by_patient, by_row = [], []
    owner = np.arange(50).repeat(4)
    for seed in range(runs):
        sides = (draw(name, rng, patients, images=4, within=within) for patients in (30, 20))
        before, now = sides
        by_patient.append(compare(name, before, now, seed=seed, patients=owner)[2])
        by_row.append(compare(name, before, now, seed=seed)[2])
    for alpha in (0.05, 0.2):
        most = binom.ppf(1 - 1e-4, runs, alpha)
        assert (np.array(by_patient) <= alpha).sum() <= most
        assert (np.array(by_row) <= alpha).sum() > 1.5 * most
    if name == "ks":  # no ties among relabellings: neither more nor fewer alarms than promised
        assert (np.array(by_patient) <= 0.2).sum() >= binom.ppf(1e-4, runs, 0.2)


@pytest.mark.parametrize("name", TESTS)
def test_a_planted_shift_is_found(name):
    rng = np.random.default_rng(5)
    owner = np.arange(100).repeat(2)
    found = [
        compare(
            name,
            draw(name, rng, 60, images=2, within=0.3),
            draw(name, rng, 40, shift=1.6, images=2, within=0.3),
            patients=owner,
        )[2]
        <= 0.01
        for _ in range(40)
    ]
    assert sum(found) >= binom.ppf(1e-4, 40, 0.95)
