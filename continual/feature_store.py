"""A columnar store of image features and image statistics on disk, named by the content hash of the image.

One folder holds the features of one backbone and one way of making pixels (``BackboneCard.feature_key``
names it). A ``put`` writes one shard, an Arrow IPC file that appears whole or not at all; nothing is ever
changed in place. So processes may write and read at once, a killed one leaves nothing to repair, and the
same image stored twice costs space and nothing else. Shards are memory-mapped, not read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, ipc

from continual.files import write_atomically

SUFFIX = ".arrow"
Hashes = Sequence[str] | NDArray[np.str_]


class FeaturesMissing(LookupError):
    """Features were asked for that nobody stored."""


@dataclass(frozen=True, slots=True, eq=False)
class _Shard:
    """One memory-mapped file: embeddings (n, width) and statistics (n, k) float32, tokens (n, T, width) float16."""

    hashes: list[str]
    embeddings: NDArray[np.float32]
    tokens: NDArray[np.float16]
    statistics: NDArray[np.float32]


class FeatureStore:
    """Embeddings (n, width) float32 and tokens (n, T, width) float16 by content hash, in one folder."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._shards: dict[str, _Shard] = {}
        self._places: dict[str, tuple[_Shard, int]] = {}

    def missing(self, hashes: Hashes) -> list[str]:
        """Name each hash, once and in order, that has no features yet."""
        self._look_for_shards()
        return [name for name in dict.fromkeys(map(str, hashes)) if name not in self._places]

    def put(
        self,
        hashes: Hashes,
        embeddings: NDArray[np.float32],
        tokens: NDArray[np.float16],
        statistics: NDArray[np.float32],
    ) -> None:
        """Store features; when this returns they are on the disk.

        Raises:
            ValueError: shapes do not fit each other or what the folder holds, or a value is not finite.
        """
        names = [str(name) for name in hashes]
        if not names:
            return
        self._check(names, embeddings, tokens, statistics)
        content = _serialise(
            names, embeddings.astype(np.float32), tokens.astype(np.float16), statistics.astype(np.float32)
        )
        digest = hashlib.sha256(content).hexdigest()
        write_atomically(self.directory / f"{digest}{SUFFIX}", content)

    def embeddings(self, hashes: Hashes) -> NDArray[np.float32]:
        """Look up embeddings in the order asked for; shape (n, width).

        Raises:
            FeaturesMissing: an image was never embedded.
        """
        return self._gather(hashes, "embeddings")

    def tokens(self, hashes: Hashes) -> NDArray[np.float16]:
        """Look up the tokens entering the adapted blocks, in the order asked for; shape (n, T, width).

        Raises:
            FeaturesMissing: an image was never embedded.
        """
        return self._gather(hashes, "tokens")

    def statistics(self, hashes: Hashes) -> NDArray[np.float32]:
        """Look up image statistics in the order asked for; shape (n, k), as ``STATISTICS`` names them.

        Raises:
            FeaturesMissing: an image was never measured.
        """
        return self._gather(hashes, "statistics")

    def forget(self, hashes: Hashes) -> int:
        """Take images out of the folder for ever; returns how many were there, in whatever shard.

        A shard that holds one is written again without it, then taken away: a process killed in between
        leaves both, and forgetting again takes the old one away. What an interrupted ``put`` left goes too.
        """
        wanted, found = pa.array(sorted({str(name) for name in hashes}), pa.string()), 0
        for path in self._shard_files():
            with pa.memory_map(str(path)) as source:
                table = ipc.open_file(source).read_all()
                gone = compute.is_in(table.column("sha256"), value_set=wanted)
                if not (count := compute.sum(gone).as_py() or 0):
                    continue
                if count < table.num_rows:
                    content = _write_batch(table.filter(compute.invert(gone)).combine_chunks().to_batches()[0])
                    digest = hashlib.sha256(content).hexdigest()
                    write_atomically(self.directory / f"{digest}{SUFFIX}", content)
            path.unlink(missing_ok=True)
            found += count
        for path in self.directory.glob(".*.partial"):
            path.unlink(missing_ok=True)
        self._shards.clear()
        self._places.clear()
        return found

    def _shard_files(self) -> list[Path]:
        return [path for path in sorted(self.directory.glob(f"*{SUFFIX}")) if not path.name.startswith(".")]

    def _gather(self, hashes: Hashes, column: str) -> NDArray[Any]:
        if absent := self.missing(hashes):
            raise FeaturesMissing(
                f"no features for {len(absent)} images in {self.directory} (first: {absent[0][:12] or 'no image'}); "
                "ingest the export that brought them again with `wardround ingest`"
            )
        places = [self._places[str(name)] for name in hashes]
        example = next(iter(self._shards.values()), None)
        if example is None:
            return np.empty((0, 0, 0) if column == "tokens" else (0, 0))
        found: NDArray[Any] = np.empty(
            (len(places), *getattr(example, column).shape[1:]), getattr(example, column).dtype
        )
        rows: dict[int, tuple[_Shard, list[int], list[int]]] = {}
        for target, (shard, source) in enumerate(places):
            _, targets, sources = rows.setdefault(id(shard), (shard, [], []))
            targets.append(target)
            sources.append(source)
        for shard, targets, sources in rows.values():
            found[targets] = getattr(shard, column)[sources]
        return found

    def _look_for_shards(self) -> None:
        """Map the shards that appeared since the last look, from any process."""
        for path in self._shard_files():
            if path.name not in self._shards:
                shard = self._shards[path.name] = _open_shard(path)
                for row, name in enumerate(shard.hashes):
                    self._places.setdefault(name, (shard, row))

    def _check(
        self, names: list[str], embeddings: NDArray[Any], tokens: NDArray[Any], statistics: NDArray[Any]
    ) -> None:
        n, parts = len(names), (embeddings, tokens, statistics)
        if [part.ndim for part in parts] != [2, 3, 2] or any(len(part) != n for part in parts):
            raise ValueError(
                f"{n} images need embeddings ({n}, width), tokens ({n}, T, width) and statistics ({n}, k), "
                f"got {', '.join(str(part.shape) for part in parts)}"
            )
        if not all(np.isfinite(part).all() for part in parts):
            raise ValueError("features must be finite; quarantine the images whose features are not")
        self._look_for_shards()
        for shard in list(self._shards.values())[:1]:
            want = tuple(part.shape[1:] for part in (shard.embeddings, shard.tokens, shard.statistics))
            if (got := tuple(part.shape[1:] for part in parts)) != want:
                raise ValueError(f"{self.directory} holds features of shape {want}, got {got}: another backbone?")


def _serialise(
    names: list[str],
    embeddings: NDArray[np.float32],
    tokens: NDArray[np.float16],
    statistics: NDArray[np.float32],
) -> memoryview:
    columns = {
        "sha256": pa.array(names, pa.string()),
        "embedding": _as_lists(embeddings),
        "tokens": _as_lists(tokens.reshape(len(names), -1)),
        "statistics": _as_lists(statistics),
    }
    schema = pa.schema(
        [(name, column.type) for name, column in columns.items()], metadata={"token_count": str(tokens.shape[1])}
    )
    return _write_batch(pa.record_batch(list(columns.values()), schema=schema))


def _write_batch(batch: Any) -> memoryview:
    sink = pa.BufferOutputStream()
    with ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return memoryview(sink.getvalue())


def _as_lists(values: NDArray[Any]) -> Any:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _open_shard(path: Path) -> _Shard:
    try:
        table = ipc.open_file(pa.memory_map(str(path))).read_all()
        batch = table.to_batches()[0]
        n, count = batch.num_rows, int(batch.schema.metadata[b"token_count"])
        embeddings, tokens, statistics = (
            batch.column(name).flatten().to_numpy() for name in ("embedding", "tokens", "statistics")
        )
        return _Shard(
            batch.column("sha256").to_pylist(),
            embeddings.reshape(n, -1),
            tokens.reshape(n, count, -1),
            statistics.reshape(n, -1),
        )
    except (pa.ArrowInvalid, KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete it and ingest again: features are computed anew from the images"
        ) from None
