"""What a policy means in practice: how often it cries wolf, and how long it takes to see a change."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray
from scipy.special import kolmogorov

from monitor.alarms import (
    WORTHLESS,
    AlarmState,
    WindowEvidence,
    advance,
    discount_trifle,
    joins_comparison,
    list_settled,
)
from monitor.cohorts import Window
from monitor.column_laws import KOLMOGOROV_SQUARED
from monitor.effect_calibration import REPEATS, upper_quantile
from monitor.policies import YEAR, DriftPolicy

Floats = NDArray[np.float64]
Tell = Callable[[str, int, int], None]

SHIFTS: Mapping[str, float] = {"small": 0.2, "medium": 0.5, "large": 0.8}
"""Cohen's (1988) words for a change of a mean, in standard deviations."""

RUNS = 150
LONGEST = 120
"""Windows after which a run that has not found the change is given up."""

LONGEST_GROWTH = 120
"""Quiet windows that are simulated at most before a late change."""

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

    ``quiet_before`` windows passed before it began, when windows were compared with ``compared`` patients (median).
    ``median`` and ``late`` (which 9 of 10 are not beyond) in windows, None where so many runs did not find it within
    ``LONGEST`` windows; ``found`` is the share of runs that did.
    """

    shift: str
    size: float
    quiet_before: int
    compared: int
    median: int | None
    late: int | None
    found: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyExplanation:
    """A policy in one situation.

    ``false_alarms`` bounds the expected number a year, alarms and single windows alike; ``threshold`` is the evidence
    at which an alarm is raised; ``window_alpha`` the probability that a quiet window is called DRIFT. ``delays`` are
    those of a change that is there from the first window on, then those of one that begins later.
    """

    situation: Situation
    windows_per_year: float
    false_alarms: float
    window_alpha: float
    threshold: float
    delays: tuple[Delay, ...]


def explain_policy(
    policy: DriftPolicy,
    situation: Situation,
    *,
    generator: np.random.Generator,
    runs: int = RUNS,
    progress: Tell = lambda what, done, of: None,
) -> PolicyExplanation:
    """Say what a policy does: its bound on false alarms a year, and its delays for changes of three sizes.

    Delays are simulated. One column of normal numbers moves by the size of the change, all other comparisons stay quiet
    and independent. The rest is the product's: p-values of the Kolmogorov-Smirnov test, effects that count learned
    from stretches of the reference, quiet windows that join what later ones are compared with, those of the
    change among them while it is not seen, and the alarm's own rules. A change begins with the first window, or
    when the comparison set has grown to its usual size.
    """
    window = Window(start=BEGINNING, end=BEGINNING + situation.window)
    alpha = policy.drift_alpha(window)
    windows = YEAR / situation.window
    delays: list[Delay] = []
    for quiet in dict.fromkeys((0, count_growth(policy, situation))):
        delays += _measure_delays(policy, situation, quiet, generator, runs, progress)
    return PolicyExplanation(
        situation=situation,
        windows_per_year=windows,
        false_alarms=alpha * windows,
        window_alpha=alpha,
        threshold=1 / alpha,
        delays=tuple(delays),
    )


def count_growth(policy: DriftPolicy, situation: Situation) -> int:
    """Count the quiet windows after which the comparison set is as large as it will become, as `joins_comparison` says.

    No more than ``LONGEST_GROWTH``, since longer takes too long to simulate.
    """
    missing = policy.warm_up * situation.patients - situation.patients_reference
    return min(max(math.ceil(missing / situation.patients), 0) + policy.join_after, LONGEST_GROWTH)


def _measure_delays(
    policy: DriftPolicy, situation: Situation, quiet: int, generator: np.random.Generator, runs: int, progress: Tell
) -> list[Delay]:
    """Measure the delays of all changes after so many quiet windows.

    In a run, all changes begin in the same state. A run with a false alarm open at that moment tells no delay.
    """
    waited: dict[str, list[float]] = {name: [] for name in SHIFTS}
    sizes: list[int] = []
    for run in range(runs):
        progress(f"Living through changes after {quiet} quiet windows", run, runs)
        settled = _Life(policy, situation, generator)
        for _ in range(quiet):
            settled.live(0.0)
        if settled.state.open_since is not None:
            continue
        sizes.append(len(settled.compared))
        for name, size in SHIFTS.items():
            waited[name].append(_wait(settled.fork(), size))
    progress(f"Living through changes after {quiet} quiet windows", runs, runs)
    compared = round(float(np.median(sizes))) if sizes else 0
    return [_sum_up(name, sorted(found), quiet, compared) for name, found in waited.items()]


def _wait(life: _Life, size: float) -> float:
    """Count the windows from the change to the alarm; infinite without one."""
    return next((n for n in range(1, LONGEST + 1) if life.live(size)), math.inf)


def _sum_up(name: str, waited: list[float], quiet: int, compared: int) -> Delay:
    median, late = (waited[math.ceil(share * len(waited)) - 1] if waited else math.inf for share in (0.5, 0.9))
    return Delay(
        shift=name,
        size=SHIFTS[name],
        quiet_before=quiet,
        compared=compared,
        median=None if math.isinf(median) else int(median),
        late=None if math.isinf(late) else int(late),
        found=sum(map(math.isfinite, waited)) / len(waited) if waited else 0.0,
    )


class _Life:
    """One model under the policy: what its windows are compared with, which of them may join it, and its alarm."""

    def __init__(self, policy: DriftPolicy, situation: Situation, generator: np.random.Generator) -> None:
        self.policy, self.situation, self.generator = policy, situation, generator
        self.compared = np.sort(generator.normal(size=situation.patients_reference))
        self.state = AlarmState()
        self.waiting: list[tuple[Floats, bool, bool]] = []
        """The latest windows: values, whether each may join, whether an alarm opened in it."""
        self.least = _least_effect(policy, situation, self.compared, generator)
        window = Window(start=BEGINNING, end=BEGINNING + situation.window)
        enough = max(policy.permutations, math.ceil(2 * situation.comparisons / policy.drift_alpha(window)))
        self.smallest = 1 / (enough + 1)

    def fork(self) -> _Life:
        """Give a copy that lives on by itself; nothing that they share is written to."""
        other = copy.copy(self)
        other.waiting = [*self.waiting]
        return other

    def live(self, size: float) -> bool:
        """Live one window in which the column has moved by so much; tells whether an alarm is open after it."""
        self._let_join()
        values = np.sort(self.generator.normal(size, 1, self.situation.patients))
        start = BEGINNING if self.state.window is None else self.state.window.end
        window = Window(start=start, end=start + self.situation.window)
        evidence = WindowEvidence(window=window, p_values=self._compare(values))
        self.state = advance(self.state, evidence, self.policy)
        joins = joins_comparison(
            self.state, evidence, patients=len(values), compared=len(self.compared), policy=self.policy
        )
        self.waiting.append((values, joins, self.state.open_since == window))
        return self.state.open_since is not None

    def _let_join(self) -> None:
        """Let the window join that has waited long enough, if it may."""
        wait = self.policy.join_after
        if len(self.waiting) <= wait:
            return
        _, joined, opened = zip(*self.waiting, strict=True)
        if list_settled(joined, opened, wait):
            values = self.waiting[0][0]
            self.compared = np.insert(self.compared, np.searchsorted(self.compared, values), values)
        del self.waiting[0]

    def _compare(self, values: Floats) -> dict[str, float]:
        """Give the p-value of the column and those of the other comparisons; none where patients are too few."""
        policy, quiet = self.policy, self.situation.comparisons - 1
        if min(len(values), len(self.compared)) < policy.minimum_patients:
            return {}
        distance, effective = _ks_distance(values, self.compared), _effective(len(values), len(self.compared))
        p = max(float(kolmogorov(math.sqrt(effective) * distance)), self.smallest)
        others = np.maximum(self.generator.random(quiet), self.smallest).tolist()
        # an effect is as rarely large enough as its p-value is small: both are ranks of one distance
        counted = [q if q <= 1 - policy.effect_quantile else max(q, WORTHLESS) for q in others]
        moved = {"moved": discount_trifle(p, _effect(distance, effective), self.least)}
        return moved | {f"quiet {place}": q for place, q in enumerate(counted)}


def _least_effect(
    policy: DriftPolicy, situation: Situation, reference: Floats, generator: np.random.Generator
) -> float:
    """Learn from stretches of the reference, which ascends, what counts, as `monitor.effect_calibration` does."""
    n = len(reference)
    if n < 2 * policy.minimum_patients or situation.patients < policy.minimum_patients:
        return policy.minimum_effect
    taken = min(situation.patients, n // 2)
    effects = []
    for _ in range(REPEATS):
        stretch = reference[np.sort(generator.choice(n, taken, replace=False, shuffle=False))]
        # the whole holds the stretch: F_stretch - F_rest = n / (n - taken) (F_stretch - F_whole)
        distance = _ks_distance(stretch, reference) * n / (n - taken)
        effects.append(_effect(distance, _effective(taken, n - taken)))
    return max(policy.minimum_effect, upper_quantile(effects, policy.effect_quantile))


def _effective(n: int, m: int) -> float:
    return n * m / (n + m)


def _effect(distance: float, effective: float) -> float:
    """Take off, in quadrature, what chance gives on average: `monitor.columns.effect_of` in large samples."""
    return math.sqrt(max(0.0, distance**2 - KOLMOGOROV_SQUARED / effective))


def _ks_distance(values: Floats, reference: Floats) -> float:
    """Largest distance between two distribution functions; both ascending."""
    n, m = len(values), len(reference)
    steps = np.arange(n + 1) / n
    above = steps[1:] - np.searchsorted(reference, values, side="right") / m
    below = np.searchsorted(reference, values, side="left") / m - steps[:-1]
    return float(max(above.max(), below.max()))
