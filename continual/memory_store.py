"""Rehearsal memories on disk: a manifest that names every study, and its features in a columnar file beside it.

A memory holds what the adapted blocks read, tokens or embeddings; never an image. Both files are named by the
hash of their content and never change: a memory without a patient is another memory. A manifest is written after
the features that it names, each whole or not at all, so that a manifest that is there can be relied on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import ipc
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from continual.experiences import Experience, share_memory
from continual.files import write_atomically
from continual.memory_selection import MemoryPolicy

MANIFEST, COLUMNS = ".json", ".arrow"
MAXIMUM_BYTES = 16 * 2**30
TYPES = (np.dtype(np.float16), np.dtype(np.float32))


class MemoryRefused(ValueError):
    """A memory is not what it should be, or holds whom it must not; nothing is learned from it."""


class MemoryItem(BaseModel):
    """One study in a memory; ``labels`` has None where the truth is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str
    study: str
    patient: str
    stage: str
    stratum: str
    labels: tuple[float | None, ...]
    produced_at: AwareDatetime
    added_at: AwareDatetime

    def expires(self, policy: MemoryPolicy) -> datetime:
        """Tell from when on the study is not taken over any more: the study's own time counts."""
        return self.produced_at + timedelta(days=policy.retention_days)


class MemoryManifest(BaseModel):
    """What a memory holds, for which model, and which run left it; items of a stage stand together, best first.

    ``shape`` is that of one study's features, (T, width): embeddings have T = 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(1, ge=1, le=1)
    model: str
    made_by: str = Field(description="the run, or the version whose memory it is")
    feature_key: str
    policy: MemoryPolicy
    columns_sha256: str
    shape: tuple[int, int]
    dtype: str
    items: tuple[MemoryItem, ...]

    @property
    def holds(self) -> str:
        """Say what is kept of a study."""
        return "embeddings" if self.shape[0] == 1 else "tokens"

    @property
    def patients(self) -> frozenset[str]:
        """Name the patients in the memory."""
        return frozenset(item.patient for item in self.items)

    @property
    def bytes(self) -> int:
        """Count the bytes of the features."""
        return len(self.items) * self.shape[0] * self.shape[1] * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Memory:
    """Studies kept for rehearsal: ``features`` (n, T, width) float16 or float32, one item each.

    Raises:
        MemoryRefused: lengths do not fit, a number is not finite, or a study is there twice.
    """

    model: str
    made_by: str
    feature_key: str
    policy: MemoryPolicy
    items: tuple[MemoryItem, ...]
    features: NDArray[Any]

    def __post_init__(self) -> None:
        n, found = len(self.items), self.features
        if found.ndim != 3 or len(found) != n or found.dtype not in TYPES:
            raise MemoryRefused(f"a memory of {n} studies needs features ({n}, T, width), got {found.shape}")
        if not np.isfinite(found).all():
            raise MemoryRefused("a memory holds finite numbers only; ingest the images of its studies again")
        if len({(item.stage, item.study) for item in self.items}) != n:
            raise MemoryRefused("a study is in the memory twice")

    def __len__(self) -> int:
        return len(self.items)

    @property
    def stages(self) -> tuple[str, ...]:
        """Name the stages in order."""
        return tuple(dict.fromkeys(item.stage for item in self.items))

    def select(self, keep: Callable[[MemoryItem], bool]) -> Memory:
        """Keep the items of which something holds, in their order."""
        rows = [row for row, item in enumerate(self.items) if keep(item)]
        return replace(self, items=tuple(self.items[row] for row in rows), features=self.features[rows])

    def fresh(self, policy: MemoryPolicy, at: datetime) -> Memory:
        """Keep what has not expired under a policy."""
        return self.select(lambda item: item.expires(policy) > at)

    def stage(self, name: str) -> Memory:
        """Keep one stage."""
        return self.select(lambda item: item.stage == name)

    def experience(self, stage: str) -> Experience:
        """Give what is kept of a stage, best first; empty if nothing is."""
        part = self.stage(stage)
        columns = len(self.items[0].labels) if self.items else 1
        labels = [[np.nan if label is None else label for label in item.labels] for item in part.items]
        return Experience(
            name=stage,
            tokens=part.features,
            labels=np.array(labels, dtype=np.float64).reshape(len(part), columns),
            patient_key=np.array([item.patient for item in part.items], dtype=np.str_),
            strata=np.array([item.stratum for item in part.items], dtype=np.str_),
            image=np.array([item.image for item in part.items], dtype=np.str_),
        )


def fit_memory(parts: Sequence[Memory], *, made_by: str, policy: MemoryPolicy) -> Memory:
    """Make one memory of the beginnings of several, within both limits, shared evenly over their stages.

    Raises:
        ValueError: no parts, or they are of different models or features.
    """
    first = parts[0]
    if len({(part.model, part.feature_key, part.features.shape[1:]) for part in parts}) != 1:
        raise ValueError("memories of different models or features cannot be one")
    stages = [part.stage(name) for part in parts for name in part.stages]
    limit = policy.limit(int(np.prod(first.features.shape[1:])) * first.features.dtype.itemsize)
    shares = share_memory([len(stage) for stage in stages], limit)
    kept = [(stage.items[:share], stage.features[:share]) for stage, share in zip(stages, shares, strict=True)]
    return replace(
        first,
        made_by=made_by,
        policy=policy,
        items=tuple(item for items, _ in kept for item in items),
        features=np.concatenate([first.features[:0], *(features for _, features in kept)]),
    )


def write_memory(directory: Path, memory: Memory, *, held_out: Collection[str]) -> str:
    """Keep a memory in a folder; returns the hash of its manifest, its name. The same memory, the same bytes.

    Raises:
        MemoryRefused: it holds a patient of ``held_out``.
        OSError: the disk is full or the folder may not be written; then nothing is there under the name.
    """
    _check_disjoint({item.patient for item in memory.items}, held_out)
    columns = _serialise(memory)
    columns_sha256 = hashlib.sha256(columns).hexdigest()
    manifest = MemoryManifest(
        model=memory.model,
        made_by=memory.made_by,
        feature_key=memory.feature_key,
        policy=memory.policy,
        columns_sha256=columns_sha256,
        shape=(memory.features.shape[1], memory.features.shape[2]),
        dtype=memory.features.dtype.name,
        items=memory.items,
    )
    content = manifest.model_dump_json(indent=1).encode()
    name = hashlib.sha256(content).hexdigest()
    write_atomically(directory / f"{columns_sha256}{COLUMNS}", columns)
    write_atomically(directory / f"{name}{MANIFEST}", content)
    return name


def read_manifest(directory: Path, name: str) -> MemoryManifest:
    """Read what a memory holds, after proving that it is what was written.

    Raises:
        MemoryRefused: it is missing, was changed, or is no manifest.
    """
    path = directory / f"{name}{MANIFEST}"
    content = _read(path, name)
    try:
        return MemoryManifest.model_validate_json(content)
    except ValidationError as error:
        raise MemoryRefused(f"{path} is no manifest of a memory: {error.errors()[0]['msg']}") from None


def load_memory(directory: Path, name: str, *, held_out: Collection[str]) -> Memory:
    """Load a memory after every check: hashes of both files, patients, shapes, finite numbers, no other images.

    Raises:
        MemoryRefused: one fails; the message names it and the cure.
    """
    manifest = read_manifest(directory, name)
    _check_disjoint(manifest.patients, held_out)
    path = directory / f"{manifest.columns_sha256}{COLUMNS}"
    images, features = _parse(path, _read(path, manifest.columns_sha256), manifest)
    if images != [item.image for item in manifest.items]:
        raise MemoryRefused(f"{path} holds other images than its manifest names; restore both from a backup")
    return Memory(
        model=manifest.model,
        made_by=manifest.made_by,
        feature_key=manifest.feature_key,
        policy=manifest.policy,
        items=manifest.items,
        features=features,
    )


def list_memories(directory: Path) -> Iterator[str]:
    """Name the memories in a folder, those being written left out."""
    return (path.stem for path in sorted(directory.glob(f"*{MANIFEST}")) if not path.name.startswith("."))


def remove_memory(directory: Path, name: str) -> None:
    """Take a memory away, and its features where no other memory shares them; one that is gone is no error."""
    path = directory / f"{name}{MANIFEST}"
    path.unlink(missing_ok=True)
    sweep_columns(directory)


def sweep_columns(directory: Path) -> None:
    """Take away features that no manifest names, such as a killed process leaves behind."""
    named = {read_manifest(directory, name).columns_sha256 for name in list_memories(directory)}
    for path in directory.glob(f"*{COLUMNS}"):
        if path.stem not in named:
            path.unlink(missing_ok=True)
    for path in directory.glob(".*.partial"):
        path.unlink(missing_ok=True)


def _check_disjoint(patients: Collection[str], held_out: Collection[str]) -> None:
    if both := set(patients) & set(held_out):
        raise MemoryRefused(
            f"{len(both)} patients of the memory are held out to judge adapters on; nothing is learned from it: "
            "remove the memory and let the next `wardround adapt` make a new one"
        )


def _serialise(memory: Memory) -> memoryview:
    values, width = memory.features, int(np.prod(memory.features.shape[1:]))
    columns = {
        "image": pa.array([item.image for item in memory.items], pa.string()),
        "features": pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), width),
    }
    batch = pa.record_batch(columns)
    sink = pa.BufferOutputStream()
    with ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return memoryview(sink.getvalue())


def _read(path: Path, sha256: str) -> bytes:
    try:
        if (size := path.stat().st_size) > MAXIMUM_BYTES:
            raise MemoryRefused(f"{path} has {size} bytes, at most {MAXIMUM_BYTES} are allowed")
        content = path.read_bytes()
    except FileNotFoundError:
        raise MemoryRefused(f"{path} does not exist; restore it from a backup") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise MemoryRefused(f"{path} was changed after it was written; restore it from a backup")
    return content


def _parse(path: Path, content: bytes, manifest: MemoryManifest) -> tuple[list[str], NDArray[Any]]:
    try:
        table = ipc.open_file(pa.py_buffer(content)).read_all()
        images = table.column("image").to_pylist()
        values = table.column("features").combine_chunks().flatten().to_numpy(zero_copy_only=False)
        features = values.reshape(len(manifest.items), *manifest.shape)
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        raise MemoryRefused(
            f"{path} does not hold what its manifest says ({error}); restore it from a backup"
        ) from None
    if features.dtype != np.dtype(manifest.dtype):
        raise MemoryRefused(f"{path} holds {features.dtype}, its manifest says {manifest.dtype}")
    return images, features
