"""Two models on the same resamples: an unchanged model never differs, and where models differ the truth is held."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm, t

from monitor.intervals import Estimate, Form, draw_patients
from monitor.measures import Answers, estimate
from monitor.paired import average_estimates, bound_change
from registry.comparison import Paired


def figure(value: float, *, form: Form = Form.LOGIT, seed: int = 0, spread: float = 0.02) -> Estimate:
    replicates = value + np.random.default_rng(seed).normal(scale=spread, size=300)
    return Estimate(value=value, form=form, studies=90, patients=40, informative=40.0, replicates=replicates)


@given(st.floats(0.001, 0.999), st.sampled_from([Form.LOGIT, Form.LOG, Form.WILSON, Form.NORMAL]))
def test_an_unchanged_model_does_not_differ(value: float, form: Form) -> None:
    same = figure(value, form=form)
    assert bound_change(same, same, 0.95) == (0, 0)
    low, high = Paired(champion=same, challenger=same).interval(0.95)
    assert low <= 0 <= high  # the gate's: not surely better by rounding
    assert high - low < 1e-12


@given(st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.sampled_from([Form.LOGIT, Form.LOG, Form.WILSON]))
def test_bounds_hold_the_difference_and_turn_round_with_it(a: float, b: float, form: Form) -> None:
    before, after = figure(a, form=form), figure(b, form=form, seed=1)
    low, high = bound_change(before, after, 0.95)
    assert low is not None
    assert high is not None
    assert low <= b - a <= high
    assert (low >= -1 and high <= 1) or form is Form.LOG
    assert bound_change(after, before, 0.95) == pytest.approx((-high, -low), abs=1e-4)


def test_far_from_the_bounds_it_is_the_normal_interval() -> None:
    before, after = figure(0.5, spread=0.005), figure(0.52, seed=1, spread=0.005)
    reach = t.ppf(0.975, 39) * np.std(after.replicates - before.replicates, ddof=1)
    assert bound_change(before, after, 0.95) == pytest.approx((0.02 - reach, 0.02 + reach), abs=5e-4)


def test_a_slope_is_compared_as_it_is() -> None:
    before, after = figure(0.8, form=Form.NORMAL, spread=0.1), figure(1.3, form=Form.NORMAL, seed=1, spread=0.1)
    reach = t.ppf(0.975, 39) * np.std(after.replicates - before.replicates, ddof=1)
    assert bound_change(before, after, 0.95) == pytest.approx((0.5 - reach, 0.5 + reach))


def test_at_a_bound_or_without_patients_it_does_not_pretend() -> None:
    perfect = replace(figure(1.0, spread=0.0), replicates=np.ones(300))
    low, high = bound_change(figure(0.9), perfect, 0.95)
    assert low is not None
    assert high is not None
    assert -0.05 < low < 0.1 < high
    assert bound_change(figure(0.9), replace(perfect, value=None), 0.95) == (None, None)
    assert bound_change(replace(figure(0.9), patients=1), perfect, 0.95) == (None, None)


def test_an_average_weighs_values_and_resamples_alike() -> None:
    parts = [figure(0.8), figure(0.9, seed=1)]
    mean = average_estimates(parts, [1, 3])
    assert mean.value == pytest.approx(0.875)
    assert mean.replicates == pytest.approx((parts[0].replicates + 3 * parts[1].replicates) / 4)
    assert average_estimates([parts[0], replace(parts[1], value=None)]).value is None


@pytest.mark.slow
@pytest.mark.parametrize(("skill", "own"), [((1.5, 2.0), 0.0), ((1.5, 1.5), 0.5), ((2.5, 3.2), 0.3), ((3.0, 2.0), 0.5)])
def test_bounds_of_a_change_of_auroc_hold_the_truth(skill: tuple[float, float], own: float) -> None:
    """Forty patients, two alike studies each; both models see the same noise and some of their own."""
    generator, rounds, held = np.random.default_rng(11), 300, 0
    areas = [norm.cdf(one / np.sqrt(2 * (1 + own**2))) for one in skill]
    patients = np.repeat(np.arange(40), 2)
    for _ in range(rounds):
        labels = generator.integers(0, 2, 80)
        shared = np.repeat(generator.normal(scale=0.6, size=40), 2) + generator.normal(scale=0.8, size=80)
        counts = draw_patients(np.zeros(40, dtype=np.intp), 300, generator)
        sides = []
        for one in skill:
            scores = 1 / (1 + np.exp(-(one * (labels - 0.5) + shared + own * generator.normal(size=80))))
            answers = Answers(
                finding="yes", scores=scores, said=scores.round(), labels=labels.astype(float), patients=patients
            )
            sides.append(estimate(answers, ["auroc"], counts)["auroc"])
        low, high = bound_change(*sides, 0.95)
        assert low is not None
        assert high is not None
        held += low <= areas[1] - areas[0] <= high
    print(f"skill {skill}, own noise {own}: {held / rounds:.3f} of {rounds} intervals hold the truth")  # noqa: T201
    assert held >= binom.ppf(0.001, rounds, 0.95)
