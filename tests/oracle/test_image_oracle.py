"""The image processor against transformers' ViTImageProcessor on Pillow, and interpolation
against torch's.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'oracle'")
pytest.importorskip("transformers", reason="needs the extra 'oracle'")

import PIL
from PIL import Image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from clipseg_np.image.image_processor import ViTImageProcessor, probabilities_at
from clipseg_np.image.resize import resize_bilinear, vertical_first
from clipseg_np.nn.ops import Ops

pytestmark = pytest.mark.oracle

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SEEDS = range(40)
OLD_PILLOW = int(PIL.__version__.split(".")[0]) < 13


def agree(images, settings, call=None):
    """Run both processors on the same images, and compare; returns the largest difference."""
    call = call or {}
    theirs = ViTImageProcessorPil(**settings)(images, return_tensors="np", **call)["pixel_values"]
    ours = ViTImageProcessor(**settings)(images, return_tensors="np", **call).pixel_values
    assert ours.shape == theirs.shape
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)
    return float(np.abs(ours - theirs).max())


def photo(rng, height, width, channels=3):
    """Noise half of the time, otherwise black and white: the hardest for the filters' overshoot."""
    pixels = rng.integers(0, 256, (height, width, channels))
    if rng.random() < 0.5:
        pixels = (pixels > 127) * 255
    return pixels.astype(np.uint8)


@pytest.mark.parametrize("resample", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_drawn_images_and_settings(seed, resample, agreement):
    rng = np.random.default_rng([seed, resample])
    height, width, new_height, new_width = (int(n) for n in rng.integers(5, 400, 4))
    settings = {
        "size": {"height": new_height, "width": new_width},
        "resample": resample,
        "do_resize": bool(rng.random() < 0.9),
        "do_rescale": bool(rng.random() < 0.8),
        "rescale_factor": float(rng.choice([1 / 255, 1 / 127.5, 0.01])),
        "do_normalize": bool(rng.random() < 0.8),
        **(IMAGENET if rng.random() < 0.7 else {"image_mean": 0.4, "image_std": 0.3}),
    }
    if OLD_PILLOW and vertical_first((height, width), (new_height, new_width)):
        pytest.skip("Pillow before 13 resizes such tall images in the other order")
    pixels = photo(rng, height, width)
    image = Image.fromarray(pixels) if rng.random() < 0.5 else pixels
    agreement("pixel values of drawn images, four resamplings", agree(image, settings))


@pytest.mark.parametrize("resample", [0, 1, 2, 3])
def test_the_official_settings_on_a_photo(resample):
    rng = np.random.default_rng(resample)
    agree(photo(rng, 480, 640), {"size": 352, "resample": resample, **IMAGENET})


MODES = ["1", "L", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "LA", "PA"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_that_the_reference_converts(mode):
    rng = np.random.default_rng(7)
    rgba = Image.fromarray(photo(rng, 37, 53, 4))
    if mode == "LAB":
        image = Image.frombytes("LAB", (53, 37), photo(rng, 37, 53).tobytes())
    elif mode in ("LA", "RGBA"):
        image = rgba.convert(mode)
    elif mode == "PA":
        image = rgba.convert("RGB").convert("P").convert("PA")
    elif mode == "F":  # fractions of levels are refused
        image = rgba.convert("L").convert("F")
    else:
        image = rgba.convert("RGB").convert(mode)
    agree(image, {"size": (20, 30), **IMAGENET}, {"do_convert_rgb": True})


def test_a_palette_and_a_colour_that_are_transparent():
    rng = np.random.default_rng(8)
    rgb = Image.fromarray(photo(rng, 30, 40))
    palette, colour = rgb.convert("P"), rgb.copy()
    palette.info["transparency"] = 3
    colour.info["transparency"] = rgb.getpixel((0, 0))
    for image in (palette, colour):
        agree(image, {"size": 24}, {"do_convert_rgb": True})


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((11, 13, 3), None),
        ((3, 11, 13), None),
        ((11, 13, 1), None),
        ((1, 11, 13), None),
        ((11, 13, 4), None),
        ((4, 11, 13), None),
        ((3, 5, 3), None),
        ((3, 5, 3), "channels_last"),
        ((3, 5, 3), "channels_first"),
        ((2, 11, 13, 3), None),
        ((2, 3, 11, 13), None),
    ],
)
def test_array_layouts(shape, layout):
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    agree(pixels, {"size": 9}, {"do_convert_rgb": True, "input_data_format": layout})


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_in_0_to_1_count_as_rescaled(dtype):
    pixels = np.random.default_rng(2).random((12, 17, 3)).astype(dtype)
    agree(pixels, {"size": 10, "do_rescale": False, **IMAGENET})


@pytest.mark.parametrize("dtype", ["int64", "int32", "float32"])
def test_whole_numbers_up_to_255_are_grey_levels(dtype):
    pixels = np.random.default_rng(3).integers(0, 256, (12, 17, 3)).astype(dtype)
    agree(pixels, {"size": 10, **IMAGENET})


@pytest.mark.parametrize(
    "size",
    [
        {"shortest_edge": 20},
        {"shortest_edge": 20, "longest_edge": 25},
        {"shortest_edge": 31, "longest_edge": 500},
        {"max_height": 40, "max_width": 30},
        {"max_height": 5, "max_width": 300},
        (12, 34),
        17,
    ],
)
@pytest.mark.parametrize("shape", [(31, 57), (57, 31), (40, 40)])
def test_every_form_of_size(size, shape):
    agree(photo(np.random.default_rng(4), *shape), {"size": size})


def test_settings_given_for_one_call():
    pixels = photo(np.random.default_rng(5), 30, 40)
    agree(pixels, {}, {"size": {"height": 16, "width": 8}, "resample": 3, "do_normalize": False})


def test_a_list_of_mixed_sizes_and_a_path_with_orientation(tmp_path):
    rng = np.random.default_rng(6)
    upright = Image.fromarray(photo(rng, 20, 30))
    exif = upright.getexif()
    exif[0x0112] = 6
    upright.save(tmp_path / "turned.png", exif=exif)
    images = [upright, photo(rng, 9, 5), Image.fromarray(photo(rng, 1, 1))]
    agree(images, {"size": 12})
    agree(str(tmp_path / "turned.png"), {"size": (12, 16)})


def test_files_and_json_are_interchangeable(tmp_path):
    for settings in ({}, {"size": 352, **IMAGENET}, {"do_normalize": False, "resample": 3}):
        theirs, ours = ViTImageProcessorPil(**settings), ViTImageProcessor(**settings)
        assert ours.to_json_string() == theirs.to_json_string()
        assert ours.to_dict() == theirs.to_dict()
        theirs.save_pretrained(tmp_path / "theirs")
        ours.save_pretrained(tmp_path / "ours")
        assert ViTImageProcessor.from_pretrained(tmp_path / "theirs").to_dict() == ours.to_dict()
        loaded = ViTImageProcessorPil.from_pretrained(tmp_path / "ours")
        assert loaded.to_json_string() == ours.to_json_string()


def test_the_fields_and_defaults_are_the_reference_s():
    theirs, ours = ViTImageProcessorPil(), ViTImageProcessor()
    for name in vars(ours):
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize("seed", range(60))
def test_resize_bilinear_is_torch_s(seed):
    rng = np.random.default_rng(seed)
    h, w, height, width = (int(n) for n in rng.integers(1, 120, 4))
    maps = rng.standard_normal((2, h, w))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[None], size=(height, width), mode="bilinear", align_corners=False
    )[0].numpy()
    # a coordinate computed as a product in another order may differ in its last bit
    np.testing.assert_allclose(resize_bilinear(maps, (height, width)), expected, rtol=0, atol=1e-12)
    single = resize_bilinear(maps.astype(np.float32), (height, width))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, rtol=0, atol=2e-6)


def test_probabilities_are_torch_s():
    logits = np.random.default_rng(0).standard_normal((3, 22, 22)).astype(np.float32) * 30
    at_size = torch.nn.functional.interpolate(
        torch.from_numpy(logits)[None], size=(48, 64), mode="bilinear", align_corners=False
    )[0]
    expected = torch.sigmoid(at_size).numpy()
    np.testing.assert_allclose(probabilities_at(logits, (48, 64)), expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(Ops().sigmoid(at_size.numpy()), expected, rtol=1e-6, atol=1e-38)
