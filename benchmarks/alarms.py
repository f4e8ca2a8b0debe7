"""False alarms a year and delays, lived through, for every set of detectors that the product has by default.

uv run --group bench python -m benchmarks.alarms [--fast] [--years N] [--jobs N] [--resume FILE]

The sets are `benchmarks.arrivals.WARDS`: each year has its own patients, reference and seed, and the product's own
rules: comparisons, effects that count by stretches of the reference, evidence, alarms, quiet windows that join.
Stand-ins for speed: tests by permutation are those of `benchmarks.relabellings` (same statistic and law; the table says
how well they agree), embeddings are 64 of 384 directions, and a first look takes fewer relabellings than the product's,
the last one as many. Beside it, on the same windows: an alarm wherever any of these tests has p <= 0.05, and the rule
of Evidently's DataDriftPreset on all columns against the fixed reference. Their alarms are counted as ours are: days in
a row are one, which closes after two quiet days. A delay counts windows from the change; who alarms on quiet days has
short ones, so the share of the quiet days before the change with an alarm stands beside it.

Every year and run is kept in FILE as soon as it is done, and not done again when the benchmark is started anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from scipy.stats import chi2
from threadpoolctl import threadpool_limits

from benchmarks.arrivals import WARDS, load_sources
from benchmarks.model_years import LONGEST, POLICY, check, live_changes, live_quietly
from benchmarks.results import Case, record

DEFAULT = Path(tempfile.gettempdir()) / "wardround-alarms.jsonl"
YEARS, RUNS, CHECKS = 200, 20, 5
QUIET_BEFORE, QUIET_WEEKS_BEFORE = 30, 15
PEERS = {"alpha": "any test at alpha 0.05", "any": "Evidently, any column", "half": "Evidently, half the columns"}
BUDGET = POLICY.false_alarms_per_year * (1 - POLICY.fairness_share)

Task = tuple[str, str, int, int]
"""What is done (quiet, delay or check), in which ward, its number, and windows of it."""


DOING = {"quiet": live_quietly, "delay": live_changes, "check": check}


def do(task: Task) -> dict[str, Any]:
    """Do one task with one thread."""
    kind, name, number, windows = task
    begun = time.process_time()
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = DOING[kind](name, number, windows)
    return {"task": list(task), "design": design(), "seconds": time.process_time() - begun} | found


@cache
def design() -> str:
    """Name what the figures rest on, so that those of another benchmark are not taken for this one's."""
    files = [Path(__file__).with_name(f"{name}.py") for name in ("arrivals", "model_years", "relabellings")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def list_tasks(years: int, runs: int, *, fast: bool) -> list[Task]:
    """List everything to be done, evenly over the wards, so that what is there early is about all of them."""
    tasks: list[Task] = []
    for number in range(max(years, runs, 1)):
        for name, ward in WARDS.items():
            before = QUIET_BEFORE if ward.days == 1 else QUIET_WEEKS_BEFORE
            tasks += [("check", name, number, 1 if fast else CHECKS)] * (number < 1)
            tasks += [("delay", name, number, before)] * (number < runs)
            tasks += [("quiet", name, number, 40 if fast else ward.windows_a_year)] * (number < years)
    return tasks


def work(tasks: list[Task], path: Path, jobs: int) -> list[dict[str, Any]]:
    """Do what is not in the file yet, and add it there; returns all of it."""
    done = {tuple(found["task"]): found for found in _read(path) if found["design"] == design()}
    todo = [task for task in tasks if task not in done]
    load_sources()  # once, before processes read what it keeps on disk
    with path.open("a", encoding="utf-8") as file:
        for place, found in enumerate(_each(todo, jobs), 1):
            file.write(json.dumps(found) + "\n")
            file.flush()
            done[tuple(found["task"])] = found
            print(f"{place} of {len(todo)}: {found['task']} in {found['seconds']:.0f} s", flush=True)
    return [done[task] for task in tasks]


def _read(path: Path) -> list[dict[str, Any]]:
    """Read what is there; a last line that was cut off is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def _each(tasks: list[Task], jobs: int) -> Iterator[dict[str, Any]]:
    if jobs == 1:
        yield from map(do, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(do, tasks)


# --- the table -------------------------------------------------------------------------------------


def tell_quiet(name: str, quiet: list[dict[str, Any]], checked: dict[str, Any], windows: int) -> Iterator[Case]:
    """Tell the alarms a quiet year of one ward, and those of the others."""
    share = windows / WARDS[name].windows_a_year
    years = len(quiet) * share
    for case, key in (("alarms", "alarms"), ("windows called DRIFT", "drifts")):
        count = sum(found[key] for found in quiet)
        low, high = chi2.ppf(0.025, 2 * count) / 2 if count else 0.0, chi2.ppf(0.975, 2 * count + 2) / 2
        yield Case(
            case=f"{name}: {case} a quiet year",
            ours=max(count, 0.5) / years,
            peer=BUDGET,
            peer_name=f"budget of comparisons, {BUDGET:g} of {POLICY.false_alarms_per_year:g}",
            target=1,
            n=f"{count} in {years:g} years, 95 % {low / years:.3f}-{high / years:.3f}",
        )
    alarms = max(sum(found["alarms"] for found in quiet), 0.5) / years
    for rule, peer in PEERS.items():
        given = [found["peers"][rule] for found in quiet if rule in found["peers"]]
        for unit in ("episodes", "days"):
            yield Case(
                case=f"{name}: alarms a quiet year ({unit})",
                ours=alarms,
                peer=statistics.mean(found[unit] for found in given) / share,
                peer_name=peer if rule == "alpha" else f"{peer}; rule agrees on {checked['agreed']:.0%}",
                target=0,  # told, not judged: who never alarms finds nothing either
                n=f"ours {years:g} years, theirs {len(given) * share:g}",
            )


def tell_delays(name: str, runs: list[dict[str, Any]]) -> Iterator[Case]:
    """Tell the median delays of one ward for each change beside those of the others."""
    judged = [run for run in runs if not run["open"]]
    for change in judged[0]["delays"] if judged else ():
        waited = {rule: [run["delays"][change][rule] for run in judged] for rule in ("ours", *PEERS)}
        found = sum(days is not None for days in waited["ours"])
        for rule in ("alpha", "half"):
            cried = statistics.mean(run["before"][rule] for run in judged)
            yield Case(
                case=f"{name}: {change}, median windows",
                ours=_median(waited["ours"]),
                peer=_median(waited[rule]),
                peer_name=f"{PEERS[rule]}; alarmed on {cried:.0%} of quiet windows before",
                target=0,
                n=f"found in {found} of {len(judged)} runs within {LONGEST} windows",
            )


def _median(delays: list[int | None]) -> float:
    """Median; a run that did not find it within LONGEST counts as one more."""
    return float(statistics.median(LONGEST + 1 if days is None else days for days in delays))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="smaller work, within a minute or two")
    parser.add_argument("--years", type=int, default=YEARS, help="model-years of quiet windows, for each set")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with one thread")
    parser.add_argument("--resume", type=Path, default=DEFAULT, help=f"where what is done is kept ({DEFAULT})")
    given = parser.parse_args()
    years, runs = (1, 1) if given.fast else (given.years, min(RUNS, given.years))
    tasks = list_tasks(years, runs, fast=given.fast)
    done = work(tasks, given.resume, given.jobs)
    cases: list[Case] = []
    for name in WARDS:
        mine = {kind: [f for f in done if f["task"][:2] == [kind, name]] for kind in DOING}
        cases += tell_quiet(name, mine["quiet"], mine["check"][0], mine["quiet"][0]["task"][3])
        cases += tell_delays(name, mine["delay"])
    checked = [found for found in done if found["task"][0] == "check"]
    told = (
        max(found["statistic"] for found in checked),
        *(max(found["errors"].get(which, 0.0) for found in checked) for which in ("columns", "embedding")),
    )
    note = "stand-ins: statistics within {:.0e} of the product's, p-values {:.1f} (columns) and {:.1f} (embedding)"
    note = f"{note.format(*told)} binomial errors from the product's"
    command = f"uv run --group bench python -m benchmarks.alarms{'' if years == YEARS else f' --years {years}'}"
    record("alarms", cases, command=command, note=note, fast=given.fast)


if __name__ == "__main__":
    main()
