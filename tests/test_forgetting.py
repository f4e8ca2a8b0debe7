"""Forgetting and transfer: exact values by hand, and what must hold for every matrix."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from continual.forgetting import (
    measure_average,
    measure_backward_transfer,
    measure_forgetting,
    measure_forward_transfer,
    measure_learning,
    measure_potential,
    measure_retention,
    weigh_stages,
)

MATRIX = (
    (0.90, 0.60, 0.55),
    (0.80, 0.95, 0.65),
    (0.85, 0.90, 0.99),
)


def test_forgetting_is_the_drop_from_the_best_earlier_figure() -> None:
    assert measure_forgetting(MATRIX) == pytest.approx(((0.90 - 0.85) + (0.95 - 0.90)) / 2)


def test_backward_transfer_is_the_change_since_learning() -> None:
    assert measure_backward_transfer(MATRIX) == pytest.approx(((0.85 - 0.90) + (0.90 - 0.95)) / 2)


def test_forward_transfer_is_the_figure_before_learning_minus_chance() -> None:
    assert measure_forward_transfer(MATRIX) == pytest.approx(((0.60 - 0.5) + (0.65 - 0.5)) / 2)


def test_a_later_best_counts_as_something_to_lose() -> None:
    matrix = ((0.7, 0.5, 0.5), (0.9, 0.8, 0.5), (0.8, 0.8, 0.9))
    assert measure_forgetting(matrix) == pytest.approx((0.1 + 0.0) / 2)
    assert measure_backward_transfer(matrix) == pytest.approx((0.1 + 0.0) / 2)


def test_improvement_is_negative_forgetting() -> None:
    assert measure_forgetting(((0.7, 0.5), (0.9, 0.8))) == pytest.approx(-0.2)


def test_a_champion_without_recorded_history_is_measured_from_what_is_known() -> None:
    matrix = ((None, None, None), (0.9, 0.8, 0.7), (0.6, 0.8, 0.9))
    assert measure_forgetting(matrix) == pytest.approx((0.3 + 0.0) / 2)
    assert measure_backward_transfer(matrix) == pytest.approx((-0.3 + 0.0) / 2)
    assert measure_forward_transfer(matrix) == pytest.approx(0.2)


@pytest.mark.parametrize("matrix", [(), ((0.9,),), ((None, 0.5), (0.9, 0.8)), ((0.9, 0.5), (None, 0.8))])
def test_what_was_never_measured_is_none_and_not_zero(matrix: tuple[tuple[float | None, ...], ...]) -> None:
    assert measure_forgetting(matrix) is None
    assert measure_backward_transfer(matrix) is None


def test_one_stage_has_no_forward_transfer() -> None:
    assert measure_forward_transfer(((0.9,),)) is None


def test_the_average_is_that_of_the_last_row() -> None:
    assert measure_average(MATRIX) == pytest.approx((0.85 + 0.90 + 0.99) / 3)
    assert measure_average(((0.9, 0.8), (0.9, None))) is None
    assert measure_average(()) is None


def test_learning_potential_and_retention_are_those_of_their_authors() -> None:
    """The worked example that Burgon et al. test their own VIGILANT with (DIDSR/VIGILANT, tests/testcases.json)."""
    two = ((0.5, 0.4), (0.4, 0.7))
    three = ((0.5, 0.4, 0.3), (0.4, 0.7, 0.4), (0.2, 0.4, 0.6))
    assert (measure_learning(two), measure_potential(two)) == pytest.approx((0.3, 0.1))
    assert measure_retention(two, decay=0.5) == pytest.approx(0.4)
    assert (measure_learning(three), measure_potential(three)) == pytest.approx((0.2, 0.3))
    assert measure_retention(three, decay=0.5) == pytest.approx(0.3245, abs=5e-5)


def test_without_decay_all_earlier_stages_weigh_the_same() -> None:
    assert measure_retention(MATRIX, decay=0) == pytest.approx((0.85 + 0.90) / 2)
    assert sum(weigh_stages(4, 0.5)) == pytest.approx(1)
    assert weigh_stages(4, 0.5) == sorted(weigh_stages(4, 0.5))


@pytest.mark.parametrize("matrix", [(), ((0.9,),), ((None, None), (None, 0.9))])
def test_a_triple_that_was_not_measured_is_none(matrix: tuple[tuple[float | None, ...], ...]) -> None:
    assert measure_learning(matrix) is None
    assert measure_potential(matrix) is None
    assert measure_retention(matrix, decay=0.5) is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained:DeprecationWarning")
def test_forgetting_and_transfer_are_those_of_avalanche() -> None:
    """Avalanche compares the last figure with the first after learning, so the best earlier figure must be that one."""
    from avalanche.evaluation.metrics.forgetting_bwt import BWT, Forgetting
    from avalanche.evaluation.metrics.forward_transfer import ForwardTransfer

    forgetting, backward, forward = Forgetting(), BWT(), ForwardTransfer()
    last = len(MATRIX) - 1
    for stage in range(last):
        for metric in (forgetting, backward):
            metric.update(stage, MATRIX[stage][stage], initial=True)
            metric.update(stage, MATRIX[last][stage])
    for stage in range(1, last + 1):
        forward.update(stage, 0.5, initial=True)
        forward.update(stage, MATRIX[stage - 1][stage])
    theirs = [sum(metric.result().values()) / last for metric in (forgetting, backward, forward)]
    ours = [measure_forgetting(MATRIX), measure_backward_transfer(MATRIX), measure_forward_transfer(MATRIX)]
    assert ours == pytest.approx(theirs)


squares = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=n, max_size=n), min_size=n, max_size=n)
)


@given(squares)
def test_forgetting_is_never_less_than_what_was_lost_since_learning(matrix: list[list[float | None]]) -> None:
    forgetting, backward = measure_forgetting(matrix), measure_backward_transfer(matrix)
    known = [j for j in range(len(matrix) - 1) if all(row[j] is not None for row in matrix)]
    if len(known) == len(matrix) - 1 and known:
        assert forgetting is not None
        assert backward is not None
        assert forgetting >= -backward - 1e-12


@given(squares)
def test_figures_stay_in_their_range(matrix: list[list[float | None]]) -> None:
    for figure in (measure_forgetting(matrix), measure_backward_transfer(matrix)):
        assert figure is None or -1 <= figure <= 1
    forward = measure_forward_transfer(matrix)
    assert forward is None or -0.5 <= forward <= 0.5
