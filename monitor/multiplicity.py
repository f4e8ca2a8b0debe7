"""Many tests at once: the threshold of each p-value, so that the family as a whole keeps what was promised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum

import numpy as np

Thresholds = Callable[[Sequence[float], float], list[float]]


class Multiplicity(StrEnum):
    """How several tests are corrected together."""

    HOLM = "holm"
    BH = "bh"


def holm_thresholds(p_values: Sequence[float], alpha: float) -> list[float]:
    """Give each p-value the threshold at or under which it is rejected (Holm 1979), in the order given.

    Holds the probability of any false rejection at ``alpha``, whatever the dependence. From the first
    p-value that fails on, no later one can be rejected; those get threshold 0.

    >>> holm_thresholds([0.01, 0.5, 0.02], 0.06)
    [0.02, 0.06, 0.03]
    """
    thresholds = [0.0] * len(p_values)
    alive = True
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        bound = alpha / (len(p_values) - rank)
        thresholds[index] = bound if alive else 0.0
        alive = alive and p_values[index] <= bound
    return thresholds


def bh_thresholds(p_values: Sequence[float], alpha: float) -> list[float]:
    """Give the one threshold at or under which p-values are rejected (Benjamini and Hochberg 1995), for each.

    Holds the expected share of false ones among the rejections at ``alpha``, for independent or positively
    dependent p-values (Benjamini and Yekutieli 2001). Where nothing at all has changed, any rejection is
    false, so that its probability is at most ``alpha`` too.

    >>> bh_thresholds([0.01, 0.5, 0.02], 0.06)
    [0.04, 0.04, 0.04]
    """
    ordered = np.sort(np.asarray(p_values, dtype=np.float64))
    bounds = alpha * np.arange(1, len(ordered) + 1) / max(len(ordered), 1)
    passed = np.flatnonzero(ordered <= bounds)
    return [float(bounds[passed[-1] if len(passed) else 0])] * len(ordered) if len(ordered) else []


THRESHOLDS: dict[Multiplicity, Thresholds] = {Multiplicity.HOLM: holm_thresholds, Multiplicity.BH: bh_thresholds}
"""How thresholds follow from p-values, by the name a policy gives."""
