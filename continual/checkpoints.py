"""Checkpoints: where a training stands after an epoch, in one file that appears whole or not at all.

A checkpoint is a safetensors file with JSON inside it. It carries the identity of its run, a hash over all
that shapes the result, so that one of another adapter, stream, recipe or strategy is never gone on with.
No random state is stored: every epoch is seeded by its number. What a strategy remembers of the stages
before is not stored either, but seen again: the weights after each finished stage are kept, and showing
the stage to the strategy under them gives the same memory and the same importances.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor, nn

from continual.adapters import METADATA_KEY, Adapter
from continual.experiences import Experience
from continual.files import LENGTH, read_header, write_atomically
from continual.policies import AdaptationPolicy

SUFFIX = ".checkpoint.safetensors"
FORMAT = 1
LONGEST_HEADER = 2**26


class RunKey(BaseModel):
    """Which run a checkpoint belongs to: plan, model and strategy to take it up again, identity to be sure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan_id: str
    model: str
    strategy: str
    identity: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageStanding:
    """Where a stage stands after ``epoch`` epochs.

    ``tensors`` by name: ``weights/…``, ``optimizer/…``, ``strategy/…`` and the best weights ``best/…``.
    """

    epoch: int
    losses: tuple[float, ...]
    best_loss: float | None
    waited: int
    tensors: dict[str, Tensor]

    def part(self, name: str) -> dict[str, Tensor]:
        """Give the tensors of one part by their own names."""
        return part_of(self.tensors, name)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """A run as it was after an epoch: the stages it had finished, and the one it was in.

    ``finished[i]`` are the weights after the i-th stage that was learned; ``losses``, ``matrix`` and
    ``notes`` are those of the finished stages; ``standing`` is None before the first epoch of a run.
    """

    key: RunKey
    seconds: float = 0.0
    losses: tuple[float, ...] = ()
    matrix: tuple[tuple[float | None, ...], ...] = ()
    notes: tuple[str, ...] = ()
    finished: tuple[dict[str, Tensor], ...] = ()
    standing: StageStanding | None = None


class _Metadata(BaseModel):
    """What stands in the file as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    key: RunKey
    seconds: float
    losses: tuple[float, ...]
    matrix: tuple[tuple[float | None, ...], ...]
    notes: tuple[str, ...]
    finished: int
    epoch: int | None
    stage_losses: tuple[float, ...]
    best_loss: float | None
    waited: int


def identify(
    start: Adapter,
    *,
    stream: Sequence[Experience],
    evaluation: Sequence[Experience],
    learned: int,
    strategy: str,
    policy: AdaptationPolicy,
) -> str:
    """Hash all that shapes a run's result: where it starts, what it sees, the recipe, and the version of PyTorch."""
    digest = hashlib.sha256()
    _feed(digest, [FORMAT, torch.__version__, start.card.model_dump(mode="json"), policy.recipe, strategy, learned])
    for name, value in sorted(start.network.trainable().items()):
        _feed(digest, [name, list(value.shape)])
        digest.update(value.detach().contiguous().numpy().tobytes())
    for experience in (*stream, *evaluation):
        _feed(digest, [experience.name, list(experience.tokens.shape), list(map(str, experience.patient_key))])
        digest.update(np.ascontiguousarray(experience.tokens).data)
        digest.update(np.ascontiguousarray(experience.labels).data)
    return digest.hexdigest()


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint in the place of the one before it.

    Raises:
        OSError: the disk is full or the folder may not be written; the one before it is still there.
    """
    standing = checkpoint.standing
    metadata = _Metadata(
        format=FORMAT,
        key=checkpoint.key,
        seconds=checkpoint.seconds,
        losses=checkpoint.losses,
        matrix=checkpoint.matrix,
        notes=checkpoint.notes,
        finished=len(checkpoint.finished),
        epoch=standing.epoch if standing else None,
        stage_losses=standing.losses if standing else (),
        best_loss=standing.best_loss if standing else None,
        waited=standing.waited if standing else 0,
    )
    tensors = {f"finished/{i}/{name}": v for i, part in enumerate(checkpoint.finished) for name, v in part.items()}
    tensors |= {f"standing/{name}": value for name, value in standing.tensors.items()} if standing else {}
    # a copy of each: safetensors refuses tensors that share memory, as a weight and its best copy's view could
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in sorted(tensors.items())}
    write_atomically(path, safetensors.save(plain, {METADATA_KEY: metadata.model_dump_json()}))


def load_checkpoint(path: Path) -> Checkpoint | None:
    """Read a checkpoint; None where there is none, or where the file is damaged or of another version."""
    try:
        content = path.read_bytes()
        tensors = safetensors.load(content)
        metadata = _Metadata.model_validate_json(read_header(content)[METADATA_KEY])
    except (FileNotFoundError, NotADirectoryError, SafetensorError, ValidationError, KeyError, ValueError):
        return None
    if metadata.format != FORMAT:
        return None
    standing = None
    if metadata.epoch is not None:
        standing = StageStanding(
            epoch=metadata.epoch,
            losses=metadata.stage_losses,
            best_loss=metadata.best_loss,
            waited=metadata.waited,
            tensors=part_of(tensors, "standing"),
        )
    return Checkpoint(
        key=metadata.key,
        seconds=metadata.seconds,
        losses=metadata.losses,
        matrix=metadata.matrix,
        notes=metadata.notes,
        finished=tuple(part_of(tensors, f"finished/{i}") for i in range(metadata.finished)),
        standing=standing,
    )


def read_key(path: Path) -> RunKey | None:
    """Tell which run a checkpoint belongs to, without reading its tensors; None where the file is damaged."""
    try:
        with path.open("rb") as file:
            start = file.read(LENGTH)
            start += file.read(min(int.from_bytes(start, "little"), LONGEST_HEADER))
        return _Metadata.model_validate_json(read_header(start)[METADATA_KEY]).key
    except (FileNotFoundError, ValidationError, KeyError, ValueError):
        return None


@torch.no_grad()
def put_weights(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> None:
    """Copy weights into parameters of the same names.

    Raises:
        ValueError: the names are not the same.
    """
    if parameters.keys() != weights.keys():
        raise ValueError(f"the weights do not fit the adapter: {sorted(parameters.keys() ^ weights.keys())[:3]}")
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])


def part_of(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Give the tensors whose names begin with ``name/``, without it."""
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}


def under(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put ``name/`` before the names of tensors."""
    return {f"{name}/{key}": value for key, value in tensors.items()}


def _feed(digest: Any, values: list[Any]) -> None:
    digest.update(json.dumps(values).encode() + b"\0")
