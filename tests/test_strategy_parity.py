"""Our strategies against plain Avalanche 0.6, on cases that both can do: two stages and three classes.

Plain Avalanche gets the same chance (an epoch's seed, the same remembered studies) and its own classes, data sets
and loaders; what differs is what is said beside each case.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from continual.adapters import Adapter, new_adapter
from continual.backbones import Backbone
from continual.experiences import Experience, order_for_rehearsal
from continual.memory_selection import MemoryPolicy
from continual.policies import AdaptationPolicy
from monitor.tasks import Task

# avalanche 0.6 imports a package that says at import that nobody maintains it; nothing of it is used
pytestmark = [
    pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained:DeprecationWarning"),
    pytest.mark.usefixtures("one_thread"),
]
ARRAY_WRAP = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")  # its SI's

POLICY = AdaptationPolicy(
    epochs=3,
    learning_rate=1e-2,
    batch_size=32,
    memory=MemoryPolicy(studies=32),
    adapter="head",
    ewc_strength=5.0,
    si_strength=10_000.0,
    agem_sample=20,
)
WIDTH, CLASSES, ROWS = 48, 3, 90  # the last batch is a short one


def fresh(vectors: Backbone) -> Adapter:
    return new_adapter(vectors, task=Task.MULTI_CLASS, classes=("a", "b", "c"), policy=POLICY, seed=0)


def stage(number: int) -> Experience:
    """Plant three classes along three directions, which another stage turns."""
    generator = np.random.default_rng(number)
    labels = generator.permutation(np.arange(ROWS) % CLASSES)
    centres = np.random.default_rng(50 + number).normal(size=(CLASSES, WIDTH))
    return Experience(
        name=f"stage {number}",
        tokens=(generator.normal(size=(ROWS, 1, WIDTH)) + 0.3 * centres[labels][:, None]).astype(np.float16),
        labels=labels[:, None].astype(np.float64),
        patient_key=np.array([f"p{number}-{i}" for i in range(ROWS)]),
    )


STAGES = [stage(1), stage(2)]


def train_ours(adapter: Adapter, strategy: str) -> Any:
    from continual.learner import Learner

    learner = Learner(adapter, strategy=strategy, policy=POLICY)
    for experience in STAGES:
        learner.learn(experience, lambda epoch, epochs, loss: None)
    return learner


def weights(network: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in network.parameters() if value.requires_grad]


def same(ours: nn.Module, peer: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(ours), weights(peer), strict=True))


def assert_close(ours: nn.Module, peer: nn.Module) -> None:
    for a, b in zip(weights(ours), weights(peer), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


# --- plain Avalanche -----------------------------------------------------------------------------------


def epoch_seed(number: int, epoch: int, purpose: int = 0) -> int:
    return int(np.random.default_rng([POLICY.seed, number, epoch, purpose]).integers(2**31))


def datasets() -> list[Any]:
    from avalanche.benchmarks.utils import as_taskaware_classification_dataset, make_avalanche_dataset
    from avalanche.benchmarks.utils.data_attribute import DataAttribute, TaskLabels
    from torch.utils.data import TensorDataset

    made = []
    for experience in STAGES:
        labels = torch.from_numpy(experience.labels[:, 0]).long()
        plain = make_avalanche_dataset(
            TensorDataset(torch.from_numpy(experience.tokens), labels),
            data_attributes=[DataAttribute(labels.tolist(), "targets"), TaskLabels([0] * ROWS)],
        )
        made.append(as_taskaware_classification_dataset(plain))
    return made


def train_peer(
    network: nn.Module,
    *plugins: Any,
    template: str = "Naive",
    before_epoch: Callable[[Any], None] = lambda strategy: None,
    prepare: Callable[[Any], None] = lambda strategy: None,
    **settings: Any,
) -> Any:
    """Train plain Avalanche with plugins on the two stages."""
    import avalanche.training.supervised as templates
    from avalanche.benchmarks.scenarios.dataset_scenario import benchmark_from_datasets
    from avalanche.logging import BaseLogger
    from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin, SupervisedPlugin

    class EpochSeed(SupervisedPlugin):  # type: ignore[misc]
        def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
            torch.manual_seed(epoch_seed(strategy.clock.train_exp_counter, strategy.clock.train_exp_epochs))
            before_epoch(strategy)

    optimizer = torch.optim.AdamW(
        [value for value in network.parameters() if value.requires_grad], lr=POLICY.learning_rate, weight_decay=0.01
    )

    def cosine(step: int) -> float:
        return (1 + math.cos(math.pi * step / (POLICY.epochs * len(strategy.dataloader)))) / 2 if step else 1.0

    strategy = getattr(templates, template)(
        model=network,
        optimizer=optimizer,
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=POLICY.batch_size,
        train_epochs=POLICY.epochs,
        plugins=[
            *plugins,
            EpochSeed(),
            LRSchedulerPlugin(LambdaLR(optimizer, cosine), step_granularity="iteration"),
        ],
        evaluator=EvaluationPlugin(loggers=[BaseLogger()]),
        **settings,
    )
    prepare(strategy)
    with torch.random.fork_rng(devices=[]):
        for experience in benchmark_from_datasets(train=datasets()).train_stream:
            strategy.train(experience)
    return strategy


def chosen(number: int = 0) -> list[int]:
    """Give the rows of a stage that our memory keeps when it is alone in it, best first."""
    experience = STAGES[number]
    generator = np.random.default_rng([POLICY.seed, number])
    ranking = order_for_rehearsal(experience.labels, experience.patient_key, generator)
    return ranking[: POLICY.memory.studies].tolist()


def remembered() -> tuple[Tensor, Tensor]:
    rows = chosen()
    labels = torch.from_numpy(STAGES[0].labels[rows, 0]).long()
    return torch.from_numpy(STAGES[0].tokens[rows]), labels


# --- the cases -----------------------------------------------------------------------------------------


def test_naive_is_avalanches_to_the_bit(vectors: Backbone) -> None:
    ours, peer = fresh(vectors), fresh(vectors)
    train_ours(ours, "naive")
    train_peer(peer.network)
    assert same(ours.network, peer.network)
    assert not same(ours.network, fresh(vectors).network)


def test_cumulative_is_avalanches_to_the_bit(vectors: Backbone) -> None:
    ours, peer = fresh(vectors), fresh(vectors)
    train_ours(ours, "cumulative")
    train_peer(peer.network, template="Cumulative")
    assert same(ours.network, peer.network)


def test_ewc_is_avalanches_to_the_bit(vectors: Backbone) -> None:
    from avalanche.training.plugins import EWCPlugin

    ours, peer, free = fresh(vectors), fresh(vectors), fresh(vectors)
    learner = train_ours(ours, "ewc")
    plugin = EWCPlugin(ewc_lambda=learner._strategy.plugins[0].ewc_lambda)  # ours counts in average importances
    train_peer(peer.network, plugin)
    train_ours(free, "naive")
    assert same(ours.network, peer.network)
    assert not same(ours.network, free.network)
    mine = learner._strategy.plugins[0].importances
    for number, importances in plugin.importances.items():
        for name, importance in importances.items():
            assert torch.equal(mine[number][f"network.{name}"].data, importance.data)


def test_replay_is_avalanches_to_the_bit_with_the_same_memory(vectors: Backbone) -> None:
    """Avalanche's ReplayPlugin and loader; only which studies are kept is ours."""
    from avalanche.training.plugins import ReplayPlugin
    from avalanche.training.storage_policy import ExemplarsBuffer

    class Chosen(ExemplarsBuffer):  # type: ignore[misc]
        def update(self, strategy: Any, **kwargs: Any) -> None:
            if strategy.clock.train_exp_counter == 0:
                self.buffer = strategy.experience.dataset.subset(chosen())

        def resize(self, strategy: Any, new_size: int) -> None:
            raise AssertionError

    ours, peer, free = fresh(vectors), fresh(vectors), fresh(vectors)
    train_ours(ours, "replay")
    train_peer(peer.network, ReplayPlugin(POLICY.memory.studies, storage_policy=Chosen(POLICY.memory.studies)))
    train_ours(free, "naive")
    assert same(ours.network, peer.network)
    assert not same(ours.network, free.network)


def test_lwf_is_avalanches(vectors: Backbone) -> None:
    """To rounding: Avalanche runs the old model on every batch, we once on the whole stage."""
    from avalanche.training.plugins import LwFPlugin

    ours, peer = fresh(vectors), fresh(vectors)
    train_ours(ours, "lwf")
    train_peer(peer.network, LwFPlugin(alpha=POLICY.lwf_strength, temperature=2.0))
    assert_close(ours.network, peer.network)


def test_agem_is_avalanches_to_the_bit_with_the_same_samples(vectors: Backbone) -> None:
    """Which studies are kept, and in which order they are asked, is ours."""
    from avalanche.training.plugins import AGEMPlugin

    from continual.study_loop import OTHER_ROWS, endless_batches

    ours, peer, free = fresh(vectors), fresh(vectors), fresh(vectors)
    train_ours(ours, "agem")
    plugin = AGEMPlugin(patterns_per_experience=ROWS, sample_size=POLICY.agem_sample)

    def same_samples(strategy: Any) -> None:
        if number := strategy.clock.train_exp_counter:
            seed = epoch_seed(number, strategy.clock.train_exp_epochs, OTHER_ROWS)
            plugin.buffer_dliter = endless_batches(remembered(), POLICY.agem_sample, seed)

    train_peer(peer.network, plugin, before_epoch=same_samples)
    train_ours(free, "naive")
    assert same(ours.network, peer.network)
    assert not same(ours.network, free.network)


def test_der_with_labels_is_avalanches_with_the_same_memory(vectors: Backbone) -> None:
    """Avalanche's template; the remembered studies, their logits and their order are ours."""
    from continual.study_loop import OTHER_ROWS, answers, endless_batches

    ours, peer, free = fresh(vectors), fresh(vectors), fresh(vectors)
    train_ours(ours, "derpp")

    class Chosen:
        buffer: Any = ()

        def update(self, strategy: Any, **kwargs: Any) -> None:
            if strategy.clock.train_exp_counter == 0:
                tokens, labels = remembered()
                self.buffer = (tokens, labels, answers(strategy.model, tokens, POLICY.batch_size))

    def same_batches(strategy: Any) -> None:
        if number := strategy.clock.train_exp_counter:
            seed = epoch_seed(number, strategy.clock.train_exp_epochs, OTHER_ROWS)
            batches = endless_batches(strategy.storage_policy.buffer, POLICY.batch_size, seed)
            strategy.replay_loader = ((x, y, task, logits) for x, y, logits, task in batches)

    train_peer(
        peer.network,
        template="DER",
        before_epoch=same_batches,
        prepare=lambda strategy: setattr(strategy, "storage_policy", Chosen()),
        mem_size=POLICY.memory.studies,
        alpha=POLICY.der_alpha,
        beta=POLICY.der_beta,
    )
    train_ours(free, "naive")
    assert_close(ours.network, peer.network)
    assert not same(ours.network, free.network)


@ARRAY_WRAP
def test_si_of_avalanche_does_nothing_on_a_cpu_which_is_why_we_have_our_own(vectors: Backbone) -> None:
    """It compares the weights with views of themselves. Should this fail, Avalanche has mended it: use theirs again."""
    from avalanche.training.plugins import SynapticIntelligencePlugin

    peer, free = fresh(vectors), fresh(vectors)
    train_peer(peer.network, SynapticIntelligencePlugin(si_lambda=1e6))
    train_peer(free.network)
    assert same(peer.network, free.network)


@ARRAY_WRAP
def test_si_is_avalanches_where_avalanches_works(vectors: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a weight that does not lie in one piece, Avalanche must copy it; with its bounds and damping, we agree."""
    from avalanche.training.plugins import SynapticIntelligencePlugin

    from continual.regularisers import PathIntegral
    from continual.strategies import STRATEGIES, Strategy

    def scattered() -> Adapter:
        adapter = fresh(vectors)
        adapter.network.head.bias.requires_grad_(False)
        adapter.network.head.weight = nn.Parameter(torch.zeros(WIDTH, CLASSES).t())
        return adapter

    def as_avalanche(setting: Any) -> Strategy:
        strength = setting.policy.si_strength
        return Strategy((PathIntegral(strength, floor=-math.inf, ceiling=0.001, damping=1e-7),))

    monkeypatch.setitem(STRATEGIES, "si", as_avalanche)
    ours, peer, free = scattered(), scattered(), scattered()
    train_ours(ours, "si")
    train_peer(peer.network, SynapticIntelligencePlugin(si_lambda=POLICY.si_strength))
    train_ours(free, "naive")
    assert_close(ours.network, peer.network)
    difference = (ours.network.head.weight - free.network.head.weight).detach().abs().max()
    assert difference > 1e-3
