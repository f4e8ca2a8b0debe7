"""What a policy means in practice: how often it cries wolf, and how long it takes to see a change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kstwobign

from monitor.alarms import AlarmState, WindowEvidence, advance, discount_trifle
from monitor.cohorts import Window, tile_windows
from monitor.policies import YEAR, DriftPolicy

Floats = NDArray[np.float64]

SHIFTS: Mapping[str, float] = {"small": 0.2, "medium": 0.5, "large": 0.8}
"""Cohen's (1988) words for a change of a mean, in standard deviations."""

RUNS = 200
LONGEST = 120
"""Windows after which a run that has not found the change is given up."""

BEGINNING = datetime(2026, 1, 5, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Where a policy is to be used: patients of the reference and of a window, comparisons made in each window."""

    window: timedelta
    patients_reference: int
    patients: int
    comparisons: int

    def __post_init__(self) -> None:
        if min(self.patients_reference, self.patients) < 2 or self.comparisons < 1 or self.window <= timedelta(0):
            raise ValueError(f"a situation has two patients on each side, a comparison and a length, got {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay:
    """How long a change of one compared column is there before the alarm.

    ``median`` and ``late`` (which 9 of 10 are not beyond) in windows, None where so many runs did not find it within
    ``LONGEST`` windows; ``found`` is the share of runs that did.
    """

    shift: str
    size: float
    median: int | None
    late: int | None
    found: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyExplanation:
    """A policy in one situation.

    ``false_alarms`` bounds the expected number a year, alarms and single windows alike; ``threshold`` is the evidence
    at which an alarm is raised; ``window_alpha`` the probability that a quiet window is called DRIFT.
    """

    situation: Situation
    windows_per_year: float
    false_alarms: float
    window_alpha: float
    threshold: float
    delays: tuple[Delay, ...]


def explain_policy(policy: DriftPolicy, situation: Situation, *, generator: np.random.Generator) -> PolicyExplanation:
    """Say what a policy does: its bound on false alarms a year, and its delays for changes of three sizes.

    Delays are simulated: one column of normal numbers moves by the size of the change from the first window on, all
    other comparisons stay quiet, p-values are the Kolmogorov-Smirnov test's, and the alarm follows its own rules.
    """
    window = Window(start=BEGINNING, end=BEGINNING + situation.window)
    alpha = policy.drift_alpha(window)
    windows = YEAR / situation.window
    return PolicyExplanation(
        situation=situation,
        windows_per_year=windows,
        false_alarms=alpha * windows,
        window_alpha=alpha,
        threshold=1 / alpha,
        delays=tuple(_measure_delay(policy, situation, name, size, generator) for name, size in SHIFTS.items()),
    )


def _measure_delay(
    policy: DriftPolicy, situation: Situation, name: str, size: float, generator: np.random.Generator
) -> Delay:
    windows = list(tile_windows(BEGINNING, BEGINNING + LONGEST * situation.window, situation.window))
    found = [_run(policy, situation, windows, size, generator) for _ in range(RUNS)]
    waited = sorted(math.inf if n is None else n for n in found)
    median, late = (waited[math.ceil(share * RUNS) - 1] for share in (0.5, 0.9))
    return Delay(
        shift=name,
        size=size,
        median=None if math.isinf(median) else int(median),
        late=None if math.isinf(late) else int(late),
        found=sum(n is not None for n in found) / RUNS,
    )


def _run(
    policy: DriftPolicy, situation: Situation, windows: list[Window], size: float, generator: np.random.Generator
) -> int | None:
    """Count the windows from the change to the alarm; None without one."""
    state = AlarmState()
    p_values_of_moved = _moved_p_values(policy, situation, size, generator)
    for number, (window, moved) in enumerate(zip(windows, p_values_of_moved, strict=False), 1):
        quiet = np.maximum(generator.random(situation.comparisons - 1), 1 / (policy.permutations + 1))
        p_values = {"moved": moved} | {f"quiet {i}": float(p) for i, p in enumerate(quiet)}
        state = advance(state, WindowEvidence(window=window, p_values=p_values), policy)
        if state.open_since is not None:
            return number
    return None


def _moved_p_values(
    policy: DriftPolicy, situation: Situation, size: float, generator: np.random.Generator
) -> Iterator[float]:
    """Give the p-values of one column against one reference, window by window; a trifle is worth nothing."""
    reference = np.sort(generator.normal(size=situation.patients_reference))
    n, m = situation.patients, len(reference)
    root = math.sqrt(n * m / (n + m))
    least = max(policy.minimum_effect, float(kstwobign.ppf(policy.effect_quantile)) / root)
    while True:
        values = np.sort(generator.normal(size, 1, n))
        distance = _ks_distance(values, reference)
        p = max(float(kstwobign.sf(root * distance)), 1 / (policy.permutations + 1))
        yield discount_trifle(p, distance, least)


def _ks_distance(values: Floats, reference: Floats) -> float:
    """Largest distance between two distribution functions; both sides ascending and without ties."""
    n, m = len(values), len(reference)
    at = np.searchsorted(reference, values) / m
    steps = np.arange(n + 1) / n
    return float(max((steps[1:] - at).max(), (at - steps[:-1]).max()))
