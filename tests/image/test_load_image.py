"""One image in every form becomes RGB bytes, and unusable ones are refused."""

import warnings

import numpy as np
import pytest
from PIL import Image

from clipseg_np import ViTImageProcessor
from clipseg_np.errors import InputError
from clipseg_np.image.load_image import load_image
from clipseg_np.segment.visual_prompt import load_mask

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
ALPHA = np.random.default_rng(1).integers(0, 256, (5, 7, 1), dtype=np.uint8)
GREY = RGB[:, :, :1]
DARK = np.arange(35, dtype=np.uint16).reshape(5, 7) * 117


def three(grey):
    return np.repeat(np.asarray(grey).reshape(5, 7, 1), 3, axis=2)


def over_white(colors, alpha=ALPHA):
    share = alpha / 255
    return np.round(colors * share + 255 * (1 - share)).astype(np.uint8)


# PIL images


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"])
def test_P06_modes_that_pillow_converts(mode):
    if mode == "LAB":
        image = Image.frombytes("LAB", (7, 5), RGB.tobytes())
    else:
        image = Image.fromarray(RGB).convert(mode)
    loaded = load_image(image)
    assert (loaded.shape, loaded.dtype) == ((5, 7, 3), np.uint8)
    np.testing.assert_array_equal(loaded, np.asarray(image.convert("RGB")))


def test_rgb_and_grey():
    np.testing.assert_array_equal(load_image(Image.fromarray(RGB)), RGB)
    np.testing.assert_array_equal(load_image(Image.fromarray(GREY[:, :, 0])), three(GREY))


def test_P06_transparent_pixels_show_white():
    rgba = Image.fromarray(np.concatenate([RGB, ALPHA], axis=2))
    np.testing.assert_array_equal(load_image(rgba), over_white(RGB))
    grey_alpha = Image.merge("LA", (Image.fromarray(GREY[..., 0]), Image.fromarray(ALPHA[..., 0])))
    np.testing.assert_array_equal(load_image(grey_alpha), over_white(three(GREY)))


def test_premultiplied_alpha_palette_alpha_and_transparent_colors():
    opaque = Image.fromarray(RGB).convert("RGBA")
    np.testing.assert_array_equal(load_image(opaque.convert("RGBa")), RGB)
    grey_alpha = opaque.convert("LA")
    expected = load_image(grey_alpha)
    np.testing.assert_array_equal(load_image(grey_alpha.convert("La")), expected)

    palette = Image.fromarray(RGB).convert("P")
    as_rgb = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(load_image(palette.convert("PA")), as_rgb)
    index = palette.getpixel((3, 2))
    palette.info["transparency"] = index
    hidden = np.asarray(palette) == index
    assert hidden[2, 3]
    expected = np.where(hidden[:, :, None], 255, as_rgb)
    np.testing.assert_array_equal(load_image(palette), expected)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_P06_sixteen_bits_are_scaled_not_clipped(mode):
    levels = np.array([[0, 128, 129, 255, 257, 30000, 65535]] * 5, np.uint16)
    stored = levels.astype(">u2" if mode.endswith("B") else "<u2")
    image = Image.frombytes(mode, (7, 5), stored.tobytes())
    expected = [[0, 0, 1, 1, 1, 117, 255]] * 5
    np.testing.assert_array_equal(load_image(image), three(expected))


def test_32_bit_grey_is_8_or_16_bits_wide():
    narrow = np.arange(35, dtype=np.int32).reshape(5, 7)
    narrow[-1] = 250
    np.testing.assert_array_equal(load_image(Image.fromarray(narrow)), three(narrow))
    np.testing.assert_array_equal(load_image(Image.fromarray(narrow * 257)), three(narrow))


def test_float_images_are_read_as_float_arrays(tmp_path):
    """Whole levels and 0..1 have a meaning; others are refused, until white is given."""
    fractions = np.linspace(0, 255, 35, dtype=np.float32).reshape(5, 7)
    for levels in (fractions / 255, np.floor(fractions)):
        file = tmp_path / "float.tif"
        Image.fromarray(levels).save(file)
        for image in (file, Image.fromarray(levels)):
            np.testing.assert_array_equal(load_image(image), load_image(levels))
    Image.fromarray(fractions).save(file)
    for image in (file, Image.fromarray(fractions), fractions):
        with pytest.raises(
            InputError, match=r"fractions of float32 from 0.0 to 255.0.*white_level"
        ):
            load_image(image)
        np.testing.assert_array_equal(
            load_image(image, white_level=255), three(np.floor(fractions))
        )


# files


def test_a_path_gives_what_its_image_gives(tmp_path):
    rgba = Image.fromarray(np.concatenate([RGB, ALPHA], axis=2))
    rgba.save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), load_image(rgba))
    np.testing.assert_array_equal(load_image(str(tmp_path / "a.png")), load_image(rgba))


def test_a_16_bit_png(tmp_path):
    levels = np.arange(35, dtype=np.uint16).reshape(5, 7) * 1800
    Image.fromarray(levels).save(tmp_path / "deep.png")
    expected = three(np.round(levels / 257))
    np.testing.assert_array_equal(load_image(tmp_path / "deep.png"), expected)


UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_P05_a_file_s_orientation_is_honoured_and_an_open_image_is_left_alone(
    tmp_path, orientation
):
    image = Image.fromarray(RGB)
    exif = image.getexif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    image.save(path, exif=exif)
    np.testing.assert_array_equal(load_image(path), UPRIGHT[orientation](RGB))
    with Image.open(path) as opened:
        assert opened.getexif()[0x0112] == orientation
        np.testing.assert_array_equal(load_image(opened), RGB)


# arrays


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (RGB, RGB),
        (RGB.transpose(2, 0, 1), RGB),
        (GREY, three(GREY)),
        (GREY.transpose(2, 0, 1), three(GREY)),
        (GREY[:, :, 0], three(GREY)),
        (np.concatenate([RGB, ALPHA], axis=2), over_white(RGB)),
        (np.concatenate([RGB, ALPHA], axis=2).transpose(2, 0, 1), over_white(RGB)),
        (RGB.astype(np.int64), RGB),
        (RGB.astype(np.float32), RGB),
        (RGB.astype(np.uint16) * 257, RGB),
        (RGB.astype(">u2") * 257, RGB),
        (RGB.astype(np.int32) * 257, RGB),
        (RGB.astype(np.float64) / 255, RGB),
        (RGB.astype(np.float32) / 255, RGB),
        (np.full((5, 7), 0.999), three(np.full((5, 7), 254))),
        (RGB > 127, np.where(RGB > 127, 255, 0)),
    ],
)
def test_P06_arrays(array, expected):
    loaded = load_image(array)
    assert loaded.dtype == np.uint8
    np.testing.assert_array_equal(loaded, expected)


@pytest.mark.parametrize("array", [DARK, DARK.astype(">u2"), DARK.astype(int), DARK / 65535])
def test_numbers_that_leave_open_what_is_white_are_warned_of(array):
    """Less than half of white: 12 bits in 16, or an underexposed image."""
    white = 1 if array.dtype.kind == "f" else 65535
    with pytest.warns(
        UserWarning, match=rf"its brightest number is .*, and {white} counts as white"
    ) as warned:
        loaded = load_image(array)
    assert warned[0].filename == __file__
    assert np.abs(loaded - three(DARK) / 257).max() < 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bright = load_image(array, white_level=4095 * (white / 65535))
        assert np.abs(bright - three(DARK) * (255 / 4095)).max() < 1
        load_image(array * 0)
        load_image(DARK.astype(np.uint8))


def test_white_is_a_number_above_0_and_does_not_change_bytes():
    for white_level in (0, -1, np.nan, np.inf, "4095"):
        with pytest.raises(InputError, match="white_level is .*expected a number above 0"):
            load_image(RGB, white_level=white_level)
    for image in (RGB, Image.fromarray(RGB), RGB > 99):
        np.testing.assert_array_equal(load_image(image, white_level=4095), load_image(image))
    levels = np.array([[0, 100, 200, 300]])
    expected = [[0, 128, 255, 255]]  # above white is white
    assert load_image(levels, white_level=200)[..., 0].tolist() == expected
    assert load_image(levels / 200, white_level=1)[..., 0].tolist() == [[0, 127, 255, 255]]


def test_rounding_takes_no_float_out_of_0_to_1():
    for edge in (1 + 2**-22, np.float16(1.001), -1e-8):
        unit = np.array([[0, 0.5, 1, edge]])
        expected = [[0, 127, 255, 255 if edge > 0 else 0]]
        assert load_image(unit)[..., 0].tolist() == expected
        values = ViTImageProcessor(size=8, do_rescale=False)(np.tile(unit, (4, 1))).pixel_values
        assert np.abs(values).max() <= 1
    with pytest.raises(InputError, match=r"from 0.0 to 1.01; .*white_level"):
        load_image(np.array([[0, 0.5, 1.01]]))


def test_the_alpha_is_kept_on_demand():
    rgba = np.concatenate([RGB, ALPHA], axis=2)
    for image in (rgba, Image.fromarray(rgba), Image.fromarray(rgba).convert("RGBA")):
        np.testing.assert_array_equal(load_image(image, keep_alpha=True), rgba)
    np.testing.assert_array_equal(load_image(RGB, keep_alpha=True), RGB)
    grey = Image.fromarray(rgba).convert("LA")
    level, alpha = np.asarray(grey).transpose(2, 0, 1)
    expected = np.dstack([level, level, level, alpha])
    np.testing.assert_array_equal(load_image(grey, keep_alpha=True), expected)


def test_an_array_that_could_be_either_is_channels_first_with_a_warning():
    array = np.random.default_rng(2).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    with pytest.warns(UserWarning, match=r"\(3, 5, 3\).*input_data_format") as warned:
        assert load_image(array).shape == (5, 3, 3)
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(load_image(array, "channels_last"), array)
        np.testing.assert_array_equal(load_image(array, "channels_first"), array.transpose(1, 2, 0))
        load_image(RGB)


def test_the_result_is_the_caller_s_own():
    for image in (RGB.copy(), Image.fromarray(RGB), GREY.copy()):
        before = np.array(image)
        load_image(image)[:] = 1
        np.testing.assert_array_equal(np.asarray(image), before)


def test_rescaled_floats_are_told_from_grey_levels(tmp_path):
    unit = np.linspace(0, 1, 35, dtype=np.float32).reshape(5, 7)
    processor = ViTImageProcessor(size=8, do_rescale=False)
    for levels, expected in ((unit, True), (np.round(unit * 255), False)):
        image, file = Image.fromarray(levels), tmp_path / "float.tif"
        image.save(file)
        first, *others = (processor(one).pixel_values for one in (levels, image, file, str(file)))
        assert (np.abs(first).max() <= 1) == expected
        assert all(np.array_equal(first, other) for other in others)


# unusable images


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.zeros((5, 7, 2), np.uint8), r"\(5, 7, 2\)"),
        (np.zeros(5, np.uint8), r"\(5,\)"),
        (np.zeros((1, 2, 5, 7), np.uint8), r"\(1, 2, 5, 7\)"),
        (np.full((5, 7), np.nan), "nan"),
        (np.full((5, 7), np.inf), "inf"),
        (np.full((5, 7), -0.1), "-0.1"),
        (np.full((5, 7), 1.5), "1.5"),
        (np.full((5, 7), 300.0), "300"),
        (np.full((5, 7), -1), "-1"),
        (np.full((5, 7), 65536), "65536"),
        (np.zeros((5, 7), complex), "complex"),
        (np.full((5, 7), "x"), "<U1"),
        (np.full((5, 7), None), "object"),
        ([[1, 2], [3, 4]], "list"),
        (None, "NoneType"),
        (Image.new("RGB", (0, 5)), "no pixels"),
        (Image.new("F", (5, 5), 300.0), "300"),
        (Image.fromarray(np.array([[0, np.nan, 9]], np.float32)), "nan"),
        (Image.new("I", (5, 5), -3), "-3"),
    ],
)
def test_unusable_arrays_and_images(array, message):
    with pytest.raises(InputError, match=message) as error:
        load_image(array, name="images[4]")
    assert "images[4]" in str(error.value)


def test_a_layout_that_does_not_fit_and_one_that_does_not_exist():
    with pytest.raises(InputError, match="channels_first"):
        load_image(RGB, "channels_first")
    with pytest.raises(InputError, match="input_data_format"):
        load_image(RGB, "HWC")


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "webp", "tiff", "bmp"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_truncated_files(tmp_path, kind):
    path = tmp_path / f"cut.{kind}"
    big = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(big).save(path)
    whole = path.read_bytes()
    for length in (len(whole) // 2, 30, 5, 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut\."):
            load_image(path)


def test_files_that_are_no_images(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        load_image(tmp_path / "absent.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image at all")
    messages = {"folder": "is a folder", "empty": "0 bytes", "text": "not an image"}
    for name, message in messages.items():
        with pytest.raises(InputError, match=message) as error:
            load_image(tmp_path / f"{name}.png")
        assert f"{name}.png" in str(error.value)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "locked.png"
    Image.fromarray(RGB).save(path)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(InputError, match=r"locked\.png.*Permission denied"):
        load_image(path)


def test_decompression_bombs(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    Image.fromarray(RGB).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # of 35: Pillow warns, but reads it
    assert (load_image(path) == RGB).all()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # over twice as many: it refuses
    with pytest.raises(InputError, match=r"bomb\.png.*MAX_IMAGE_PIXELS"):
        load_image(path)


def test_an_open_image_whose_file_is_cut_off(tmp_path):
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    with Image.open(path) as opened, pytest.raises(InputError, match=r"cut\.png"):
        load_image(opened)


class OnAGpu:
    """An array like CuPy's: only `get` copies it to main memory."""

    def __init__(self, values):
        self.values = values

    def get(self):
        return self.values.copy()

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")


def test_an_array_on_a_gpu_is_read_like_its_copy(image):
    for array in (image, image / 255, image[..., 0] > 99):
        assert np.array_equal(load_image(OnAGpu(array)), load_image(array))
        processor = ViTImageProcessor(size=32)
        actual, expected = (processor(x).pixel_values for x in (OnAGpu(array), array))
        assert np.array_equal(actual, expected)
    mask = (image[..., 0] > 99).astype("uint8")
    assert np.array_equal(load_mask(OnAGpu(mask)), mask > 0)


def test_an_array_that_cannot_be_copied_is_refused(image):
    array = OnAGpu(image)
    array.get = None
    with pytest.raises(InputError, match="images.0. is a OnAGpu that NumPy cannot read"):
        ViTImageProcessor()([array])


def test_the_message_on_a_file_that_is_no_image_is_the_same_each_time(tmp_path):
    """Pillow's own message has an address in memory, and a report would never be the same."""
    path = tmp_path / "notes.jpg"
    path.write_text("no image")
    with pytest.raises(InputError, match="notes.jpg is not an image that Pillow can read") as error:
        load_image(path)
    assert "<" not in str(error.value) and "0x" not in str(error.value)
