"""Permutation MMD beside alibi-detect's MMDDrift: uv run --group bench python -m benchmarks.kernels [--fast].

Both on one thread with as many permutations; ours relabels patients (here one study each) and takes three bandwidths,
the peer one. The products that no exact test avoids are half the Gram matrix, which is symmetric, and its sums under
every relabelling. Each side runs in a process of its own, which tells its time and the peak of its memory beyond
the data. The whole takes about ten minutes, nearly all of it the peer's 500 permutations.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import Case, record
from monitor.kernels import ROWS_AT_ONCE, permutation_mmd

Singles = NDArray[np.float32]


def draw(n: int, width: int, seed: int) -> Singles:
    return np.random.default_rng(seed).standard_normal((n, width), dtype=np.float32)


def ours(before: Singles, now: Singles, permutations: int) -> None:
    values = np.concatenate([before, now])
    is_current = np.arange(len(values)) >= len(before)
    permutation_mmd(
        values, np.arange(len(values)), is_current, permutations=permutations, generator=np.random.default_rng(0)
    )


def peer(before: Singles, now: Singles, permutations: int) -> None:
    import torch
    from alibi_detect.cd import MMDDrift

    torch.set_num_threads(1)
    logging.getLogger("alibi_detect").setLevel(logging.ERROR)
    MMDDrift(before, backend="pytorch", device="cpu", n_permutations=permutations).predict(now)


def bare(before: Singles, now: Singles, permutations: int) -> None:
    """Make the upper half of the Gram matrix in strips, as ours does, and multiply it with as many relabellings."""
    values = np.concatenate([before, now])
    sides = np.zeros((permutations, len(values)), dtype=np.float32)
    sides[:, : len(now)] = 1
    for first in range(0, len(values), ROWS_AT_ONCE):
        strip = values[first : first + ROWS_AT_ONCE] @ values[first:].T
        np.einsum("mp,mp->m", sides[:, first : first + ROWS_AT_ONCE] @ strip, sides[:, first:])


def measure(side: str, sizes: tuple[int, int, int], permutations: int, runs: int) -> tuple[float, float]:
    """Give the median seconds of one test, and its peak of memory beyond the data in MB, in a process of its own."""
    code = (
        "import statistics\n"
        "from threadpoolctl import threadpool_limits\n"
        "from benchmarks import kernels, results\n"
        f"b, n = kernels.draw({sizes[0]}, {sizes[2]}, 1), kernels.draw({sizes[1]}, {sizes[2]}, 2)\n"
        "with threadpool_limits(1):\n"
        f"    kernels.{side}(b[:50], n[:50], 20)\n"
        "    before = results.peak_megabytes()\n"
        f"    times = [results.seconds(lambda: kernels.{side}(b, n, {permutations})) for _ in range({runs})]\n"
        "print(statistics.median(times), results.peak_megabytes() - before)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    took, peak = map(float, done.stdout.split()[-2:])
    return took, max(peak, 1.0)


def compare(sizes: tuple[int, int, int], permutations: int) -> list[Case]:
    """Compare time and memory with the peer's, and time with that of the bare products."""
    mine, memory = measure("ours", sizes, permutations, 5)
    least, _ = measure("bare", sizes, permutations, 5)
    theirs, peer_memory = measure("peer", sizes, permutations, 1)
    n = f"{sizes[0]} x {sizes[1]} x {sizes[2]}, {permutations} permutations"
    return [
        Case(case="mmd, seconds", ours=mine, peer=theirs, peer_name="alibi-detect MMDDrift", target=30, n=n),
        Case(case="mmd, seconds", ours=mine, peer=2 * least, peer_name="twice the bare products", target=1, n=n),
        Case(case="peak MB", ours=memory, peer=peer_memory, peer_name="alibi-detect MMDDrift", target=4, n=n),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="smaller work, within a minute")
    fast = parser.parse_args().fast
    sizes, counts = ((2_000, 500, 768), (100,)) if fast else ((5_000, 1_000, 768), (100, 500))
    command = "uv run --group bench python -m benchmarks.kernels"
    cases: list[Case] = []
    for permutations in counts:  # what is there already is written before the long wait
        cases += compare(sizes, permutations)
        record("kernels", cases, command=command, note="one thread on both sides", fast=fast)


if __name__ == "__main__":
    main()
