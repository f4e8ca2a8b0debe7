"""What estimates were worth: each is held against the truth once labels have come, and its error widens later ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from monitor.cohorts import Window
from monitor.results import Source, WindowReport

LEAST_WINDOWS = 3
"""Fewer past errors say nothing about the next one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimationError:
    """One estimate that labels have caught up with: estimated minus realised, in units of the metric.

    ``variance`` is what sampling alone gives that difference; ``n`` counts the studies the realised figure rests on.
    """

    window: Window
    metric: str
    finding: str
    estimated: float
    realised: float
    error: float
    variance: float
    n: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PastError:
    """The standard deviation ``size`` of an estimator's own error, and in how many windows it was found; 0: in none."""

    size: float = 0.0
    windows: int = 0


def reconcile(reports: Iterable[WindowReport]) -> tuple[EstimationError, ...]:
    """Hold every estimated figure of some windows against the realised one, where both exist; in order of windows."""
    return tuple(
        error for report in sorted(reports, key=lambda report: report.window) for error in _reconcile_one(report)
    )


def past_error(history: Sequence[EstimationError], metric: str, finding: str) -> PastError:
    """Measure an estimator's own error, beyond what sampling explains.

    The mean squared error less the mean sampling variance, not below 0 (a method of moments for the variance
    between studies, as in DerSimonian and Laird 1986). Fewer than ``LEAST_WINDOWS`` errors say nothing.
    """
    mine = [error for error in history if (error.metric, error.finding) == (metric, finding)]
    if len(mine) < LEAST_WINDOWS:
        return PastError()
    excess = float(np.mean([error.error**2 - error.variance for error in mine]))
    return PastError(size=math.sqrt(max(excess, 0.0)), windows=len(mine))


def vary_by_sampling(estimated: float, realised: float, lacking: float) -> float:
    """Give the variance that sampling alone gives an error, from both figures' standard errors.

    Where a share of the labels is ``lacking``, how the labelled studies differ from all is luck of its own.
    """
    return estimated**2 + lacking * realised**2


def _reconcile_one(report: WindowReport) -> Iterable[EstimationError]:
    realised = {(h.metric, h.finding): h for h in report.harms if h.source is Source.REALISED}
    lacking = 1 - report.n_labelled / max(report.n, 1)
    for estimated in report.harms:
        truth = realised.get((estimated.metric, estimated.finding))
        if estimated.source is not Source.ESTIMATED or truth is None:
            continue
        if estimated.current is None or truth.current is None:
            continue
        if estimated.current_error is None or truth.current_error is None:
            continue
        yield EstimationError(
            window=report.window,
            metric=estimated.metric,
            finding=estimated.finding,
            estimated=estimated.current,
            realised=truth.current,
            error=estimated.current - truth.current,
            variance=vary_by_sampling(estimated.current_error, truth.current_error, lacking),
            n=truth.n,
        )
