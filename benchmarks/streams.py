"""What every strategy and adapter keeps and loses: uv run --group bench python -m benchmarks.streams [--fast].

Real streams (``stream_data``): four source proxies that arrive in turn, classes that arrive one at a time, findings
that are asked one after the other; three orders, three seeds, whole near-duplicate groups learned from or tested on.
Every training goes through the product's ``Learner`` with its default recipe; the memory holds 5 % of the stream.
The floor is naive training, the ceiling training on everything at once (``joint``). Figures are averages of AUROC
over all stages after the last; for findings over those asked so far.

Single trainings are kept in ~/.cache/wardround-bench/streams.jsonl under the hash of the code and recipe that made
them, so that a run which was interrupted goes on; ``--workers 2`` uses both cores, one thread each (then seconds are
those of a crowded machine). The full cross takes hours; ``--streams``, ``--adapters`` and ``--strategies`` narrow it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.results import Case, record
from benchmarks.stream_data import BLOCKS, ORDERS, STREAMS, Stage, Stream
from benchmarks.worlds import BACKBONE, CACHE, SOURCE
from continual.forgetting import measure_forgetting
from monitor.performance import auroc

if TYPE_CHECKING:
    from continual.adapters import Adapter
    from continual.backbones import Backbone
    from continual.experiences import Experience
    from continual.policies import AdaptationPolicy

SEEDS = (0, 1, 2)
MEMORY_SHARE = 0.05
KEPT = CACHE / "streams.jsonl"
DEFAULT = ("replay_lwf", "lora")
JOINT = "joint"
SHAPING = (
    "adapters",
    "adapter_files",
    "task_training",
    "adapter_kinds",
    "adapter_parts",
    "class_token",
    "analytic",
    "ridge",
    "strategies",
    "regularisers",
    "rehearsal",
    "generative",
    "study_loop",
    "learner",
    "experiences",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One stream learned in one order with one seed, by one strategy and adapter."""

    stream: str
    strategy: str
    adapter: str
    order: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of it: ``matrix[i][j]`` the AUROC on stage j after stage i, seconds of training, memory."""

    training: Training
    matrix: list[list[float | None]]
    seconds: float
    studies: int
    megabytes: float
    refused: str = ""

    @property
    def final(self) -> float:
        return fmean(figure for figure in self.matrix[-1] if figure is not None)


def learn_stream(training: Training, patients: int | None = None) -> Outcome:
    """Learn a stream; with ``patients`` only so many of each stage, for a fast run."""
    import torch

    from continual.adapter_changes import grow
    from continual.adapters import new_adapter
    from continual.adapting import start_learner

    torch.set_num_threads(1)
    stream = STREAMS[training.stream](training.order, training.seed)
    policy = _policy(training, stream)
    inputs = _inputs(stream, training.adapter)
    learned = [_experience(stream, stage, inputs, patients) for stage in stream.stages]
    at_once = training.strategy == JOINT
    adapter = new_adapter(
        _backbone(),
        task=stream.task,
        classes=stream.stages[-1 if at_once else 0].classes,
        policy=policy,
        seed=policy.seed,
    )
    matrix, spent = [], 0.0
    learner = start_learner(adapter, strategy="naive" if at_once else training.strategy, policy=policy)
    for stage, experience in zip(stream.stages, [_join(learned)] if at_once else learned, strict=not at_once):
        if not at_once and stage.classes != adapter.card.classes:
            adapter = grow(adapter, stage.classes)
            learner = start_learner(adapter, strategy=training.strategy, policy=policy)
            for earlier in learned[: len(matrix)]:
                learner.recall(earlier)
        began = time.perf_counter()
        learner.learn(experience, lambda epoch, epochs, loss: None)
        spent += time.perf_counter() - began
        matrix.append(_measure(adapter, stream, inputs))
    studies = learner.memory_studies
    megabytes = studies * learned[0].tokens[0].nbytes / 1e6
    return Outcome(training=training, matrix=matrix, seconds=spent, studies=studies, megabytes=megabytes)


def _policy(training: Training, stream: Stream) -> AdaptationPolicy:
    from continual.memory_selection import MemoryPolicy
    from continual.policies import AdaptationPolicy

    memory = MemoryPolicy(studies=max(1, round(MEMORY_SHARE * stream.size)))
    return AdaptationPolicy(adapter=training.adapter, blocks=BLOCKS, seed=training.seed, memory=memory)


def _inputs(stream: Stream, kind: str) -> NDArray[Any]:
    from continual.adapter_kinds import KINDS

    return stream.tokens() if KINDS[kind].reads == "tokens" else stream.embeddings()[:, None]


def _measure(adapter: Adapter, stream: Stream, inputs: NDArray[Any]) -> list[float | None]:
    """Measure the mean AUROC of what each stage taught; None for what the adapter has not heard of yet."""
    from continual.adapters import score

    known, answers = len(adapter.card.classes), {}
    row: list[float | None] = []
    for stage in stream.stages:
        if (key := stage.tested.tobytes()) not in answers:
            answers[key] = score(adapter, inputs[stage.tested])
        scores = answers[key]
        if scores.shape[1] <= max(stage.asked) or len(stage.classes) > known:
            row.append(None)
            continue
        figures = [auroc(scores[:, c], stage.truth[:, i].astype(float)) for i, c in enumerate(stage.asked)]
        row.append(fmean(figure for figure in figures if figure is not None))
    return row


def _experience(stream: Stream, stage: Stage, inputs: NDArray[Any], patients: int | None) -> Experience:
    from continual.experiences import Experience

    owners = stream.patients[stage.learned]
    few = np.isin(owners, np.unique(owners)[:patients])
    return Experience(
        name=stage.name, tokens=inputs[stage.learned[few]], labels=stage.labels[few], patient_key=owners[few]
    )


def _join(stages: Sequence[Experience]) -> Experience:
    from continual.experiences import Experience

    parts = ("tokens", "labels", "patient_key")
    joined = {name: np.concatenate([getattr(stage, name) for stage in stages]) for name in parts}
    return Experience(name="everything", **joined)


_loaded: list[Backbone] = []


def _backbone() -> Backbone:
    from continual.backbones import load_backbone

    if not _loaded:
        _loaded.append(load_backbone(BACKBONE, source=SOURCE, blocks=BLOCKS))
    return _loaded[0]


# --- keeping, gathering, telling -------------------------------------------------------------------


def code_key() -> str:
    """Hash what shapes a training: the product's files, the default recipe, the streams."""
    from continual.policies import AdaptationPolicy

    here = Path(__file__).parent
    files = [here.parent / "continual" / f"{name}.py" for name in SHAPING] + [here / "stream_data.py"]
    content = b"".join(file.read_bytes() for file in files) + AdaptationPolicy().model_dump_json().encode()
    return hashlib.sha256(content).hexdigest()[:12]


def known_outcomes(key: str) -> dict[Training, Outcome]:
    """Read what earlier runs of the same code found."""
    found = {}
    lines = KEPT.read_text(encoding="utf-8").splitlines() if KEPT.exists() else []
    for line in lines:
        told = json.loads(line)
        if told.pop("key") == key:
            training = Training(**told.pop("training"))
            found[training] = Outcome(training=training, **told)
    return found


def attempt(training: Training) -> Outcome:
    """Learn a stream, or keep why the pair of strategy and adapter refuses it."""
    try:
        return learn_stream(training)
    except ValueError as error:
        return Outcome(training=training, matrix=[], seconds=0, studies=0, megabytes=0, refused=str(error))


def learn_all(trainings: Sequence[Training], workers: int) -> list[Outcome]:
    """Learn what is not known yet, and keep each outcome as soon as it is there."""
    key = code_key()
    known = known_outcomes(key)
    todo = [training for training in trainings if training not in known]
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        KEPT.open("a", encoding="utf-8") as file,
    ):
        futures = [pool.submit(attempt, training) for training in todo]
        for future in track(
            as_completed(futures), total=len(todo), description="Learning", console=Console(stderr=True)
        ):
            outcome = future.result()
            known[outcome.training] = outcome
            file.write(json.dumps({"key": key} | asdict(outcome)) + "\n")
            file.flush()
    return [known[training] for training in trainings]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One pair of strategy and adapter on one stream, over orders and seeds."""

    stream: str
    strategy: str
    adapter: str
    final: float
    spread: float
    forgetting: float
    worst: float
    seconds: float
    studies: int
    megabytes: float
    runs: int


def summarise(outcomes: Iterable[Outcome]) -> list[Summary]:
    """Average over orders and seeds; what was refused is left out."""
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for outcome in outcomes:
        if not outcome.refused:
            one = outcome.training
            groups.setdefault((one.stream, one.adapter, one.strategy), []).append(outcome)
    summaries = []
    for (stream, adapter, strategy), group in groups.items():
        finals = [outcome.final for outcome in group]
        lost = [measure_forgetting(outcome.matrix) or 0.0 for outcome in group]
        summaries.append(
            Summary(
                stream=stream,
                strategy=strategy,
                adapter=adapter,
                final=fmean(finals),
                spread=stdev(finals) if len(finals) > 1 else 0.0,
                forgetting=fmean(lost),
                worst=max(lost),
                seconds=fmean(outcome.seconds for outcome in group),
                studies=round(fmean(outcome.studies for outcome in group)),
                megabytes=fmean(outcome.megabytes for outcome in group),
                runs=len(group),
            )
        )
    return summaries


def gap_closed(one: Summary, summaries: Sequence[Summary]) -> float | None:
    """Give the share of the way from naive to joint training, with the same adapter; None where there is no gap."""
    same = {s.strategy: s.final for s in summaries if (s.stream, s.adapter) == (one.stream, one.adapter)}
    floor, ceiling = same.get("naive"), same.get(JOINT)
    if floor is None or ceiling is None or ceiling - floor < 1e-3:
        return None
    return (one.final - floor) / (ceiling - floor)


def show(summaries: Sequence[Summary]) -> None:
    """Print a table a stream: what was kept, lost and spent."""
    for stream in STREAMS:
        table = Table(title=f"{stream}-incremental stream: AUROC after the last stage, mean of orders and seeds")
        for column in (
            "adapter",
            "strategy",
            "AUROC",
            "± sd",
            "gap closed",
            "forgetting",
            "worst",
            "seconds",
            "memory",
        ):
            table.add_column(column, justify="left" if column in ("adapter", "strategy") else "right")
        for one in sorted((s for s in summaries if s.stream == stream), key=lambda s: (s.adapter, -s.final)):
            closed = gap_closed(one, summaries)
            table.add_row(
                one.adapter,
                one.strategy,
                f"{one.final:.4f}",
                f"{one.spread:.4f}",
                "–" if closed is None else f"{closed:.0%}",
                f"{one.forgetting:+.4f}",
                f"{one.worst:+.4f}",
                f"{one.seconds:.1f}",
                f"{one.studies} ({one.megabytes:.2f} MB)" if one.studies else "–",
            )
        if table.row_count:
            Console(width=130).print(table)


def cases(summaries: Sequence[Summary]) -> list[Case]:
    """Hold the default to its promises, and set every pair's error beside that of naive training."""
    found = []
    for one in summaries:
        pair = f"{one.stream}: {one.strategy} x {one.adapter}"
        n = (
            f"AUROC {one.final:.4f} (sd {one.spread:.4f}), forgetting {one.forgetting:+.4f} (worst {one.worst:+.4f}), "
            f"{one.seconds:.1f} s, {one.studies} studies, {one.megabytes:.2f} MB, {one.runs} runs"
        )
        closed = gap_closed(one, summaries)
        if (one.strategy, one.adapter) == DEFAULT:
            left = 1.0 if closed is None else max(1 - closed, 1e-3)
            lost = max(one.forgetting, 1e-4)
            promised = {"gap left": (left, 0.1), "forgetting": (lost, 0.01)}
            found += [
                Case(case=f"{pair}, {what}", ours=ours, peer=bound, peer_name="allowed", target=1, n=n)
                for what, (ours, bound) in promised.items()
            ]
        floor = next(
            (s for s in summaries if (s.stream, s.adapter, s.strategy) == (one.stream, one.adapter, "naive")), one
        )
        found.append(
            Case(case=pair, ours=1 - one.final, peer=1 - floor.final, peer_name="naive, 1 - AUROC", target=0, n=n)
        )
    return found


def main() -> None:
    from continual.adapter_kinds import KINDS
    from continual.strategy_cards import CARDS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="one order, one seed, few patients, within a minute")
    parser.add_argument("--streams", nargs="*", default=list(STREAMS))
    parser.add_argument("--adapters", nargs="*", default=list(KINDS))
    parser.add_argument("--strategies", nargs="*", default=[*CARDS, JOINT])
    parser.add_argument("--orders", type=int, default=len(ORDERS))
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--known", action="store_true", help="tell what earlier runs found, and learn nothing")
    asked = parser.parse_args()
    names = (asked.streams, asked.strategies, asked.adapters)
    if asked.fast:
        some = [
            Training(stream=s, strategy=m, adapter="head", order=0, seed=0) for s in STREAMS for m in asked.strategies
        ]
        outcomes = [learn_stream(training, patients=40) for training in some]
    else:
        chosen = product(*names, range(asked.orders), range(asked.seeds))
        trainings = [
            Training(stream=stream, strategy=strategy, adapter=adapter, order=order, seed=seed)
            for stream, strategy, adapter, order, seed in chosen
        ]
        if asked.known:
            known = known_outcomes(code_key())
            outcomes = [known[one] for one in trainings if one in known]
        else:
            outcomes = learn_all(trainings, asked.workers)
    summaries = summarise(outcomes)
    command = "uv run --group bench python -m benchmarks.streams"
    show(summaries)
    for refused in sorted(
        {f"{o.training.strategy} x {o.training.adapter}: {o.refused}" for o in outcomes if o.refused}
    ):
        print(refused)
    note = f"one thread a training, {asked.workers} at once"
    record("streams", cases(summaries), command=command, note=note, fast=asked.fast)


if __name__ == "__main__":
    main()
