"""What can be seen of an image without a network: sharpness, noise, contrast, borders, size, compression.

Embeddings are half blind to some of it: a mild blur moves them hardly at all. These figures are computed once, when
the image arrives, on its own pixels before any resizing, and later tested as columns of the appearance stream.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Singles = NDArray[np.float32]

CROP = 512
"""Texture is measured on at most this many rows and columns around the middle: enough to know it, and bounded."""
BLOCK = 8
"""Side of the blocks that JPEG compresses one by one."""
FLAT = 1.0
"""Grey levels by which a row of a border may vary."""

STATISTICS: Mapping[str, str] = {
    "sharpness": "log10 of the mean squared Laplacian over the variance; blur lowers it",
    "noise": "standard deviation of the noise in grey levels of 255 (Immerkær 1996)",
    "contrast": "standard deviation of the grey levels inside the borders, of 255",
    "dark level": "5 % quantile of the grey levels inside the borders, of 255",
    "middle level": "median of the grey levels inside the borders, of 255",
    "bright level": "95 % quantile of the grey levels inside the borders, of 255",
    "border": "share of the image that is rows and columns of one grey at its edges: padding",
    "native width": "pixels",
    "native height": "pixels",
    "bytes a pixel": "size of the stored file over its number of pixels",
    "blockiness": "jumps across the edges of 8 x 8 blocks over jumps elsewhere, less 1 (after Wang, Bovik, Evans 2000)",
}
"""Every statistic by name, and what it is, in the order that ``measure_image`` gives them."""


def measure_image(pixels: NDArray[np.uint8], stored_bytes: int) -> NDArray[np.float32]:
    """Measure one image; shape (len(STATISTICS),), every figure finite.

    Args:
        pixels: the image in its native size, shape (height, width), 8-bit grey.
        stored_bytes: size of the file it came in.

    Raises:
        ValueError: the pixels have another shape or type, or there are none.
    """
    if pixels.ndim != 2 or pixels.dtype != np.uint8 or not pixels.size:
        raise ValueError(f"pixels are 8-bit grey, (height, width), got {pixels.dtype} {pixels.shape}")
    inside = _inside(pixels)
    middle = _crop(pixels[inside]).astype(np.float32)
    counts = np.bincount(pixels[inside].ravel(), minlength=256)
    height, width = pixels.shape
    figures = [
        _sharpness(middle),
        _noise(middle),
        _spread(counts),
        *(_level(counts, share) for share in (0.05, 0.5, 0.95)),
        1 - pixels[inside].size / pixels.size,
        width,
        height,
        stored_bytes / pixels.size,
        _blockiness(_crop(pixels).astype(np.float32)),
    ]
    return np.array(figures, dtype=np.float32)


def _inside(pixels: Pixels) -> tuple[slice, slice]:
    """Find what lies inside rows and columns of one grey at the edges; all of an image that is one grey."""
    sides = []
    for axis in (1, 0):
        varies = np.flatnonzero(np.ptp(pixels, axis=axis) > FLAT)
        sides.append(slice(int(varies[0]), int(varies[-1]) + 1) if len(varies) else slice(None))
    return sides[0], sides[1]


def _crop(pixels: Pixels) -> Pixels:
    """Keep the middle, on the grid of the blocks."""
    starts = [max(0, (side - CROP) // 2) // BLOCK * BLOCK for side in pixels.shape]
    return pixels[starts[0] : starts[0] + CROP, starts[1] : starts[1] + CROP]


def _spread(counts: NDArray[np.intp]) -> float:
    """Standard deviation of grey levels, from how often each occurs."""
    levels = np.arange(256)
    mean = counts @ levels / counts.sum()
    return float(np.sqrt(counts @ (levels - mean) ** 2 / counts.sum()))


def _level(counts: NDArray[np.intp], share: float) -> float:
    """The grey level that a share of the pixels does not exceed."""
    return float(np.searchsorted(np.cumsum(counts), share * counts.sum()))


def _sharpness(middle: Singles) -> float:
    if min(middle.shape) < 3:
        return 0.0
    sides = middle[:-2, 1:-1] + middle[2:, 1:-1] + middle[1:-1, :-2] + middle[1:-1, 2:]
    edges = np.square(sides - 4 * middle[1:-1, 1:-1]).mean(dtype=np.float64)
    return float(np.log10((edges + 1e-3) / (middle.var(dtype=np.float64) + 1e-3)))


def _noise(middle: Singles) -> float:
    """Mean absolute answer to a mask that is blind to edges, scaled to the standard deviation of Gaussian noise."""
    if min(middle.shape) < 3:
        return 0.0
    rows = middle[:-2] - 2 * middle[1:-1] + middle[2:]
    both = rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]
    return float(np.sqrt(np.pi / 2) / 6 * np.abs(both).mean(dtype=np.float64))


def _blockiness(middle: Singles) -> float:
    across, elsewhere = [], []
    for axis in (0, 1):
        jumps = np.abs(np.diff(middle, axis=axis)).mean(axis=1 - axis)
        edge = np.arange(1, len(jumps) + 1) % BLOCK == 0
        across.append(jumps[edge])
        elsewhere.append(jumps[~edge])
    at_edges, between = np.concatenate(across), np.concatenate(elsewhere)
    if not len(at_edges) or not len(between):
        return 0.0
    return float((at_edges.mean() + 1e-3) / (between.mean() + 1e-3) - 1)
