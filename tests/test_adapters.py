"""Adapters: exact sizes and losses, and files that are the one meant or refused."""

import hashlib
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from continual.adapter_files import load_adapter, save_adapter
from continual.adapters import Adapter, AdapterRefused, choose_inputs, new_adapter, read_inputs, score
from continual.backbones import Backbone, load_backbone
from continual.feature_store import FeatureStore
from continual.policies import AdaptationPolicy
from continual.task_training import TRAINING
from monitor.tasks import Task

CLASSES = {Task.BINARY: ("no", "yes"), Task.MULTI_CLASS: ("a", "b", "c"), Task.MULTI_LABEL: ("a", "b", "c")}


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_backbone("tiny", source="random", image_size=28)


def make(backbone: Backbone, task: Task = Task.BINARY, *, seed: int = 0, **policy: object) -> Adapter:
    return new_adapter(backbone, task=task, classes=CLASSES[task], policy=AdaptationPolicy(**policy), seed=seed)


def stir(adapter: Adapter, seed: int = 5) -> Adapter:
    """Give the trained numbers values, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in adapter.network.trainable().values():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return adapter


def tokens_of(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 5, 48)).astype(np.float16)


@pytest.mark.parametrize("task", list(Task))
def test_an_untrained_adapter_takes_no_side(tiny: Backbone, task: Task) -> None:
    scores = score(make(tiny, task), tokens_of(4))
    expected = {Task.BINARY: (4, 1, 0.5), Task.MULTI_CLASS: (4, 3, 1 / 3), Task.MULTI_LABEL: (4, 3, 0.5)}[task]
    assert scores.shape == expected[:2]
    np.testing.assert_allclose(scores, expected[2])


def test_an_untrained_adapter_leaves_the_embedding_as_it_is(tiny: Backbone) -> None:
    tokens = torch.from_numpy(tokens_of(6)).float()
    with torch.inference_mode():
        np.testing.assert_allclose(make(tiny).network.tail(tokens), tiny.tail(tokens), atol=1e-6)


def test_only_the_low_rank_additions_and_the_head_are_trained(tiny: Backbone) -> None:
    adapter = make(tiny, rank=8, blocks=2)
    qkv, proj, head = 8 * 48 + 144 * 8, 8 * 48 + 48 * 8, 48 + 1
    assert adapter.trainable_parameters == 2 * (qkv + proj) + head
    assert all("lora" in name or name.startswith("head.") for name in adapter.network.trainable())


def test_fewer_blocks_take_the_last_ones(tiny: Backbone) -> None:
    names = list(make(tiny, blocks=1).network.trainable())
    assert any(".1.attn" in name for name in names)
    assert not any(".0.attn" in name for name in names)


def test_an_adapter_does_not_change_its_backbone_or_another_adapter(tiny: Backbone) -> None:
    tokens = torch.from_numpy(tokens_of(3)).float()
    with torch.inference_mode():
        before = tiny.tail(tokens).clone()
        one = make(tiny)
        copy = one.copy()
        stir(one)
        assert torch.equal(tiny.tail(tokens), before)
    assert not np.allclose(score(one, tokens_of(3)), score(copy, tokens_of(3)))


def test_a_head_alone_is_an_adapter_of_a_backbone_without_blocks() -> None:
    whole = load_backbone("tiny", source="random", image_size=28, blocks=0)
    adapter = make(whole, adapter="head")
    assert set(adapter.network.trainable()) == {"head.weight", "head.bias"}
    with pytest.raises(ValueError, match='set adapter = "head"'):
        make(whole)


def test_what_cannot_be_built_is_an_error_that_names_the_cure(tiny: Backbone) -> None:
    with pytest.raises(ValueError, match="lower blocks"):
        make(tiny, blocks=3)


@pytest.mark.parametrize("task", list(Task))
def test_scores_are_probabilities_and_do_not_depend_on_batches(tiny: Backbone, task: Task) -> None:
    adapter = stir(make(tiny, task))
    together = score(adapter, tokens_of(150))
    np.testing.assert_allclose(together[100:103], score(adapter, tokens_of(150)[100:103]), atol=1e-5)
    assert ((together >= 0) & (together <= 1)).all()
    if task is Task.MULTI_CLASS:
        np.testing.assert_allclose(together.sum(axis=1), 1)
    assert score(adapter, tokens_of(0)).shape == (0, together.shape[1])


def test_an_adapter_reads_what_its_card_says(tiny: Backbone, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (6, 28, 28, 3)).astype(np.uint8)
    embeddings, tokens = tiny.embed(images)
    store = FeatureStore(tmp_path)
    names = [f"{number:064x}" for number in range(6)]
    store.put(names, embeddings, tokens, np.zeros((6, 2), np.float32))
    for kind, shape, dtype in (("head", (2, 1, 48), np.float32), ("lora", (2, 5, 48), np.float16)):
        adapter = stir(make(tiny, adapter=kind))
        inputs = read_inputs(adapter.card.reads, store, names[4:2:-1])
        assert (inputs.shape, inputs.dtype) == (shape, dtype)
        direct = choose_inputs(adapter.card.reads, (embeddings, tokens))
        np.testing.assert_allclose(score(adapter, inputs), score(adapter, direct)[4:2:-1], atol=1e-6)


def test_yes_no_loss_leaves_unknown_labels_out() -> None:
    logits = torch.tensor([[0.0, 2.0], [1.0, -1.0]])
    labels = torch.tensor([[1.0, math.nan], [0.0, 1.0]], dtype=torch.float64)
    by_hand = (math.log(2) + math.log(1 + math.e) + math.log(1 + math.e)) / 3
    for task in (Task.BINARY, Task.MULTI_LABEL):
        assert float(TRAINING[task].loss(logits, labels)) == pytest.approx(by_hand, rel=1e-6)


def test_one_of_loss_is_the_cross_entropy_of_known_rows() -> None:
    logits = torch.tensor([[0.0, 0.0, math.log(2)], [9.0, 0.0, 0.0]])
    labels = torch.tensor([[2.0], [math.nan]], dtype=torch.float64)
    assert float(TRAINING[Task.MULTI_CLASS].loss(logits, labels)) == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("task", list(Task))
def test_a_saved_adapter_is_loaded_as_it_was(tiny: Backbone, tmp_path: Path, task: Task) -> None:
    adapter = stir(make(tiny, task))
    sha256 = save_adapter(adapter, tmp_path)
    path = tmp_path / f"{sha256}.safetensors"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    loaded = load_adapter(tiny, path, sha256)
    assert loaded.card == adapter.card
    assert np.array_equal(score(loaded, tokens_of(9)), score(adapter, tokens_of(9)))
    assert save_adapter(loaded, tmp_path / "again") == sha256
    card = json.loads((tmp_path / f"{sha256}.json").read_text())
    assert (card["sha256"], card["backbone"], card["classes"]) == (sha256, "tiny", list(CLASSES[task]))


def test_the_same_seed_gives_the_same_bytes(tiny: Backbone, tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = save_adapter(make(tiny, seed=3), tmp_path)
    torch.manual_seed(2)
    assert save_adapter(make(tiny, seed=3), tmp_path) == first
    assert save_adapter(make(tiny, seed=4), tmp_path) != first


def test_numbers_that_are_not_finite_are_not_saved(tiny: Backbone, tmp_path: Path) -> None:
    adapter = make(tiny)
    with torch.no_grad():
        adapter.network.head.bias.fill_(math.nan)
    with pytest.raises(ValueError, match="not finite"):
        save_adapter(adapter, tmp_path)
    assert not list(tmp_path.iterdir())


def rewrite(directory: Path, content: bytes) -> tuple[Path, str]:
    sha256 = hashlib.sha256(content).hexdigest()
    path = directory / f"{sha256}.safetensors"
    path.write_bytes(content)
    return path, sha256


@pytest.fixture
def good(tiny: Backbone, tmp_path: Path) -> bytes:
    sha256 = save_adapter(stir(make(tiny)), tmp_path)
    return (tmp_path / f"{sha256}.safetensors").read_bytes()


def card_of(content: bytes) -> dict[str, str]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]


def test_one_flipped_bit_is_refused(tiny: Backbone, tmp_path: Path, good: bytes) -> None:
    sha256 = hashlib.sha256(good).hexdigest()
    path = tmp_path / f"{sha256}.safetensors"
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(AdapterRefused, match="the file was changed; restore it"):
        load_adapter(tiny, path, sha256)


def test_another_backbone_is_refused(tmp_path: Path, good: bytes) -> None:
    other = load_backbone("other", source="random", image_size=28)
    with pytest.raises(AdapterRefused, match="was trained on backbone tiny"):
        load_adapter(other, *rewrite(tmp_path, good))


def test_a_missing_file_is_refused(tiny: Backbone, tmp_path: Path) -> None:
    with pytest.raises(AdapterRefused, match="does not exist; restore"):
        load_adapter(tiny, tmp_path / "absent.safetensors", "0" * 64)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 7,
        (2**63).to_bytes(8, "little") + b"{}",
        pickle.dumps({"head.weight": [1.0]}),
        save({"head.weight": torch.zeros(1, 48)}),
        save({"head.weight": torch.zeros(1, 48)}, {"wardround": '{"format": 2, "surprise": true}'}),
    ],
)
def test_what_is_no_adapter_is_refused_even_under_its_own_hash(tiny: Backbone, tmp_path: Path, content: bytes) -> None:
    with pytest.raises(AdapterRefused, match="is no adapter of Wardround"):
        load_adapter(tiny, *rewrite(tmp_path, content))


def test_a_file_of_an_older_format_says_what_to_do(tiny: Backbone, tmp_path: Path) -> None:
    old = save({"head.weight": torch.zeros(1, 48)}, {"wardround": '{"format": 1, "kind": "lora"}'})
    with pytest.raises(AdapterRefused, match=r"has format 1, .* reads format 2; .* train it again and install it"):
        load_adapter(tiny, *rewrite(tmp_path, old))


@pytest.mark.parametrize("broken", ["shape", "missing", "extra", "type", "nan"])
def test_tensors_other_than_the_card_promises_are_refused(
    tiny: Backbone, tmp_path: Path, good: bytes, broken: str
) -> None:
    tensors = load(good)
    weight = tensors["head.weight"]
    if broken == "missing":
        del tensors["head.weight"]
    else:
        name = "tail.blocks.0.attn.qkv.base_layer.weight" if broken == "extra" else "head.weight"
        tensors[name] = {
            "shape": torch.zeros(2, 48),
            "extra": torch.zeros(144, 48),
            "type": weight.double(),
            "nan": weight * math.nan,
        }[broken]
    content = save(tensors, card_of(good))
    with pytest.raises(AdapterRefused, match=r"does not hold the tensors|not finite"):
        load_adapter(tiny, *rewrite(tmp_path, content))
