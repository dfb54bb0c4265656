"""Resizing: Pillow's bytes for images, plain interpolation for float maps."""

import numpy as np
import PIL
import pytest
from PIL import Image

from clipseg_np.errors import InputError
from clipseg_np.image.resize import resize, resize_bilinear, vertical_first

OLD_PILLOW = int(PIL.__version__.split(".")[0]) < 13
RESAMPLINGS = [0, 1, 2, 3]


def by_pillow(pixels, size, resample):
    height, width = pixels.shape[:2]
    # CMYK has four channels, none of which Pillow treats as alpha.
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        image = Image.frombytes("CMYK", (width, height), pixels.tobytes())
    else:
        image = Image.fromarray(pixels)
    return np.asarray(image.resize((size[1], size[0]), resample))


def check(pixels, size, resample):
    both_sides = pixels.shape[1] != size[1]
    if OLD_PILLOW and resample and both_sides and vertical_first(pixels.shape[:2], size):
        pytest.skip("Pillow before 13 resizes such tall images in the other order")
    resized = resize(pixels, size, resample)
    assert resized.dtype == np.uint8
    np.testing.assert_array_equal(resized, by_pillow(pixels, size, resample))


def drawn_pixels(rng, height, width, channels):
    """Noise, or black and white, which makes the filters overshoot; one channel has no axis."""
    pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    if rng.random() < 0.5:
        pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)
    return pixels[:, :, 0] if channels == 1 else pixels


@pytest.mark.parametrize("resample", RESAMPLINGS)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("seed", range(30))
def test_P02_drawn_sizes_give_pillow_s_bytes(seed, channels, resample):
    rng = np.random.default_rng([seed, channels, resample])
    largest = (4, 30, 200)[seed % 3]
    height, width, new_height, new_width = (int(n) for n in rng.integers(1, largest + 1, 4))
    check(drawn_pixels(rng, height, width, channels), (new_height, new_width), resample)


@pytest.mark.parametrize("resample", RESAMPLINGS)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1, 1), (1, 1)),
        ((1, 1), (40, 50)),
        ((1, 90), (7, 3)),
        ((90, 1), (3, 7)),
        ((60, 80), (1, 1)),
        ((60, 80), (60, 31)),  # the height stays: one pass
        ((60, 80), (25, 80)),  # the width stays
        ((60, 80), (60, 80)),  # both stay: a copy
        ((60, 80), (61, 79)),
        ((480, 640), (352, 352)),
        ((200, 60), (50, 40)),  # columns before rows
        ((3000, 2), (4, 1)),
        ((2, 3000), (1, 4)),
    ],
)
def test_chosen_sizes_give_pillow_s_bytes(before, after, resample):
    rng = np.random.default_rng(0)
    pixels = np.where(rng.random((*before, 3)) < 0.5, 0, 255).astype(np.uint8)
    check(pixels, after, resample)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((10, 10), (5, 8), True),  # 5 rows lost, 2 columns
        ((10, 10), (5, 7), False),  # 3 columns
        ((14, 10), (10, 8), False),  # exactly twice
        ((15, 10), (10, 8), True),
        ((10, 10), (9, 30), True),  # any loss of rows, where the width grows
        ((10, 10), (10, 30), False),
        ((10, 10), (20, 99), False),
    ],
)
def test_the_order_of_the_passes(before, after, expected):
    assert vertical_first(before, after) is expected


def test_bilinear_by_hand():
    row = np.array([[0, 100]], np.uint8)
    assert resize(row, (1, 4), 2).tolist() == [[0, 25, 75, 100]]
    # Shrinking by two, the filter is two pixels wide to each side: both pixels weigh a half.
    # 127.5 is rounded up, and once more after the second pass.
    assert resize(np.array([[0, 255], [255, 0]], np.uint8), (1, 1), 2).tolist() == [[128]]
    # Shrinking four to two: shares 3, 3, 1 of 7 in the first, 1, 3, 3 of 7 in the second.
    assert resize(np.array([[70, 0, 7, 0]], np.uint8), (1, 2), 2).tolist() == [[31, 3]]


def test_P04_bicubic_has_a_of_minus_one_half():
    edge = np.array([[0, 0, 0, 0, 128, 128, 128, 128]], np.uint8)
    # A quarter of a pixel before the edge, Keys' cubic weighs the pixels at -1.25, -0.25, 0.75 and
    # 1.75 with -9, 111, 29 and -3 of 128; with a = -0.75 it would be other numbers.
    doubled = resize(edge, (1, 16), 3)[0]
    assert doubled[7] == 29 - 3
    assert doubled[8] == 128 - (29 - 3)


def test_nearest_takes_the_pixel_under_the_center():
    row = np.arange(5, dtype=np.uint8)[None]
    assert resize(row, (1, 2), 0).tolist() == [[1, 3]]
    assert resize(row, (2, 10), 0).tolist() == [[0, 0, 1, 1, 2, 2, 3, 3, 4, 4]] * 2


def test_a_view_that_is_not_contiguous():
    pixels = np.random.default_rng(1).integers(0, 256, (3, 20, 30), dtype=np.uint8)
    turned = pixels.transpose(1, 2, 0)[::-1, ::2]
    check_against = np.ascontiguousarray(turned)
    np.testing.assert_array_equal(resize(turned, (15, 9), 3), by_pillow(check_against, (15, 9), 3))


@pytest.mark.parametrize(
    ("image", "size", "resample", "names"),
    [
        (np.zeros((3, 3)), (2, 2), 2, "uint8"),
        (np.zeros(3, np.uint8), (2, 2), 2, "shape"),
        (np.zeros((0, 3), np.uint8), (2, 2), 2, "shape"),
        (np.zeros((3, 3), np.uint8), (0, 2), 2, "size"),
        (np.zeros((3, 3), np.uint8), (2, 2), 4, "resample"),
    ],
)
def test_unusable_images_and_sizes(image, size, resample, names):
    with pytest.raises(InputError, match=names):
        resize(image, size, resample)


def test_bilinear_maps_by_hand():
    row = np.array([[0.0, 1.0]])
    np.testing.assert_allclose(resize_bilinear(row, (1, 4)), [[0, 0.25, 0.75, 1]])
    square = np.array([[0.0, 2.0], [4.0, 6.0]])
    np.testing.assert_allclose(resize_bilinear(square, (1, 1)), [[3.0]])
    np.testing.assert_allclose(resize_bilinear(square, (3, 3)), [[0, 1, 2], [2, 3, 4], [4, 5, 6]])


def test_shrinking_a_map_does_not_smooth():
    # Eight to two: the centres fall between pixels 1 and 2, and between 5 and 6.
    row = np.array([[9.0, 0.0, 2.0, 9.0, 9.0, 4.0, 8.0, 9.0]])
    np.testing.assert_allclose(resize_bilinear(row, (1, 2)), [[1.0, 6.0]])


def test_a_map_at_its_own_size_is_unchanged_in_every_dtype():
    for dtype in (np.float32, np.float64):
        maps = np.random.default_rng(2).standard_normal((2, 3, 7, 5)).astype(dtype)
        same = resize_bilinear(maps, (7, 5))
        assert same.dtype == dtype
        np.testing.assert_array_equal(same, maps)
