"""False alarms a year and delays, lived through: uv run --group bench python -m benchmarks.alarms [--fast] [--years N].

A model-year is 365 daily windows of 60 patients against a reference of 1,001 (more
than 1,000 rows is where Evidently changes its default tests): embeddings of real brain MRI slices (one
a patient, drawn with replacement from 998 near-duplicate groups, so that every window is a sample of one population),
age, sex and view of the NIH ChestX-ray14 table, and simulated scores. The alarm is the product's own: evidence by
`monitor.alarms`, effects that count by an order statistic over stretches of the reference, quiet windows that join.
Beside it, on the same windows: every test at a fixed alpha of 0.05, and the rule of Evidently's DataDriftPreset on the
columns at its defaults for this size; the table says on how many of some windows the rule gives what the real preset
gives. Delays count days from the change; a run that needs more than sixty counts as infinitely long.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import statistics
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from scipy.stats import poisson, wasserstein_distance
from threadpoolctl import threadpool_limits

from benchmarks.results import Case, record
from benchmarks.worlds import real_embeddings
from monitor.alarms import AlarmState, WindowEvidence, advance, discount_trifle, joins_comparison
from monitor.cohorts import Window
from monitor.column_reference import ColumnOutcome, compare_columns, fit_columns
from monitor.embedding_shift import fit_reference, test_shift
from monitor.policies import DriftPolicy

DAY, START = timedelta(days=1), datetime(2026, 1, 5, tzinfo=UTC)
PATIENTS, REFERENCE, PERMUTATIONS = 60, 1_001, 399
STRETCHES = 40
LONGEST = 60
POLICY = DriftPolicy(false_alarms_per_year=1)
CHANGES = ("mild blur", "contrast", "noise", "age +0.5 SD")

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """Some patients: embeddings (n, width), columns (n,), and keys that no other sample has."""

    values: NDArray[np.float32]
    columns: Columns
    patients: NDArray[np.intp]

    def join(self, other: Sample) -> Sample:
        columns = {name: np.concatenate([column, other.columns[name]]) for name, column in self.columns.items()}
        return Sample(
            values=np.concatenate([self.values, other.values]),
            columns=columns,
            patients=np.concatenate([self.patients, other.patients]),
        )

    def select(self, rows: NDArray[np.bool_]) -> Sample:
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Sample(values=self.values[rows], columns=columns, patients=self.patients[rows])


class World:
    """One population that windows are drawn from."""

    def __init__(self, seed: int) -> None:
        self.rng, self.next = np.random.default_rng(seed), 0
        self.pools = {}
        for change in ("none", "mild blur", "contrast", "noise"):
            data = real_embeddings(change)
            first = np.sort(np.unique(data.patients, return_index=True)[1])
            self.pools[change] = data.values[first]
        folder = Path(str(importlib.metadata.distribution("torchxrayvision").locate_file("torchxrayvision/data")))
        table = pd.read_csv(next(folder.glob("Data_Entry_2017*.csv.gz"))).drop_duplicates("Patient ID")
        ages = table["Patient Age"].astype(str).str.extract(r"(\d+)")[0].astype(float).clip(0, 100).to_numpy()
        self.table = {"age": ages}
        for name, column in (("sex", "Patient Gender"), ("view", "View Position")):
            self.table[name] = table[column].astype(str).to_numpy(dtype=np.str_)

    def draw(self, n: int, change: str = "none") -> Sample:
        rng, pool = self.rng, self.pools.get(change, self.pools["none"])
        rows = rng.integers(len(self.table["age"]), size=n)
        columns: Columns = {name: column[rows] for name, column in self.table.items()}
        if change == "age +0.5 SD":
            columns["age"] = columns["age"] + 0.5 * self.table["age"].std()
        columns["score"] = 1 / (1 + np.exp(-rng.normal(-0.5, 1.5, n)))
        patients = np.arange(self.next, self.next + n)
        self.next += n
        return Sample(values=pool[rng.integers(len(pool), size=n)], columns=columns, patients=patients)


class Monitor:
    """The product's rules over one reference that grows with quiet windows."""

    def __init__(self, reference: Sample, rng: np.random.Generator) -> None:
        self.compared, self.rng, self.state = reference, rng, AlarmState()
        self.pending: list[Sample] = []
        self._fit()
        self.least = self._calibrate(reference)

    def _fit(self) -> None:
        one = self.compared
        self.embedding = fit_reference(one.values, one.patients, generator=np.random.default_rng(0))
        self.columns = fit_columns(one.columns, one.patients)

    def _calibrate(self, reference: Sample) -> dict[str, float]:
        """Take the 0.9 quantile of what stretches of the reference show against the rest of it, as the product does."""
        seen: dict[str, list[float]] = {}
        for _ in range(STRETCHES):
            start = int(self.rng.integers(len(reference.patients) - PATIENTS))
            inside = np.zeros(len(reference.patients), dtype=np.bool_)
            inside[start : start + PATIENTS] = True
            rest, stretch = reference.select(~inside), reference.select(inside)
            fitted = fit_reference(rest.values, rest.patients, generator=np.random.default_rng(0))
            found = _measure(fitted, fit_columns(rest.columns, rest.patients), stretch, 99, self.rng)
            for name, (_, effect) in found.items():
                seen.setdefault(name, []).append(effect)
        return {name: max(POLICY.minimum_effect, float(np.sort(e)[-4])) for name, e in seen.items()}

    def live(self, day: int, window: Sample) -> dict[str, float]:
        """Take in one day; returns its p-values."""
        found = _measure(self.embedding, self.columns, window, PERMUTATIONS, self.rng)
        p_values = {name: discount_trifle(p, effect, self.least[name]) for name, (p, effect) in found.items()}
        when = Window(start=START + day * DAY, end=START + (day + 1) * DAY)
        evidence = WindowEvidence(window=when, p_values=p_values)
        self.state = advance(self.state, evidence, POLICY)
        sizes = {"patients": len(window.patients), "compared": len(self.compared.patients)}
        if joins_comparison(self.state, evidence, **sizes, policy=POLICY):
            self.pending.append(window)
        if self.state.open_since is not None:
            self.pending.clear()
        if len(self.pending) > POLICY.join_after:
            self.compared = self.compared.join(self.pending.pop(0))
            if day % 5 == 4:  # fitted anew every five days while it grows
                self._fit()
        return {name: p for name, (p, _) in found.items()}


def _measure(
    embedding: Any, columns: Mapping[str, Any], window: Sample, permutations: int, rng: np.random.Generator
) -> dict[str, tuple[float, float]]:
    shift = test_shift(embedding, window.values, window.patients, permutations=permutations, generator=rng)
    found = {"embedding": (shift.p_value, shift.effect)}
    for (_, name), outcome in compare_columns(
        columns, window.columns, window.patients, tests=("ks", "chi_square")
    ).items():
        if isinstance(outcome, ColumnOutcome):
            found[name] = outcome.p_value, outcome.effect
    return found


def evidently_rule(reference: Columns, window: Columns) -> tuple[bool, bool]:
    """Say whether any column drifted, and whether half of them did, as DataDriftPreset does above 1,000 rows."""
    drifted = []
    for name, before in reference.items():
        now = window[name]
        if before.dtype.kind == "f":
            drifted.append(wasserstein_distance(before, now) / max(float(np.std(before)), 1e-3) >= 0.1)
        else:
            values = np.unique(np.concatenate([before, now]))
            shares = [np.array([(side == value).mean() for value in values]) for side in (before, now)]
            drifted.append(jensenshannon(*shares, base=2) >= 0.1)
    return any(drifted), sum(drifted) >= len(drifted) / 2


def check_rule(world: World, windows: int) -> float:
    """Tell on what share of windows the rule gives what Evidently gives."""
    os.environ["DO_NOT_TRACK"] = "true"
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    definition = DataDefinition(numerical_columns=["age", "score"], categorical_columns=["sex", "view"])
    reference, agreed = world.draw(REFERENCE + 1).columns, 0
    for _ in range(windows):
        window = world.draw(PATIENTS).columns
        sides = [Dataset.from_pandas(pd.DataFrame(s), data_definition=definition) for s in (window, reference)]
        told = Report([DataDriftPreset()]).run(*sides).dict()
        counts = next(m["value"] for m in told["metrics"] if "DriftedColumnsCount" in str(m))
        agreed += (float(counts["count"]) > 0) == evidently_rule(reference, window)[0]
    return agreed / windows


def quiet_years(world: World, years: int) -> dict[str, float]:
    """Count alarms a quiet year, of ours and of the two others (days with an alarm)."""
    totals = dict.fromkeys(("ours", "alpha", "any column", "half the columns", "days"), 0.0)
    for year in range(years):
        reference = world.draw(REFERENCE)
        monitor = Monitor(reference, np.random.default_rng([1, year]))
        opened: set[Window] = set()
        for day in range(365):
            window = world.draw(PATIENTS)
            p_values = monitor.live(day, window)
            if monitor.state.open_since is not None:
                opened.add(monitor.state.open_since)
            totals["alpha"] += min(p_values.values()) <= 0.05
            any_column, half = evidently_rule(reference.columns, window.columns)
            totals["any column"] += any_column
            totals["half the columns"] += half
        totals["ours"] += len(opened)
        print(f"year {year + 1} of {years}: {totals['ours']:.0f} alarms so far", flush=True)
    return {name: total / years for name, total in totals.items()}


def delays(world: World, change: str, runs: int) -> list[float]:
    found: list[float] = []
    for run in range(runs):
        monitor = Monitor(world.draw(REFERENCE), np.random.default_rng([2, run]))
        for day in range(30):
            monitor.live(day, world.draw(PATIENTS))
        waited = float("inf")
        for day in range(30, 30 + LONGEST):
            monitor.live(day, world.draw(PATIENTS, change))
            if monitor.state.open_since is not None:
                waited = day - 29
                break
        found.append(waited)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="smaller work, within a minute")
    parser.add_argument("--years", type=int, default=200, help="model-years of quiet days")
    given = parser.parse_args()
    years, runs = (1, 2) if given.fast else (given.years, 30)
    world = World(0)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet = quiet_years(world, years)
        waited = {change: delays(world, change, runs) for change in CHANGES}
        agrees = check_rule(world, 3 if given.fast else 20)
    budget = float(poisson.ppf(0.975, years * POLICY.false_alarms_per_year)) / years
    n = f"{years} model-years of daily windows"
    cases = [
        Case(
            case="alarms a quiet year",
            ours=max(quiet["ours"], 1e-3),
            peer=budget,
            peer_name="budget 1, 97.5 % bound",
            target=1,
            n=n,
        ),
        *(
            Case(
                case="days with an alarm a quiet year",
                ours=max(quiet["ours"], 1e-3),
                peer=quiet[rule],
                peer_name=peer_name,
                target=1,
                n=n,
            )
            for rule, peer_name in (
                ("alpha", "any test at alpha 0.05"),
                ("any column", f"Evidently, any column (rule agrees on {agrees:.0%})"),
                ("half the columns", "Evidently, half the columns"),
            )
        ),
    ]
    for change, days in waited.items():
        told = f"{runs} runs, {sum(np.isfinite(days))} found within {LONGEST} days"
        median = statistics.median(days)
        cases.append(
            Case(
                case=f"median days to see {change}",
                ours=min(median, 1e9),
                peer=30,
                peer_name="days of a month",
                target=1,
                n=told,
            )
        )
    command = f"uv run --group bench python -m benchmarks.alarms{'' if years == 200 else f' --years {years}'}"
    note = "windows of 60 patients, reference 1,001, five comparisons"
    record("alarms", cases, command=command, note=note, fast=given.fast)


if __name__ == "__main__":
    main()
