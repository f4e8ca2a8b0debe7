"""Read one medical image, PNG, JPEG or DICOM, as a small square of 8-bit pixels. No torch here.

An image file comes from outside and may be anything: its size is looked at before it is opened, its
kind is told from its first bytes and not from its name, and its pixel count is checked before any
pixel is decoded. Whatever is wrong ends as ``UnreadableImage`` with a reason for the quarantine.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian

from continual.files import content_sha256
from monitor.image_statistics import measure_image

__all__ = ["UnreadableImage", "content_sha256", "native_size", "read_image", "read_measured", "read_native"]

MAXIMUM_BYTES = 256 * 2**20
MAXIMUM_PIXELS = 50_000_000
PREPROCESSING = "square-bicubic-1"
"""Names how pixels are made, in the key of stored features; change it whenever the pixels change."""

MEASURED = "statistics-1"
"""Names how images are measured, in the same key; change it whenever ``monitor.image_statistics`` does."""

MAGIC = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}

# What Pillow, pydicom and their decoders are seen to raise on broken or hostile files. A parser of foreign
# bytes may fail in any of these ways; each of them means the same to us: this file is no readable image.
PARSER_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
    InvalidDicomError,
    BytesLengthException,
)


class UnreadableImage(ValueError):
    """An image file cannot be used; ``reason`` says why in one sentence."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read_image(path: Path, size: int) -> NDArray[np.uint8]:
    """Read an image as 8-bit RGB resized to a square; shape (size, size, 3).

    Grey images get three equal channels, transparency lies on black. DICOM: rescaled to its units,
    shown in the file's first window (without one, over its whole range), MONOCHROME1 inverted; of several frames the
    middle one. The square is bicubic with antialiasing, whatever the native aspect.

    Raises:
        UnreadableImage: missing, empty, too large, truncated, or neither PNG, JPEG nor DICOM.
    """
    with _refusing(path):
        return _square(_read_native(path), size)


def read_measured(path: Path, size: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Read an image as ``read_image`` does, and measure its native pixels (``monitor.image_statistics``).

    Raises:
        UnreadableImage: as ``read_image``.
    """
    with _refusing(path):
        image = _read_native(path)
        return _square(image, size), measure_image(np.asarray(image.convert("L")), path.stat().st_size)


def read_native(path: Path) -> NDArray[np.uint8]:
    """Read an image as 8-bit RGB in its native size; shape (height, width, 3).

    Raises:
        UnreadableImage: as ``read_image``.
    """
    with _refusing(path):
        return np.asarray(_read_native(path), dtype=np.uint8)


def native_size(path: Path) -> tuple[int, int]:
    """Tell an image's width and height in pixels without decoding it.

    Raises:
        UnreadableImage: as ``read_image``.
    """
    kind = _kind_of(path)
    with _refusing(path):
        if kind == "DICOM":
            header = _read_header(path)
            return int(header.Columns), int(header.Rows)
        with Image.open(path, formats=(kind,)) as image:
            return image.size


def _read_native(path: Path) -> Image.Image:
    kind = _kind_of(path)
    return _read_dicom(path) if kind == "DICOM" else _read_picture(path, kind)


def _square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), dtype=np.uint8)


def _kind_of(path: Path) -> str:
    try:
        if not path.is_file():
            raise UnreadableImage("no such file" if not path.exists() else "not a regular file")
        if (size := path.stat().st_size) > MAXIMUM_BYTES:
            raise UnreadableImage(f"{size / 2**20:.0f} MiB, at most {MAXIMUM_BYTES // 2**20} are allowed")
        with path.open("rb") as file:
            start = file.read(132)
    except OSError as error:
        raise UnreadableImage(f"cannot be opened: {error.strerror}") from None
    if not start:
        raise UnreadableImage("the file is empty")
    if start[128:] == b"DICM":
        return "DICOM"
    for magic, kind in MAGIC.items():
        if start.startswith(magic):
            return kind
    raise UnreadableImage("neither PNG, JPEG nor DICOM")


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn every failure of a foreign parser into a reason; its warnings about odd files are not news."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except UnreadableImage:
            raise
        except PARSER_ERRORS as error:
            text = " ".join(str(error).replace(str(path), path.name).split())
            raise UnreadableImage(f"damaged or unsupported: {text[:200] or type(error).__name__}") from error


def _read_picture(path: Path, kind: str) -> Image.Image:
    with Image.open(path, formats=(kind,)) as image:
        _check_pixels(image.width * image.height)
        image.load()
        upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):
        return Image.fromarray(_to_8_bit(np.asarray(upright))).convert("RGB")
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", upright.size, (0, 0, 0, 255)), upright).convert("RGB")
    return upright.convert("RGB")


def _read_dicom(path: Path) -> Image.Image:
    header = _read_header(path)
    frames = int(header.get("NumberOfFrames") or 1)
    data = pydicom.dcmread(path)
    pixels = pixel_array(data, index=frames // 2)
    if data.PhotometricInterpretation == "PALETTE COLOR":
        pixels = _to_8_bit(apply_color_lut(pixels, data))
    elif pixels.ndim == 2:
        pixels = _to_8_bit(*_window(apply_modality_lut(pixels, data), data))
        if data.PhotometricInterpretation == "MONOCHROME1":
            pixels = 255 - pixels
    elif pixels.dtype != np.uint8:
        pixels = _to_8_bit(pixels)
    return Image.fromarray(pixels).convert("RGB")


def _window(values: NDArray[Any], data: Any) -> tuple[NDArray[Any], tuple[float, float] | None]:
    """Find the range of units that the file wants shown; with a lookup table or no window, the whole range."""
    center, width = data.get("WindowCenter"), data.get("WindowWidth")
    if "VOILUTSequence" in data or center is None or width is None:
        return apply_voi_lut(values, data, prefer_lut=True), None
    center, width = (float(v[0] if isinstance(v, MultiValue) else v) for v in (center, width))
    return values, (center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2)  # PS3.3 C.11.2.1.2, linear


def _read_header(path: Path) -> Any:
    """Read what stands before the pixels, and refuse what would be too large to decode."""
    # a deflated file is inflated whole before anything in it can be looked at: 400 KB can become 800 MB
    if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise UnreadableImage("deflated DICOM is refused; export it with another transfer syntax")
    header = pydicom.dcmread(path, stop_before_pixels=True)
    for name in ("Rows", "Columns"):
        if not header.get(name):
            raise UnreadableImage(f"a DICOM object without pixels: {name} is missing or 0")
    _check_pixels(int(header.Rows) * int(header.Columns) * int(header.get("SamplesPerPixel") or 1))
    return header


def _check_pixels(count: int) -> None:
    if count > MAXIMUM_PIXELS:
        raise UnreadableImage(f"{count / 1e6:.0f} million pixels, at most {MAXIMUM_PIXELS / 1e6:.0f} are allowed")


def _to_8_bit(values: NDArray[Any], shown: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """Spread a range of values, by default all that occur, over 0 … 255; a constant image is black."""
    numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise UnreadableImage("the pixels are not finite numbers")
    low, high = shown or (float(numbers.min()), float(numbers.max()))
    if high <= low:
        return np.zeros(values.shape, dtype=np.uint8)
    return np.asarray(np.rint(np.clip((numbers - low) / (high - low), 0, 1) * 255), dtype=np.uint8)
