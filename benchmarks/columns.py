"""Column drift beside Evidently and SciPy: uv run --group bench python -m benchmarks.columns [--fast].

Twenty columns, fifteen of numbers and five of words, against a reference of as many rows that was sketched once; one
study a patient and whole numbers as keys, unless told otherwise. Evidently's DataDriftPreset runs once with `ks` and
`chisquare`, once with what it chooses itself at this size (normed Wasserstein and Jensen-Shannon distances); ours runs
the same tests, with p-values over patients. Both sides' samples stand in memory before the clock starts.
"""

from __future__ import annotations

import argparse
import os
import tracemalloc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import chi2_contingency, ks_2samp
from threadpoolctl import threadpool_limits

from benchmarks.results import Case, growth_case, median_seconds, record, seconds
from monitor.column_reference import compare_columns, fit_columns

NUMBERS, WORDS = 15, 5
TESTS = ("ks", "chi_square")
EVERY_TEST = ("ks", "wasserstein", "psi", "jensen_shannon", "chi_square")
RUNS = 7
PAIRS = (
    ("KS and chi-square", TESTS, ("ks", "chisquare")),
    ("Wasserstein and Jensen-Shannon", ("wasserstein", "jensen_shannon"), ("wasserstein", "jensenshannon")),
)


def draw(rows: int, seed: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    columns: dict[str, NDArray[Any]] = {f"number {i}": rng.gamma(2 + i, 1, rows) for i in range(NUMBERS)}
    names = np.array(["Siemens", "GE", "Philips", "Canon", "other"])
    return columns | {f"word {i}": names[rng.choice(5, rows, p=[0.4, 0.3, 0.15, 0.1, 0.05])] for i in range(WORDS)}


def evidently_seconds(before: dict[str, NDArray[Any]], now: dict[str, NDArray[Any]], methods: tuple[str, str]) -> float:
    os.environ["DO_NOT_TRACK"] = "true"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

        definition = DataDefinition(
            numerical_columns=[name for name in before if name.startswith("number")],
            categorical_columns=[name for name in before if name.startswith("word")],
        )
        sides = [Dataset.from_pandas(pd.DataFrame(side), data_definition=definition) for side in (now, before)]
        report = Report([DataDriftPreset(num_method=methods[0], cat_method=methods[1])])
        return seconds(lambda: report.run(*sides).dict())


def scipy_seconds(before: dict[str, NDArray[Any]], now: dict[str, NDArray[Any]]) -> float:
    def test() -> None:
        for name, column in before.items():
            if column.dtype.kind == "f":
                ks_2samp(column, now[name], method="asymp")
            else:
                values = np.unique(np.concatenate([column, now[name]]))
                chi2_contingency([[(side == value).sum() for value in values] for side in (column, now[name])])

    return seconds(test)


def compare_at(rows: int, target: float) -> list[Case]:
    """Compare with Evidently and SciPy, and say what other keys, several studies a patient and one core cost."""
    before, now = draw(rows, 1), draw(rows, 2)
    owners = np.arange(rows)
    fit = seconds(lambda: fit_columns(before, owners))
    reference = fit_columns(before, owners)
    n = f"{rows:,} rows x {NUMBERS + WORDS} columns"

    def ours(patients: NDArray[Any], tests: tuple[str, ...]) -> float:
        return median_seconds(lambda: compare_columns(reference, now, patients, tests=tests), RUNS)

    cases: list[Case] = []
    for told, tests, methods in PAIRS:
        peer = evidently_seconds(before, now, methods)
        ways = {"": (owners, None), ", one core": (owners, 1)}
        if tests == TESTS:
            ways |= {f", {way}": (patients, None) for way, patients in other_keys(rows).items()}
        for way, (patients, cores) in ways.items():
            with on_cores(cores):
                mine = ours(patients, tests)
            cases.append(
                Case(case=told + way, ours=mine, peer=peer, peer_name="Evidently DataDriftPreset", target=target, n=n)
            )
        if tests == TESTS:
            least = median_seconds(lambda: touch(now), RUNS)
            alone = scipy_seconds(before, now)
            cases += [
                Case(case=told, ours=cases[0].ours, peer=alone, peer_name="SciPy, column by column", target=1, n=n),
                Case(case=told, ours=cases[0].ours, peer=least, peer_name="one sum over the data", target=0, n=n),
            ]
    tracemalloc.start()
    compare_columns(reference, now, owners, tests=TESTS)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return [
        *cases,
        Case(case="sketching, seconds", ours=fit, peer=rows / 1e5, peer_name="10 us a row", target=1, n=n),
        Case(case="peak MB beyond the data", ours=peak, peer=500, peer_name="budget", target=1, n=n),
    ]


def other_keys(rows: int) -> dict[str, NDArray[Any]]:
    """Give keys as they come: texts, and of patients with four studies on the average, in no order."""
    rng = np.random.default_rng(4)
    several = rng.integers(0, rows // 4, rows)
    return {
        "text keys": np.array([f"{number:032x}" for number in rng.permutation(rows)]),
        "four studies a patient": several,
    }


def touch(columns: dict[str, NDArray[Any]]) -> None:
    """Read every byte once, as fast as NumPy does."""
    for column in columns.values():
        (column if column.dtype.kind == "f" else column.view(np.uint32)).sum()


@contextmanager
def on_cores(cores: int | None) -> Iterator[None]:
    """Let this process run on so many cores, on all of its own without a number."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(mine)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


def growth(most: int) -> list[Case]:
    """Measure how seconds grow with the rows of the window, ten times as many each time, test by test."""
    reference = fit_columns(draw(100_000, 1), np.arange(100_000))
    times: dict[str, dict[int, float]] = {test: {} for test in EVERY_TEST}
    for rows in (size for size in (1_000, 10_000, 100_000, 1_000_000) if size <= most):
        now, owners = draw(rows, 3), np.arange(rows)
        for test, taken in times.items():
            taken[rows] = median_seconds(
                lambda now=now, owners=owners, test=test: compare_columns(reference, now, owners, tests=(test,)), RUNS
            )
    return [growth_case(f"{test}, window", taken) for test, taken in times.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="smaller work, within a minute")
    fast = parser.parse_args().fast
    with threadpool_limits(1):
        with on_cores(1):  # a second one that sets in at some size would bend the line
            cases = growth(100_000 if fast else 1_000_000)
        cases += compare_at(100_000, 200)
        if not fast:
            cases += compare_at(1_000_000, 300)
    note = "ours on both cores unless told otherwise, Evidently and SciPy as they run"
    record("columns", cases, command="uv run --group bench python -m benchmarks.columns", note=note, fast=fast)


if __name__ == "__main__":
    main()
