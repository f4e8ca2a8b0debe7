"""The contract of every learning strategy in the table, and parity with plain Avalanche."""

import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from continual.adapters import TRAINING, Adapter, new_adapter
from continual.adapting import measure_auroc
from continual.backbones import Backbone, load_backbone
from continual.experiences import Experience
from continual.plans import AdaptationPolicy
from monitor.tasks import Task

# avalanche 0.6 imports a package that says at import that nobody maintains it; nothing of it is used
pytestmark = pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained:DeprecationWarning")

NAMES = ["naive", "replay", "ewc"]  # importing the table costs seconds that collecting should not pay
each = pytest.mark.parametrize("strategy", NAMES)
POLICY = AdaptationPolicy(epochs=4, learning_rate=3e-3, memory_size=40)
CLASSES = {Task.BINARY: ("no", "yes"), Task.MULTI_CLASS: ("a", "b", "c"), Task.MULTI_LABEL: ("x", "y", "z")}
DIRECTIONS = np.random.default_rng(99).normal(size=(3, 48))


@pytest.fixture(scope="module")
def tiny() -> Iterator[Backbone]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these tensors are so small that threads only wait for each other
    yield load_backbone("tiny", source="random", image_size=28)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def champion(tiny: Backbone) -> Adapter:
    """Give an adapter that has learned the old stage."""
    adapter = fresh(tiny)
    train(adapter, "naive", OLD)
    return adapter


def stage(name: str, seed: int, n: int = 96, *, task: Task = Task.BINARY, signs=(1, 0, 0), known=1.0) -> Experience:
    """Plant the answers along directions, a binary one with signs; only a share of the labels is known."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3 if task is Task.MULTI_CLASS else 2, (n, 3 if task is Task.MULTI_LABEL else 1))
    present = {
        Task.BINARY: (2 * labels - 1) * np.array(signs),
        Task.MULTI_CLASS: 2 * (labels == np.arange(3)),
        Task.MULTI_LABEL: 2 * labels - 1,
    }[task]
    tokens = generator.normal(size=(n, 5, 48)) + 0.6 * (present @ DIRECTIONS)[:, None]
    labels = labels.astype(np.float64)
    labels[generator.random(labels.shape) >= known] = np.nan
    return Experience(
        name=name,
        tokens=tokens.astype(np.float16),
        labels=labels,
        patient_key=np.array([f"{name}-{i // 2}" for i in range(n)]),
    )


# the first direction means the opposite in the new stage: who learns only that must forget
OLD, NEW = stage("old", 1), stage("new", 2, signs=(-1, 1, 0))


def fresh(tiny: Backbone, task: Task = Task.BINARY) -> Adapter:
    return new_adapter(tiny, task=task, classes=CLASSES[task], policy=POLICY, seed=0)


def learner_of(adapter: Adapter, strategy: str, **changes: Any) -> Any:
    from continual.learner import Learner

    return Learner(adapter, strategy=strategy, policy=POLICY.model_copy(update=changes))


def quiet(epoch: int, epochs: int, loss: float) -> None:
    pass


def weights(adapter: Adapter) -> list[torch.Tensor]:
    return [value.detach().clone() for value in adapter.network.trainable().values()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def train(adapter: Adapter, strategy: str, *stages: Experience, **changes: Any) -> list[tuple[float, ...]]:
    learner = learner_of(adapter, strategy, **changes)
    return [learner.learn(experience, quiet) for experience in stages]


def adapted(champion: Adapter, strategy: str, **changes: Any) -> Adapter:
    """Learn the new stage from a champion that knows the old one."""
    adapter = champion.copy()
    learner = learner_of(adapter, strategy, **changes)
    learner.recall(OLD)
    learner.learn(NEW, quiet)
    return adapter


def test_the_contract_covers_every_strategy_in_the_table() -> None:
    from continual.strategies import STRATEGIES

    assert list(STRATEGIES) == NAMES


@each
def test_training_lowers_the_loss_and_tells_every_epoch(tiny: Backbone, strategy: str) -> None:
    adapter, told = fresh(tiny), []
    losses = learner_of(adapter, strategy).learn(OLD, lambda *what: told.append(what))
    assert losses[-1] < 0.8 * losses[0]
    assert told == [(epoch + 1, 4, loss) for epoch, loss in enumerate(losses)]
    assert measure_auroc(adapter, stage("others", 3)) > 0.9  # type: ignore[operator]


@each
def test_only_what_is_trainable_moves(tiny: Backbone, strategy: str) -> None:
    adapter = fresh(tiny)
    before = {name: value.detach().clone() for name, value in adapter.network.state_dict().items()}
    train(adapter, strategy, OLD)
    moved = {name for name, value in adapter.network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == set(adapter.network.trainable())
    assert not adapter.network.training, "an adapter is handed back ready to score"


def generators() -> list[str]:
    return [str(torch.get_rng_state().tolist()), str(random.getstate()), str(np.random.get_state())]


@each
def test_the_same_seed_gives_the_same_bits_whatever_the_global_generators_hold(tiny: Backbone, strategy: str) -> None:
    first, again, other = (fresh(tiny) for _ in range(3))
    losses = train(first, strategy, OLD, NEW, epochs=2)
    torch.manual_seed(11)
    assert train(again, strategy, OLD, NEW, epochs=2) == losses
    assert same(weights(first), weights(again))
    assert train(other, strategy, OLD, NEW, epochs=2, seed=1) != losses


@each
def test_the_global_generators_are_left_alone(tiny: Backbone, strategy: str) -> None:
    """A thread that another library left behind may draw meanwhile; training would move them every time."""

    def is_left_alone() -> bool:
        before = generators()
        train(fresh(tiny), strategy, OLD, NEW, epochs=1)
        return generators() == before

    assert any(is_left_alone() for _ in range(3))


@each
@pytest.mark.parametrize("task", [Task.MULTI_CLASS, Task.MULTI_LABEL])
def test_every_task_is_learned_where_labels_are_missing(tiny: Backbone, strategy: str, task: Task) -> None:
    adapter = fresh(tiny, task)
    stages = [stage(name, seed, task=task, known=0.7).labelled() for seed, name in ((5, "old"), (6, "new"))]
    losses = train(adapter, strategy, *stages)
    assert np.isfinite(losses).all()
    assert losses[0][-1] < losses[0][0]
    assert measure_auroc(adapter, stage("others", 7, task=task)) > 0.9  # type: ignore[operator]


@each
def test_a_loss_that_is_not_finite_stops_the_training(tiny: Backbone, strategy: str) -> None:
    from continual.learner import TrainingDiverged

    with pytest.raises(TrainingDiverged, match=r"the loss became (nan|inf) in epoch \d; lower learning_rate"):
        train(fresh(tiny), strategy, OLD, learning_rate=1e30)


def test_an_unknown_strategy_is_refused_with_the_names_there_are(tiny: Backbone) -> None:
    with pytest.raises(ValueError, match="unknown strategy 'wish'; there are naive, replay, ewc"):
        learner_of(fresh(tiny), "wish")


@each
def test_what_was_recalled_counts_as_if_it_had_been_learned_and_moves_nothing(tiny: Backbone, strategy: str) -> None:
    adapter = fresh(tiny)
    before = weights(adapter)
    learner = learner_of(adapter, strategy)
    learner.recall(OLD)
    assert same(weights(adapter), before)
    assert learner.memory_studies == (POLICY.memory_size if strategy == "replay" else 0)


def seeding(stage: int) -> Any:
    """Seed every epoch of a stage by its number, as ours does."""
    from avalanche.training.plugins import SupervisedPlugin

    class Seeding(SupervisedPlugin):  # type: ignore[misc]
        def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
            seed = np.random.default_rng([POLICY.seed, stage, strategy.clock.train_exp_epochs]).integers(2**31)
            torch.manual_seed(int(seed))

    return Seeding()


# --- naive: nothing but Avalanche ------------------------------------------------------------------


def test_naive_is_avalanches_naive_to_the_bit(tiny: Backbone) -> None:
    from avalanche.benchmarks.scenarios.dataset_scenario import benchmark_from_datasets
    from avalanche.benchmarks.utils import make_avalanche_dataset
    from avalanche.benchmarks.utils.data_attribute import TaskLabels
    from avalanche.logging import BaseLogger
    from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin
    from avalanche.training.supervised import Naive
    from torch.optim.lr_scheduler import LambdaLR
    from torch.utils.data import TensorDataset

    ours, peer = fresh(tiny), fresh(tiny)
    train(ours, "naive", OLD, NEW)
    datasets = [
        make_avalanche_dataset(
            TensorDataset(torch.from_numpy(experience.tokens), torch.from_numpy(experience.labels)),
            data_attributes=[TaskLabels([0] * len(experience))],
        )
        for experience in (OLD, NEW)
    ]
    steps = POLICY.epochs * len(OLD) / POLICY.batch_size
    optimizer = torch.optim.AdamW(peer.network.trainable().values(), lr=POLICY.learning_rate, weight_decay=0.01)
    cosine = LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    plain = Naive(
        model=peer.network,
        optimizer=optimizer,
        criterion=TRAINING[Task.BINARY].loss,
        train_mb_size=POLICY.batch_size,
        train_epochs=POLICY.epochs,
        plugins=[LRSchedulerPlugin(cosine, step_granularity="iteration")],
        evaluator=EvaluationPlugin(loggers=[BaseLogger()]),
    )
    for number, experience in enumerate(benchmark_from_datasets(train=datasets).train_stream):
        plain.plugins.insert(0, seeding(number))  # the same batches
        with torch.random.fork_rng(devices=[]):
            plain.train(experience)
        plain.plugins.pop(0)
    assert same(weights(ours), weights(peer))
    assert not same(weights(ours), weights(fresh(tiny)))


# --- replay: the memory ----------------------------------------------------------------------------


def memory_of(learner: Any) -> list[tuple[bytes, float]]:
    buffer = learner._memory.buffer
    return [(buffer[i][0].numpy().tobytes(), float(buffer[i][1][0])) for i in range(len(buffer))]


@pytest.mark.parametrize("size", [1, 7, 40, 1000])
def test_the_memory_never_exceeds_its_size_and_shares_it_between_stages(tiny: Backbone, size: int) -> None:
    learner = learner_of(fresh(tiny), "replay", memory_size=size)
    stages = [OLD, NEW, stage("short", 8, n=12)]
    for seen, experience in enumerate(stages, start=1):
        learner.recall(experience)
        known = stages[:seen]
        assert learner.memory_studies == min(size, sum(len(each) for each in known))
        tokens = [{row.tobytes() for row in each.tokens} for each in known]
        kept = [sum(row in there for row, _ in memory_of(learner)) for there in tokens]
        full = [taken == len(each) for taken, each in zip(kept, known, strict=True)]
        open_shares = [taken for taken, all_of_it in zip(kept, full, strict=True) if not all_of_it]
        assert not open_shares or max(kept) - min(open_shares) <= 1


def test_the_memory_is_balanced_over_labels_and_patients(tiny: Backbone) -> None:
    generator = np.random.default_rng(0)
    rare = Experience(
        name="rare",
        tokens=generator.normal(size=(100, 5, 48)).astype(np.float16),
        labels=np.array([[1.0]] * 12 + [[0.0]] * 88),
        patient_key=np.array([f"p{i}" for i in range(12)] + ["crowd"] * 44 + [f"q{i}" for i in range(44)]),
    )
    learner = learner_of(fresh(tiny), "replay", memory_size=20)
    learner.recall(rare)
    kept = memory_of(learner)
    assert sum(label for _, label in kept) == 10
    crowd = {rare.tokens[i].tobytes() for i in range(12, 56)}
    assert sum(row in crowd for row, _ in kept) <= 1


def test_rehearsal_forgets_less_than_naive_training_when_the_new_contradicts_the_old(champion: Adapter) -> None:
    old, new = stage("old-others", 3), stage("new-others", 4, signs=(-1, 1, 0))
    before, dropped, learned = measure_auroc(champion, old), {}, {}
    for strategy in ("naive", "replay"):
        adapter = adapted(champion, strategy)
        dropped[strategy] = before - measure_auroc(adapter, old)  # type: ignore[operator]
        learned[strategy] = measure_auroc(adapter, new)
    assert dropped["naive"] > 0.2
    assert dropped["replay"] < dropped["naive"] / 2
    assert learned["replay"] > 0.9


# --- EWC: the importances --------------------------------------------------------------------------


def test_ewc_keeps_one_importance_for_each_trainable_number_and_stage(tiny: Backbone) -> None:
    adapter = fresh(tiny)
    learner = learner_of(adapter, "ewc", epochs=1)
    learner.learn(OLD, quiet)
    learner.learn(NEW, quiet)
    [plugin] = [plugin for plugin in learner._avalanche.plugins if hasattr(plugin, "importances")]
    assert len(plugin.importances) == 2
    total = sum(value.numel() for value in adapter.network.parameters())
    for importances in plugin.importances.values():
        assert sum(importance.data.numel() for importance in importances.values()) == adapter.trainable_parameters
    assert adapter.trainable_parameters < total / 5


def test_ewc_holds_back_what_mattered_for_the_old_stage_the_more_the_stronger(champion: Adapter) -> None:
    def moved(strategy: str, **changes: Any) -> float:
        pairs = zip(weights(adapted(champion, strategy, **changes)), weights(champion), strict=True)
        return sum(float(((a - b) ** 2).sum()) for a, b in pairs)

    free = moved("naive")
    assert moved("ewc", ewc_strength=1e-9) == pytest.approx(free, rel=0.01)
    assert moved("ewc", ewc_strength=1e7) < free / 2
