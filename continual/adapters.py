"""Adapters: a few numbers that turn a frozen backbone into a model of one task, kept as safetensors.

An adapter is a copy of the backbone's tail with additions of its kind (``continual.adapter_kinds``), the rest
frozen, and a head on the class token. Only the additions and the head are trained and stored. A kind that
changes no block needs no tail: it reads the cached embedding instead of the cached tokens.

A site may have an adapter of its own on top of a shared one (``stack``): the shared one is frozen, and its
logits stand until the site's have learned something to add.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import torch as safetensors
from torch import Tensor, nn

from continual.adapter_card import AdapterCard, Reads
from continual.adapter_kinds import KINDS
from continual.adapter_parts import CachedEmbedding, ResidualHead
from continual.analytic import AnalyticHead, AnalyticOnTop, keep_once
from continual.backbones import Backbone
from continual.feature_store import FeatureStore, Hashes
from continual.outputs import IDENTITY, Outputs
from continual.policies import AdaptationPolicy
from continual.task_training import TRAINING
from monitor.tasks import TASKS, Task

__all__ = ["KINDS", "Adapter", "AdapterCard", "AdapterRefused"]

METADATA_KEY = "wardround"
BATCH = 64
BATCH_OF_EMBEDDINGS = 4096

Inputs = NDArray[np.float16] | NDArray[np.float32]


class AdapterRefused(ValueError):
    """An adapter file is not what it should be, or does not fit the backbone; it was not loaded."""


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """An adapter in working order; ``network`` maps what its card says it reads to logits (n, score columns).

    ``shared`` is the adapter that a site's adapter stands on. ``outputs`` say what becomes of the logits; by
    default nothing but chances.
    """

    card: AdapterCard
    network: AdaptedTail
    _: KW_ONLY
    shared: Adapter | None = None
    outputs: Outputs = IDENTITY

    @property
    def trainable_parameters(self) -> int:
        """Count the numbers that are learned (of an analytic adapter its solution, not the sums behind it)."""
        trained = sum(parameter.numel() for parameter in self.network.trainable().values())
        return trained + sum(head.solution_size for head in self.network.analytic().values())

    def copy(self) -> Adapter:
        """Copy the adapter, so that training the copy leaves this one as it is."""
        return replace(self, network=copy.deepcopy(self.network))


class AdaptedTail(nn.Module):
    """A tail with additions and a head; float tokens (n, T, width), or embeddings (n, 1, width), to logits."""

    def __init__(self, tail: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.tail = tail
        self.head = head
        self._untrained = {name: value.detach().clone() for name, value in self.trainable().items()}

    def forward(self, tokens: Tensor) -> Tensor:
        """Give logits (n, score columns) for what the adapter reads, of any float type."""
        logits: Tensor = self.head(self.tail(tokens.float()))
        return logits

    def trainable(self) -> dict[str, nn.Parameter]:
        """List the parameters that are trained, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def analytic(self) -> dict[str, AnalyticHead]:
        """List the head that learns in closed form, by name, if this adapter has one of its own."""
        found = {name: part for name, part in self.named_modules() if isinstance(part, AnalyticHead)}
        return {name: part for name, part in found.items() if not part.frozen}

    def stored(self) -> dict[str, Tensor]:
        """List everything that is learned and stored, by name."""
        kept: dict[str, Tensor] = {name: value.detach() for name, value in self.trainable().items()}
        for path, head in self.analytic().items():
            kept |= {f"{path}.{name}": value for name, value in head.state_dict().items()}
        return kept

    def freeze(self) -> AdaptedTail:
        """Let nothing in it learn any more; returns it."""
        self.requires_grad_(False)
        for head in self.analytic().values():
            head.frozen = True
        return self

    def untrained(self) -> dict[str, Tensor]:
        """Give what the trained parameters were when the adapter was made, for who must start from nothing."""
        return self._untrained

    def remember_untrained_head(self) -> None:
        """Take note of a head that was replaced by a wider one: untrained it says nothing, as every new head."""
        self._untrained |= {
            f"head.{name}": torch.zeros_like(value)
            for name, value in self.head.named_parameters()
            if value.requires_grad
        }


def new_adapter(
    backbone: Backbone, *, task: Task, classes: tuple[str, ...], policy: AdaptationPolicy, seed: int
) -> Adapter:
    """Make an untrained adapter: it says 0.5 (or equal shares) about everything; the same seed, the same bytes.

    Raises:
        ValueError: more blocks than the backbone stores tokens for, or blocks that the kind cannot change.
    """
    card = _card_of(backbone, policy, task=task, classes=classes, reads=KINDS[policy.adapter].reads)
    return build(backbone, card, seed)


def stack(shared: Adapter, backbone: Backbone, *, policy: AdaptationPolicy, seed: int) -> Adapter:
    """Make an untrained adapter for one site on top of a shared one, of any kind.

    The site's additions work inside the shared, frozen tail, and its logits are added to the shared ones,
    from zero on; an analytic one takes the shared logits for features and answers alone once it has
    learned. So untrained it says what the shared one says (prompts, which are read from the first day, and
    blocks changed on top of cached embeddings, which are rounder than tokens, move it a little).

    Raises:
        ValueError: the shared one stands on another already or belongs to another backbone, or as ``new_adapter``.
    """
    if shared.shared is not None:
        raise ValueError("a site's adapter stands on a shared one, not on another site's; stack on the shared one")
    check_backbone(shared.card, backbone, "the shared adapter")
    reads = "tokens" if "tokens" in (shared.card.reads, KINDS[policy.adapter].reads) else "embedding"
    card = _card_of(
        backbone,
        policy,
        task=shared.card.task,
        classes=shared.card.classes,
        reads=reads,
        shared_sha256=hashlib.sha256(serialise(shared)).hexdigest(),
    )
    return build(backbone, card, seed, shared)


def _card_of(backbone: Backbone, policy: AdaptationPolicy, **told: Any) -> AdapterCard:
    sizes = {name: getattr(policy, name) for name in KINDS[policy.adapter].sizes}
    return AdapterCard(
        kind=policy.adapter,
        backbone=backbone.card.name,
        backbone_sha256=backbone.card.sha256,
        feature_key=backbone.card.feature_key,
        **sizes,
        **told,
    )


def build(backbone: Backbone, card: AdapterCard, seed: int, shared: Adapter | None = None) -> Adapter:
    """Build the untrained adapter that a card describes; the same seed, the same bytes.

    Raises:
        ValueError: the kind cannot change the blocks that the card names.
    """
    kind, width = KINDS[card.kind], backbone.card.width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        below = None if shared is None else copy.deepcopy(shared.network).freeze()
        tail = _tail_of(backbone, card, below)
        frozen = set(map(id, tail.parameters()))
        kind.add(tail, backbone.card.token_width, card)
        for parameter in tail.parameters():
            parameter.requires_grad_(id(parameter) not in frozen)
        head = kind.head(card, width)
    if below is not None:
        head = AnalyticOnTop(below.head, head) if isinstance(head, AnalyticHead) else ResidualHead(below.head, head)
    return Adapter(card, AdaptedTail(tail, head).eval(), shared=shared)


def _tail_of(backbone: Backbone, card: AdapterCard, below: AdaptedTail | None) -> nn.Module:
    if card.reads == "embedding":
        return CachedEmbedding()
    if below is not None and not isinstance(below.tail, CachedEmbedding):
        return below.tail
    return copy.deepcopy(backbone.tail)


def read_inputs(reads: Reads, features: FeatureStore, hashes: Hashes) -> Inputs:
    """Read what an adapter's card says it reads of images, from what is stored of them.

    Returns: embeddings (n, 1, width) float32, or tokens (n, T, width) float16.

    Raises:
        FeaturesMissing: an image was never embedded.
    """
    return features.tokens(hashes) if reads == "tokens" else features.embeddings(hashes)[:, None]


def choose_inputs(reads: Reads, embedded: tuple[NDArray[np.float32], NDArray[np.float16]]) -> Inputs:
    """Choose what an adapter's card says it reads from the embeddings and tokens of ``Backbone.embed``."""
    embeddings, tokens = embedded
    return tokens if reads == "tokens" else embeddings[:, None]


@torch.inference_mode()
def score(adapter: Adapter, inputs: Inputs) -> NDArray[np.float64]:
    """Score studies from what ``read_inputs`` gives; probabilities, shape (n, score columns)."""
    card, outputs = adapter.card, adapter.outputs
    activate, size = TRAINING[card.task].activate, BATCH if card.reads == "tokens" else BATCH_OF_EMBEDDINGS
    scores = np.empty((len(inputs), TASKS[card.task].score_columns(card.classes)))
    for start in range(0, len(inputs), size):
        part = slice(start, start + size)
        logits = adapter.network(torch.from_numpy(np.ascontiguousarray(inputs[part]))).double()
        scores[part] = outputs.apply(logits.numpy(), card.task) if outputs.changes_scores else activate(logits).numpy()
    return scores


def serialise(adapter: Adapter) -> bytes:
    """Give the bytes of an adapter's file.

    Raises:
        ValueError: a learned number is not finite.
    """
    tensors = {name: keep_once(name, value).contiguous() for name, value in sorted(adapter.network.stored().items())}
    tensors |= {name: torch.from_numpy(value) for name, value in sorted(adapter.outputs.tensors().items())}
    if not all(value.isfinite().all() for value in tensors.values()):
        raise ValueError("the adapter holds numbers that are not finite; it was not saved")
    card = json.dumps(adapter.card.model_dump(mode="json"), sort_keys=True)
    return safetensors.save(tensors, {METADATA_KEY: card})


def check_backbone(card: AdapterCard, backbone: Backbone, what: str) -> None:
    """Refuse an adapter of another backbone.

    Raises:
        AdapterRefused: it was trained on other features.
    """
    if card.feature_key != backbone.card.feature_key:
        raise AdapterRefused(
            f"{what} was trained on backbone {card.backbone} ({card.feature_key}), "
            f"not on {backbone.card.name} ({backbone.card.feature_key}); restore the [backbone] settings of its time"
        )
