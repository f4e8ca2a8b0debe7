"""Alarms: the e-detector by hand, its budget by simulation, and a state that anybody can compute again."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, ks_2samp, poisson

from monitor.alarms import (
    AlarmState,
    WindowEvidence,
    advance,
    count_alarms,
    joins_comparison,
    list_settled,
    name_comparison,
    replay,
    weigh_window,
)
from monitor.cohorts import Window
from monitor.policies import DriftPolicy
from monitor.results import DriftKind, DriftResult, Verdict

START = datetime(2026, 1, 5, tzinfo=UTC)
POLICY = DriftPolicy(false_alarms_per_year=1, fairness_share=0.5)


def day(number: int) -> Window:
    return Window(start=START + timedelta(days=number), end=START + timedelta(days=number + 1))


def said(number: int, *p_values: float) -> WindowEvidence:
    return WindowEvidence(window=day(number), p_values={f"test {i}": p for i, p in enumerate(p_values)})


def e_value(p: float) -> float:
    return 1 / (2 * math.sqrt(p))


def test_e_values_are_worth_one_on_average_under_any_uniform_p():
    p = (np.arange(2_000_000) + 0.5) / 2_000_000
    assert np.mean(1 / (2 * np.sqrt(p))) == pytest.approx(1, abs=1e-3)


def test_evidence_by_hand():
    """R_t = (1 + R_{t-1}) e_t for each comparison, then the mean over comparisons."""
    states = replay([said(0, 0.01, 0.25), said(1, 0.04, 1.0)], POLICY)
    first, second = (5.0, 1.0), ((1 + 5) * 2.5, (1 + 1) * 0.5)
    assert math.exp(states[0].log_evidence) == pytest.approx(1 + sum(first) / 2)
    assert math.exp(states[1].log_evidence) == pytest.approx(1 + sum(second) / 2)
    assert states[0].log_threshold == pytest.approx(math.log(1 + 365.25 / 0.5))
    assert states[1].leading == "test 0"


def test_a_single_window_can_raise_an_alarm_if_it_is_strong_enough():
    c = 365.25 / 0.5
    weak, strong = (said(0, 1 / (4 * (c * factor) ** 2)) for factor in (0.99, 1.01))
    assert advance(AlarmState(), weak, POLICY).open_since is None
    assert advance(AlarmState(), strong, POLICY).open_since == day(0)


def test_persistence_waits_for_windows_in_a_row():
    patient = POLICY.model_copy(update={"persistence": 3})
    states = replay([said(i, 1e-9) for i in range(4)], patient)
    assert [state.open_since for state in states] == [None, None, day(2), day(2)]


def test_an_alarm_closes_after_quiet_windows_and_starts_anew():
    policy = POLICY.model_copy(update={"quiet_windows": 2, "cool_down": 2})
    p_values = [1e-9, 0.9, 1e-3, 0.9, 0.9, 1e-9, 1e-9, 1e-9]
    states = replay([said(i, p) for i, p in enumerate(p_values)], policy)
    opened = [state.open_since for state in states]
    assert opened == [day(0)] * 4 + [None, None, None, day(7)]
    assert states[4].evidence == {}
    assert count_alarms(states) == 2


def test_windows_that_could_not_be_judged_change_nothing():
    before = advance(AlarmState(), said(0, 0.01), POLICY)
    after = advance(before, WindowEvidence(window=day(1), p_values={}), POLICY)
    assert replace(after, window=before.window) == before


def test_windows_come_in_order():
    state = advance(AlarmState(), said(3, 0.5), POLICY)
    with pytest.raises(ValueError, match="windows come in order"):
        advance(state, said(2, 0.5), POLICY)


@pytest.mark.parametrize("p", [0.0, -0.1, 1.5, math.nan])
def test_what_is_no_p_value_is_refused(p):
    with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
        said(0, p)


evidences = st.lists(st.lists(st.floats(1e-6, 1), max_size=3), min_size=1, max_size=25)


@given(evidences, st.integers(1, 3), st.integers(1, 3), st.integers(0, 3))
def test_window_by_window_is_the_replay_of_what_was_stored(drawn, persistence, quiet, cool_down):
    policy = POLICY.model_copy(update={"persistence": persistence, "quiet_windows": quiet, "cool_down": cool_down})
    rows = [said(i, *p_values) for i, p_values in enumerate(drawn)]
    state, one_by_one = AlarmState(), []
    for row in rows:
        state = advance(state, row, policy)
        one_by_one.append(state)
    assert replay(rows, policy) == one_by_one


@given(evidences, st.integers(0, 24), st.floats(0.01, 0.99))
def test_more_evidence_never_delays_the_first_alarm(drawn, where, factor):
    def first(rows):
        return next((i for i, state in enumerate(replay(rows, POLICY)) if state.open_since), math.inf)

    rows = [said(i, *p_values) for i, p_values in enumerate(drawn)]
    stronger = [said(i, *(p * (factor if i == where else 1) for p in ps)) for i, ps in enumerate(drawn)]
    assert first(stronger) <= first(rows)


@given(evidences)
def test_evidence_is_finite_and_never_below_nothing(drawn):
    for state in replay([said(i, *p_values) for i, p_values in enumerate(drawn)], POLICY):
        assert math.isfinite(state.log_evidence)
        assert state.log_evidence >= 0


def test_a_century_of_drift_does_not_overflow():
    state = AlarmState()
    for number in range(2000):
        state = advance(state, said(number, 1e-6), POLICY)
    assert math.isfinite(state.log_evidence)
    assert state.open_since == day(1)


@pytest.mark.parametrize("comparisons", [1, 12])
@pytest.mark.parametrize("dependent", [False, True])
def test_alarms_of_quiet_years_stay_within_the_budget(comparisons, dependent):
    """E[alarms] <= budget: with as many years as here the count may exceed it by chance only so far."""
    rng, years, budget = np.random.default_rng([5, comparisons, dependent]), 60, 4.0
    policy = POLICY.model_copy(update={"false_alarms_per_year": budget / 0.5})
    alarms = 0
    for _ in range(years):
        shape = (365, 1) if dependent else (365, comparisons)
        p_values = np.broadcast_to(rng.random(shape), (365, comparisons))
        alarms += count_alarms(replay([said(i, *row) for i, row in enumerate(p_values)], policy))
    assert alarms <= poisson.ppf(0.975, budget * years)
    assert alarms > 0  # a detector that never cries would pass too


def test_a_change_is_found_and_soon():
    rng, delays = np.random.default_rng(6), []
    for _ in range(40):
        quiet = [said(i, *rng.random(10)) for i in range(180)]
        moved = [said(180 + i, rng.beta(0.2, 1), *rng.random(9)) for i in range(60)]
        states = replay(quiet + moved, POLICY)
        found = next((i for i, state in enumerate(states) if state.open_since and i >= 180), None)
        assert found is not None
        delays.append(found - 180 + 1)
    assert np.median(delays) <= 14


def result(p: float | None, effect: float | None, least: float, feature: str = "age") -> DriftResult:
    return DriftResult(
        window=day(0),
        detector="ks",
        kind=DriftKind.CASE_MIX,
        feature=feature,
        verdict=Verdict.NO_DRIFT if p else Verdict.NOT_ENOUGH_DATA,
        statistic=effect,
        effect=effect,
        effect_name="distance",
        p_value=p,
        threshold=0.001,
        n_reference=100,
        n_current=50,
        patients_reference=100,
        patients_current=50,
        reason="",
        least_effect=least,
    )


def test_a_trifle_is_worth_nothing_and_what_was_not_compared_is_left_out():
    rows = [
        result(0.001, 0.3, 0.2),
        result(0.001, 0.1, 0.2, "score"),
        result(0.9, 0.1, 0.2, "sex"),
        result(None, None, 0.2, "site"),
    ]
    assert weigh_window(day(0), rows).p_values == {
        name_comparison("ks", "age"): 0.001,
        name_comparison("ks", "score"): 0.25,
        name_comparison("ks", "sex"): 0.9,
    }


def test_quiet_windows_join_until_the_set_is_large_and_never_during_an_alarm():
    calm = advance(AlarmState(), said(0, 0.5), POLICY)
    loud = advance(AlarmState(), said(0, 1e-9), POLICY)
    policy = POLICY.model_copy(update={"warm_up": 10})

    def joins(state, evidence, compared):
        return joins_comparison(state, evidence, patients=50, compared=compared, policy=policy)

    assert joins(calm, said(0, 0.5), 499)
    assert not joins(calm, said(0, 0.5), 500)
    assert not joins(loud, said(0, 1e-9), 100)
    assert not joins(calm, WindowEvidence(window=day(0), p_values={}), 100)


@pytest.mark.parametrize(
    ("joined", "opened", "wait", "settled"),
    [
        ([True] * 5, [False] * 5, 0, [0, 1, 2, 3, 4]),
        ([True] * 5, [False] * 5, 2, [0, 1, 2]),
        ([True, False, True, True, True], [False] * 5, 2, [0, 2]),
        ([True] * 3, [False] * 3, 7, []),
        ([True, True, True, False, False, True], [False, False, False, True, False, False], 2, [0]),
    ],
)
def test_windows_wait_before_they_join_and_never_do_if_an_alarm_opens_meanwhile(joined, opened, wait, settled):
    assert list_settled(joined, opened, wait) == settled


def test_a_change_that_begins_early_is_not_absorbed():
    """Half a standard deviation from the first window on, daily windows of a tenth of the reference."""
    rng, found, runs = np.random.default_rng(8), {0: 0, 7: 0}, 30
    for wait in found:
        policy = POLICY.model_copy(update={"join_after": wait})
        for _ in range(runs):
            found[wait] += _found_in_a_quarter(rng, policy)
    assert found[7] >= 0.8 * runs
    assert found[7] >= found[0]


def _found_in_a_quarter(rng: np.random.Generator, policy: DriftPolicy) -> bool:
    reference, windows, joined, opened, state = rng.normal(size=300), [], [], [], AlarmState()
    for number in range(90):
        window = rng.normal(0.5, 1, size=30)
        settled = list_settled(joined, opened, policy.join_after)
        compared = np.concatenate([reference, *(windows[place] for place in settled)])
        evidence = said(number, float(ks_2samp(compared, window, method="asymp").pvalue), *rng.random(11))
        state = advance(state, evidence, policy)
        windows.append(window)
        joined.append(joins_comparison(state, evidence, patients=30, compared=len(compared), policy=policy))
        opened.append(state.open_since == day(number))
        if state.open_since is not None:
            return True
    return False


@pytest.mark.slow
def test_one_unlucky_reference_does_not_break_the_budget_when_quiet_windows_join():
    """Real permutation tests of one column against one finite reference, each window a fifth of it."""
    rng, years, budget = np.random.default_rng(7), 40, 2.0
    policy = DriftPolicy(false_alarms_per_year=budget / 0.5, fairness_share=0.5, minimum_effect=0.0)
    years_with_alarm = sum(_alarm_in_a_year(rng, policy) for _ in range(years))
    assert years_with_alarm <= binom.ppf(0.975, years, 1 - math.exp(-budget))


def _alarm_in_a_year(rng: np.random.Generator, policy: DriftPolicy) -> bool:
    compared, state = rng.normal(size=150), AlarmState()
    for number in range(180):
        window = rng.normal(size=30)
        p = _permutation_p(compared, window, rng)
        evidence = said(number, p)
        state = advance(state, evidence, policy)
        if state.open_since is not None:
            return True
        if joins_comparison(state, evidence, patients=30, compared=len(compared), policy=policy):
            compared = np.concatenate([compared, window])
    return False


def _permutation_p(before: np.ndarray, now: np.ndarray, rng: np.random.Generator) -> float:
    """The mean's permutation test: the mean of a random part of all values against that of the window."""
    both = np.concatenate([before, now])
    drawn = np.array([rng.choice(both, len(now), replace=False).mean() for _ in range(199)])
    centre = both.mean()
    return float(((np.abs(drawn - centre) >= abs(now.mean() - centre)).sum() + 1) / 200)
