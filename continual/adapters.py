"""Adapters: a few numbers that turn a frozen backbone into a model of one task, kept as safetensors.

An adapter is a copy of the backbone's tail with low-rank additions (LoRA) in its last blocks, the norm
frozen, and a linear head on the class token. Only the additions and the head are trained and stored.
"""

from __future__ import annotations

import copy
import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor, nn
from torch.nn import functional

from continual.adapter_kinds import ADAPTERS
from continual.backbones import Backbone
from continual.files import content_sha256, write_atomically
from continual.outputs import IDENTITY, PREFIX, Outputs
from continual.plans import AdaptationPolicy
from monitor.tasks import TASKS, Task

__all__ = ["ADAPTERS", "TRAINING", "Adapter", "AdapterCard", "AdapterRefused", "content_sha256"]

SUFFIX = ".safetensors"
MAXIMUM_BYTES = 256 * 2**20
METADATA_KEY = "wardround"
BATCH = 64


class AdapterRefused(ValueError):
    """An adapter file is not what it should be, or does not fit the backbone; it was not loaded."""


class AdapterCard(BaseModel):
    """What an adapter is and which backbone it needs; stands inside its file, under its hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(1, ge=1, le=1)
    kind: str
    task: Task
    classes: tuple[str, ...]
    rank: int = Field(ge=0)
    blocks: int = Field(ge=0)
    backbone: str
    backbone_sha256: str
    feature_key: str


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """An adapter on its backbone's tail; ``network`` maps tokens (n, T, width) to logits (n, score columns).

    ``outputs`` say what becomes of the logits; by default nothing but chances.
    """

    card: AdapterCard
    network: AdaptedTail
    outputs: Outputs = IDENTITY

    @property
    def trainable_parameters(self) -> int:
        """Count the numbers that are trained and stored."""
        return sum(parameter.numel() for parameter in self.network.trainable().values())

    def copy(self) -> Adapter:
        """Copy the adapter, so that training the copy leaves this one as it is."""
        return Adapter(self.card, copy.deepcopy(self.network), self.outputs)


class AdaptedTail(nn.Module):
    """The last blocks with additions, the frozen norm, and the head."""

    def __init__(self, tail: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.tail = tail
        self.head = nn.Linear(width, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Give logits (n, score columns) for tokens (n, T, width) of any float type."""
        logits: Tensor = self.head(self.tail(tokens.float()))
        return logits

    def trainable(self) -> dict[str, nn.Parameter]:
        """List the parameters that are trained, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}


# --- everything that depends on the task ------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTraining:
    """How a task's logits become probabilities, and its loss of logits and labels (NaN: not counted)."""

    activate: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]


def _yes_no_loss(logits: Tensor, labels: Tensor) -> Tensor:
    known = ~labels.isnan()
    return functional.binary_cross_entropy_with_logits(logits[known], labels[known].to(logits.dtype))


def _one_of_loss(logits: Tensor, labels: Tensor) -> Tensor:
    known = ~labels[:, 0].isnan()
    return functional.cross_entropy(logits[known], labels[known, 0].long())


TRAINING: dict[Task, TaskTraining] = {
    Task.BINARY: TaskTraining(activate=torch.sigmoid, loss=_yes_no_loss),
    Task.MULTI_CLASS: TaskTraining(activate=lambda logits: torch.softmax(logits, dim=1), loss=_one_of_loss),
    Task.MULTI_LABEL: TaskTraining(activate=torch.sigmoid, loss=_yes_no_loss),
}


# --- making, scoring, keeping ----------------------------------------------------------------------


def new_adapter(
    backbone: Backbone, *, task: Task, classes: tuple[str, ...], policy: AdaptationPolicy, seed: int
) -> Adapter:
    """Make an untrained adapter: it says 0.5 (or equal shares) about everything; the same seed, the same bytes.

    Raises:
        ValueError: unknown kind of adapter, or more blocks than the backbone stores tokens for.
    """
    lora = policy.adapter == "lora"
    card = AdapterCard(
        kind=policy.adapter,
        task=task,
        classes=classes,
        rank=policy.rank if lora else 0,
        blocks=policy.blocks if lora else 0,
        backbone=backbone.card.name,
        backbone_sha256=backbone.card.sha256,
        feature_key=backbone.card.feature_key,
    )
    return _build(backbone, card, seed)


def _build(backbone: Backbone, card: AdapterCard, seed: int) -> Adapter:
    if card.kind not in ADAPTERS:
        raise ValueError(f"unknown adapter {card.kind!r}; there are {', '.join(ADAPTERS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tail = copy.deepcopy(backbone.tail)
        ADAPTERS[card.kind](tail, backbone.card, card.rank, card.blocks)
        outputs = TASKS[card.task].score_columns(card.classes)
        network = AdaptedTail(tail, backbone.card.width, outputs)
    return Adapter(card, network.eval())


@torch.inference_mode()
def score(adapter: Adapter, tokens: NDArray[np.float16]) -> NDArray[np.float64]:
    """Score studies from their stored tokens (n, T, width); probabilities, shape (n, score columns)."""
    activate, outputs = TRAINING[adapter.card.task].activate, adapter.outputs
    scores = np.empty((len(tokens), adapter.network.head.out_features))
    for start in range(0, len(tokens), BATCH):
        part = slice(start, start + BATCH)
        logits = adapter.network(torch.from_numpy(np.ascontiguousarray(tokens[part])))
        if outputs.changes_scores:
            scores[part] = outputs.apply(logits.double().numpy(), adapter.card.task)
        else:
            scores[part] = activate(logits.double()).numpy()
    return scores


def save_adapter(adapter: Adapter, directory: Path) -> str:
    """Write DIRECTORY/<sha256>.safetensors and its card beside it as JSON; returns the sha256.

    The same adapter gives the same bytes; a file appears whole or not at all.

    Raises:
        ValueError: a trained number is not finite.
        OSError: the disk is full or the folder may not be written.
    """
    tensors = {name: value.detach().contiguous() for name, value in sorted(adapter.network.trainable().items())}
    tensors |= {name: torch.from_numpy(value) for name, value in sorted(adapter.outputs.tensors().items())}
    if not all(value.isfinite().all() for value in tensors.values()):
        raise ValueError("the adapter holds numbers that are not finite; it was not saved")
    card = json.dumps(adapter.card.model_dump(mode="json"), sort_keys=True)
    content = safetensors.save(tensors, {METADATA_KEY: card})
    sha256 = hashlib.sha256(content).hexdigest()
    beside = json.loads(card) | {"sha256": sha256, "parameters": adapter.trainable_parameters}
    write_atomically(directory / f"{sha256}.json", json.dumps(beside, indent=2).encode())
    write_atomically(directory / f"{sha256}{SUFFIX}", content)
    return sha256


def load_adapter(backbone: Backbone, path: Path, expected_sha256: str) -> Adapter:
    """Load an adapter onto its backbone, after proving that it is the one meant and nothing else.

    Checked in this order: size, hash, card, backbone, tensor names, shapes and types, finite numbers.

    Raises:
        AdapterRefused: a check failed.
    """
    card, tensors = _parse(path, _read_checked(path, expected_sha256))
    if card.feature_key != backbone.card.feature_key:
        raise AdapterRefused(
            f"{path.name} was trained on backbone {card.backbone} ({card.feature_key}), "
            f"not on {backbone.card.name} ({backbone.card.feature_key}); restore the [backbone] settings of its time"
        )
    adapter = _build(backbone, card, seed=0)
    outputs = _outputs_of(card, tensors, path)
    _fill(adapter, {name: value for name, value in tensors.items() if not name.startswith(PREFIX)}, path)
    return Adapter(card, adapter.network, outputs)


def read_outputs(path: Path, expected_sha256: str) -> Outputs:
    """Read what an adapter's file says of its outputs, without its backbone.

    Raises:
        AdapterRefused: the file is not the one meant, or no adapter.
    """
    card, tensors = _parse(path, _read_checked(path, expected_sha256))
    return _outputs_of(card, tensors, path)


def _read_checked(path: Path, expected_sha256: str) -> bytes:
    content = _read(path)
    if (found := hashlib.sha256(content).hexdigest()) != expected_sha256:
        raise AdapterRefused(
            f"{path.name} has sha256 {found[:12]}…, expected {expected_sha256[:12]}…: the file was changed; "
            "restore it from MLflow's artifacts or a backup"
        )
    return content


def _outputs_of(card: AdapterCard, tensors: dict[str, Tensor], path: Path) -> Outputs:
    try:
        outputs = Outputs.of_tensors({n: value.numpy() for n, value in tensors.items() if n.startswith(PREFIX)})
        outputs.check_for(card.task, TASKS[card.task].score_columns(card.classes))
    except ValueError as error:
        raise AdapterRefused(f"{path.name} cannot be used: {error}") from None
    return outputs


def _read(path: Path) -> bytes:
    try:
        if (size := path.stat().st_size) > MAXIMUM_BYTES:
            raise AdapterRefused(f"{path.name} has {size} bytes, at most {MAXIMUM_BYTES} are allowed")
        return path.read_bytes()
    except FileNotFoundError:
        raise AdapterRefused(f"{path} does not exist; restore it from MLflow's artifacts or a backup") from None


def _parse(path: Path, content: bytes) -> tuple[AdapterCard, dict[str, Tensor]]:
    try:
        tensors = safetensors.load(content)
        (length,) = struct.unpack_from("<Q", content)
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        return AdapterCard.model_validate_json(metadata[METADATA_KEY]), tensors
    except (SafetensorError, ValidationError, KeyError, ValueError) as error:
        raise AdapterRefused(f"{path.name} is no adapter of Wardround: {error}") from None


def _fill(adapter: Adapter, tensors: dict[str, Tensor], path: Path) -> None:
    expected = adapter.network.trainable()
    schema = {name: (value.shape, value.dtype) for name, value in expected.items()}
    if {name: (value.shape, value.dtype) for name, value in tensors.items()} != schema:
        raise AdapterRefused(f"{path.name} does not hold the tensors that its card promises")
    if not all(value.isfinite().all() for value in tensors.values()):
        raise AdapterRefused(f"{path.name} holds numbers that are not finite")
    with torch.no_grad():
        for name, value in expected.items():
            value.copy_(tensors[name])
