"""Features in which embeddings may shift: learned from a reference, in groups that say what moved.

Whitened directions (the leading 32, the leading 128 and all but the leading 32), products of the leading ones (second
moments), log energies in log-spaced bands of the spectrum, and random Fourier features (Rahimi and Recht 2007) at two
bandwidths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

VERSION = 1
"""Of the features: raise it with any change of what follows, since fitted references are stored under it."""

LEADING = 32
BROAD = 128
PRODUCTS_OF = 24
BANDS = 8
FOURIER_DIRECTIONS = 32
FREQUENCIES = 48
BANDWIDTHS = (0.5, 1.0)
RIDGE = 0.01
FIRST_BAND = 4
ENERGY_FLOOR = 0.05
RANK_TOLERANCE = 1e-9
FLAT = 1e-6
ROWS_AT_ONCE = 4096
GROUPS = (
    "leading directions",
    "broad directions",
    "remaining directions",
    "second moments",
    "band energies",
    "fine mixture",
    "coarse mixture",
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeatureMap:
    """What was learned: from embeddings (n, width) to standardised features (n, features), see `columns`.

    Attributes:
        centre: mean of the embeddings, shape (width,), in their units.
        axes: the reference's own directions, orthonormal, shape (width, rank), leading first; rank <= width.
        whitening: what divides the position along each axis, shape (rank,), in units of the embeddings.
        frequencies: of the Fourier features, shape (bandwidths, directions used, FREQUENCIES).
        middle: mean of each raw feature, shape (features,).
        scale: standard deviation of each raw feature, shape (features,).
        breadth: root of the sum of the squared correlations within each group, shape (groups,); k independent
            features have a breadth of sqrt(k).
    """

    centre: Floats
    axes: Singles
    whitening: Singles
    frequencies: Singles
    middle: Singles
    scale: Singles
    breadth: Floats


def learn(values: Floats, generator: np.random.Generator, most: int | None = None) -> FeatureMap:
    """Learn axes, whitening, bandwidths and the features' scales.

    Args:
        values: embeddings, shape (n, width), finite.
        generator: source of randomness, for the frequencies.
        most: directions to learn at most, all that vary without it.
    """
    centre, axes, whitening, frequencies = plan = plan_features(values, generator, most)
    raw = np.concatenate([np.concatenate(_groups(*plan, values[rows]), axis=1) for rows in chunks(len(values))])
    middle, scale = raw.mean(axis=0, dtype=np.float64), raw.std(axis=0, dtype=np.float64)
    scale[scale < FLAT] = 1
    raw = ((raw - middle) / scale).astype(np.float32)
    return FeatureMap(
        centre=centre,
        axes=axes,
        whitening=whitening,
        frequencies=frequencies,
        middle=middle.astype(np.float32),
        scale=scale.astype(np.float32),
        breadth=np.array([_breadth(raw[:, group]) for group in columns(axes.shape)]),
    )


def plan_features(
    values: Floats, generator: np.random.Generator, most: int | None
) -> tuple[Floats, Singles, Singles, Singles]:
    """Learn what features are made with: centre, axes, whitening and frequencies of `FeatureMap`; see `learn`."""
    centre = values.mean(axis=0)
    axes, whitening = _whiten(values - centre, most)
    used = min(FOURIER_DIRECTIONS, len(whitening))
    white = (values - centre) @ (axes / whitening)[:, :used]
    typical = float(np.sqrt(2 * np.median(np.square(white).sum(axis=1)))) or 1.0
    normal = generator.standard_normal((len(BANDWIDTHS), used, FREQUENCIES))
    frequencies: Singles = (normal / np.multiply(BANDWIDTHS, typical)[:, None, None]).astype(np.float32)
    return centre, axes, whitening, frequencies


def _whiten(centred: Floats, most: int | None) -> tuple[Singles, Singles]:
    """Give orthonormal axes (width, rank), leading first, and regularised standard deviations (rank,)."""
    spread, axes = eigh(centred.T @ centred / len(centred))
    kept = np.flatnonzero(spread > RANK_TOLERANCE * max(spread[-1], 0.0))[::-1][:most]
    spread, axes = spread[kept], axes[:, kept]
    if len(kept):
        axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(len(kept))])
        spread = spread + RIDGE * spread.mean()
    return axes.astype(np.float32), np.sqrt(spread).astype(np.float32)


def map_features(learned: FeatureMap, values: NDArray[Any]) -> Singles:
    """Map embeddings (n, width) to standardised features (n, features), in the order of `columns`."""
    plan = (learned.centre, learned.axes, learned.whitening, learned.frequencies)
    features = np.concatenate(_groups(*plan, values), axis=1)
    features -= learned.middle
    features /= learned.scale
    return features


def _groups(
    centre: Floats, axes: Singles, whitening: Singles, frequencies: Singles, values: NDArray[Any]
) -> list[Singles]:
    """Give the raw features part by part: all directions, products, energies, waves; each (n, features)."""
    centred = (values - centre).astype(np.float32)
    along = centred @ axes
    white = along / whitening
    i, j = _pairs(len(whitening))
    energies = np.add.reduceat(white**2, _edges(len(whitening)), axis=1) if len(whitening) else white
    energies /= np.diff([*_edges(len(whitening)), len(whitening)])
    if axes.shape[1] < axes.shape[0]:
        unit = whitening.mean() if len(whitening) else np.float32(1)
        outside = np.square((centred - along @ axes.T) / unit).sum(axis=1, keepdims=True)
        energies = np.concatenate([energies, outside], axis=1)
    waves = [white[:, : len(some)] @ some for some in frequencies]
    return [
        white,
        white[:, i] * white[:, j],
        np.log(energies + ENERGY_FLOOR),
        *(np.concatenate([np.cos(wave), np.sin(wave)], axis=1) for wave in waves),
    ]


def _edges(rank: int) -> NDArray[np.intp]:
    """Where bands of the spectrum start, evenly spaced by logarithm, the first four directions wide."""
    edges = np.unique(np.geomspace(FIRST_BAND, max(rank, FIRST_BAND), BANDS).astype(np.intp)[:-1])
    return np.concatenate([[0], edges[edges < rank]]).astype(np.intp) if rank else np.zeros(0, np.intp)


def _pairs(rank: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return np.triu_indices(min(PRODUCTS_OF, rank))


def columns(shape: tuple[int, ...]) -> list[slice]:
    """Tell which features belong to each of GROUPS, for axes of a shape (width, rank); those of directions overlap."""
    width, rank = shape
    bands = len(_edges(rank)) + (rank < width)
    counts = (len(_pairs(rank)[0]), bands, *(2 * FREQUENCIES for _ in BANDWIDTHS))
    ends = rank + np.cumsum(counts)
    leading, broad = min(LEADING, rank), min(BROAD, rank)
    others = [slice(int(end) - count, int(end)) for end, count in zip(ends, counts, strict=True)]
    return [slice(0, leading), slice(0, broad), slice(leading, rank), *others]


def _breadth(features: Singles) -> float:
    """Root of the summed squared correlations of standardised features (n, k), less what n alone gives."""
    n, k = features.shape
    squared = float(np.square(features.T @ features / n, dtype=np.float64).sum())
    return float(np.sqrt(max(squared - k * (k - 1) / n, k, 1)))


def chunks(n: int) -> Iterator[slice]:
    """Cut n rows into slices of ROWS_AT_ONCE."""
    return (slice(start, start + ROWS_AT_ONCE) for start in range(0, n, ROWS_AT_ONCE))
