"""How much of the truth has come, and how long it took: coverage and latency of labels."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from monitor.cohorts import Window

DAY = np.timedelta64(1, "D")
HALF, MOST = 0.5, 0.9
ROUNDING = 1e-9
"""What a product of fractions may be off by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelArrival:
    """How many studies of a window have all their labels, and the days after which half and nine in ten have them.

    The days are measured from the model's answer and count the studies that still wait; None where so many have not
    got their labels in the time that was seen.
    """

    window: Window
    studies: int
    labelled: int
    half_days: float | None
    most_days: float | None

    @property
    def waiting(self) -> int:
        """Count the studies whose truth is not known yet, or only in part."""
        return self.studies - self.labelled

    @property
    def coverage(self) -> float | None:
        """Give the share of studies with all their labels; None without studies."""
        return self.labelled / self.studies if self.studies else None


def measure_arrival(
    window: Window, produced: NDArray[np.datetime64], known: NDArray[np.datetime64], *, until: datetime | None
) -> LabelArrival:
    """Measure coverage and latency of the labels of a window's studies.

    Args:
        window: what the studies are of.
        produced: when the model answered, UTC, shape (n,).
        known: when the last label of each became known, UTC, NaT where it has not, shape (n,).
        until: when it was last seen who still waits; a study that waits has waited until then.
    """
    seen = ~np.isnat(known)
    end = produced if until is None else np.full(produced.shape, np.datetime64(until.replace(tzinfo=None), "us"))
    # a truth that was known before the model answered took no time
    days = np.maximum((np.where(seen, known, end) - produced) / DAY, 0.0)
    return LabelArrival(
        window=window,
        studies=len(seen),
        labelled=int(seen.sum()),
        half_days=time_until(HALF, days, seen),
        most_days=time_until(MOST, days, seen),
    )


def time_until(share: float, times: NDArray[np.float64], seen: NDArray[np.bool_]) -> float | None:
    """Estimate after what time a share of things has happened, where some have not yet (Kaplan and Meier 1958).

    ``times`` (n,) until each happened or, where it was not ``seen`` (n,), has been waited for. The product-limit
    estimate; what is waited for just as long as another took counts as waiting then. None where it is not reached.
    """
    moments, happened = np.unique(times[seen], return_counts=True)
    waiting = len(times) - np.searchsorted(np.sort(times), moments, side="left")
    left = np.cumprod(1 - happened / waiting)
    reached = np.flatnonzero(left <= 1 - share + ROUNDING)
    return float(moments[reached[0]]) if len(reached) else None


def tell_arrival(arrival: LabelArrival) -> str:
    """Say in a sentence or two how much of the truth has come and how long it took."""
    if not arrival.studies:
        return "There are no studies that could have labels."
    said = f"{arrival.labelled:,} of {arrival.studies:,} studies are labelled ({arrival.coverage:.0%})."
    if not arrival.labelled:
        return said
    if arrival.half_days is None:
        return f"{said} After how many days half of them are cannot be told yet."
    half = f"{said} Half of them are after {_days(arrival.half_days)}"
    if arrival.most_days is None:
        return f"{half}; after how many nine in ten are cannot be told yet."
    return f"{half}, nine in ten after {_days(arrival.most_days)}."


def _days(days: float) -> str:
    return f"{days:.1f} days" if days < 10 else f"{days:.0f} days"
