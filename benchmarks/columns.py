"""Column drift beside Evidently and SciPy: uv run --group bench python -m benchmarks.columns [--fast].

Twenty columns, fifteen of numbers and five of words, one study a patient, against a reference of as many rows that
was sketched once. Evidently's DataDriftPreset runs once with `ks` and `chisquare`, once with what it chooses itself at
this size (normed Wasserstein and Jensen-Shannon distances); ours runs the same tests, with p-values over patients.
Both sides' samples stand in memory before the clock starts.
"""

from __future__ import annotations

import argparse
import os
import tracemalloc
import warnings
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import chi2_contingency, ks_2samp
from threadpoolctl import threadpool_limits

from benchmarks.results import Case, median_seconds, record, seconds
from monitor.column_reference import compare_columns, fit_columns

NUMBERS, WORDS = 15, 5
TESTS = ("ks", "chi_square")
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
    before, now = draw(rows, 1), draw(rows, 2)
    owners = np.arange(rows)
    fit = seconds(lambda: fit_columns(before, owners))
    reference = fit_columns(before, owners)
    n = f"{rows:,} rows x {NUMBERS + WORDS} columns"
    cases: list[Case] = []
    for told, tests, methods in PAIRS:
        ours = median_seconds(lambda tests=tests: compare_columns(reference, now, owners, tests=tests), 5)
        peer, name = evidently_seconds(before, now, methods), "Evidently DataDriftPreset"
        cases.append(Case(case=told, ours=ours, peer=peer, peer_name=name, target=target, n=n))
        if told == PAIRS[0][0]:
            peer, name = scipy_seconds(before, now), "SciPy, column by column"
            cases.append(Case(case=told, ours=ours, peer=peer, peer_name=name, target=1, n=n))
    tracemalloc.start()
    compare_columns(reference, now, owners, tests=TESTS)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    budget = rows / 1e5
    return [
        *cases,
        Case(case="sketching, seconds", ours=fit, peer=budget, peer_name="10 us a row", target=1, n=n),
        Case(case="peak MB beyond the data", ours=peak, peer=500, peer_name="budget", target=1, n=n),
    ]


def growth(most: int) -> list[Case]:
    """Compare the cost of ten times the window with ten times the cost: linear is a ratio of 1 or more."""
    reference = fit_columns(draw(100_000, 1), np.arange(100_000))
    cases: list[Case] = []
    times: dict[int, float] = {}
    rows = 1_000
    while rows <= most:
        now, owners = draw(rows, 3), np.arange(rows)
        times[rows] = median_seconds(
            lambda now=now, owners=owners: compare_columns(reference, now, owners, tests=TESTS), 3
        )
        if rows > 1_000:
            n = f"window {rows // 10:,} to {rows:,}"
            cases.append(
                Case(
                    case="ten times the window",
                    ours=times[rows],
                    peer=10 * times[rows // 10],
                    peer_name="linear growth",
                    target=0.8,
                    n=n,
                )
            )
        rows *= 10
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="smaller work, within a minute")
    fast = parser.parse_args().fast
    with threadpool_limits(1):
        cases = growth(100_000 if fast else 1_000_000)
        cases += compare_at(100_000, 200)
        if not fast:
            cases += compare_at(1_000_000, 300)
    print(
        record(
            "columns",
            cases,
            command=f"uv run --group bench python -m benchmarks.columns{' --fast' * fast}",
            note="one thread on both sides",
        )
    )


if __name__ == "__main__":
    main()
