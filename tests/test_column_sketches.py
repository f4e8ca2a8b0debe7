"""Bins and clusters: the table of cells agrees with a search, sums over patients with brute force, to the bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from monitor.cohorts import MISSING
from monitor.column_clusters import MOST_PAIRED, cluster_by_patient, count_even, covariance_of_shares
from monitor.column_laws import Noise, judge_wasserstein
from monitor.column_reference import fit_columns, forget_studies
from monitor.column_sketches import FINE_BINS, find_bins, find_levels, sketch_categories, sketch_numbers
from monitor.text_hashing import hash_text

DRAWN = {
    "normal": lambda rng, n: rng.normal(size=n),
    "far from zero": lambda rng, n: 1e9 + rng.normal(size=n),
    "heavy tails": lambda rng, n: rng.standard_cauchy(size=n),
    "whole numbers": lambda rng, n: rng.integers(0, 90, n).astype(float),
    "many zeros": lambda rng, n: np.where(rng.random(n) < 0.4, 0.0, rng.gamma(2, 1, n)),
    "yes and no": lambda rng, n: rng.integers(0, 2, n).astype(float),
    "lognormal": lambda rng, n: np.exp(2 * rng.normal(size=n)),
    "constant": lambda rng, n: np.full(n, 7.0),
    "huge": lambda rng, n: rng.choice([-1e150, 0.0, 1e150], n),
}


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("n", [1, 60, 40_000])
def test_every_value_is_in_the_bin_that_a_search_finds(name, n):
    rng = np.random.default_rng(0)
    sketch = sketch_numbers(DRAWN[name](rng, n))
    window = np.concatenate([DRAWN[name](rng, 5000), sketch.edges, np.nextafter(sketch.edges, np.inf), [-1e300, 1e300]])
    np.testing.assert_array_equal(find_bins(sketch, window), np.searchsorted(sketch.edges, window))
    assert sketch.counts.sum() == n
    assert (np.diff(sketch.coarse) >= 0).all()
    assert find_bins(sketch, np.array([np.nan]))[0] == len(sketch.counts)


def test_bins_of_a_smooth_column_hold_little_and_need_no_second_look():
    sketch = sketch_numbers(np.random.default_rng(1).gamma(3, 1, 100_000))
    assert not len(sketch.inner)
    assert sketch.counts.max() < 100_000 * 2 / FINE_BINS


texts = st.lists(st.text(max_size=6).filter(lambda text: "\0" not in text), min_size=1, max_size=30)


@given(texts, texts)
def test_words_are_found_whatever_the_width_and_new_ones_are_told_apart(before, now):
    reference, window = np.array(before, dtype="U9"), np.array(now)
    sketch = sketch_categories(reference)
    levels = list(sketch.levels)
    expected = [levels.index(word or MISSING) if (word or MISSING) in levels else len(levels) for word in now]
    assert find_levels(sketch, window).tolist() == expected
    assert sketch.counts.sum() == len(before)


def test_five_hundred_categories_are_told_apart():
    words = np.array([f"device {i // 25}-{i % 25}" for i in range(500)])
    sketch = sketch_categories(words)
    order = np.random.default_rng(2).permutation(500)
    assert (sketch.levels[find_levels(sketch, words[order])] == words[order]).all()
    assert int(sketch_categories(np.append(words, "one more")).distinct[0]) == 501


@given(st.lists(st.text(max_size=20).filter(lambda text: "\0" not in text), min_size=1, max_size=20))
def test_texts_have_the_same_hash_exactly_when_they_are_the_same(words):
    hashes = hash_text(np.array(words))
    assert (hashes == hash_text(np.array(words, dtype="U60"))).all()
    assert len(set(hashes.tolist())) == len(set(words))


def by_brute_force(codes, patients, bins):
    table = np.zeros((len(set(patients)), bins))
    np.add.at(table, (np.unique(patients, return_inverse=True)[1], codes), 1)
    return table


@pytest.mark.parametrize("most", [1, 3, MOST_PAIRED, 60])
@pytest.mark.parametrize("keys", ["ordered", "mixed", "texts"])
def test_products_over_patients_are_those_of_the_table_of_patients(most, keys):
    rng = np.random.default_rng([3, most])
    sizes = rng.integers(1, most + 1, 70)
    patients = np.arange(70).repeat(sizes)
    patients = patients if keys == "ordered" else rng.permutation(patients)
    patients = np.array([f"p{i}" for i in patients]) if keys == "texts" else patients
    codes = rng.integers(0, 6, len(patients)).astype(np.int16)
    merged = np.array([0, 1, 1, 2, 2, 2])
    clusters = cluster_by_patient(patients)
    table = by_brute_force(merged[codes], patients, 3)
    together = clusters.count_together(codes, merged, table.sum(axis=0))
    np.testing.assert_array_equal(together, table.T @ table)
    assert clusters.count_patients(None) == (70, float((sizes.astype(float) ** 4).sum()))
    known = codes > 1
    held = by_brute_force(codes[known], patients[known], 6).sum(axis=1)
    assert clusters.count_patients(known) == (len(held), (held**4).sum())
    shares = table.sum(axis=0) / table.sum()
    apart = table - table.sum(axis=1, keepdims=True) * shares
    expected = apart.T @ apart / table.sum() ** 2 * 70 / 69
    np.testing.assert_allclose(covariance_of_shares(table.sum(axis=0), together, 70), expected, atol=1e-15)


def test_patients_with_as_many_studies_each_count_in_full():
    assert count_even(np.array([[40.0, 0.0], [0.0, 50.0]]), 90.0) == 90  # one study each
    assert count_even(np.array([[4.0 * 30]]), 16.0 * 30) == 30  # two each
    assert count_even(np.array([[100.0 + 30]]), 1e4 + 30) < 2  # one with ten among thirty


@pytest.mark.parametrize("images", [1, 3])
def test_what_is_forgotten_leaves_what_counting_the_others_gives(images):
    rng = np.random.default_rng(4)
    patients = np.arange(400).repeat(images)
    numbers = np.where(rng.random(len(patients)) < 0.1, np.nan, rng.normal(size=len(patients)))
    words = rng.choice(["a", "b", MISSING], len(patients))
    twice = patients % 5 == 0
    for column in (numbers, words):
        known = fit_columns({"x": column}, patients)["x"]
        rest = forget_studies(known, column[twice], patients[twice])
        nothing = forget_studies(rest, column[~twice], patients[~twice])
        assert (nothing.patients, nothing.missing, nothing.fourth, nothing.sketch.counts.sum()) == (0, 0, 0.0, 0.0)
        assert not nothing.together.any()
        again = forget_studies(known, column[:0], patients[:0])
        assert again is known
        assert rest.sketch.counts.sum() + rest.missing * (column is numbers) == (~twice).sum()


@pytest.mark.parametrize("deviations", [0.5, 2.0, 4.0, 8.0])
def test_the_tail_of_a_walk_of_one_step_is_gaussian_however_far_out(deviations):
    """A column of two values: the distance is a share's difference, whose law is known."""
    sketch = sketch_numbers(np.array([0.0, 1.0] * 500))
    groups, share = int(sketch.coarse[-1]) + 1, 0.02
    places = sketch.coarse[np.searchsorted(sketch.edges, [0.0, 1.0])]
    noise = np.zeros((groups, groups))
    noise[np.ix_(places, places)] = share**2 * np.array([[1, -1], [-1, 1]])
    apart = np.where((sketch.edges >= 0) & (sketch.edges < 1), share * deviations, 0.0)
    centres = sketch.centres
    law = Noise(covariance=noise, freedom=1e9)
    distance, _, p = judge_wasserstein(sketch, centres, apart, law)
    assert distance == pytest.approx(share * deviations)
    assert p == pytest.approx(2 * norm.sf(deviations), rel=0.15)
    few = judge_wasserstein(sketch, centres, apart, Noise(covariance=noise, freedom=12))[2]
    assert few > p


def test_the_tail_of_a_walk_is_that_of_many_plain_draws():
    rng = np.random.default_rng(5)
    sketch = sketch_numbers(rng.gamma(2, 1, 3000))
    groups = int(sketch.coarse[-1]) + 1
    shares = np.bincount(sketch.coarse, weights=sketch.counts) / 3000
    noise = (np.diag(shares) - np.outer(shares, shares)) / 100
    gaps = np.bincount(sketch.coarse[:-1], weights=np.diff(sketch.centres), minlength=groups)
    spread, axes = np.linalg.eigh(noise)
    drawn = rng.normal(size=(200_000, groups)) @ (axes * np.sqrt(np.maximum(spread, 0))).T
    far = np.abs(np.cumsum(drawn, axis=1)) @ gaps
    for level in (0.3, 0.05, 0.001):
        least = float(np.quantile(far, 1 - level))
        apart = np.full(len(sketch.edges), least / np.diff(sketch.centres).sum())
        p = judge_wasserstein(sketch, sketch.centres, apart, Noise(covariance=noise, freedom=1e9))[2]
        assert p == pytest.approx(level, rel=0.15)
