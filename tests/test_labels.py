"""Coverage and latency of labels: the product-limit estimate against hand arithmetic and SciPy."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import CensoredData, ecdf

from monitor.cohorts import Window, span_of
from monitor.labels import LabelArrival, measure_arrival, tell_arrival, time_until

START = datetime(2026, 3, 30, tzinfo=UTC)
WEEK = Window(start=START, end=START + timedelta(days=7))


def moments(*days: float | None) -> "np.ndarray[tuple[int], np.dtype[np.datetime64]]":
    start = np.datetime64(START.replace(tzinfo=None), "us")
    return np.array(
        [np.datetime64("NaT") if day is None else start + np.timedelta64(round(day * 86_400), "s") for day in days],
        dtype="datetime64[us]",
    )


def arrival(produced: list[float], known: list[float | None], until: float | None) -> LabelArrival:
    end = None if until is None else START + timedelta(days=until)
    return measure_arrival(WEEK, moments(*produced), moments(*known), until=end)


def test_with_every_label_there_the_days_are_those_of_the_study_in_that_place() -> None:
    found = arrival([0] * 10, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 10)
    assert (found.studies, found.labelled, found.waiting, found.coverage) == (10, 10, 0, 1)
    assert (found.half_days, found.most_days) == (5, 9)


def test_studies_that_wait_are_counted_as_the_product_limit_counts_them() -> None:
    """By hand: waits 2, 3+, 4, 6, 6+, 8, 9+; left after 2 are 6/7, after 4 × 4/5 = 24/35, 6 × 3/4, 8 × 1/2 = 9/35."""
    times, seen = np.array([2, 3, 4, 6, 6, 8, 9.0]), np.array([1, 0, 1, 1, 0, 1, 0], dtype=bool)
    assert time_until(1 - 24 / 35, times, seen) == 4
    assert time_until(1 - 18 / 35, times, seen) == 6
    assert time_until(0.5, times, seen) == 8
    assert time_until(1 - 9 / 35, times, seen) == 8
    assert time_until(0.75, times, seen) is None


def test_a_study_waits_until_it_was_last_seen_to_wait() -> None:
    """Ten labels on day 3, ten missing: seen until day 2 nobody was late; seen until day 30 half of them are."""
    produced, known = [0.0] * 20, [*[3.0] * 10, *[None] * 10]
    assert arrival(produced, known, 2).half_days == 3
    assert arrival(produced, known, 2).most_days == 3
    assert arrival(produced, known, 30).half_days == 3
    assert arrival(produced, known, 30).most_days is None
    assert arrival(produced, [*[3.0] * 9, *[None] * 11], 30).half_days is None


def test_a_truth_that_was_known_before_the_answer_took_no_time() -> None:
    assert arrival([5, 5], [1, 5], 6).half_days == 0


def test_nothing_there_is_nothing_told() -> None:
    empty = arrival([], [], None)
    assert (empty.studies, empty.coverage, empty.half_days, empty.most_days) == (0, None, None, None)
    assert arrival([0, 1], [None, None], 9).half_days is None


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=30), st.sampled_from([0.5, 0.9]))
def test_it_is_scipys_product_limit(waits: list[tuple[int, bool]], share: float) -> None:
    times, seen = np.array([float(time) for time, _ in waits]), np.array([known for _, known in waits])
    found = time_until(share, times, seen)
    if not seen.any():
        assert found is None
        return
    left = ecdf(CensoredData(uncensored=times[seen], right=times[~seen])).sf
    reached = left.quantiles[left.probabilities <= 1 - share + 1e-9]
    happened = [time for time in reached if time in times[seen]]
    assert found == (happened[0] if happened else None)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_without_waiting_it_is_the_order_statistic(waits: list[int]) -> None:
    times = np.array(waits, dtype=float)
    assert time_until(0.5, times, np.ones(len(times), dtype=bool)) == np.quantile(times, 0.5, method="inverted_cdf")


@pytest.mark.parametrize(
    ("labelled", "half", "most", "told"),
    [
        (0, None, None, "0 of 1,200 studies are labelled (0%)."),
        (
            500,
            None,
            None,
            "500 of 1,200 studies are labelled (42%). After how many days half of them are cannot be told yet.",
        ),
        (700, 3.25, None, "Half of them are after 3.2 days; after how many nine in ten are cannot be told yet."),
        (1200, 0.5, 21.4, "Half of them are after 0.5 days, nine in ten after 21 days."),
    ],
)
def test_arrivals_are_told_in_a_sentence(labelled: int, half: float | None, most: float | None, told: str) -> None:
    made = LabelArrival(window=WEEK, studies=1200, labelled=labelled, half_days=half, most_days=most)
    assert tell_arrival(made).endswith(told)


def test_no_study_is_told_as_such() -> None:
    assert "no studies" in tell_arrival(arrival([], [], None))


def test_a_span_holds_all_its_windows() -> None:
    later = Window(start=WEEK.end + timedelta(days=7), end=WEEK.end + timedelta(days=14))
    assert span_of([later, WEEK]) == Window(start=WEEK.start, end=later.end)
