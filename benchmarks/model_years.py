"""A model's years, lived through: what the product and others make of the patients of `benchmarks.arrivals`."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.arrivals import PLANTED, WARDS, Arrivals, Ward, columns_of, window_of
from benchmarks.relabellings import Columns, Relabellings, agrees_with_evidently, compare_with_product, evidently_rule
from monitor.alarms import AlarmState, WindowEvidence, advance, discount_trifle, joins_comparison, list_settled
from monitor.cohorts import Cohort, Window, concatenate
from monitor.column_reference import ColumnOutcome, compare_columns, fit_columns
from monitor.comparisons import MOST_PERMUTED, PERMUTATIONS_TO_CALIBRATE, Question, answer, list_questions
from monitor.detectors import EFFECT_NAMES, Outcome
from monitor.effect_calibration import calibrate_effects
from monitor.embedding_shift import Reference, fit_reference
from monitor.multiplicity import holm_thresholds
from monitor.policies import DriftPolicy

POLICY = DriftPolicy()
MOST_LEARNED = 2_000  # as flows.alarming, which a benchmark of monitor does not import
LOOKS = {"embedding": (99, 999), "column": (199, 1_999)}
"""Relabellings of the first looks; the product takes 999. The last look takes as many as the product's."""
SCREENS = 0.1, 0.01
"""A look is followed by a closer one while its p-value is not above this: valid as in `monitor.watching`."""
YEARS_OF_EVIDENTLY = 50
LONGEST = 60
ALPHA = 0.05
PEERS = ("alpha", "any", "half")
"""Any test at ALPHA; Evidently's rule: any column drifted, half of them did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a window said: p-value by comparison, whether it was called DRIFT, and whether an alarm is open."""

    p_values: Mapping[str, float]
    drift: bool
    opened: bool
    is_open: bool


class Monitor:
    """The product's rules over one reference that grows with quiet windows, as flows.alarming follows them."""

    def __init__(self, reference: Cohort, patients: int, generator: np.random.Generator) -> None:
        self.reference, self.generator, self.state = reference, generator, AlarmState()
        self.relabellings = Relabellings(generator)
        self.windows: list[Cohort] = []
        self.joined: list[bool] = []
        self.opened: list[bool] = []
        self.settled: list[int] = []
        self._compare_with(reference, fit=False)
        self.least = calibrate_effects(
            reference, self._measure, patients=2 ** round(math.log2(patients)), policy=POLICY, generator=generator
        )
        self._compare_with(reference)

    def fork(self, generator: np.random.Generator) -> Monitor:
        """Give a copy that lives on by itself."""
        other = copy.copy(self)
        other.generator, other.relabellings = generator, Relabellings(generator)
        other.windows, other.joined, other.opened = [*self.windows], [*self.joined], [*self.opened]
        return other

    def live(self, window: Window, current: Cohort) -> Seen:
        """Take in one window."""
        settled = list_settled(self.joined, self.opened, POLICY.join_after)
        if settled != self.settled:
            self.settled = settled
            self._compare_with(concatenate([self.reference, *(self.windows[place] for place in settled)]))
        questions = list(list_questions(self.compared, current, POLICY))
        alpha = POLICY.drift_alpha(window)
        enough = max(POLICY.permutations, math.ceil(2 * len(questions) / alpha))
        found = {question.name: self._look_closer(question, enough) for question in questions}
        least = {name: self.least.get(name, POLICY.minimum_effect) for name in found}
        thresholds = holm_thresholds([outcome.p_value for outcome in found.values()], alpha)
        drift = any(
            outcome.p_value <= threshold and outcome.effect >= least[name]
            for (name, outcome), threshold in zip(found.items(), thresholds, strict=True)
        )
        evidence = WindowEvidence(
            window=window, p_values={n: discount_trifle(o.p_value, o.effect, least[n]) for n, o in found.items()}
        )
        self.state = advance(self.state, evidence, POLICY)
        sizes = {"patients": current.patients, "compared": len(self.compared)}
        self.windows.append(current)
        self.joined.append(joins_comparison(self.state, evidence, **sizes, policy=POLICY))
        self.opened.append(self.state.open_since == window)
        return Seen(
            p_values={name: outcome.p_value for name, outcome in found.items()},
            drift=drift,
            opened=self.opened[-1],
            is_open=self.state.open_since is not None,
        )

    def _compare_with(self, cohort: Cohort, *, fit: bool = True) -> None:
        self.compared, large = cohort, len(cohort) > MOST_LEARNED
        self.embedding: Reference | None = None
        self.columns: Mapping[str, Any] = {}
        if large and fit and cohort.embeddings is not None:
            rng = np.random.default_rng(POLICY.seed)
            self.embedding = fit_reference(cohort.embeddings, cohort.patient_key, generator=rng)

    def _measure(self, rest: Cohort, stretch: Cohort) -> dict[str, float]:
        self._compare_with(rest, fit=False)
        found = {q.name: self._answer(q, PERMUTATIONS_TO_CALIBRATE) for q in list_questions(rest, stretch, POLICY)}
        return {name: outcome.effect for name, outcome in found.items()}

    def _look_closer(self, question: Question, enough: int) -> Outcome:
        looks = LOOKS["embedding" if question.feature == "embedding" else "column"]
        for permutations, screen in zip(looks, SCREENS, strict=True):
            outcome = self._answer(question, permutations)
            if outcome.p_value > screen:
                return outcome
        return self._answer(question, enough)

    def _answer(self, question: Question, permutations: int) -> Outcome:
        if question.feature == "embedding" and self.embedding is not None:
            outcome = answer(question, permutations, POLICY, self.generator, self.embedding)
        elif question.feature != "embedding" and len(question.reference) + len(question.current) > MOST_PERMUTED:
            outcome = self._answer_by_bins(question)
        else:
            outcome = self.relabellings.test(question, permutations)
        if isinstance(outcome, str):
            raise RuntimeError(f"{question.name}: {outcome}")
        return outcome

    def _answer_by_bins(self, question: Question) -> Outcome | str:
        """Compare as `monitor.comparisons` does, against columns fitted once instead of with every window."""
        sides = [question.reference.values, question.current.values]
        if question.detector == "chi_square":
            sides = [side.astype(np.str_) for side in sides]
        if question.feature not in self.columns:
            fitted = fit_columns({question.feature: sides[0]}, np.arange(len(sides[0])))
            self.columns = {**self.columns, **fitted}
        owners = np.arange(len(sides[1]))
        told = compare_columns(self.columns, {question.feature: sides[1]}, owners, tests=(question.detector,))
        found = told[question.detector, question.feature]
        if not isinstance(found, ColumnOutcome):
            return found
        return Outcome(
            statistic=found.statistic,
            effect=found.effect,
            effect_name=EFFECT_NAMES[question.detector],
            p_value=found.p_value,
        )


# --- a year, a change, a check ----------------------------------------------------------------------


def settle(ward: Ward, generator: np.random.Generator) -> tuple[Arrivals, Monitor, Columns]:
    """Begin with a reference; its columns too, as a table has them."""
    arrivals = Arrivals(ward, generator)
    spans = ward.reference // ward.patients
    before = Window(start=window_of(ward, -spans).start, end=window_of(ward, 0).start)
    reference = arrivals.draw(ward.reference, before)
    return arrivals, Monitor(reference, ward.patients, generator), columns_of(reference)


def live_quietly(name: str, number: int, windows: int) -> dict[str, Any]:
    """Live one quiet year; counts alarms, windows called DRIFT, and what the others make of the same windows."""
    ward = WARDS[name]
    arrivals, monitor, reference = settle(ward, np.random.default_rng([1, _code(name), number]))
    said: dict[str, list[bool]] = {rule: [] for rule in PEERS}
    alarms = drifts = 0
    for place in range(windows):
        window = window_of(ward, place)
        current = arrivals.draw(ward.patients, window)
        seen = monitor.live(window, current)
        alarms, drifts = alarms + seen.opened, drifts + seen.drift
        said["alpha"].append(min(seen.p_values.values()) <= ALPHA)
        if number < YEARS_OF_EVIDENTLY:
            for rule, told in zip(("any", "half"), evidently_rule(reference, columns_of(current)), strict=True):
                said[rule].append(told)
    peers = {rule: {"days": sum(days), "episodes": count_episodes(days)} for rule, days in said.items() if days}
    return {"alarms": alarms, "drifts": drifts, "compared": len(monitor.compared), "peers": peers}


def live_changes(name: str, number: int, windows: int) -> dict[str, Any]:
    """Live some quiet windows, then every planted change from the same moment on; gives delays in windows."""
    ward = WARDS[name]
    arrivals, monitor, reference = settle(ward, np.random.default_rng([2, _code(name), number]))
    before = dict.fromkeys(PEERS, 0)
    for place in range(windows):
        window = window_of(ward, place)
        current = arrivals.draw(ward.patients, window)
        said = _peers(monitor.live(window, current), reference, current)
        before = {rule: days + said[rule] for rule, days in before.items()}
    delays = {}
    for change in PLANTED if ward.images else (c for c in PLANTED if c.startswith(("age", "scores", "prevalence"))):
        generator = np.random.default_rng([3, _code(name), number, _code(change)])
        arrivals.generator = generator
        delays[change] = _wait(ward, arrivals, monitor.fork(generator), reference, (windows, change))
    shares = {rule: days / windows for rule, days in before.items()}
    return {"delays": delays, "before": shares, "open": monitor.state.open_since is not None}


def _wait(
    ward: Ward, arrivals: Arrivals, monitor: Monitor, reference: Columns, begins: tuple[int, str]
) -> dict[str, int | None]:
    """Count the windows until each rule alarms, None for more than LONGEST; ``begins``: at which window, and what."""
    found: dict[str, int | None] = dict.fromkeys(("ours", *PEERS))
    for waited in range(1, LONGEST + 1):
        window = window_of(ward, begins[0] + waited - 1)
        current = arrivals.draw(ward.patients, window, PLANTED[begins[1]])
        needed = found["ours"] is None or found["alpha"] is None
        seen = monitor.live(window, current) if needed else None
        told = _peers(seen, reference, current) | {"ours": seen is not None and seen.is_open}
        found |= {rule: waited for rule, yes in told.items() if yes and found[rule] is None}
        if None not in found.values():
            break
    return found


def _peers(seen: Seen | None, reference: Columns, current: Cohort) -> dict[str, bool]:
    any_column, half = evidently_rule(reference, columns_of(current))
    return {"alpha": seen is not None and min(seen.p_values.values()) <= ALPHA, "any": any_column, "half": half}


def check(name: str, number: int, windows: int) -> dict[str, Any]:
    """Hold the stand-ins against the product's permutation tests, and the rule against Evidently, on some windows."""
    ward = WARDS[name]
    arrivals, monitor, reference = settle(ward, np.random.default_rng([4, _code(name), number]))
    apart: dict[str, list[tuple[float, float]]] = {"columns": [], "embedding": []}
    agreed = 0
    for place in range(windows):
        current = arrivals.draw(ward.patients, window_of(ward, place))
        agreed += agrees_with_evidently(reference, columns_of(current))
        for question in list_questions(monitor.compared, current, POLICY):
            which = "embedding" if question.feature == "embedding" else "columns"
            apart[which].append(compare_with_product(question, POLICY.permutations, place))
    errors = {which: float(np.sqrt(np.mean([p**2 for _, p in found]))) for which, found in apart.items() if found}
    return {"statistic": max(s for s, _ in apart["columns"]), "errors": errors, "agreed": agreed / windows}


def count_episodes(days: Sequence[bool]) -> int:
    """Count alarms where an open one closes after so many quiet days in a row as the policy has."""
    episodes, quiet = 0, POLICY.quiet_windows
    for alarm in days:
        if alarm and quiet >= POLICY.quiet_windows:
            episodes += 1
        quiet = 0 if alarm else quiet + 1
    return episodes


def _code(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
