"""The ridge classifier against scikit-learn's, refitted for every relabelling, and its error rates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from monitor import domain_classifier
from monitor.domain_classifier import FOLDS, RIDGE, permutation_classifier, score_studies
from monitor.permutations import relabel_patients


def draw(rng, patients, *, shift=0.0, images=1, within=0.0, width=8):
    values = (rng.normal(size=(patients, width)) + shift).repeat(images, axis=0)
    return values + within * rng.normal(size=values.shape)


def compare(before, now, *, permutations=99, seed=0, patients=None):
    """Test two samples; each row is a patient of its own unless told otherwise."""
    values = np.concatenate([before, now])
    patients = np.arange(len(values)) if patients is None else np.asarray(patients)
    is_current = np.arange(len(values)) >= len(before)
    return permutation_classifier(
        values, patients, is_current, permutations=permutations, generator=np.random.default_rng(seed)
    )


def refit(values, patients, dealt, is_current):
    """Learn scikit-learn's ridge on the others for each fold, and score the fold around the others' mean."""
    scores = np.empty(len(values))
    for fold in np.unique(dealt):
        own = dealt[patients] == fold
        others = values[~own]
        spread = ((others - others.mean(axis=0)) ** 2).sum()
        model = Ridge(alpha=RIDGE * spread / values.shape[1]).fit(others, is_current[~own].astype(float))
        scores[own] = model.predict(values[own]) - is_current[~own].mean()
    return scores


def uneven_world(seed, shift=0.7):
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(24), rng.integers(1, 4, 24))
    current = np.arange(24) >= 15
    return (
        draw(rng, 24)[patients] + 0.4 * draw(rng, len(patients)) + shift * current[patients][:, None],
        patients,
        current,
    )


def test_statistic_effect_p_value_and_scores_are_those_of_a_classifier_refitted_for_each_relabelling(monkeypatch):
    monkeypatch.setattr(domain_classifier, "RELABELLINGS_AT_ONCE", 7)
    values, patients, current = uneven_world(0, shift=0.25)
    statistic, effect, p = permutation_classifier(
        values, patients, current[patients], permutations=39, generator=np.random.default_rng(3)
    )
    same = np.random.default_rng(3)
    dealt = same.permutation(np.arange(24) % FOLDS)

    def separate(sides):
        scores = refit(values, patients, dealt, sides[patients])
        return scores[sides[patients]].mean() - scores[~sides[patients]].mean()

    relabelled = [separate(sides) for sides in relabel_patients(current, 39, same)]
    assert statistic == pytest.approx(relabelled[0], abs=1e-6)
    assert p == (np.sum(np.array(relabelled[1:]) >= relabelled[0]) + 1) / 40
    assert 0.025 < p < 1

    scores = refit(values, patients, dealt, current[patients])
    assert effect == pytest.approx(2 * roc_auc_score(current[patients], scores) - 1, abs=1e-12)
    usual = scores[~current[patients]]
    told = score_studies(values, patients, current[patients], generator=np.random.default_rng(3))
    assert told == pytest.approx((scores - usual.mean()) / usual.std(), abs=1e-4)


@given(st.integers(0, 2**32 - 1), st.tuples(st.integers(4, 12), st.integers(4, 12)))
def test_swapping_the_sides_the_order_of_rows_and_moving_everything_change_nothing(seed, sizes):
    rng = np.random.default_rng(seed)
    values = np.concatenate([draw(rng, sizes[0], images=2, within=0.5), draw(rng, sizes[1], shift=0.5)])
    patients = np.r_[np.arange(sizes[0]).repeat(2), sizes[0] + np.arange(sizes[1])]
    is_current, order = patients >= sizes[0], rng.permutation(len(values))
    told, *others = (
        permutation_classifier(*arguments, permutations=19, generator=np.random.default_rng(seed))
        for arguments in (
            (values, patients, is_current),
            (values, patients, ~is_current),
            (values[order], patients[order], is_current[order]),
            (1e9 - 3e4 * values, patients, is_current),
            (values * 1e-30, patients, is_current),
        )
    )
    for other in others:
        assert other == pytest.approx(told, abs=1e-4)
    assert 0 < told[2] <= 1


def test_a_study_is_scored_by_a_classifier_that_never_saw_its_patient():
    """Copies of a study under other labels would betray it; its own patient's must not."""
    rng = np.random.default_rng(1)
    values = draw(rng, 60, width=400).repeat(3, axis=0)
    owners, is_current = np.arange(60).repeat(3), np.arange(180) >= 120
    scores = score_studies(values, owners, is_current, generator=rng)
    assert abs(roc_auc_score(is_current, scores) - 0.5) < 0.2
    leaking = score_studies(values, np.arange(180), is_current, generator=rng)
    assert roc_auc_score(is_current, leaking) > 0.95


def test_the_studies_that_are_new_are_scored_highest():
    rng = np.random.default_rng(2)
    values = np.concatenate([draw(rng, 400), draw(rng, 200)])
    values[400:420, :4] += 3
    is_current = np.arange(600) >= 400
    scores = score_studies(values, np.arange(600), is_current, generator=rng)
    assert np.isin(np.argsort(-scores)[:20], np.arange(400, 420)).mean() >= 0.7
    assert scores[~is_current].mean() == pytest.approx(0, abs=1e-9)
    assert scores[~is_current].std() == pytest.approx(1)


def test_the_p_value_is_never_zero():
    rng = np.random.default_rng(3)
    before, now = draw(rng, 60), draw(rng, 40, shift=9)
    for permutations in (9, 99, 999):
        _, effect, p = compare(before, now, permutations=permutations)
        assert (effect, p) == (1, 1 / (permutations + 1))


def test_nothing_that_varies_is_no_difference():
    assert compare(np.ones((8, 3)), np.ones((6, 3))) == (0, 0, 1)
    same = score_studies(np.ones((8, 3)), np.arange(8), np.arange(8) > 4, generator=np.random.default_rng(0))
    assert (same == 0).all()


def test_with_few_patients_a_relabelling_that_is_the_observed_one_counts_as_reached():
    """Four against four patients have 35 partitions: no p-value may fall much below 1/35."""
    rng = np.random.default_rng(4)
    for seed in range(20):
        before, now = (draw(rng, 4, shift=shift, images=3, within=0.2) for shift in (0, 50))
        p = compare(before, now, seed=seed, permutations=999, patients=np.arange(8).repeat(3))[2]
        assert 1000 * p - 1 >= binom.ppf(1e-5, 999, 1 / 35)


def test_one_patient_on_a_side_and_values_that_are_not_finite_are_refused_and_inputs_stay_as_they_are():
    values, patients, current = uneven_world(5)
    values.flags.writeable = patients.flags.writeable = False
    permutation_classifier(values, patients, current[patients], permutations=9, generator=np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"^1 of 24 patients are current; each side needs two$"):
        score_studies(values, patients, patients == 2, generator=np.random.default_rng(0))
    broken = values.copy()
    broken[3, 3] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        permutation_classifier(broken, patients, current[patients], permutations=9, generator=np.random.default_rng(0))


def test_more_columns_than_studies_are_answered():
    rng = np.random.default_rng(6)
    assert compare(draw(rng, 30, width=300), draw(rng, 20, shift=0.5, width=300))[2] == 0.01
    p_values = [compare(draw(rng, 30, width=300), draw(rng, 20, width=300), seed=i)[2] for i in range(40)]
    assert np.sum(np.array(p_values) <= 0.05) <= binom.ppf(1 - 1e-4, 40, 0.05)


@pytest.mark.parametrize("n", [1000, pytest.param(8000, marks=pytest.mark.slow)])
def test_the_effect_of_a_shift_does_not_grow_with_n_and_is_none_without_a_shift(n):
    rng = np.random.default_rng(7)
    small = np.mean([compare(draw(rng, 100), draw(rng, 100, shift=0.3), permutations=9)[1] for _ in range(40)])
    large = compare(draw(rng, n // 2), draw(rng, n // 2, shift=0.3), permutations=9)[1]
    assert small == pytest.approx(large, abs=0.05)
    assert large > 0.4
    assert compare(draw(rng, n // 2), draw(rng, n // 2), permutations=9)[1] < 0.06


@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("runs", [400, pytest.param(2000, marks=pytest.mark.slow)])
def test_the_false_alarm_rate_is_what_was_promised_however_many_images_a_patient_has(images, runs):
    rng = np.random.default_rng([8, images])
    owners = np.arange(50).repeat(images)
    outcomes = []
    for seed in range(runs):
        before, now = (draw(rng, patients, images=images, within=0.3, width=12) for patients in (30, 20))
        outcomes.append(compare(before, now, seed=seed, patients=owners))
    statistics, _, p_values = np.array(outcomes).T
    for alpha in (0.05, 0.2):
        least, most = binom.ppf([1e-4, 1 - 1e-4], runs, alpha)
        assert least <= (p_values <= alpha).sum() <= most
    assert abs(statistics.mean()) < 4 * statistics.std() / np.sqrt(runs)


def test_permuting_images_instead_of_patients_would_raise_false_alarms():
    rng, runs = np.random.default_rng(9), 100
    p_values = [
        compare(*(draw(rng, patients, images=4, within=0.3) for patients in (30, 20)), seed=seed)[2]
        for seed in range(runs)
    ]
    assert (np.array(p_values) <= 0.05).sum() > 2 * binom.ppf(1 - 1e-4, runs, 0.05)


@pytest.mark.parametrize("kind", ["mean", "mixture"])
def test_a_planted_shift_is_found(kind):
    rng, owners, found = np.random.default_rng(10), np.arange(250).repeat(2), []
    for seed in range(40):
        before, now = (draw(rng, patients, images=2, within=0.3) for patients in (150, 100))
        now[: 200 if kind == "mean" else 40, :4] += 0.4 if kind == "mean" else 3  # of all, or of a fifth
        found.append(compare(before, now, seed=seed, patients=owners)[2] <= 0.01)
    assert sum(found) >= binom.ppf(1e-4, 40, 0.95)
