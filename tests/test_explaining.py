"""What a policy means in practice: bounds by arithmetic, delays that shrink with the change and the patients."""

from datetime import timedelta

import numpy as np
import pytest
from scipy.stats import ks_2samp

from monitor.explaining import LONGEST, Situation, _ks_distance, explain_policy
from monitor.policies import DriftPolicy

WEEKLY = Situation(window=timedelta(days=7), patients_reference=400, patients=60, comparisons=12)


def explain(situation=WEEKLY, **policy):
    return explain_policy(DriftPolicy(**policy), situation, generator=np.random.default_rng(0))


def test_bounds_by_hand():
    told = explain(false_alarms_per_year=2, fairness_share=0.25)
    assert told.windows_per_year == pytest.approx(365.25 / 7)
    assert told.false_alarms == pytest.approx(1.5)
    assert told.window_alpha == pytest.approx(1.5 * 7 / 365.25)
    assert told.threshold == pytest.approx(1 / told.window_alpha)


def test_a_larger_change_is_found_sooner_and_a_smaller_budget_waits_longer():
    told = explain()
    small, medium, large = told.delays
    assert (small.size, medium.size, large.size) == (0.2, 0.5, 0.8)
    assert large.found == medium.found == 1
    assert large.median <= medium.median <= medium.late <= LONGEST
    assert medium.median <= (small.median or LONGEST)
    strict = explain(false_alarms_per_year=0.1).delays[1]
    assert strict.median >= medium.median


def test_more_patients_find_it_sooner():
    many = Situation(window=timedelta(days=7), patients_reference=4000, patients=600, comparisons=12)
    assert explain(many).delays[0].median < (explain().delays[0].median or LONGEST)


def test_what_is_not_found_has_no_delay():
    few = Situation(window=timedelta(days=1), patients_reference=30, patients=4, comparisons=40)
    small = explain(few).delays[0]
    assert small.found < 0.5
    assert small.median is None


def test_the_distance_is_scipys():
    rng = np.random.default_rng(1)
    a, b = np.sort(rng.normal(size=30)), np.sort(rng.normal(0.5, 1, 50))
    assert _ks_distance(a, b) == pytest.approx(ks_2samp(a, b).statistic)


@pytest.mark.parametrize(
    "wrong", [{"patients": 1}, {"patients_reference": 0}, {"comparisons": 0}, {"window": timedelta(0)}]
)
def test_an_impossible_situation_is_refused(wrong):
    plain = {"window": timedelta(days=7), "patients_reference": 100, "patients": 50, "comparisons": 5}
    with pytest.raises(ValueError, match="a situation has two patients"):
        Situation(**(plain | wrong))
