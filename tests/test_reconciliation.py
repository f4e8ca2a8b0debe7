"""Estimates against the truth that came later: errors by hand, and the spread that sampling does not explain."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from monitor.cohorts import Window
from monitor.reconciliation import LEAST_WINDOWS, past_error, reconcile
from monitor.results import Harm, Source, Verdict, WindowReport

START = datetime(2026, 1, 5, tzinfo=UTC)


def week(number: int) -> Window:
    return Window(start=START + timedelta(weeks=number), end=START + timedelta(weeks=number + 1))


def harm(number: int, source: Source, current: float | None, error: float | None = 0.1, **more: object) -> Harm:
    plain = {
        "window": week(number),
        "metric": "auroc",
        "finding": "tumour",
        "source": source,
        "reference": 0.9,
        "current": current,
        "loss": None if current is None else 0.9 - current,
        "low": None,
        "high": None,
        "level": 0.95,
        "sure": False,
        "n": 40,
        "reason": "",
        "current_error": None if current is None else error,
    }
    return Harm(**(plain | more))


def report(number: int, *harms: Harm, labelled: int = 50) -> WindowReport:
    return WindowReport(
        model="m",
        window=week(number),
        verdict=Verdict.NO_DRIFT,
        reason="",
        n=50,
        patients=50,
        n_labelled=labelled,
        results=(),
        evaluations=(),
        gaps=(),
        harms=harms,
        contributions=(),
    )


def test_an_error_is_estimated_minus_realised_with_what_sampling_gives_the_estimate_about_these_labels():
    pair = harm(0, Source.REALISED, 0.8, n=37), harm(0, Source.ESTIMATED, 0.85, 0.2, past_error=0.3)
    (error,) = reconcile([report(0, *pair)])
    assert (error.window, error.metric, error.finding, error.n) == (week(0), "auroc", "tumour", 37)
    assert (error.estimated, error.realised, error.error) == (0.85, 0.8, pytest.approx(0.05))
    assert error.variance == pytest.approx(0.2**2)


def test_labels_of_some_studies_only_are_a_sample_of_all():
    pair = harm(0, Source.REALISED, 0.8, 0.1), harm(0, Source.ESTIMATED, 0.85, 0.2)
    (error,) = reconcile([report(0, *pair, labelled=20)])
    assert error.variance == pytest.approx(0.2**2 + (1 - 20 / 50) * 0.1**2)


@pytest.mark.parametrize(
    "harms",
    [
        (harm(0, Source.ESTIMATED, 0.8),),
        (harm(0, Source.REALISED, 0.8),),
        (harm(0, Source.REALISED, None), harm(0, Source.ESTIMATED, 0.8)),
        (harm(0, Source.REALISED, 0.8), harm(0, Source.ESTIMATED, None)),
        (harm(0, Source.REALISED, 0.8, error=None), harm(0, Source.ESTIMATED, 0.8)),
        (harm(0, Source.REALISED, 0.8), harm(0, Source.ESTIMATED, 0.8, error=None)),
        (harm(0, Source.REALISED, 0.8, finding="mass"), harm(0, Source.ESTIMATED, 0.8)),
    ],
)
def test_what_labels_have_not_caught_up_with_is_no_error(harms):
    assert reconcile([report(0, *harms)]) == ()


def test_windows_come_out_in_order():
    reports = [report(n, harm(n, Source.REALISED, 0.8), harm(n, Source.ESTIMATED, 0.8)) for n in (2, 0, 1)]
    assert [error.window for error in reconcile(reports)] == [week(0), week(1), week(2)]


def errors(sizes, variance):
    made = reconcile(
        [report(i, harm(i, Source.REALISED, 0.5), harm(i, Source.ESTIMATED, 0.5 + e)) for i, e in enumerate(sizes)]
    )
    return [replace(error, variance=variance) for error in made]


def test_past_error_is_what_sampling_does_not_explain():
    assert past_error(errors([0.1, -0.1, 0.1], 0.0), "auroc", "tumour").size == pytest.approx(0.1)
    assert past_error(errors([0.1, -0.1, 0.1], 0.0075), "auroc", "tumour").size == pytest.approx(0.05)
    assert past_error(errors([0.1, -0.1, 0.1], 0.02), "auroc", "tumour").size == 0
    assert past_error(errors([0.3] * (LEAST_WINDOWS - 1), 0.0), "auroc", "tumour").size == 0
    assert past_error(errors([0.3] * 5, 0.0), "accuracy", "tumour").size == 0


def test_an_estimator_without_error_of_its_own_is_given_hardly_any():
    rng = np.random.default_rng(0)
    found = [past_error(errors(rng.normal(0, 0.05, 20), 0.05**2), "auroc", "tumour").size for _ in range(200)]
    assert np.median(found) < 0.015
    biased = [past_error(errors(0.1 + rng.normal(0, 0.05, 20), 0.05**2), "auroc", "tumour").size for _ in range(200)]
    assert np.median(biased) == pytest.approx(0.1, rel=0.1)
