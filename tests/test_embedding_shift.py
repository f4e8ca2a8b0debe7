"""The flagship test of embeddings: exact false alarms, power beside MMD, and everything that must not matter."""

import doctest
import io
from functools import partial

import numpy as np
import pytest
from scipy.stats import binom

from monitor import embedding_shift
from monitor.embedding_features import GROUPS, columns, map_features
from monitor.embedding_shift import Reference, TooFewPatients, fit_reference, name_reference, permutation_shift
from monitor.kernels import permutation_mmd

WIDTH = 64
SPREAD = np.arange(1, WIDTH + 1) ** -0.5
AXES = np.linalg.qr(np.random.default_rng(99).normal(size=(WIDTH, WIDTH)))[0]
MOVE = np.random.default_rng(98).normal(size=WIDTH)
CENTRES = np.random.default_rng(97).normal(size=(4, WIDTH)) * (np.arange(WIDTH) < 8)


def draw(rng, patients, kind=None, *, images=1, within=0.0, size=1.0):
    """Embedding-like rows: clusters, a falling spectrum, heavy tails; images of a patient are alike."""
    white = rng.normal(size=(patients, WIDTH)) * np.sqrt(rng.chisquare(8, (patients, 1)) / 8)
    white += CENTRES[rng.integers(0, 4, patients)]
    if kind == "mean":
        white += 0.16 * size * MOVE
    if kind == "covariance":
        white *= np.where((np.arange(WIDTH) % 3 == 0) & (np.arange(WIDTH) >= 6), 1 + 0.35 * size, 1)
    if kind == "mixture":
        few = rng.random(patients) < 0.1
        white[few] = 0.8 * white[few] + 1.1 * size * MOVE
    rows = white.repeat(images, axis=0)
    return (rows + within * rng.normal(size=rows.shape)) * SPREAD @ AXES.T


def keys(name, patients, images=1):
    return np.array([f"{name}{i}" for i in range(patients)]).repeat(images)


def ask(reference, window, patients=None, *, permutations=99, seed=0):
    patients = keys("c", len(window)) if patients is None else patients
    rng = np.random.default_rng(seed)
    return embedding_shift.test_shift(reference, window, patients, permutations=permutations, generator=rng)


def fit(values, patients=None, seed=0):
    patients = keys("r", len(values)) if patients is None else patients
    return fit_reference(values, patients, generator=np.random.default_rng(seed))


def both(before, now, *, seed=0, permutations=99, test=permutation_shift):
    rows = np.arange(len(before) + len(now))
    return test(
        np.concatenate([before, now]),
        rows,
        rows >= len(before),
        permutations=permutations,
        generator=np.random.default_rng(seed),
    )


def test_the_statistic_is_that_of_a_plain_loop_over_relabellings():
    rng = np.random.default_rng(0)
    reference = fit(draw(rng, 30, images=2, within=0.3), keys("r", 30, 2))
    window, owners = draw(rng, 12, "mean", images=3, within=0.3), np.arange(12).repeat(3)
    shift = ask(reference, window, keys("c", 12, 3), permutations=29, seed=4)

    now = map_features(reference.learned, window).astype(float)
    by_patient = np.array([now[owners == i].sum(axis=0) for i in range(12)])[np.argsort(keys("c", 12))]
    sums = np.concatenate([reference.sums.astype(float), by_patient])
    sizes = np.r_[reference.sizes, np.full(12, 3.0)]
    sides = embedding_shift._relabellings(len(reference.sizes), 12, 29, np.random.default_rng(4))
    squared = np.array(
        [
            (sums[side].sum(axis=0) / sizes[side].sum() - sums[~side].sum(axis=0) / sizes[~side].sum()) ** 2
            for side in sides
        ]
    )
    roots = [
        np.cbrt((squared[:, g] / squared[:, g].mean(axis=0)).sum(axis=1)) for g in columns(reference.learned.axes.shape)
    ]
    largest = np.max([(root - root.mean()) / root.std() for root in roots if root.std() > 0], axis=0)
    assert shift.statistic == pytest.approx(largest[0], abs=2e-3)
    assert shift.p_value == pytest.approx((1 + (largest[1:] >= largest[0] - 1e-3).sum()) / 30)


def test_relabellings_are_even_and_keep_the_number_of_patients():
    for before, now in ((5, 3), (3, 5)):
        sides = embedding_shift._relabellings(before, now, 4000, np.random.default_rng(1))
        assert sides[0].tolist() == [False] * before + [True] * now
        assert (sides.sum(axis=1) == now).all()
        least, most = binom.ppf([1e-5, 1 - 1e-5], 4000, now / 8)
        assert ((least <= sides[1:].sum(axis=0)) & (sides[1:].sum(axis=0) <= most)).all()
        assert len(np.unique(sides, axis=0)) == 56


@pytest.mark.parametrize(
    ("runs", "images", "patients"),
    [(300, 4, (40, 16)), (200, 1, (60, 30)), pytest.param(4000, 3, (150, 40), marks=pytest.mark.slow)],
)
def test_the_false_alarm_rate_is_exact_with_several_images_a_patient(runs, images, patients):
    p_values = np.empty(runs)
    for seed in range(runs):
        rng = np.random.default_rng([7, seed])
        before, now = (draw(rng, n, images=images, within=0.3) for n in patients)
        reference = fit(before, keys("r", patients[0], images), seed)
        p_values[seed] = ask(reference, now, keys("c", patients[1], images), seed=seed).p_value
    for alpha in (0.01, 0.05, 0.2, 0.5):
        least, most = binom.ppf([1e-4, 1 - 1e-4], runs, alpha)
        assert least <= (p_values <= alpha).sum() <= most, alpha


@pytest.mark.parametrize(("runs", "patients"), [(200, (24, 12)), pytest.param(800, (60, 25), marks=pytest.mark.slow)])
def test_learning_from_both_sides_unlabelled_keeps_the_false_alarm_rate_exact(runs, patients):
    p_values = np.empty(runs)
    for seed in range(runs):
        rng = np.random.default_rng([70, seed])
        values = np.concatenate([draw(rng, n, images=2, within=0.3) for n in patients])
        owners = np.arange(sum(patients)).repeat(2)
        is_current = owners >= patients[0]
        p_values[seed] = permutation_shift(values, owners, is_current, permutations=99, generator=rng)[2]
    for alpha in (0.01, 0.05, 0.2, 0.5):
        least, most = binom.ppf([1e-4, 1 - 1e-4], runs, alpha)
        assert least <= (p_values <= alpha).sum() <= most, alpha


def test_learning_from_both_sides_sees_more_than_giving_half_the_reference_away():
    found = np.zeros((2, 30))
    for seed in range(30):
        rng = np.random.default_rng([71, seed])
        before, now = draw(rng, 120), draw(rng, 40, "mean", size=1.3)
        found[:, seed] = both(before, now, seed=seed)[2] <= 0.05, ask(fit(before), now, seed=seed).p_value <= 0.05
    together, split = found.mean(axis=1)
    assert together > split + 0.1


def test_the_name_of_a_reference_changes_with_content_seed_and_version(monkeypatch):
    rng = np.random.default_rng(72)
    values, owners = draw(rng, 10), keys("r", 10)
    name = name_reference(values, owners, seed=0)
    assert name == name_reference(np.asfortranarray(values), owners.copy(), seed=0)
    others = [(values + 1e-9, owners, 0), (values, owners[::-1], 0), (values, owners, 1), (values.ravel(), owners, 0)]
    names = {name_reference(some, whose, seed=seed) for some, whose, seed in others}
    monkeypatch.setattr(embedding_shift, "VERSION", -1)
    assert len(names | {name, name_reference(values, owners, seed=0)}) == 6


def test_testing_the_half_that_taught_the_features_would_not_be_exact():
    """Why the halves are kept apart: features that know one side alarm without a cause."""
    false = 0
    for seed in range(40):
        rng = np.random.default_rng([8, seed])
        before, now = draw(rng, 160), draw(rng, 40)
        reference = fit(before, seed=seed)
        taught = before[np.isin(keys("r", 160), reference.learned_from)]
        cheat = Reference.of(
            reference.arrays() | {"sums": map_features(reference.learned, taught), "sizes": np.ones(len(taught))}
        )
        false += ask(cheat, now, seed=seed).p_value <= 0.05
    assert false > 20


@pytest.mark.parametrize(("kind", "size"), [("mean", 1.0), ("covariance", 0.9), ("mixture", 1.4)])
def test_it_sees_more_than_mmd_at_the_same_false_alarm_rate(kind, size):
    runs = 30
    found = np.zeros((2, runs))
    for seed in range(runs):
        rng = np.random.default_rng([9, seed])
        before, now = draw(rng, 400), draw(rng, 120, kind, size=size)
        for row, test in enumerate((permutation_shift, permutation_mmd)):
            found[row, seed] = both(before, now, seed=seed, test=test)[2] <= 0.05
    ours, mmd = found.mean(axis=1)
    assert ours >= 0.7
    assert ours > mmd + 0.15


@pytest.mark.parametrize(
    ("kind", "groups"),
    [
        ("mean", {"leading directions", "broad directions", "remaining directions"}),
        ("covariance", {"second moments", "band energies"}),
    ],
)
def test_the_winning_group_says_what_moved(kind, groups):
    rng = np.random.default_rng(10)
    reference = fit(draw(rng, 1000))
    found = [ask(reference, draw(rng, 200, kind, size=1.5)).group for _ in range(20)]
    assert sum(group in groups for group in found) >= 12
    assert set(found) <= set(GROUPS)


def test_the_effect_is_none_without_a_shift_and_does_not_grow_with_n():
    rng = np.random.default_rng(11)
    small, large = fit(draw(rng, 600)), fit(draw(rng, 8000))
    none = [ask(fit(draw(rng, 600), seed=seed), draw(rng, 200), seed=seed).effect for seed in range(25)]
    assert np.median(none) < 0.05
    assert np.quantile(none, 0.9) < 0.2
    assert ask(large, draw(rng, 4000)).effect < 0.05
    few = np.mean([ask(small, draw(rng, 200, "mean", size=2)).effect for _ in range(15)])
    assert few == pytest.approx(ask(large, draw(rng, 4000, "mean", size=2)).effect, rel=0.15)
    assert few > 0.3


def test_copies_of_an_image_change_neither_p_value_nor_effect():
    rng = np.random.default_rng(12)
    before, now = draw(rng, 80), draw(rng, 40, "mean")
    once = ask(fit(before), now)
    copied = ask(fit(before.repeat(3, axis=0), keys("r", 80, 3)), now.repeat(3, axis=0), keys("c", 40, 3))
    assert (copied.p_value, copied.group) == (once.p_value, once.group)
    assert copied.effect == pytest.approx(once.effect, rel=0.05, abs=0.02)


@pytest.mark.parametrize("change", ["order", "scale", "offset", "single"])
def test_order_and_units_do_not_matter(change):
    rng = np.random.default_rng(13)
    before, now = draw(rng, 60, images=2, within=0.3), draw(rng, 30, "mean", images=2, within=0.3)
    sides = [(before, keys("r", 60, 2)), (now, keys("c", 30, 2))]
    told = ask(fit(*sides[0]), *sides[1])
    if change == "order":
        sides = [(values[i], owners[i]) for values, owners in sides for i in [rng.permutation(len(values))]]
    else:
        as_other = {"scale": lambda v: 1000 * v, "offset": lambda v: v + 50, "single": np.float32}[change]
        sides = [(as_other(values), owners) for values, owners in sides]
    other = ask(fit(*sides[0]), *sides[1])
    assert (other.p_value, other.group) == (told.p_value, told.group)
    assert (other.statistic, other.effect) == pytest.approx((told.statistic, told.effect), rel=5e-3)


def test_the_same_seed_gives_the_same_answer_and_the_inputs_stay_as_they_are():
    rng = np.random.default_rng(14)
    sides = draw(rng, 40), keys("r", 40), draw(rng, 20), keys("c", 20)
    copies = [side.copy() for side in sides]
    for side in sides:
        side.flags.writeable = False
    reference = fit(*sides[:2])
    before = {name: array.copy() for name, array in reference.arrays().items()}
    first = ask(reference, *sides[2:], seed=3)
    assert ask(fit(*sides[:2]), *sides[2:], seed=3) == first
    assert all((side == copy).all() for side, copy in zip(sides, copies, strict=True))
    assert all((reference.arrays()[name] == array).all() for name, array in before.items())


def test_a_stored_reference_answers_the_same():
    rng = np.random.default_rng(15)
    reference, now = fit(draw(rng, 40)), draw(rng, 20, "mean")
    file = io.BytesIO()
    np.savez(file, **reference.arrays(), allow_pickle=False)
    file.seek(0)
    with np.load(file, allow_pickle=False) as stored:
        assert ask(Reference.of(stored), now) == ask(reference, now)


def test_columns_that_never_vary_do_no_harm_until_they_do():
    rng = np.random.default_rng(16)
    before, now = draw(rng, 60), draw(rng, 40)
    before[:, 3] = now[:, 3] = 7.0
    reference = fit(before)
    assert reference.learned.axes.shape[1] < WIDTH
    assert ask(reference, now).p_value > 0.01
    now[:, 3] = 9.0
    moved = ask(reference, now)
    assert (moved.p_value, moved.group) == (0.01, "band energies")


def test_duplicates_and_one_picture_for_everybody():
    rng = np.random.default_rng(17)
    before = draw(rng, 40)
    assert both(before, before[:20].copy())[2] > 0.01
    outcome = both(before, np.repeat(draw(rng, 1), 25, axis=0))
    assert outcome[2] == 0.01
    assert outcome[1] > 0.5
    same = np.ones((12, 3))
    assert both(same, same[:6])[1:] == (0.0, 1.0)


@pytest.mark.parametrize("width", [1, 2, 6, 20])
@pytest.mark.parametrize("patients", [(4, 4), (4, 80), (80, 4)])
def test_narrow_embeddings_and_the_fewest_patients_are_answered(width, patients):
    rng = np.random.default_rng(18)
    statistic, effect, p = both(*(rng.normal(size=(n, width)) for n in patients))
    assert np.isfinite([statistic, effect]).all()
    assert 0 < p <= 1


def test_with_the_fewest_patients_equal_relabellings_count_as_reached():
    """Two against four patients have fifteen relabellings: no p-value may fall much below 1/15."""
    rng = np.random.default_rng(19)
    for seed in range(20):
        before, now = rng.normal(size=(4, 6)), rng.normal(size=(4, 6)) + 50
        assert ask(fit(before, seed=seed), now, seed=seed, permutations=999).p_value > 0.04


def test_a_patient_who_comes_back_counts_once_and_never_judges_what_they_taught():
    rng = np.random.default_rng(20)
    values = draw(rng, 40)
    reference, now = fit(values), draw(rng, 20)
    taught, compared = reference.learned_from[:3], reference.patients[:4]
    owners = np.concatenate([taught, compared, keys("c", 13)])
    shift = ask(reference, now, owners)
    assert (shift.studies, shift.left_out) == (17, 3)
    staying = np.arange(len(reference.patients)) >= 4
    without = reference.arrays() | {name: reference.arrays()[name][staying] for name in ("patients", "sizes", "sums")}
    again = ask(Reference.of(without), now[3:], owners[3:])
    assert (again.p_value, again.group, again.statistic) == (shift.p_value, shift.group, shift.statistic)


def test_too_few_patients_are_refused_with_the_n():
    rng = np.random.default_rng(21)
    with pytest.raises(TooFewPatients, match=r"^3 patients in the reference, 4 needed$"):
        fit(draw(rng, 3, images=9), keys("r", 3, 9))
    reference = fit(draw(rng, 10))
    with pytest.raises(TooFewPatients, match=r"^2 patients in the window, 4 needed$"):
        ask(reference, draw(rng, 2, images=9), keys("c", 2, 9))
    with pytest.raises(TooFewPatients, match=r"^0 patients in the half of the reference"):
        ask(reference, draw(rng, 5), reference.patients)


def test_wrong_shapes_and_values_that_are_not_finite_are_refused():
    rng = np.random.default_rng(22)
    values = draw(rng, 10)
    reference, broken = fit(values), values.copy()
    broken[2, 2] = np.nan
    for asked in (fit, partial(ask, reference)):
        with pytest.raises(ValueError, match="must be finite"):
            asked(broken)
        with pytest.raises(ValueError, match=r"must be \(n, width\)"):
            asked(values, keys("r", 9))
    with pytest.raises(ValueError, match=r"are 6 wide, the reference's 64"):
        ask(reference, values[:, :6])


def test_the_example_runs():
    told = doctest.testmod(embedding_shift)
    assert (told.attempted, told.failed) == (5, 0)
