"""Images: what a file may be, and that everything else ends with a reason."""

import io
import struct
import zlib
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from continual.images import UnreadableImage, content_sha256, native_size, read_image

RAMP = np.tile(np.arange(0, 240, 5, dtype=np.uint8), (48, 1))


def save_dicom(path: Path, pixels: np.ndarray, photometric: str = "MONOCHROME2", **elements: object) -> Path:
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = SecondaryCaptureImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID
    bits = pixels.dtype.itemsize * 8
    data.set_pixel_data(pixels, photometric, bits)
    for name, value in elements.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def save_png(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, format="PNG", **options)
    return path


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_becomes_a_square_of_three_channels(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image.bin"  # the kind is told from the content, not from the name
    Image.fromarray(RAMP).save(path, format=kind)
    pixels = read_image(path, 32)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels[..., 0], pixels[..., 2])
    assert np.all(np.diff(pixels[16, 2:-2, 0].astype(int)) > 0)


def test_a_picture_of_the_asked_size_is_kept_as_it_is(tmp_path: Path) -> None:
    assert np.array_equal(read_image(save_png(tmp_path / "a.png", RAMP), 48)[..., 0], RAMP)


def test_sixteen_bits_are_spread_and_not_clipped(tmp_path: Path) -> None:
    path = save_png(tmp_path / "a.png", RAMP.astype(np.uint16) * 16)
    expected = np.rint(RAMP / RAMP.max() * 255)
    assert np.array_equal(read_image(path, 48)[..., 0], expected)


def test_transparency_lies_on_black(tmp_path: Path) -> None:
    pixels = np.full((8, 8, 4), 255, np.uint8)
    pixels[:4, :, 3] = 0
    read = read_image(save_png(tmp_path / "a.png", pixels), 8)
    assert read[0, 0].tolist() == [0, 0, 0]
    assert read[7, 7].tolist() == [255, 255, 255]


def test_dicom_is_windowed_in_its_own_units(tmp_path: Path) -> None:
    stored = np.arange(0, 1024, 16, dtype=np.uint16).reshape(8, 8)
    path = save_dicom(
        tmp_path / "a.dcm", stored, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=0.5, WindowWidth=1001
    )
    units = stored.astype(float) * 2 - 1000
    expected = np.rint(np.clip((units + 500) / 1000, 0, 1) * 255)
    assert np.array_equal(read_image(path, 8)[..., 1], expected)


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    plain = read_image(save_dicom(tmp_path / "2.dcm", RAMP), 48)
    inverted = read_image(save_dicom(tmp_path / "1.dcm", RAMP, "MONOCHROME1"), 48)
    assert np.array_equal(inverted, 255 - plain)


def test_constant_pixels_are_black_and_not_a_division_by_zero(tmp_path: Path) -> None:
    assert not read_image(save_dicom(tmp_path / "a.dcm", np.full((8, 8), 7, np.uint8)), 8).any()


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "US1_UNCR.dcm", "JPEG2000.dcm"])
def test_dicom_of_scanners_can_be_read(name: str) -> None:
    path = Path(str(get_testdata_file(name, download=False)))
    header = pydicom.dcmread(path, stop_before_pixels=True)
    assert read_image(path, 56).std() > 5
    assert native_size(path) == (header.Columns, header.Rows)


def test_native_size_is_width_then_height(tmp_path: Path) -> None:
    path = save_png(tmp_path / "a.png", RAMP[:20])
    assert native_size(path) == (48, 20)


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises any number of pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html>not found</html>", "neither PNG, JPEG nor DICOM"),
        (encoded("GIF"), "neither PNG, JPEG nor DICOM"),
        (encoded("TIFF"), "neither PNG, JPEG nor DICOM"),
        (encoded("PNG")[:-200], "damaged"),
        (encoded("JPEG")[:-200], "damaged"),
        (encoded("PNG")[:20], "damaged"),
        (png_that_claims(8000, 8000), "64 million pixels"),
        (png_that_claims(100_000, 100_000), "damaged or unsupported: Image size"),
        (b"\0" * 128 + b"DICM" + b"\x7f" * 40, "Rows is missing"),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=reason):
        read_image(path, 32)


def test_a_truncated_dicom_is_refused(tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "a.dcm", RAMP)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UnreadableImage, match="pixel data"):
        read_image(path, 32)


def test_dicom_without_pixels_is_refused() -> None:
    with pytest.raises(UnreadableImage, match="without pixels"):
        read_image(Path(str(get_testdata_file("rtplan.dcm", download=False))), 32)


def test_dicom_that_claims_too_many_pixels_is_refused_before_decoding(tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "a.dcm", RAMP, Rows=60_000, Columns=60_000)
    with pytest.raises(UnreadableImage, match="3600 million pixels"):
        read_image(path, 32)


def test_deflated_dicom_is_refused_unopened() -> None:
    with pytest.raises(UnreadableImage, match="deflated"):
        read_image(Path(str(get_testdata_file("image_dfl.dcm", download=False))), 32)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="no such file"):
        read_image(tmp_path / "absent.png", 32)
    with pytest.raises(UnreadableImage, match="not a regular file"):
        read_image(tmp_path, 32)


def test_the_reason_does_not_tell_where_the_file_lies(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded("JPEG")[:30])
    with pytest.raises(UnreadableImage) as caught:
        read_image(path, 32)
    assert str(tmp_path) not in caught.value.reason


@given(st.sampled_from(["PNG", "JPEG", "DICOM"]), st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mutated_file_is_read_or_refused_and_nothing_else(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    whole = (
        Path(str(get_testdata_file("CT_small.dcm", download=False))).read_bytes() if kind == "DICOM" else encoded(kind)
    )
    content = bytearray(whole[: data.draw(st.integers(1, len(whole)))])
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, min(len(content), 4000) - 1), st.integers(0, 255)), max_size=12)
    ):
        content[min(place, len(content) - 1)] = value
    path = tmp_path / "mutated"
    path.write_bytes(content)
    try:
        assert read_image(path, 16).shape == (16, 16, 3)
    except UnreadableImage as error:
        assert error.reason  # noqa: PT017 - either outcome is right


@pytest.mark.slow
def test_every_dicom_object_of_the_corpus_is_decoded_or_refused() -> None:
    files = [Path(str(f.locate())) for f in distribution("pydicom-data").files or [] if f.suffix == ".dcm"]
    decoded = 0
    for path in files:
        try:
            decoded += read_image(path, 56).shape == (56, 56, 3)
        except UnreadableImage:
            continue
    assert len(files) > 50
    assert decoded / len(files) > 0.7


def test_content_is_named_by_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert content_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
