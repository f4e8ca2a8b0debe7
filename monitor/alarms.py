"""When the evidence of many windows becomes an alarm: a budget of false alarms a year, however often one looks.

A p-value p is worth the e-value 1 / (2 sqrt(p)), whose mean is at most 1 without a change (Vovk and Wang 2021,
calibrator kappa = 1/2). Every comparison adds up its own over time by Shiryaev and Roberts' rule
R_t = (1 + R_{t-1}) e_t, and the evidence R is the mean of these over the comparisons (an e-detector: Shin,
Ramdas and Rinaldo 2024). An alarm is raised where R reaches c = 1 / ``policy.drift_alpha(window)``.

The budget, for any number N of windows: E[R_t | past] <= 1 + R_{t-1} makes R_t - t a supermartingale, and a mean of
such is one, however the comparisons depend on each other. Stopped at an alarm or at the end, c P(alarm) <= E[R] <=
E[windows since the restart]; summed over restarts, E[alarms] <= N / c, the budget's share of these windows.

"Given the past" needs care: p-values against one and the same finite reference are uniform on the average over
references only, and a year of windows discovers that this reference is not the population. So quiet windows join
what later ones are compared with: a permutation test against everything seen before gives independent p-values while
nothing changes (Vovk, Gammerman and Shafer 2005), until ``warm_up`` windows are in it and its luck no longer matters.
A window waits ``join_after`` windows before it joins, and never does if an alarm opens meanwhile: a change must not be
absorbed while evidence for it gathers. With the wait p-values are nearly independent, not exactly; that the budget
holds is checked by simulation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from monitor.cohorts import Window
from monitor.policies import DriftPolicy
from monitor.results import DriftResult

WORTHLESS = 0.25
"""The p-value whose e-value is 1: it neither adds evidence nor takes any away."""

ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowEvidence:
    """What one window says: a p-value by comparison, in (0, 1]; none where nothing could be compared."""

    window: Window
    p_values: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, p in self.p_values.items():
            if not 0 < p <= 1:
                raise ValueError(f"the p-value of {name} must be in (0, 1], got {p}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmState:
    """Where a model's alarm stands after a window; recomputed by `replay` from what is stored of the windows.

    Attributes:
        window: the last window that was taken in, None before the first.
        evidence: log(1 + R) of each comparison since the last restart, in nats.
        log_evidence: log(1 + R) of their mean; 0 says nothing has been seen.
        log_threshold: log(1 + c), what ``log_evidence`` must reach; None before the first window that could be judged.
        over: windows in a row over the threshold.
        quiet: windows in a row, while an alarm is open, that added nothing to the evidence.
        cooling: windows to come in which no alarm is raised.
        open_since: window in which the open alarm was raised, None without one.
    """

    window: Window | None = None
    evidence: Mapping[str, float] = field(default_factory=dict)
    log_evidence: float = 0.0
    log_threshold: float | None = None
    over: int = 0
    quiet: int = 0
    cooling: int = 0
    open_since: Window | None = None

    @property
    def leading(self) -> str | None:
        """The comparison with most of the evidence, the first of equals."""
        return max(self.evidence, key=lambda name: self.evidence[name], default=None)


def name_comparison(detector: str, feature: str) -> str:
    """Name a comparison alike in evidence, least effects and alarms: ``ks on uncertainty``."""
    return f"{detector} on {feature}"


def discount_trifle(p_value: float, effect: float, least_effect: float) -> float:
    """Give what counts of a p-value: with an effect below the least it is worth nothing, WORTHLESS or more."""
    return p_value if effect >= least_effect else max(p_value, WORTHLESS)


def weigh_window(window: Window, results: Iterable[DriftResult]) -> WindowEvidence:
    """Turn the comparisons of a window into its evidence.

    NOT_ENOUGH_DATA has no p-value and is left out.
    """
    p_values: dict[str, float] = {}
    for result in results:
        if result.p_value is None or result.effect is None:
            continue
        name = name_comparison(result.detector, result.feature)
        p_values[name] = discount_trifle(result.p_value, result.effect, result.least_effect)
    return WindowEvidence(window=window, p_values=p_values)


def advance(state: AlarmState, evidence: WindowEvidence, policy: DriftPolicy) -> AlarmState:
    """Take in the next window.

    An alarm opens when the evidence has been over the threshold for ``policy.persistence`` windows in a row. It
    closes after ``policy.quiet_windows`` in a row that did not add to the evidence (R_t <= 1 + R_{t-1}, which weighs
    each comparison by what it has shown before). Evidence then starts anew, but for ``policy.cool_down`` windows
    opens no alarm. A window without p-values (NOT_ENOUGH_DATA) changes nothing and does not count as time; neither
    does one for a comparison that could not be made in it.

    Raises:
        ValueError: the window does not come after the last one.
    """
    if state.window is not None and evidence.window.start < state.window.end:
        raise ValueError(f"windows come in order: {evidence.window.key} after {state.window.key}")
    if not evidence.p_values:
        return replace(state, window=evidence.window)
    grown = {name: state.evidence.get(name, 0.0) for name in {**state.evidence, **evidence.p_values}}
    before = _log_mean(grown.values())
    for name, p in evidence.p_values.items():
        grown[name] = _softplus(grown[name] - math.log(2) - math.log(p) / 2)
    now = _log_mean(grown.values())
    seen = replace(
        state,
        window=evidence.window,
        evidence=grown,
        log_evidence=now,
        log_threshold=math.log1p(1 / policy.drift_alpha(evidence.window)),
    )
    return _raise_or_wait(seen, policy) if state.open_since is None else _close_or_hold(seen, before, policy)


def replay(evidences: Iterable[WindowEvidence], policy: DriftPolicy) -> list[AlarmState]:
    """Recompute the states after each of the windows, which come in order, from nothing."""
    states = accumulate(evidences, lambda state, evidence: advance(state, evidence, policy), initial=AlarmState())
    return list(states)[1:]


def joins_comparison(
    state: AlarmState, evidence: WindowEvidence, *, patients: int, compared: int, policy: DriftPolicy
) -> bool:
    """Tell whether the studies of a window join what later ones are compared with.

    They do while no alarm is open, the evidence is not over the threshold, and the comparison set has fewer patients
    than ``policy.warm_up`` such windows. After that it stays as it is: its luck adds little, and a slow change
    must not become what changes are measured from.

    Args:
        state: after the window.
        evidence: of the window; one that could not be judged does not join.
        patients: of the window.
        compared: patients that it was compared with.
        policy: its ``warm_up`` is used.
    """
    calm = state.open_since is None and not state.over
    return bool(evidence.p_values) and calm and compared < policy.warm_up * patients


def list_settled(joined: Sequence[bool], opened: Sequence[bool], join_after: int) -> list[int]:
    """Tell which earlier windows the next one is compared with, beside the reference.

    Args:
        joined: of each earlier window, in order, whether `joins_comparison` let it join.
        opened: of each, whether an alarm opened in it.
        join_after: how many windows must have passed since; none of them may have opened an alarm.
    """
    last = len(joined) - join_after
    return [place for place in range(last) if joined[place] and not any(opened[place + 1 : place + 1 + join_after])]


def count_alarms(states: Sequence[AlarmState]) -> int:
    """Count the alarms that were raised."""
    return len({state.open_since for state in states if state.open_since is not None})


def _raise_or_wait(state: AlarmState, policy: DriftPolicy) -> AlarmState:
    over = state.over + 1 if _is_over(state) else 0
    raised = over >= policy.persistence and not state.cooling
    return replace(
        state, over=over, cooling=max(state.cooling - 1, 0), open_since=state.window if raised else None, quiet=0
    )


def _close_or_hold(state: AlarmState, before: float, policy: DriftPolicy) -> AlarmState:
    grew = _log_less_one(state.log_evidence) > before + ROUNDING
    quiet = 0 if grew else state.quiet + 1
    if quiet < policy.quiet_windows:
        return replace(state, over=state.over + 1 if _is_over(state) else 0, quiet=quiet)
    return AlarmState(window=state.window, log_threshold=state.log_threshold, cooling=policy.cool_down)


def _is_over(state: AlarmState) -> bool:
    return state.log_threshold is not None and state.log_evidence >= state.log_threshold


def _softplus(x: float) -> float:
    """log(1 + exp(x))."""
    return x + math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x))


def _log_less_one(x: float) -> float:
    """log(exp(x) - 1), for x > 0."""
    return x + math.log(-math.expm1(-x))


def _log_mean(logs: Iterable[float]) -> float:
    values = list(logs)
    largest = max(values)
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values) / len(values))
