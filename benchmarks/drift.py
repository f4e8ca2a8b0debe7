"""Speed and memory of `embedding_shift` beside alibi-detect: uv run python -m benchmarks.drift [--fast | --only PART].

Both sides run on one thread with as many permutations, against a reference fitted before. Times are medians in seconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import tracemalloc
import warnings
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.results import RESULTS, Case, growth_case, machine, median_seconds, record, seconds
from monitor.embedding_shift import Reference, fit_reference, test_shift

WIDTH = 384
PERMUTATIONS = 100
OURS_PERMUTATIONS = 200
PEER_RUNS = 3
RUNS = 9
LARGE = (20_000, 2_000)

Singles = NDArray[np.float32]


def draw(n: int, seed: int) -> Singles:
    """Give embedding-like rows (n, WIDTH): a falling spectrum on axes of its own, heavy tails."""
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(WIDTH, WIDTH)))[0].astype(np.float32)
    rng = np.random.default_rng([1, seed])
    white = rng.standard_normal((n, WIDTH), dtype=np.float32)
    white *= np.sqrt(rng.chisquare(8, (n, 1)) / 8).astype(np.float32)
    return (white * np.arange(1, WIDTH + 1, dtype=np.float32) ** -0.5) @ axes


def fit(values: Singles) -> Reference:
    return fit_reference(values, np.arange(len(values)), generator=np.random.default_rng(0))


def ask(reference: Reference, window: Singles, permutations: int) -> None:
    patients = -1 - np.arange(len(window))
    test_shift(reference, window, patients, permutations=permutations, generator=np.random.default_rng(1))


def beside(
    name: str, detector: Callable[..., Any], sizes: tuple[int, int], target: float, **options: Any
) -> list[Case]:
    """Compare the test and the fitting of one peer at (reference, window) rows."""
    before, now = draw(sizes[0], 1), draw(sizes[1], 2)
    detector(before[:200], n_permutations=PERMUTATIONS, **options)  # first calls do not count, on either side
    fit(before[:200])
    made: list[Any] = []
    peer_fit = seconds(lambda: made.append(detector(before, n_permutations=PERMUTATIONS, **options)))
    ours_fit, reference = seconds(lambda: fit(before)), fit(before)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = median_seconds(lambda: made[0].predict(now), PEER_RUNS)
    ours = median_seconds(lambda: ask(reference, now, PERMUTATIONS), RUNS)
    n = f"{sizes[0]} x {sizes[1]} x {WIDTH}, {PERMUTATIONS} permutations"
    return [
        Case(case=f"test, beside {name}", ours=ours, peer=peer, peer_name=name, target=target, n=n),
        Case(case=f"fit, beside {name}", ours=ours_fit, peer=peer_fit, peer_name=name, target=1, n=n),
        Case(
            case=f"fit and test, beside {name}",
            ours=ours_fit + ours,
            peer=peer_fit + peer,
            peer_name=name,
            target=target,
            n=n,
        ),
    ]


def multiply_bare(reference: Reference, window: Singles, permutations: int) -> None:
    """Make no more than the products that no such test avoids: mapping the window once, and every relabelled sum."""
    sides = np.ones((permutations + 1, len(reference.sums)), dtype=np.float32)
    _ = window @ reference.learned.axes
    _ = sides @ reference.sums
    _ = sides[:, : len(window)] @ reference.sums[: len(window)]  # in place of the window's features, as many


def limits() -> list[Case]:
    """Compare the test with twice the bare products: nothing of the kind can be faster than half of that."""
    before, now = draw(LARGE[0], 1), draw(LARGE[1], 2)
    reference = fit(before)
    ours = median_seconds(lambda: ask(reference, now, PERMUTATIONS), RUNS)
    least = median_seconds(lambda: multiply_bare(reference, now, PERMUTATIONS), RUNS)
    n = f"{LARGE[0]} x {LARGE[1]} x {WIDTH}, {PERMUTATIONS} permutations"
    twice = "twice the bare products"
    return [Case(case="test, beside its products", ours=ours, peer=2 * least, peer_name=twice, target=1, n=n)]


def budgets() -> list[Case]:
    """Hold the test at 20,000 x 2,000 to 150 ms, and fitting and testing to 1 GB."""
    before, now = draw(LARGE[0], 1), draw(LARGE[1], 2)
    reference = fit(before)
    ours = median_seconds(lambda: ask(reference, now, OURS_PERMUTATIONS), RUNS)
    tracemalloc.start()
    ask(fit(before), now, OURS_PERMUTATIONS)
    peak = (tracemalloc.get_traced_memory()[1] + before.nbytes + now.nbytes) / 1e6
    tracemalloc.stop()
    n = f"{LARGE[0]} x {LARGE[1]} x {WIDTH}, {OURS_PERMUTATIONS} permutations"
    return [
        Case(case="test, seconds", ours=ours, peer=0.15, peer_name="budget", target=1, n=n),
        Case(case="fit and test, peak MB with the data", ours=peak, peer=1000, peer_name="budget", target=1, n=n),
    ]


def growth(most: int) -> list[Case]:
    """Measure how seconds grow with the rows of the window, ten times as many each time."""
    reference, block = fit(draw(4000, 1)), draw(1000, 2)
    times: dict[int, float] = {}
    for rows in (size for size in (1_000, 10_000, 100_000, 1_000_000) if size <= most):
        window = np.tile(block, (rows // len(block), 1))
        times[rows] = median_seconds(partial(ask, reference, window, PERMUTATIONS), 1 if rows > 100_000 else 5)
    return [growth_case(f"embedding_shift, width {WIDTH}", times)]


def _beside_alibi(name: str, sizes: tuple[int, int], target: float, **options: Any) -> list[Case]:
    from alibi_detect import cd

    detector = getattr(cd, name)
    told = "".join(f", {value} {option.replace('_', ' ')}" for option, value in options.items())
    return beside(f"alibi-detect {name}{told}", detector, sizes, target, backend="pytorch", device="cpu", **options)


PARTS: dict[str, Callable[[bool], list[Case]]] = {
    "budgets": lambda fast: budgets(),
    "limits": lambda fast: limits(),
    "growth": lambda fast: growth(100_000 if fast else 1_000_000),
    "MMD": lambda fast: _beside_alibi("MMDDrift", (1_500, 300) if fast else (5_000, 500), 300),
    "LSDD": lambda fast: _beside_alibi("LSDDDrift", (2_000, 500) if fast else (5_000, 500), 1),
    # its own choice of centres, a twentieth of the rows, would need 100 x 22,000 x 1,000 cells
    "LSDD, large": lambda fast: [] if fast else _beside_alibi("LSDDDrift", LARGE, 200, n_kernel_centers=100),
}


def replace_cases(fresh: list[Case]) -> list[Case]:
    """Give the cases of the results' file with those measured again in their places."""
    names = [field.name for field in fields(Case)]
    rows = json.loads((RESULTS / "drift.json").read_text(encoding="utf-8"))
    if any(not row["machine"].startswith(machine()) for row in rows):
        raise SystemExit("the results are another machine's: measure all parts again")
    cases = {row["case"]: Case(**{name: row[name] for name in names}) for row in rows}
    return list((cases | {case.case: case for case in fresh}).values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    some = parser.add_mutually_exclusive_group()
    some.add_argument("--fast", action="store_true", help="smaller work, within a minute")
    some.add_argument("--only", choices=PARTS, help="measure this part again and keep the other results")
    asked = parser.parse_args()
    import torch

    logging.getLogger("alibi_detect").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)  # alibi-detect draws from it
    with threadpool_limits(1):
        cases = [case for name, part in PARTS.items() if asked.only in (None, name) for case in part(asked.fast)]
    cases = replace_cases(cases) if asked.only else cases
    command = "uv run python -m benchmarks.drift"
    record("drift", cases, command=command, note="one thread on both sides", fast=asked.fast)


if __name__ == "__main__":
    main()
