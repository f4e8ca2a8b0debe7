"""A site's adapter stands on a shared one, which it neither changes nor can do without."""

from pathlib import Path

import numpy as np
import pytest
import torch

from continual.adapter_changes import detach_site, grow, merge
from continual.adapter_files import load_adapter, save_adapter
from continual.adapters import KINDS, Adapter, AdapterRefused, new_adapter, score, stack
from continual.analytic_learner import accumulate
from continual.backbones import Backbone, load_backbone
from continual.experiences import Experience
from continual.policies import AdaptationPolicy
from monitor.tasks import Task

CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_backbone("tiny", source="random", image_size=28)


def policy_of(kind: str) -> AdaptationPolicy:
    return AdaptationPolicy.model_validate(
        {"adapter": kind, "rank": 4, "bottleneck": 6, "prompts": 3, "random_features": 16}
    )


def draw(backbone: Backbone, reads: str, seed: int) -> Experience:
    generator = np.random.default_rng(seed)
    tokens = generator.normal(size=(60, 5, 48)).astype(np.float16)
    with torch.inference_mode():
        embeddings = backbone.tail(torch.from_numpy(tokens).float()).numpy()
    hidden = embeddings @ np.random.default_rng(seed).normal(size=(48, 3))
    return Experience(
        name="drawn",
        tokens=tokens if reads == "tokens" else embeddings[:, None],
        labels=hidden.argmax(axis=1)[:, None].astype(np.float64),
        patient_key=np.array([f"p{i // 2}" for i in range(60)]),
    )


def train(adapter: Adapter, studies: Experience) -> None:
    if adapter.network.analytic():
        accumulate(adapter, studies)
        return
    optimizer = torch.optim.Adam(adapter.network.trainable().values(), lr=0.01)
    for _ in range(10):
        optimizer.zero_grad()
        logits = adapter.network(torch.from_numpy(studies.tokens))
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(studies.labels[:, 0]).long()).backward()
        optimizer.step()


def make_shared(backbone: Backbone, kind: str) -> Adapter:
    shared = new_adapter(backbone, task=Task.MULTI_CLASS, classes=CLASSES, policy=policy_of(kind), seed=0)
    train(shared, draw(backbone, shared.card.reads, seed=1))
    return shared


@pytest.mark.parametrize("below", list(KINDS))
@pytest.mark.parametrize("above", list(KINDS))
def test_a_site_adapter_leaves_the_shared_one_untouched(tiny: Backbone, tmp_path: Path, below: str, above: str) -> None:
    shared = make_shared(tiny, below)
    shared_sha256 = save_adapter(shared, tmp_path)
    of_shared = draw(tiny, shared.card.reads, seed=2)
    before = score(shared, of_shared.tokens)

    site = stack(shared, tiny, policy=policy_of(above), seed=5)
    studies = draw(tiny, site.card.reads, seed=2)
    if above == "prompt":
        pass  # its tokens are read from the first day
    elif site.card.reads == shared.card.reads:
        assert np.array_equal(score(site, studies.tokens), before)
    else:  # the shared one read the embedding, which the site's computes from tokens in half precision
        np.testing.assert_allclose(score(site, studies.tokens), before, atol=0.02)
    assert site.card.shared_sha256 == shared_sha256
    untrained = score(site, studies.tokens)
    train(site, studies)
    assert not np.array_equal(score(site, studies.tokens), untrained)
    assert not any("default" in name or "shared" in name for name in site.network.stored())

    sha256 = save_adapter(site, tmp_path)
    assert np.array_equal(score(shared, of_shared.tokens), before)
    assert save_adapter(shared, tmp_path) == shared_sha256
    assert np.array_equal(score(detach_site(site), of_shared.tokens), before)
    loaded = load_adapter(tiny, tmp_path / f"{sha256}.safetensors", sha256)
    assert np.array_equal(score(loaded, studies.tokens), score(site, studies.tokens))
    assert save_adapter(loaded, tmp_path) == sha256
    assert save_adapter(detach_site(loaded), tmp_path) == shared_sha256
    alone = new_adapter(tiny, task=Task.MULTI_CLASS, classes=CLASSES, policy=policy_of(above), seed=0)
    extra = 3 * 3 if above == "analytic" else 0  # three shared logits are features, each with three weights
    assert site.trainable_parameters == alone.trainable_parameters + extra


def test_a_site_adapter_needs_the_shared_one_that_it_names(tiny: Backbone, tmp_path: Path) -> None:
    shared = make_shared(tiny, "lora")
    shared_sha256 = save_adapter(shared, tmp_path)
    site = stack(shared, tiny, policy=policy_of("head"), seed=0)
    sha256 = save_adapter(site, tmp_path)
    path = tmp_path / f"{sha256}.safetensors"
    beside = tmp_path / f"{shared_sha256}.safetensors"
    other = save_adapter(make_shared(tiny, "head"), tmp_path / "other")
    beside.write_bytes((tmp_path / "other" / f"{other}.safetensors").read_bytes())
    with pytest.raises(AdapterRefused, match=rf"expected {shared_sha256[:12]}….*the file was changed"):
        load_adapter(tiny, path, sha256)
    beside.unlink()
    with pytest.raises(AdapterRefused, match=rf"{shared_sha256}.safetensors does not exist; restore"):
        load_adapter(tiny, path, sha256)


def test_what_cannot_be_stacked_says_why(tiny: Backbone) -> None:
    shared = make_shared(tiny, "head")
    site = stack(shared, tiny, policy=policy_of("head"), seed=0)
    with pytest.raises(ValueError, match="stack on the shared one"):
        stack(site, tiny, policy=policy_of("head"), seed=0)
    other = load_backbone("other", source="random", image_size=28)
    with pytest.raises(AdapterRefused, match="was trained on backbone tiny"):
        stack(shared, other, policy=policy_of("head"), seed=0)
    with pytest.raises(ValueError, match="grow that, and stack the site's on it anew"):
        grow(site, (*CLASSES, "d"))
    with pytest.raises(ValueError, match="stands on no shared one"):
        detach_site(shared)


@pytest.mark.parametrize(("below", "above"), [("lora", "lora"), ("norm", "lora"), ("lora", "norm"), ("norm", "norm")])
def test_a_stack_is_merged_at_once(tiny: Backbone, below: str, above: str) -> None:
    site = stack(make_shared(tiny, below), tiny, policy=policy_of(above), seed=0)
    studies = draw(tiny, "tokens", seed=2)
    train(site, studies)
    inputs = torch.from_numpy(studies.tokens)
    with torch.inference_mode():
        torch.testing.assert_close(merge(site)(inputs), site.network(inputs), atol=1e-5, rtol=0)
