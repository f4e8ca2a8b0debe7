"""How a benchmark's cases are timed, shown and, unless it was a fast run, written to benchmarks/results/NAME.json."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One ratio, peer over ours (so that more is better), against its target."""

    case: str
    ours: float
    peer: float
    peer_name: str
    target: float
    n: str

    @property
    def ratio(self) -> float:
        return self.peer / self.ours


def median_seconds(work: Callable[[], object], runs: int) -> float:
    """Time some runs of the work after one that does not count."""
    work()
    return statistics.median(seconds(work) for _ in range(runs))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def growth_case(case: str, times: Mapping[int, float]) -> Case:
    """Hold the steepest growth between two sizes that follow each other to linear: a slope of 1, seconds over rows.

    Both are logarithms; ``times`` are seconds by rows, ascending.
    """
    steepest = max(math.log(times[b] / times[a]) / math.log(b / a) for a, b in pairwise(times))
    n = ", ".join(f"{rows:,}: {1000 * taken:.3g} ms" for rows, taken in times.items())
    return Case(case=f"{case}, steepest slope", ours=steepest, peer=1, peer_name="linear", target=0.9, n=n)


def record(name: str, cases: list[Case], *, command: str, note: str, fast: bool) -> None:
    """Print the table and write the file; a fast run measures smaller work and must not stand for the full one."""
    table = Table("case", "n", "ours", "peer", "ratio", "target", "met", title=f"{name}: {note}")
    for case in cases:
        shown = (f"{case.ours:.4g}", f"{case.peer:.4g} ({case.peer_name})", f"{case.ratio:.1f}", f"{case.target:g}")
        table.add_row(case.case, case.n, *shown, "yes" if case.ratio >= case.target else "NO")
    Console(width=160).print(table)
    if fast:
        print("a fast run: nothing is written")
        return
    more = {"command": command, "machine": f"{machine()}; {note}"}
    rows = [asdict(case) | {"ratio": case.ratio, "met": bool(case.ratio >= case.target)} | more for case in cases]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(path)


def peak_megabytes() -> float:
    """Give the peak of this process's memory; not by getrusage, whose figure starts at the parent's peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1e3


def machine() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"
