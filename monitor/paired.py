"""Two models measured on the same studies over the same resamples of patients, so that what they share cancels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, logit
from scipy.stats import t

from monitor.intervals import Difference, Estimate, Form


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Both models' estimates of one figure over the same resamples."""

    champion: Estimate
    challenger: Estimate

    @property
    def difference(self) -> float:
        """Challenger minus champion, both defined."""
        return float((self.challenger.value or 0.0) - (self.champion.value or 0.0))

    def interval(self, level: float) -> tuple[float, float]:
        """Bound the difference at a two-sided level.

        The paired difference is bounded on the metric's own scale by its bootstrap standard error
        (delta method) and read back at the champion's figure; two models that agree on every study
        differ by exactly 0. Where a figure sits at 0 or 1 a bootstrap sees no spread, and the bounds
        are recovered from both sides' Wilson intervals instead (MOVER; Zou 2007). A figure without bounds,
        such as a calibration slope, needs no scale.
        """
        a, b = self.champion.value, self.challenger.value
        if self.champion.form is Form.NORMAL and a is not None and b is not None:
            reach = _quantile(self.champion, level) * _spread(self.challenger.replicates - self.champion.replicates)
            return b - a - reach, b - a + reach
        if a is None or b is None or not (0 < a < 1 and 0 < b < 1):
            low, high = Difference(first=self.challenger, second=self.champion).interval(level)
            return (-np.inf if low is None else low), (np.inf if high is None else high)
        logs = self.champion.form is Form.LOG
        slope_a, slope_b = (a, b) if logs else (a * (1 - a), b * (1 - b))
        resampled = self.challenger.replicates / slope_b - self.champion.replicates / slope_a
        reach = _quantile(self.champion, level) * _spread(resampled)
        ends = [b * np.exp(side * reach) if logs else expit(logit(b) + side * reach) for side in (-1, 1)]
        # rounding must not put 0 outside: a model that changes nothing would be surely better by 1e-16
        return min(float(ends[0]) - a, b - a), max(float(ends[1]) - a, b - a)


def average_estimates(estimates: Sequence[Estimate], weights: Sequence[float] | None = None) -> Estimate:
    """Average one measure over findings or cohorts, of which there is at least one; its patients are the fewest.

    ``weights`` are equal if left out, and need not add up to 1. The replicates must be over the same resamples.
    """
    values = [one.value for one in estimates]
    return replace(
        estimates[0],
        value=None
        if None in values
        else float(np.average([value for value in values if value is not None], weights=weights)),
        replicates=np.average([one.replicates for one in estimates], axis=0, weights=weights),
        patients=min(one.patients for one in estimates),
        informative=min(one.informative for one in estimates),
        standard_error=None,  # that of one part is not that of their mean; the replicates' is
    )


def _quantile(figure: Estimate, level: float) -> float:
    return float(t.ppf(0.5 + level / 2, max(figure.patients - 1, 1)))


def _spread(replicates: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    return float(np.nanstd(replicates, ddof=1))
