"""Corrections of many p-values, by hand and against SciPy."""

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from monitor import multiplicity
from monitor.multiplicity import bh_thresholds, holm_thresholds


@pytest.mark.parametrize(
    ("p_values", "thresholds"),
    [
        ([], []),
        ([0.04], [0.05]),
        ([0.06], [0.05]),
        ([0.01, 0.04, 0.03], [0.05 / 3, 0, 0.025]),  # 0.01 passes 0.05/3, 0.03 fails 0.05/2, so 0.04 has no chance
        ([0.04, 0.001, 0.02], [0.05, 0.05 / 3, 0.025]),
        ([0.02, 0.02, 0.02], [0.05 / 3, 0, 0]),
        ([0.016, 0.016, 0.016], [0.05 / 3, 0.025, 0.05]),
    ],
)
def test_holms_thresholds_by_hand(p_values, thresholds):
    assert holm_thresholds(p_values, 0.05) == pytest.approx(thresholds)


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=12), st.floats(0.001, 0.3))
def test_holm_rejects_what_adjusted_p_values_reject(p_values, alpha):
    ascending = sorted(p_values)
    adjusted = np.maximum.accumulate([(len(p_values) - rank) * p for rank, p in enumerate(ascending)])
    rejected = [p <= threshold for p, threshold in zip(p_values, holm_thresholds(p_values, alpha), strict=True)]
    clear = np.abs(adjusted - alpha) > 1e-12
    expected = dict(zip(np.array(ascending)[clear], (adjusted <= alpha)[clear], strict=True))
    assert all(answer == expected[p] for p, answer in zip(p_values, rejected, strict=True) if p in expected)
    assert sum(rejected) >= sum(p <= alpha / len(p_values) for p in p_values)


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=12), st.floats(0.001, 0.3))
def test_benjamini_hochberg_rejects_what_scipys_adjusted_p_values_reject(p_values, alpha):
    adjusted = false_discovery_control(p_values)
    rejected = np.array(p_values) <= bh_thresholds(p_values, alpha)
    clear = np.abs(adjusted - alpha) > 1e-9
    assert (rejected == (adjusted <= alpha))[clear].all()


def test_nothing_to_correct_and_the_examples():
    assert bh_thresholds([], 0.05) == []
    assert doctest.testmod(multiplicity).failed == 0
