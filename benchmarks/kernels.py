"""Permutation MMD beside alibi-detect's MMDDrift: uv run --group bench python -m benchmarks.kernels [--fast].

Both on one thread with as many permutations; ours relabels patients (here one study each) and takes three bandwidths,
the peer one. The products that no exact test avoids are the Gram matrix and its sums under every relabelling.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import warnings

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.results import Case, median_seconds, record, seconds
from monitor.kernels import permutation_mmd

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
    values = np.concatenate([before, now])
    gram = values @ values.T
    sides = np.zeros((permutations, len(values)), dtype=np.float32)
    sides[:, : len(now)] = 1
    np.einsum("mp,mp->m", sides @ gram, sides)


def peak_megabytes(side: str, sizes: tuple[int, int, int], permutations: int) -> float:
    """Measure the memory of one test in a process of its own, beyond what it has before.

    Not by getrusage: a child's ru_maxrss starts at its parent's peak.
    """
    code = (
        "from pathlib import Path\n"
        "from benchmarks import kernels\n"
        "def peak():\n"
        "    lines = Path('/proc/self/status').read_text().splitlines()\n"
        "    return int(next(line.split()[1] for line in lines if line.startswith('VmHWM')))\n"
        f"b, n = kernels.draw({sizes[0]}, {sizes[2]}, 1), kernels.draw({sizes[1]}, {sizes[2]}, 2)\n"
        f"kernels.{side}(b[:50], n[:50], 20)\n"
        "before = peak()\n"
        f"kernels.{side}(b, n, {permutations})\n"
        "print((peak() - before) / 1e3)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    return max(float(done.stdout.split()[-1]), 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="smaller work, within a minute")
    fast = parser.parse_args().fast
    sizes, permutations = ((1_500, 300, 384), 100) if fast else ((5_000, 1_000, 768), 500)
    before, now = draw(sizes[0], sizes[2], 1), draw(sizes[1], sizes[2], 2)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer(before[:50], now[:50], 20)
        mine = median_seconds(lambda: ours(before, now, permutations), 3)
        least = median_seconds(lambda: bare(before, now, permutations), 3)
        theirs = seconds(lambda: peer(before, now, permutations))
        memory = [peak_megabytes(side, sizes, permutations) for side in ("ours", "peer")]
    n = f"{sizes[0]} x {sizes[1]} x {sizes[2]}, {permutations} permutations"
    cases = [
        Case(case="mmd, seconds", ours=mine, peer=theirs, peer_name="alibi-detect MMDDrift", target=30, n=n),
        Case(case="mmd, seconds", ours=mine, peer=2 * least, peer_name="twice the bare products", target=1, n=n),
        Case(case="peak MB", ours=memory[0], peer=memory[1], peer_name="alibi-detect MMDDrift", target=4, n=n),
    ]
    command = "uv run --group bench python -m benchmarks.kernels"
    record("kernels", cases, command=command, note="one thread on both sides", fast=fast)


if __name__ == "__main__":
    main()
