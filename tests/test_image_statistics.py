"""What is measured of an image moves with what was done to it, and with little else."""

import io
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy.ndimage import gaussian_filter

from monitor.image_statistics import STATISTICS, measure_image

SIZE = 160


def scene(seed: int = 0, size: int = SIZE) -> np.ndarray:
    """Draw something smooth with edges, in grey levels between 40 and 215."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.normal(size=(size, size)), 6)
    steps = gaussian_filter((gaussian_filter(rng.normal(size=(size, size)), 12) > 0).astype(float), 0.7)
    mixed = smooth / np.abs(smooth).max() + steps
    return 40 + 175 * (mixed - mixed.min()) / np.ptp(mixed)


def measure(pixels: np.ndarray, stored_bytes: int = 1000) -> dict[str, float]:
    grey = np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)
    return dict(zip(STATISTICS, measure_image(grey, stored_bytes).tolist(), strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_blur_lowers_sharpness_step_by_step_whatever_the_contrast(seed):
    picture = scene(seed)
    sharp = [measure(gaussian_filter(picture, sigma))["sharpness"] for sigma in (0, 0.6, 1, 1.5, 2.5)]
    assert all(later < earlier - 0.05 for earlier, later in itertools.pairwise(sharp))
    assert measure(128 + (picture - 128) * 0.7)["sharpness"] == pytest.approx(sharp[0], abs=0.05)


@pytest.mark.parametrize("sigma", [3.0, 6.0, 12.0])
def test_noise_is_measured_in_grey_levels(sigma):
    rng = np.random.default_rng(1)
    smooth = gaussian_filter(scene(), 3)
    assert measure(smooth)["noise"] < 0.5
    assert measure(smooth + rng.normal(0, sigma, smooth.shape))["noise"] == pytest.approx(sigma, rel=0.05)


def test_contrast_and_levels_are_those_of_numpy():
    picture = np.rint(scene())
    found = measure(picture)
    assert found["contrast"] == pytest.approx(picture.std(), rel=1e-6)
    levels = [found[name] for name in ("dark level", "middle level", "bright level")]
    assert levels == np.quantile(picture, [0.05, 0.5, 0.95], method="inverted_cdf").tolist()


def test_padding_is_the_share_of_empty_rows_and_columns_and_changes_no_other_figure():
    picture = scene()
    padded = np.zeros((SIZE + 40, SIZE + 16))
    padded[24:-16, :SIZE] = picture
    plain, found = measure(picture), measure(padded)
    assert plain["border"] == 0
    assert found["border"] == pytest.approx(1 - SIZE**2 / padded.size)
    assert (found["native height"], found["native width"]) == padded.shape
    for name in ("sharpness", "noise", "contrast", "dark level", "middle level", "bright level"):
        assert found[name] == pytest.approx(plain[name], rel=1e-5)


def test_jpeg_is_seen_in_its_blocks_and_its_bytes():
    picture = np.rint(scene() + np.random.default_rng(2).normal(0, 4, (SIZE, SIZE))).clip(0, 255).astype(np.uint8)

    def compressed(quality: int) -> dict[str, float]:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        return measure(np.asarray(Image.open(file)), len(file.getvalue()))

    fine, coarse = compressed(95), compressed(15)
    assert abs(measure(picture)["blockiness"]) < 0.1
    assert coarse["blockiness"] > 0.5 > fine["blockiness"]
    assert coarse["bytes a pixel"] < fine["bytes a pixel"] / 2


@given(arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20))), st.integers(0, 10**9))
def test_every_figure_is_finite_and_the_pixels_are_left_alone(pixels, stored_bytes):
    before = pixels.copy()
    figures = measure_image(pixels, stored_bytes)
    assert figures.shape == (len(STATISTICS),)
    assert np.isfinite(figures).all()
    assert (pixels == before).all()


@pytest.mark.parametrize("grey", [0, 7, 255])
def test_one_grey_is_no_border_and_has_no_texture(grey):
    found = measure(np.full((30, 40), float(grey)))
    assert (found["border"], found["noise"], found["contrast"], found["blockiness"]) == (0, 0, 0, 0)
    assert found["middle level"] == grey


def test_a_huge_image_is_measured_by_its_middle():
    picture = np.tile(scene(3, 512), (3, 4))
    assert measure(picture)["sharpness"] == pytest.approx(measure(picture[512:1024, 768:1280])["sharpness"], abs=1e-6)


@pytest.mark.parametrize("pixels", [np.zeros((4, 4)), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4), np.uint8)])
def test_what_is_no_grey_image_is_refused(pixels):
    with pytest.raises(ValueError, match="8-bit grey"):
        measure_image(pixels, 1)
