"""Features of images: computed once per content, and attached to cohorts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from continual.backbones import Backbone
from continual.feature_store import FeatureStore
from continual.files import content_sha256
from continual.images import UnreadableImage, read_measured
from continual.prefetching import read_ahead
from flows.sources import Reason, RowRefused
from monitor.cohorts import Cohort
from monitor.image_statistics import STATISTICS

BATCH = 32
AHEAD = 4
log = logging.getLogger("wardround.features")


def load_features(cohort: Cohort, features: FeatureStore) -> Cohort:
    """Attach embeddings, shape (n, width), and image statistics; a cohort without any image stays without.

    Studies without an image are left out of a cohort in which others have one, and counted in the log.
    """
    if cohort.images is None or not (seen := cohort.images != "").any():
        return cohort
    images = cohort.images[seen]
    if not seen.all():
        log.warning("%d of %d studies have no image and are left out", int((~seen).sum()), len(cohort))
        cohort = cohort.select(seen)
    statistics = features.statistics(images).astype(np.float64)
    return replace(
        cohort,
        embeddings=features.embeddings(images),
        image_statistics=dict(zip(STATISTICS, statistics.T, strict=True)),
    )


def compute_features(
    images: Mapping[str, Path],
    *,
    features: FeatureStore,
    backbone: Callable[[], Backbone],
    progress: Callable[[int], None],
) -> dict[str, RowRefused]:
    """Compute and store the features of every image, named by content hash, that the store does not have yet.

    The backbone is only asked for when there is something to compute. ``progress`` is told how many
    images are done. Returns why an image has no features, by hash; the others have them when this returns.
    """
    wanted = features.missing(list(images))
    refused: dict[str, RowRefused] = {}
    computed: list[_Computed] = []
    if wanted:
        computed = _compute(
            [{name: images[name] for name in part} for part in _parts(wanted)], backbone(), refused, progress
        )
    if computed:
        hashes = np.concatenate([part.hashes for part in computed])
        embeddings = np.concatenate([part.embeddings for part in computed])
        _warn_if_constant(embeddings)
        tokens, statistics = (
            np.concatenate([getattr(part, name) for part in computed]) for name in ("tokens", "statistics")
        )
        features.put(hashes, embeddings, tokens, statistics)
    return refused


def _parts(names: list[str]) -> Iterator[list[str]]:
    return (names[start : start + BATCH] for start in range(0, len(names), BATCH))


def _compute(
    parts: list[dict[str, Path]], backbone: Backbone, refused: dict[str, RowRefused], progress: Callable[[int], None]
) -> list[_Computed]:
    """Compute part by part; beside a GPU the next parts are read meanwhile."""
    backbone.check_reads_images()
    size, done = backbone.card.image_size, 0
    # not beside a CPU: it has no time to spare, and reading silences warnings for the whole process
    ahead = AHEAD if backbone.device.type == "cuda" else 0
    computed: list[_Computed] = []
    for part, (images, unread) in zip(
        parts, read_ahead(parts, lambda part: _read_each(part, size), ahead=ahead), strict=True
    ):
        refused |= unread
        if images:
            computed.append(_embed(images, backbone, refused))
        done += len(part)
        progress(done)
    return computed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Computed:
    """Hashes (n,), embeddings (n, width), tokens (n, T, width) and image statistics (n, k), all finite."""

    hashes: NDArray[np.str_]
    embeddings: NDArray[np.float32]
    tokens: NDArray[np.float16]
    statistics: NDArray[np.float32]


Read = tuple[NDArray[np.uint8], NDArray[np.float32]]
"""The square pixels of an image and its statistics."""


def _embed(images: Mapping[str, Read], backbone: Backbone, refused: dict[str, RowRefused]) -> _Computed:
    hashes = np.array(list(images), dtype=np.str_)
    pixels, statistics = (np.stack(part) for part in zip(*images.values(), strict=True))
    embeddings, tokens = backbone.embed(pixels)
    finite = np.isfinite(embeddings).all(axis=1) & np.isfinite(tokens).all(axis=(1, 2))
    for sha256 in hashes[~finite]:
        refused[str(sha256)] = RowRefused(
            Reason.NOT_FINITE_EMBEDDING, "the backbone's answer to the image is not finite"
        )
    return _Computed(
        hashes=hashes[finite], embeddings=embeddings[finite], tokens=tokens[finite], statistics=statistics[finite]
    )


def _read_each(images: Mapping[str, Path], size: int) -> tuple[dict[str, Read], dict[str, RowRefused]]:
    pixels: dict[str, Read] = {}
    refused: dict[str, RowRefused] = {}
    for sha256, path in images.items():
        try:
            pixels[sha256] = _read(path, sha256, size)
        except RowRefused as error:
            refused[sha256] = error
    return pixels, refused


def _read(path: Path, sha256: str, size: int) -> Read:
    try:
        pixels = read_measured(path, size)
    except UnreadableImage as error:
        raise RowRefused(Reason.IMAGE_UNREADABLE, f"image {path.name!r}: {error}") from None
    if content_sha256(path) != sha256:  # its features would stand under another image's name for ever
        raise RowRefused(Reason.IMAGE_UNREADABLE, f"image {path.name!r} changed while it was read")
    return pixels


def _warn_if_constant(embeddings: NDArray[np.float32]) -> None:
    if len(embeddings) > 1 and not np.ptp(embeddings, axis=0).any():
        log.warning(
            "all %d new images have the same embedding: look at some of them, preprocessing upstream may be broken",
            len(embeddings),
        )
