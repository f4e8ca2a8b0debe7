"""Two models on the same resamples: an unchanged model never differs, and figures without bounds need no scale."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from monitor.intervals import Estimate, Form
from monitor.paired import Paired, average_estimates


def figure(value: float, *, form: Form = Form.LOGIT, seed: int = 0, spread: float = 0.02) -> Estimate:
    replicates = value + np.random.default_rng(seed).normal(scale=spread, size=300)
    return Estimate(value=value, form=form, studies=90, patients=40, informative=40.0, replicates=replicates)


@given(st.floats(0.001, 0.999), st.sampled_from([Form.LOGIT, Form.LOG, Form.WILSON, Form.NORMAL]))
def test_an_unchanged_model_is_not_surely_better_by_rounding(value: float, form: Form) -> None:
    same = figure(value, form=form)
    low, high = Paired(champion=same, challenger=same).interval(0.95)
    assert low <= 0 <= high
    assert high - low < 1e-12


def test_a_slope_is_compared_as_it_is() -> None:
    before, after = figure(0.8, form=Form.NORMAL, spread=0.1), figure(1.3, form=Form.NORMAL, seed=1, spread=0.1)
    low, high = Paired(champion=before, challenger=after).interval(0.95)
    reach = t.ppf(0.975, 39) * np.std(after.replicates - before.replicates, ddof=1)
    assert (low, high) == pytest.approx((0.5 - reach, 0.5 + reach))


def test_an_average_weighs_values_and_resamples_alike() -> None:
    parts = [figure(0.8), figure(0.9, seed=1)]
    mean = average_estimates(parts, [1, 3])
    assert mean.value == pytest.approx(0.875)
    assert mean.replicates == pytest.approx((parts[0].replicates + 3 * parts[1].replicates) / 4)
    assert average_estimates([parts[0], replace(parts[1], value=None)]).value is None
