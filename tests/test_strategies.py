"""The contract of every learning strategy in the table, and what each does when the new contradicts the old."""

import math
import random
from typing import Any

import numpy as np
import pytest
import torch

from continual.adapter_kinds import KINDS
from continual.adapters import Adapter, new_adapter
from continual.adapting import measure_auroc
from continual.backbones import Backbone, load_backbone
from continual.experiences import Experience
from continual.memory_selection import MemoryPolicy
from continual.policies import AdaptationPolicy
from continual.strategy_cards import CARDS
from continual.task_training import TRAINING
from monitor.tasks import TASKS, Task
from tests.conftest import quiet, same, weights

# avalanche 0.6 imports a package that says at import that nobody maintains it; nothing of it is used
TRAINED = [kind for kind in KINDS if kind != "analytic"]  # that one learns in closed form, whatever the strategy
pytestmark = [
    pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained:DeprecationWarning"),
    pytest.mark.usefixtures("one_thread"),
]

# importing the table itself costs seconds that collecting should not pay; a test proves that they agree
NAMES = list(CARDS)
WITH_MEMORY = [name for name, card in CARDS.items() if card.uses_memory]
each = pytest.mark.parametrize("strategy", NAMES)
POLICY = AdaptationPolicy(epochs=4, learning_rate=3e-2, memory=MemoryPolicy(studies=40), adapter="head")
CLASSES = {Task.BINARY: ("no", "yes"), Task.MULTI_CLASS: ("a", "b", "c"), Task.MULTI_LABEL: ("x", "y", "z")}
DIRECTIONS = np.random.default_rng(99).normal(size=(3, 48))


@pytest.fixture(scope="module")
def blocks() -> Backbone:
    """Give a backbone that stores the tokens entering its last two blocks: LoRA and its like need them."""
    return load_backbone("tiny", source="random", image_size=28, blocks=2)


@pytest.fixture(scope="module")
def champion(vectors: Backbone) -> Adapter:
    """Give a head that has learned the old stage."""
    adapter = fresh(vectors)
    train(adapter, "naive", OLD)
    return adapter


def stage(  # a small world
    name: str,
    seed: int,
    n: int = 96,
    *,
    task: Task = Task.BINARY,
    signs: tuple[int, ...] = (1, 0, 0),
    known: float = 1.0,
    tokens: int = 1,
) -> Experience:
    """Plant the answers along directions, a binary one with signs; only a share of the labels is known."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3 if task is Task.MULTI_CLASS else 2, (n, 3 if task is Task.MULTI_LABEL else 1))
    present = {
        Task.BINARY: (2 * labels - 1) * np.array(signs),
        Task.MULTI_CLASS: 2 * (labels == np.arange(3)),
        Task.MULTI_LABEL: 2 * labels - 1,
    }[task]
    strength = 0.6 if tokens > 1 else 0.3
    values = generator.normal(size=(n, tokens, 48)) + strength * (present @ DIRECTIONS)[:, None]
    labels = labels.astype(np.float64)
    labels[generator.random(labels.shape) >= known] = np.nan
    return Experience(
        name=name,
        tokens=values.astype(np.float16),
        labels=labels,
        patient_key=np.array([f"{name}-{i // 2}" for i in range(n)]),
    )


# the first direction means the opposite in the new stage: who learns only that must forget
OLD, NEW = stage("old", 1), stage("new", 2, signs=(-1, 1, 0))


def fresh(backbone: Backbone, task: Task = Task.BINARY, kind: str = "head") -> Adapter:
    policy = POLICY.model_copy(update={"adapter": kind, "blocks": 2})
    return new_adapter(backbone, task=task, classes=CLASSES[task], policy=policy, seed=0)


def learner_of(adapter: Adapter, strategy: str, **changes: Any) -> Any:
    from continual.learner import Learner

    return Learner(adapter, strategy=strategy, policy=POLICY.model_copy(update=changes))


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


def auroc(adapter: Adapter, experience: Experience) -> float:
    figure = measure_auroc(adapter, experience)
    assert figure is not None
    return figure


# --- the contract ----------------------------------------------------------------------------------


def test_the_table_of_cards_names_every_strategy_and_says_truly_who_uses_a_memory(vectors: Backbone) -> None:
    from continual.strategies import STRATEGIES, Setting

    assert list(STRATEGIES) == NAMES
    setting = Setting(adapter=fresh(vectors), policy=POLICY)
    assert [name for name in NAMES if STRATEGIES[name](setting).memory is not None] == WITH_MEMORY


@each
def test_training_lowers_the_loss_and_tells_every_epoch(vectors: Backbone, strategy: str) -> None:
    adapter, told = fresh(vectors), []
    losses = learner_of(adapter, strategy).learn(OLD, lambda *what: told.append(what))
    assert losses[-1] < 0.8 * losses[0]
    assert told == [(epoch + 1, 4, loss) for epoch, loss in enumerate(losses)]
    assert auroc(adapter, stage("others", 3)) > 0.9


@each
def test_only_what_is_trainable_moves(vectors: Backbone, blocks: Backbone, strategy: str) -> None:
    kind, backbone, tokens = ("head", vectors, 1) if strategy == "generative" else ("lora", blocks, 5)
    adapter = fresh(backbone, kind=kind)
    before = {name: value.detach().clone() for name, value in adapter.network.state_dict().items()}
    train(adapter, strategy, stage("old", 1, tokens=tokens), stage("new", 2, tokens=tokens), epochs=1)
    moved = {name for name, value in adapter.network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == set(adapter.network.trainable())
    assert not adapter.network.training, "an adapter is handed back ready to score"


def generators() -> list[str]:
    return [str(torch.get_rng_state().tolist()), str(random.getstate()), str(np.random.get_state())]


@each
def test_the_same_seed_gives_the_same_bits_whatever_the_global_generators_hold(
    vectors: Backbone, strategy: str
) -> None:
    first, again, other = (fresh(vectors) for _ in range(3))
    losses = train(first, strategy, OLD, NEW, epochs=2)

    def draw(*what: object) -> None:  # as a thread would that another library left behind
        torch.rand(3), random.random(), np.random.random()

    learner = learner_of(again, strategy, epochs=2)
    assert [learner.learn(experience, draw) for experience in (OLD, NEW)] == losses
    assert same(weights(first), weights(again))
    assert train(other, strategy, OLD, NEW, epochs=2, seed=1) != losses


@each
def test_the_global_generators_are_left_alone(vectors: Backbone, strategy: str) -> None:
    """A thread that another library left behind may draw meanwhile; training would move them every time."""

    def is_left_alone() -> bool:
        before = generators()
        train(fresh(vectors), strategy, OLD, NEW, epochs=1)
        return generators() == before

    assert any(is_left_alone() for _ in range(3))


@each
@pytest.mark.parametrize("task", [Task.MULTI_CLASS, Task.MULTI_LABEL])
def test_every_task_is_learned_where_labels_are_missing(vectors: Backbone, strategy: str, task: Task) -> None:
    adapter = fresh(vectors, task)
    stages = [stage(name, seed, task=task, known=0.7).labelled() for seed, name in ((5, "old"), (6, "new"))]
    losses = train(adapter, strategy, *stages)
    assert np.isfinite(losses).all()
    assert losses[0][-1] < losses[0][0]
    assert auroc(adapter, stage("others", 7, task=task)) > 0.9


@each
def test_a_loss_that_is_not_finite_stops_the_training(vectors: Backbone, strategy: str) -> None:
    from continual.learner import TrainingDiverged

    with pytest.raises(TrainingDiverged, match=r"the loss became (nan|inf) in epoch \d; lower learning_rate"):
        train(fresh(vectors), strategy, OLD, learning_rate=1e36, epochs=6)


def test_an_unknown_strategy_is_refused_with_the_names_there_are(vectors: Backbone) -> None:
    with pytest.raises(ValueError, match="unknown strategy 'wish'; there are naive, replay, ewc, lwf, si, agem, der"):
        learner_of(fresh(vectors), "wish")


@each
def test_what_was_recalled_counts_as_if_it_had_been_learned_and_moves_nothing(vectors: Backbone, strategy: str) -> None:
    adapter = fresh(vectors)
    before = weights(adapter)
    learner = learner_of(adapter, strategy)
    learner.recall(OLD)
    assert same(weights(adapter), before)
    expected = len(OLD) if strategy == "cumulative" else POLICY.memory.studies if strategy in WITH_MEMORY else 0
    assert learner.memory_studies == expected


EXPECTED = {
    "naive": "",
    "replay": "rehearsing 40 studies of 1 stage",
    "ewc": "holding 49 weights near what mattered",
    "lwf": "keeping the answers given before",
    "si": "holding 49 weights near what mattered",
    "agem": "checking every step against 40 studies of 1 stage",
    "der": "rehearsing 40 studies of 1 stage with their old answers",
    "derpp": "rehearsing 40 studies of 1 stage with their old answers",
    "gdumb": "rehearsing 40 studies of 2 stages",
    "cumulative": "rehearsing 96 studies of 1 stage",
    "generative": "rehearsing embeddings drawn as those of 1 stage",
    "replay_ewc": "rehearsing 40 studies of 1 stage and holding 49 weights near what mattered",
    "replay_lwf": "rehearsing 40 studies of 1 stage and keeping the answers given before",
}


@each
def test_while_it_trains_it_says_what_it_protects(vectors: Backbone, strategy: str) -> None:
    learner, said = learner_of(fresh(vectors), strategy, epochs=1), []
    learner.learn(OLD, quiet)
    learner.learn(NEW, lambda *what: said.append(learner.protecting))
    assert said == [EXPECTED[strategy]]


# --- a new class or finding appears -------------------------------------------------------------------


def grown(backbone: Backbone, adapter: Adapter, kind: str = "head") -> Adapter:
    """Give an adapter of one class more: the rows of the old ones are the same."""
    policy = POLICY.model_copy(update={"adapter": kind})
    classes = (*adapter.card.classes, "new")
    wide = new_adapter(backbone, task=adapter.card.task, classes=classes, policy=policy, seed=0)
    with torch.no_grad():
        for name, value in adapter.network.trainable().items():
            wide.network.trainable()[name][: len(value)].copy_(value)
    return wide


def two_stages_of(task: Task) -> tuple[Experience, Experience]:
    """Give an old stage that knows nothing of the last class or finding, and one where it comes."""
    old, new = (stage(name, seed, 160, task=task) for seed, name in ((5, "old"), (6, "new")))
    if task is Task.MULTI_CLASS:
        return old.select(old.labels[:, 0] < 2), new.select(new.labels[:, 0] == 2)
    unknown = old.labels.copy()
    unknown[:, 2] = np.nan
    return Experience(name="old", tokens=old.tokens, labels=unknown, patient_key=old.patient_key), new


@each
@pytest.mark.parametrize("task", [Task.MULTI_CLASS, Task.MULTI_LABEL])
def test_a_class_that_appears_is_learned_by_a_grown_head(vectors: Backbone, strategy: str, task: Task) -> None:
    old, new = two_stages_of(task)
    narrow = new_adapter(vectors, task=task, classes=CLASSES[task][:2], policy=POLICY, seed=0)
    before = Experience(
        name="old",
        tokens=old.tokens,
        labels=old.labels[:, : TASKS[task].label_columns(CLASSES[task][:2])],
        patient_key=old.patient_key,
    )
    train(narrow, "naive", before)
    adapter = grown(vectors, narrow)
    learner = learner_of(adapter, strategy, epochs=8)
    learner.recall(old)
    learner.learn(new, quiet)
    scores = TRAINING[task].activate(adapter.network(torch.from_numpy(stage("o", 8, task=task).tokens))).detach()
    truth = stage("o", 8, task=task).labels
    truth = truth[:, 2] if task is Task.MULTI_LABEL else truth[:, 0] == 2
    positive, negative = scores[truth == 1, 2].numpy(), scores[truth == 0, 2].numpy()
    assert np.mean(positive[:, None] > negative) > 0.8


@pytest.mark.parametrize("strategy", ["replay_lwf", "derpp", "cumulative", "replay", "gdumb", "generative"])
def test_old_classes_survive_the_coming_of_a_new_one(vectors: Backbone, strategy: str) -> None:
    """Naive training on the new class alone lets it swallow the others."""
    old, new = two_stages_of(Task.MULTI_CLASS)
    others = stage("others", 8, 200, task=Task.MULTI_CLASS)
    found = {}
    for name in ("naive", strategy):
        adapter = fresh(vectors, Task.MULTI_CLASS)
        train(adapter, name, old, new, epochs=40, learning_rate=0.3)
        said = adapter.network(torch.from_numpy(others.tokens)).argmax(dim=1).numpy()
        found[name] = np.mean(said == others.labels[:, 0])
    assert found["naive"] < 0.8
    assert found[strategy] > 0.9


# --- every adapter and task ---------------------------------------------------------------------------


def check_pair(vectors: Backbone, blocks: Backbone, strategy: str, kind: str, task: Task) -> None:
    """Train a strategy on an adapter and a task; a pair may only refuse with the cure."""
    tokens = 1 if kind == "head" else 5
    adapter = fresh(vectors if tokens == 1 else blocks, task, kind)
    stages = [stage(name, seed, 64, task=task, known=0.8, tokens=tokens).labelled() for seed, name in enumerate("ab")]
    if strategy == "generative" and tokens > 1:
        with pytest.raises(ValueError, match=r"set blocks = 0 under .backbone. and adapter = .head., or use"):
            train(adapter, strategy, *stages, epochs=2)
        return
    losses = train(adapter, strategy, *stages, epochs=2)
    assert np.isfinite(losses).all()
    assert losses[0][-1] < losses[0][0]
    assert all(value.isfinite().all() for value in weights(adapter))


@pytest.mark.parametrize(("number", "strategy"), list(enumerate(NAMES)))
def test_strategies_go_with_adapters_and_tasks(vectors: Backbone, blocks: Backbone, number: int, strategy: str) -> None:
    """A diagonal through the cross product, which is slow."""
    check_pair(vectors, blocks, strategy, TRAINED[number % len(TRAINED)], list(Task)[number % 3])


@pytest.mark.slow
@each
@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.parametrize("task", list(Task))
def test_every_strategy_goes_with_every_adapter_and_task(
    vectors: Backbone, blocks: Backbone, strategy: str, kind: str, task: Task
) -> None:
    check_pair(vectors, blocks, strategy, kind, task)


# --- what is forgotten and what is held -----------------------------------------------------------------


def losses_of(champion: Adapter, strategies: list[str], tokens: int, **changes: Any) -> dict[str, tuple[float, float]]:
    """Give for each strategy how much of the old was lost, and the figure on the new."""
    signs = (-1, 1, 0)
    old, new = stage("old", 1, tokens=tokens), stage("new", 2, tokens=tokens, signs=signs)
    others = stage("old-others", 3, 200, tokens=tokens), stage("new-others", 4, 200, tokens=tokens, signs=signs)
    train(champion, "naive", old, **changes)
    found = {}
    for strategy in strategies:
        adapter = champion.copy()
        learner = learner_of(adapter, strategy, **changes)
        learner.recall(old)
        learner.learn(new, quiet)
        found[strategy] = (auroc(champion, others[0]) - auroc(adapter, others[0]), auroc(adapter, others[1]))
    return found


@pytest.fixture(scope="module")
def dropped(blocks: Backbone) -> dict[str, tuple[float, float]]:
    names = ["naive", *WITH_MEMORY]
    return losses_of(fresh(blocks, kind="lora"), names, 5, learning_rate=3e-3, der_alpha=0.5, ewc_strength=0.1)


@pytest.mark.parametrize("strategy", WITH_MEMORY)
def test_who_rehearses_forgets_less_than_half_when_the_new_contradicts_the_old(
    dropped: dict[str, tuple[float, float]], strategy: str
) -> None:
    lost, learned = dropped[strategy]
    assert dropped["naive"][0] > 0.2
    assert lost < dropped["naive"][0] / 2
    assert learned > 0.9


def test_drawn_embeddings_rehearse_too(vectors: Backbone) -> None:
    found = losses_of(fresh(vectors), ["naive", "generative"], 1, epochs=40)
    assert found["generative"][0] < found["naive"][0] / 2
    assert found["generative"][1] > 0.8


def distance(first: Adapter, second: Adapter) -> float:
    return sum(float(((a - b) ** 2).sum()) for a, b in zip(weights(first), weights(second), strict=True))


def test_ewc_holds_back_what_mattered_for_the_old_stage_the_more_the_stronger(champion: Adapter) -> None:
    free = distance(adapted(champion, "naive"), champion)
    assert distance(adapted(champion, "ewc", ewc_strength=1e-9), champion) == pytest.approx(free, rel=0.01)
    assert distance(adapted(champion, "ewc", ewc_strength=1e7), champion) < free / 2


def test_si_holds_back_what_was_won_by_moving_the_more_the_stronger(vectors: Backbone) -> None:
    def moved(strategy: str, **changes: Any) -> float:
        adapter = fresh(vectors)
        learner = learner_of(adapter, strategy, **changes)
        learner.learn(OLD, quiet)
        before = adapter.copy()
        learner.learn(NEW, quiet)
        return distance(adapter, before)

    free = moved("naive")
    assert moved("si", si_strength=1e-9) == pytest.approx(free, rel=0.01)
    assert free > moved("si", si_strength=1.0) > 2 * moved("si", si_strength=100.0)


def test_si_does_not_protect_what_was_merely_recalled(champion: Adapter) -> None:
    assert same(weights(adapted(champion, "si", si_strength=100.0)), weights(adapted(champion, "naive")))


@pytest.mark.parametrize("task", list(Task))
def test_lwf_keeps_the_old_answers_the_more_the_stronger(vectors: Backbone, task: Task) -> None:
    old, new = stage("old", 1, task=task), stage("new", 2, task=task, signs=(-1, 1, 0))
    tokens = torch.from_numpy(new.tokens)

    def changed(strategy: str, **changes: Any) -> float:
        adapter = fresh(vectors, task)
        learner = learner_of(adapter, strategy, **changes)
        learner.learn(old, quiet)
        before = adapter.network(tokens)
        learner.learn(new, quiet)
        return float((adapter.network(tokens) - before).detach().abs().mean())

    free = changed("naive")
    assert changed("lwf", lwf_strength=1e-9) == pytest.approx(free, rel=0.01)
    assert free > changed("lwf", lwf_strength=10.0) > changed("lwf", lwf_strength=1000.0)


def test_lwf_asks_nothing_of_a_column_that_no_earlier_stage_had(vectors: Backbone) -> None:
    """The row of a new finding moves as in naive training: the other rows do not touch it."""
    old, new = two_stages_of(Task.MULTI_LABEL)
    rows = {}
    for strategy in ("naive", "lwf", "ewc"):
        adapter = fresh(vectors, Task.MULTI_LABEL)
        # unbounded: the bound is on the whole gradient, so cutting what holds the old rows would slow the new one, too
        train(adapter, strategy, old, new, lwf_strength=100.0, ewc_strength=1e6, gradient_bound=math.inf)
        rows[strategy] = adapter.network.head.weight.detach().clone()
    for strategy in ("lwf", "ewc"):
        assert torch.allclose(rows[strategy][2], rows["naive"][2], atol=1e-6)
        assert not torch.allclose(rows[strategy][:2], rows["naive"][:2], atol=1e-3)


def test_gdumb_knows_nothing_but_its_memory(champion: Adapter, vectors: Backbone) -> None:
    """Who starts from a champion and who starts from nothing end with the same bits."""
    assert same(weights(adapted(champion, "gdumb")), weights(adapted(fresh(vectors), "gdumb")))


def test_cumulative_training_sees_every_study_every_epoch(vectors: Backbone) -> None:
    learner = learner_of(fresh(vectors), "cumulative")
    seen: set[bytes] = set()
    learner.learn(OLD, quiet)
    plugin = learner._strategy.plugins[0]
    plugin.before_training_exp(learner._avalanche)
    for tokens, *_ in learner._avalanche.dataloader:
        seen |= {row.numpy().tobytes() for row in tokens}
    assert seen == {row.tobytes() for row in OLD.tokens}


# --- the memory ------------------------------------------------------------------------------------------


def memory_of(learner: Any) -> list[tuple[bytes, float]]:
    tokens, labels = learner._strategy.memory.rows()[:2]
    return [(token.numpy().tobytes(), float(label[0])) for token, label in zip(tokens, labels, strict=True)]


@pytest.mark.parametrize("size", [1, 7, 40, 1000])
def test_the_memory_never_exceeds_its_size_and_shares_it_between_stages(vectors: Backbone, size: int) -> None:
    learner = learner_of(fresh(vectors), "replay", memory=MemoryPolicy(studies=size))
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


def test_the_memory_is_balanced_over_labels_and_patients(vectors: Backbone) -> None:
    generator = np.random.default_rng(0)
    rare = Experience(
        name="rare",
        tokens=generator.normal(size=(100, 1, 48)).astype(np.float16),
        labels=np.array([[1.0]] * 12 + [[0.0]] * 88),
        patient_key=np.array([f"p{i}" for i in range(12)] + ["crowd"] * 44 + [f"q{i}" for i in range(44)]),
    )
    learner = learner_of(fresh(vectors), "replay", memory=MemoryPolicy(studies=20))
    learner.recall(rare)
    kept = memory_of(learner)
    assert sum(label for _, label in kept) == 10
    crowd = {rare.tokens[i].tobytes() for i in range(12, 56)}
    assert sum(row in crowd for row, _ in kept) <= 1


@pytest.mark.parametrize("strategy", ["replay", "agem", "derpp", "gdumb", "replay_ewc", "replay_lwf"])
def test_all_who_use_a_memory_keep_the_same_studies(vectors: Backbone, strategy: str) -> None:
    def kept(name: str) -> list[tuple[bytes, float]]:
        learner = learner_of(fresh(vectors), name)
        learner.recall(OLD)
        learner.recall(NEW)
        return memory_of(learner)

    assert kept(strategy) == kept("replay")


def test_dark_experience_keeps_the_logits_of_the_moment_and_none_of_unknown_columns(vectors: Backbone) -> None:
    old, new = two_stages_of(Task.MULTI_LABEL)
    adapter = fresh(vectors, Task.MULTI_LABEL)
    learner = learner_of(adapter, "der")
    learner.learn(old, quiet)
    said = adapter.network(torch.from_numpy(old.tokens)).detach()
    learner.learn(new, quiet)
    tokens, _, logits = learner._strategy.memory.kept[0]
    places = [
        next(i for i, row in enumerate(old.tokens) if row.tobytes() == token.numpy().tobytes()) for token in tokens
    ]
    assert torch.allclose(logits[:, :2], said[places, :2], atol=1e-6)
    assert logits[:, 2].isnan().all()
    assert not learner._strategy.memory.kept[1][2].isnan().any()


# --- what regularisers hold ------------------------------------------------------------------------------


def test_regularisers_keep_numbers_for_trainable_parameters_alone(blocks: Backbone) -> None:
    adapter = fresh(blocks, kind="lora")
    total = sum(value.numel() for value in adapter.network.parameters())
    assert adapter.trainable_parameters < total / 5
    stages = stage("old", 1, tokens=5), stage("new", 2, tokens=5)
    for strategy, sets in (("ewc", 4), ("si", 1)):  # EWC: importance and weight of two stages
        learner = learner_of(fresh(blocks, kind="lora"), strategy, epochs=1)
        for experience in stages:
            learner.learn(experience, quiet)
        assert sum(value.numel() for value in learner.state().values()) == sets * adapter.trainable_parameters
