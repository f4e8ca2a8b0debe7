"""Uncertainty by hand and from SciPy, for every task."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import entropy as scipy_entropy

from monitor.tasks import Task
from monitor.uncertainty import ENTROPY, MARGIN, entropy, margin


def test_every_task_has_both_figures():
    assert set(ENTROPY) == set(MARGIN) == set(Task)


def test_binary_answers_by_hand():
    scores = np.array([[0.0], [0.5], [1.0], [0.25]])
    expected = [0, 1, 0, -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))]
    assert entropy(scores, Task.BINARY) == pytest.approx(expected)
    assert margin(scores, Task.BINARY) == pytest.approx([1, 0, 1, 0.5])


def test_multi_class_is_the_distributions_own_entropy():
    scores = np.array([[1.0, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.4, 0.1]])
    assert entropy(scores, Task.MULTI_CLASS) == pytest.approx(scipy_entropy(scores, base=2, axis=1))
    assert margin(scores, Task.MULTI_CLASS) == pytest.approx([1, 0, 0.1])


def test_multi_label_is_the_mean_over_findings_and_the_least_sure_of_them():
    scores = np.array([[0.5, 1.0], [0.0, 0.25]])
    quarter = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    assert entropy(scores, Task.MULTI_LABEL) == pytest.approx([0.5, quarter / 2])
    assert margin(scores, Task.MULTI_LABEL) == pytest.approx([0, 0.5])


@given(arrays(np.float64, st.tuples(st.integers(0, 20), st.integers(2, 5)), elements=st.floats(0, 1)))
def test_figures_are_finite_and_bounded(scores):
    for task in Task:
        columns = scores[:, :1] if task is Task.BINARY else scores
        bits = entropy(columns, task)
        assert bits.shape == (len(scores),)
        assert (bits >= 0).all()
        assert (bits <= (np.log2(scores.shape[1]) if task is Task.MULTI_CLASS else 1) + 1e-12).all()
        assert ((margin(columns, task) >= 0) & (margin(columns, task) <= 1)).all()
