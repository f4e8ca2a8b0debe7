"""What a policy means in practice: bounds by arithmetic, delays that shrink with the change and the patients."""

import math
from datetime import timedelta

import numpy as np
import pytest
from scipy.stats import ks_2samp

from monitor.columns import permutation_ks
from monitor.effect_calibration import upper_quantile
from monitor.explaining import (
    LONGEST,
    LONGEST_GROWTH,
    Situation,
    _ks_distance,
    _least_effect,
    count_growth,
    explain_policy,
)
from monitor.policies import DriftPolicy

WEEKLY = Situation(window=timedelta(days=7), patients_reference=400, patients=60, comparisons=12)


def explain(situation=WEEKLY, runs=10, **policy):
    return explain_policy(DriftPolicy(**policy), situation, generator=np.random.default_rng(0), runs=runs)


def test_bounds_by_hand():
    told = explain(false_alarms_per_year=2, fairness_share=0.25)
    assert told.windows_per_year == pytest.approx(365.25 / 7)
    assert told.false_alarms == pytest.approx(1.5)
    assert told.window_alpha == pytest.approx(1.5 * 7 / 365.25)
    assert told.threshold == pytest.approx(1 / told.window_alpha)


@pytest.fixture(scope="module")
def weekly():
    return explain(runs=60)


def test_a_larger_change_is_found_sooner_and_a_smaller_budget_waits_longer(weekly):
    for quiet, (small, medium, large) in {0: weekly.delays[:3], 51: weekly.delays[3:]}.items():
        assert (small.size, medium.size, large.size) == (0.2, 0.5, 0.8)
        assert {small.quiet_before, medium.quiet_before, large.quiet_before} == {quiet}
        assert large.found == medium.found == 1
        assert large.median <= medium.median <= medium.late <= LONGEST
        assert medium.median <= (small.median or LONGEST)
    strict = explain(false_alarms_per_year=0.1, warm_up=0, runs=60).delays[1]
    assert strict.median >= weekly.delays[1].median


def test_a_change_from_the_first_window_on_is_seen_later_than_one_after_the_set_has_grown(weekly):
    early, late = weekly.delays[0], weekly.delays[3]
    assert (early.compared, late.compared) == (400, pytest.approx(50 * 60, abs=60))
    assert early.found < late.found
    assert (early.median or LONGEST) > late.median


def test_a_set_that_does_not_grow_is_simulated_once_where_nothing_waits():
    told = explain(warm_up=0, join_after=0)
    assert [delay.quiet_before for delay in told.delays] == [0, 0, 0]
    assert {delay.compared for delay in told.delays} == {400}


def test_growth_ends_where_windows_no_longer_join():
    policy = DriftPolicy(warm_up=10, join_after=3)
    assert count_growth(policy, WEEKLY) == math.ceil((10 * 60 - 400) / 60) + 3
    assert count_growth(DriftPolicy(warm_up=10_000), WEEKLY) == LONGEST_GROWTH


def test_more_patients_find_it_sooner(weekly):
    many = Situation(window=timedelta(days=7), patients_reference=4000, patients=200, comparisons=12)
    assert explain(many, warm_up=0).delays[1].median < weekly.delays[1].median


@pytest.mark.parametrize("patients", [4, 20])
def test_what_is_not_found_has_no_delay(patients):
    few = Situation(window=timedelta(days=1), patients_reference=40, patients=patients, comparisons=40)
    small = explain(few, warm_up=0).delays[0]
    assert small.found < 0.5
    assert small.median is None
    assert small.found == 0 or patients == 20  # four patients are too few for any verdict


def test_effects_that_count_are_those_of_the_calibration():
    """Stretches of one column by relabelling and by the large-sample law: both are the 0.9 quantile of one effect."""
    rng, policy = np.random.default_rng(2), DriftPolicy(minimum_effect=0.0)
    product = []
    for _ in range(15):
        values = rng.normal(size=300)
        effects = []
        for _ in range(40):
            current = np.zeros(300, dtype=bool)
            current[rng.choice(300, 60, replace=False)] = True
            effects.append(permutation_ks(values, np.arange(300), current, permutations=99, generator=rng)[1])
        product.append(upper_quantile(effects, 0.9))
    situation = Situation(window=timedelta(days=7), patients_reference=300, patients=60, comparisons=1)
    ours = [_least_effect(policy, situation, np.sort(rng.normal(size=300)), rng) for _ in range(60)]
    error = math.hypot(np.std(product) / math.sqrt(15), np.std(ours) / math.sqrt(60))
    assert abs(np.mean(ours) - np.mean(product)) < 4 * error


def test_progress_is_told():
    told = []
    explain_policy(
        DriftPolicy(warm_up=0),
        WEEKLY,
        generator=np.random.default_rng(0),
        runs=5,
        progress=lambda what, done, of: told.append((what, done, of)),
    )
    assert told[0][1:] == (0, 5)
    assert told[-1][1:] == (5, 5)


def test_the_distance_is_scipys():
    rng = np.random.default_rng(1)
    a, b = np.sort(rng.normal(size=30)), np.sort(rng.normal(0.5, 1, 50))
    assert _ks_distance(a, b) == pytest.approx(ks_2samp(a, b).statistic)
    tied, others = np.sort(rng.integers(5, size=40)), np.sort(rng.integers(6, size=70))
    assert _ks_distance(tied, others) == pytest.approx(ks_2samp(tied, others).statistic)


@pytest.mark.parametrize(
    "wrong", [{"patients": 1}, {"patients_reference": 0}, {"comparisons": 0}, {"window": timedelta(0)}]
)
def test_an_impossible_situation_is_refused(wrong):
    plain = {"window": timedelta(days=7), "patients_reference": 100, "patients": 50, "comparisons": 5}
    with pytest.raises(ValueError, match="a situation has two patients"):
        Situation(**(plain | wrong))
