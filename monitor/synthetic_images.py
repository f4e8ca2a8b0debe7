"""Planted changes of images: what another scanner, or wrong preprocessing, does to pixels.

Every change takes grey levels in [0, 1], shape (height, width, channels), a strength in (0, 1] and a generator, and
gives grey levels of the same shape, which are clipped to [0, 1] afterwards. The generator is asked for the same
numbers whatever the strength, so that a stronger change is more of the same change. Lengths are shares of the longer
side, so that a strength means the same on 200 and on 2,000 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn, idctn
from scipy.ndimage import gaussian_filter

Floats = NDArray[np.float64]

COARSEST = 48
"""Pixels along the longer side that ``resolution`` leaves at full strength."""
MATRIX = 256
"""Pixels that a scanner acquires along the longer side; finer images are interpolated from them, noise included."""
WIDEST_BLUR = 0.01
NOISIEST = 0.15
DARKEST_CURVE = 2.0
STRONGEST_BIAS = 1.0
SIXTEEN_BIT = 16.0
WORST_QUALITY = 5.0

LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    dtype=np.float64,
)
"""Steps in which JPEG keeps the frequencies of an 8 x 8 block at quality 50 (ITU-T T.81, Annex K, table K.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageChange:
    """One change of images; with ``all_or_nothing`` its strength is the share of the studies that it meets.

    ``needs``, ``asks`` and ``takes`` are as in ``CohortChange``: images, and to be told nothing.
    """

    description: str
    strength: str
    apply: Callable[[Floats, float, np.random.Generator], Floats]
    all_or_nothing: bool = False
    needs: str = "images"
    asks: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


def change_image(pixels: NDArray[Any], name: str, *, strength: float, generator: np.random.Generator) -> NDArray[Any]:
    """Change one image and leave the input as it is; strength 0 gives an exact copy.

    Args:
        pixels: shape (height, width) or (height, width, channels), 8-bit or floating point in [0, 1].
        name: one of ``IMAGE_CHANGES``.
        strength: 0 to 1; what it means stands in the table.
        generator: the same state gives the same change, and at a higher strength more of it.

    Returns: the changed image in the shape and type of the input.

    Raises:
        ValueError: no such change, a strength outside [0, 1], or pixels that are no such image.
    """
    if name not in IMAGE_CHANGES:
        raise ValueError(f"there is no change of images {name!r}; there are {', '.join(IMAGE_CHANGES)}")
    if not 0 <= strength <= 1:
        raise ValueError(f"a strength lies in 0 to 1, got {strength}")
    _check_pixels(pixels)
    change = IMAGE_CHANGES[name]
    met = generator.random() < strength if change.all_or_nothing else strength > 0
    if not met:
        return pixels.copy()
    top = 255.0 if pixels.dtype == np.uint8 else 1.0
    levels = pixels.reshape(*pixels.shape[:2], -1) / top
    changed = np.clip(change.apply(levels, strength, generator), 0, 1).reshape(pixels.shape) * top
    return (np.rint(changed) if pixels.dtype == np.uint8 else changed).astype(pixels.dtype)


def _check_pixels(pixels: NDArray[Any]) -> None:
    whole = pixels.dtype == np.uint8
    if pixels.ndim not in (2, 3) or not pixels.size or not (whole or np.issubdtype(pixels.dtype, np.floating)):
        raise ValueError(
            f"an image is 8-bit or floating point, (height, width) or (height, width, channels), "
            f"got {pixels.dtype} {pixels.shape}"
        )
    if not whole and not ((pixels >= 0) & (pixels <= 1)).all():  # a NaN is neither
        raise ValueError("the grey levels of a floating-point image must be finite and lie in 0 to 1")


def _coarsen(levels: Floats, strength: float, generator: np.random.Generator) -> Floats:
    """Keep the lower spatial frequencies alone, as a scanner that acquires fewer of them and fills up with zeros.

    A cosine transform instead of a Fourier transform: opposite edges do not leak into each other.
    """
    frequencies = dctn(levels, axes=(0, 1), norm="ortho")
    coarser = max(max(levels.shape[:2]) / COARSEST, 1.0)
    for axis in (0, 1):
        n = levels.shape[axis]
        kept = n / coarser**strength
        # what lies a third beyond fades out, as scanners filter against ringing
        fade = np.clip(4 - 3 * np.arange(n) / kept, 0, 1)
        frequencies *= np.expand_dims(fade, [other for other in range(3) if other != axis])
    return np.asarray(idctn(frequencies, axes=(0, 1), norm="ortho"), dtype=np.float64)


def _blur(levels: Floats, strength: float, generator: np.random.Generator) -> Floats:
    sigma = strength * WIDEST_BLUR * max(levels.shape[:2])
    return np.asarray(gaussian_filter(levels, (sigma, sigma, 0), mode="nearest"), dtype=np.float64)


def _add_noise(levels: Floats, strength: float, generator: np.random.Generator) -> Floats:
    """Add noise to a complex signal and take its magnitude: Rician, as in MRI (Gudbjartsson and Patz 1995)."""
    real, imaginary = (_grain(levels.shape[:2], generator)[..., None] for _ in range(2))
    scale = strength * NOISIEST
    return np.hypot(levels + scale * real, scale * imaginary)


def _grain(shape: tuple[int, ...], generator: np.random.Generator) -> Floats:
    """Draw noise of unit variance whose grain is a pixel of the acquired matrix; equal in all channels."""
    noise = generator.standard_normal(shape)
    grain = max(shape) / MATRIX
    if grain <= 1:
        return noise
    smooth = gaussian_filter(noise, grain / 2, mode="wrap")
    return np.asarray(smooth / max(float(smooth.std()), 1e-12), dtype=np.float64)


def _bend_curve(levels: Floats, strength: float, generator: np.random.Generator) -> Floats:
    return np.asarray(levels ** (1 + strength * DARKEST_CURVE), dtype=np.float64)


def _add_bias(levels: Floats, strength: float, generator: np.random.Generator) -> Floats:
    """Multiply by a smooth field, as an uneven receive coil does: the exponential of a random quadratic surface."""
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in levels.shape[1::-1]))
    surface = np.tensordot(generator.standard_normal(5), np.stack([x, y, x * x, x * y, y * y]), axes=1)
    surface -= (surface.max() + surface.min()) / 2
    surface /= max(float(np.abs(surface).max()), 1e-12)
    field: Floats = np.exp(strength * STRONGEST_BIAS * surface)[..., None]
    return levels * field


def _compress(levels: Floats, strength: float, generator: np.random.Generator) -> Floats:
    """Round the frequencies of 8 x 8 blocks as JPEG does, every channel with the luminance table.

    Quality falls from 100 to 5, and the steps follow from it as in the Independent JPEG Group's library.
    """
    quality = 100 - strength * (100 - WORST_QUALITY)
    scale = 50 / quality if quality < 50 else 2 - quality / 50
    steps = np.clip(LUMINANCE * scale, 1, 255)[:, None, :, None]
    height, width = levels.shape[:2]
    padded = np.pad(levels * 255 - 128, ((0, -height % 8), (0, -width % 8), (0, 0)), mode="edge")
    blocks = padded.reshape(padded.shape[0] // 8, 8, padded.shape[1] // 8, 8, -1)
    frequencies = dctn(blocks, axes=(1, 3), norm="ortho")
    restored = idctn(np.rint(frequencies / steps) * steps, axes=(1, 3), norm="ortho").reshape(padded.shape)
    return np.asarray((restored[:height, :width] + 128) / 255, dtype=np.float64)


def _invert(levels: Floats, strength: float, generator: np.random.Generator) -> Floats:
    return 1 - levels


def _mis_scale(levels: Floats, strength: float, generator: np.random.Generator) -> Floats:
    return np.asarray(levels / SIXTEEN_BIT**strength, dtype=np.float64)


def _mis_orient(levels: Floats, strength: float, generator: np.random.Generator) -> Floats:
    return levels[::-1, ::-1]


IMAGE_CHANGES: Mapping[str, ImageChange] = {
    "resolution": ImageChange(
        description="a scanner that acquires coarser images and interpolates them",
        strength="pixels along the longer side, from all down to 48",
        apply=_coarsen,
    ),
    "blur": ImageChange(
        description="a softer reconstruction, or a moving patient",
        strength="Gaussian width, up to 1 % of the longer side",
        apply=_blur,
    ),
    "noise": ImageChange(
        description="a noisier scanner or a lower dose (Rician: the air is not black any more)",
        strength="standard deviation, up to 15 % of the range of grey levels",
        apply=_add_noise,
    ),
    "contrast": ImageChange(
        description="another tone curve: black and white stay, what is between gets darker",
        strength="exponent of the curve, from 1 to 3",
        apply=_bend_curve,
    ),
    "bias_field": ImageChange(
        description="uneven brightness, as from a worn coil; another one in each study",
        strength="range of the field, up to 0.37 to 2.7",
        apply=_add_bias,
    ),
    "compression": ImageChange(
        description="an archive that compresses as JPEG does, 8 x 8 blocks",
        strength="quality, from 100 down to 5",
        apply=_compress,
    ),
    "inverted": ImageChange(
        description="black and white exchanged (MONOCHROME1 read as MONOCHROME2)",
        strength="share of the studies",
        apply=_invert,
        all_or_nothing=True,
    ),
    "mis_scaled": ImageChange(
        description="grey levels divided by a wrong number (12-bit images shown as 16-bit)",
        strength="divisor, from 1 to 16",
        apply=_mis_scale,
    ),
    "mis_oriented": ImageChange(
        description="turned by half (left and up taken for right and down)",
        strength="share of the studies",
        apply=_mis_orient,
        all_or_nothing=True,
    ),
}
"""Every change of images by name."""
