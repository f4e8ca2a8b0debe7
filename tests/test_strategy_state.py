"""A training that is interrupted goes on as if nothing had happened, and what SI measured outlives its run."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from continual.adapters import Adapter, new_adapter
from continual.backbones import Backbone
from continual.experiences import Experience
from continual.memory_selection import MemoryPolicy
from continual.policies import AdaptationPolicy
from continual.strategy_cards import CARDS
from monitor.tasks import Task
from tests.conftest import quiet, same, weights

# avalanche 0.6 imports a package that says at import that nobody maintains it; nothing of it is used
pytestmark = [
    pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained:DeprecationWarning"),
    pytest.mark.usefixtures("one_thread"),
]

POLICY = AdaptationPolicy(
    epochs=4, learning_rate=3e-2, memory=MemoryPolicy(studies=20), adapter="head", si_strength=1.0
)
each = pytest.mark.parametrize("strategy", list(CARDS))


def fresh(vectors: Backbone, classes: tuple[str, ...] = ("a", "b")) -> Adapter:
    return new_adapter(vectors, task=Task.MULTI_LABEL, classes=classes, policy=POLICY, seed=0)


def stage(number: int) -> Experience:
    generator = np.random.default_rng(number)
    tokens = generator.normal(size=(50, 1, 48))
    turn = np.random.default_rng(10 + number).normal(size=(48, 2))
    return Experience(
        name=str(number),
        tokens=tokens.astype(np.float16),
        labels=(tokens[:, 0] @ turn > 0).astype(np.float64),
        patient_key=np.array([f"p{number}-{i}" for i in range(50)]),
    )


STAGES = [stage(number) for number in range(3)]


def learner_of(adapter: Adapter, strategy: str) -> Any:
    from continual.learner import Learner

    return Learner(adapter, strategy=strategy, policy=POLICY)


@each
def test_between_two_stages_a_new_learner_goes_on_with_the_state(vectors: Backbone, strategy: str) -> None:
    through, before = fresh(vectors), fresh(vectors)
    learner, first = learner_of(through, strategy), learner_of(before, strategy)
    for experience in STAGES:
        learner.learn(experience, quiet)
    for experience in STAGES[:2]:
        first.learn(experience, quiet)
    later = before.copy()
    second = learner_of(later, strategy)
    for experience in STAGES[:2]:
        second.recall(experience)
    second.restore_state(first.state())
    second._avalanche.optimizer.load_state_dict(copy.deepcopy(first._avalanche.optimizer.state_dict()))
    assert second.state().keys() == first.state().keys()
    second.learn(STAGES[2], quiet)
    assert same(weights(later), weights(through))


@each
@pytest.mark.parametrize("epoch", [1, 3])
def test_inside_a_stage_a_new_learner_goes_on_at_the_next_epoch(vectors: Backbone, strategy: str, epoch: int) -> None:
    through, kept = fresh(vectors), {}
    learner = learner_of(through, strategy)

    def keep(done: int, epochs: int, loss: float) -> None:
        if done == epoch:
            kept.update(standing=learner.standing())

    learner.learn(STAGES[0], quiet)
    later = through.copy()
    learner.learn(STAGES[1], keep)
    learner.learn(STAGES[2], quiet)

    second = learner_of(later, strategy)
    second.recall(STAGES[0])
    second.learn(STAGES[1], quiet, resumed=kept["standing"])
    second.learn(STAGES[2], quiet)
    assert same(weights(later), weights(through))


def test_what_si_measured_protects_in_the_next_run_even_after_the_head_has_grown(vectors: Backbone) -> None:
    champion = fresh(vectors)
    first = learner_of(champion, "si")
    first.learn(STAGES[0], quiet)
    wide = fresh(vectors, ("a", "b", "new"))
    with torch.no_grad():
        for name, value in champion.network.trainable().items():
            wide.network.trainable()[name][:2].copy_(value)
    unknown = np.full((50, 1), np.nan)
    stages = [
        Experience(
            name=each.name,
            tokens=each.tokens,
            labels=np.hstack([each.labels, unknown]),
            patient_key=each.patient_key,
        )
        for each in STAGES[:2]
    ]
    moved = {}
    for restored in (False, True):
        adapter = wide.copy()
        learner = learner_of(adapter, "si")
        learner.recall(stages[0])
        if restored:
            learner.restore_state(first.state())
        learner.learn(stages[1], quiet)
        moved[restored] = sum(float(((a - b) ** 2).sum()) for a, b in zip(weights(adapter), weights(wide), strict=True))
    assert moved[True] < 0.9 * moved[False]


def test_a_state_of_something_else_is_refused(vectors: Backbone) -> None:
    ewc = learner_of(fresh(vectors), "ewc")
    ewc.learn(STAGES[0], quiet)
    with pytest.raises(ValueError, match="which this strategy does not keep"):
        learner_of(fresh(vectors), "si").restore_state(ewc.state())
    with pytest.raises(ValueError, match="recall the same stages first"):
        learner_of(fresh(vectors), "ewc").restore_state(ewc.state())
    der = learner_of(fresh(vectors), "der")
    der.learn(STAGES[0], quiet)
    with pytest.raises(ValueError, match="of 1 stages, 0 were shown"):
        learner_of(fresh(vectors), "der").restore_state(der.state())


def test_states_hold_no_tokens_of_a_study(vectors: Backbone) -> None:
    """What a recall finds again is not kept a second time."""
    for strategy in CARDS:
        learner = learner_of(fresh(vectors), strategy)
        for experience in STAGES:
            learner.learn(experience, quiet)
        assert all(value.dtype != torch.float16 for value in learner.state().values())
