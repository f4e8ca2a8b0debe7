"""Intervals for figures whose unit is the patient: a standard error over patients, and a form of interval.

The plain percentile bootstrap is a wrong number near 1, where good models live: with 40 patients
and a true AUROC of 0.983 a nominal 95 % interval covers it in 75 % of the cases, with a true
sensitivity of 0.977 in 32 %. So the bootstrap, or a formula where there is one, supplies the standard
error, and the interval is formed on a scale that knows the bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import t

CHUNK = 4_000_000
"""Weights held at once (resamples times studies): 32 MB."""

Floats = NDArray[np.float64]
Statistic = Callable[..., Floats]


class Form(StrEnum):
    """How an interval is formed from a figure and its standard error."""

    WILSON = "wilson"
    LOGIT = "logit"
    LOG = "log"
    DISTANCE = "distance"
    NORMAL = "normal"


class Measured(Protocol):
    """What a figure with an interval offers: an estimate, or a difference of two."""

    @property
    def value(self) -> float | None:
        """The figure, None where it is undefined."""

    @property
    def reason(self) -> str:
        """Why it is undefined."""

    @property
    def replicates(self) -> Floats:
        """Its values under resampling, NaN where a resample has none; shape (b,)."""

    def interval(self, level: float) -> tuple[float | None, float | None]:
        """Bound the figure at a two-sided level."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Estimate:
    """One figure with its values under resampling of patients; ``value`` is None with a ``reason`` if undefined.

    ``studies`` and ``patients`` count those that carry the figure (for a sensitivity: the positives);
    ``informative`` is the number of independent yes/no answers it is worth when it sits at 0 or 1,
    where a bootstrap sees no spread. ``distances`` (b,), for a sum of absolute parts, are the summed
    distances of the resampled parts from the measured ones. A ``standard_error`` known from a formula
    stands in for that of the replicates.
    """

    value: float | None
    form: Form
    studies: int
    patients: int
    informative: float
    replicates: Floats = field(default_factory=lambda: np.empty(0))
    reason: str = ""
    distances: Floats | None = None
    standard_error: float | None = None

    @property
    def spread(self) -> float:
        """The standard error: the given one, else the standard deviation of the replicates."""
        if self.standard_error is not None:
            return self.standard_error
        finite = self.replicates[np.isfinite(self.replicates)]
        return float(finite.std(ddof=1)) if len(finite) > 1 else 0.0

    def interval(self, level: float) -> tuple[float | None, float | None]:
        """Bound the figure at a two-sided level; (None, None) with fewer than two patients.

        Rates: Wilson's score interval with the effective sample size that the bootstrap standard
        error implies (Franco et al. 2019). Areas: normal on the logit scale (Pepe 2003). Errors:
        normal on the log scale. All three inside [0, 1], all with Student's t at the number of patients
        minus one, as is the plain normal form of figures without bounds. Sums of absolute parts (a
        calibration error) are biased upwards, so their lower bound comes from the triangle inequality:
        the truth lies no further off than the parts do together.
        """
        if self.value is None or self.patients < 2:
            return None, None
        quantile = _student(0.5 + level / 2, self.patients - 1)
        value, spread = self.value, self.spread
        reach = quantile * spread
        if self.form is Form.NORMAL:
            return value - reach, value + reach
        if self.form is Form.DISTANCE and self.distances is not None and spread > 0:
            farthest = np.quantile(self.distances[np.isfinite(self.distances)], 0.5 + level / 2)
            low, high = max(value - farthest, 0.0), min(value + reach, 1.0)
        elif not 0 < value < 1 or not spread > 0:
            low, high = _wilson(value, self.informative, quantile)
        elif self.form is Form.WILSON:
            low, high = _wilson(value, min(value * (1 - value) / spread**2, self.studies), quantile)
        elif self.form is Form.LOGIT:
            low, high = (expit(logit(value) + side * reach / (value * (1 - value))) for side in (-1, 1))
        else:
            factor = np.exp(min(reach / value, 700.0))
            low, high = value / factor, min(value * factor, 1.0)
        return float(low), float(high)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Difference:
    """``first`` minus ``second``, measured over the same patients where they share some.

    Their ``correlation`` is that of their replicates, unless it is known from a formula.
    """

    first: Measured
    second: Measured
    correlation: float | None = None

    @property
    def value(self) -> float | None:
        """The difference, None where one side is undefined."""
        if self.first.value is None or self.second.value is None:
            return None
        return self.first.value - self.second.value

    @property
    def reason(self) -> str:
        """Why there is no difference."""
        return self.first.reason or self.second.reason

    @property
    def replicates(self) -> Floats:
        """The difference under each resample."""
        return np.asarray(self.first.replicates - self.second.replicates)

    def interval(self, level: float) -> tuple[float | None, float | None]:
        """Bound the difference by recovering variances from both sides' own intervals (MOVER; Zou 2007).

        It keeps what each side's interval knows about its bounds, where the spread of resampled
        differences would be blind: 8 of 8 is not certainty.
        """
        a, (low_a, high_a) = self.first.value, self.first.interval(level)
        b, (low_b, high_b) = self.second.value, self.second.interval(level)
        if a is None or b is None or low_a is None or high_a is None or low_b is None or high_b is None:
            return None, None
        shared = self.correlation
        if shared is None:
            shared = _correlate(self.first.replicates, self.second.replicates)
        return (
            a - b - _combine(a - low_a, high_b - b, shared),
            a - b + _combine(high_a - a, b - low_b, shared),
        )


def draw_patients(strata: NDArray[np.intp], resamples: int, generator: np.random.Generator) -> Floats:
    """Resample patients with replacement within each stratum; shape (resamples, patients): how often each is drawn."""
    counts = np.zeros((resamples, len(strata)))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        for row in counts:
            row[members] = np.bincount(generator.integers(len(members), size=len(members)), minlength=len(members))
    return counts


def draw_both(
    reference: NDArray[np.str_], current: NDArray[np.str_], resamples: int, generator: np.random.Generator
) -> tuple[Floats, NDArray[np.intp], NDArray[np.intp]]:
    """Resample the patients of two cohorts, those seen on both sides together.

    Strata are the patients of the reference alone, of the window alone, and of both, so that each
    side keeps its number of patients. Returns the counts (resamples, patients) and, for each side,
    the patient's column of every study.
    """
    keys, index = np.unique(np.concatenate([reference, current]), return_inverse=True)
    first, second = index[: len(reference)], index[len(reference) :]
    strata = np.isin(np.arange(len(keys)), first) + 2 * np.isin(np.arange(len(keys)), second)
    return draw_patients(strata.astype(np.intp), resamples, generator), first, second


def replicate(statistic: Statistic, counts: Floats, *patients: NDArray[np.intp]) -> Floats:
    """Apply a statistic of weights, one (b, n) matrix an index of patients, to all resamples, a chunk at a time."""
    size = max(1, sum(len(index) for index in patients))
    step = max(1, CHUNK // size)
    chunks = (counts[start : start + step] for start in range(0, len(counts), step))
    return np.concatenate([statistic(*(chunk[:, index] for index in patients)) for chunk in chunks])


def sum_by_patient(terms: Floats, patients: NDArray[np.intp], total: int) -> Floats:
    """Add up the terms (n, k) of each patient's studies; shape (total, k)."""
    return np.stack([np.bincount(patients, weights=column, minlength=total) for column in terms.T], axis=1)


@lru_cache(maxsize=4096)
def _student(probability: float, freedom: int) -> float:
    return float(t.ppf(probability, freedom))


def _wilson(value: float, n: float, quantile: float) -> tuple[float, float]:
    share = quantile**2 / n
    center = (value + share / 2) / (1 + share)
    reach = np.sqrt(share * value * (1 - value) + share**2 / 4) / (1 + share)
    return float(max(center - reach, 0.0)), float(min(center + reach, 1.0))


def _correlate(first: Floats, second: Floats) -> float:
    both = np.isfinite(first) & np.isfinite(second)
    if both.sum() < 2:
        return 0.0
    a, b = first[both] - first[both].mean(), second[both] - second[both].mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(np.clip(a @ b / scale, -1, 1)) if scale > 0 else 0.0


def _combine(first: float, second: float, shared: float) -> float:
    return float(np.sqrt(max(first**2 + second**2 - 2 * shared * first * second, 0.0)))
