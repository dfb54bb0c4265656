"""Visual prompt engineering: every variant, and the authors' recipe step by step."""

import numpy as np
import pytest
from PIL import Image

from clipseg_np import InputError, Segmenter, VisualPrompt
from clipseg_np.cli.parser import main
from clipseg_np.segment.visual_prompt import (
    VARIANTS,
    crop,
    crop_blur_highlight,
    engineer,
    gaussian_blur,
    load_mask,
    to_square,
)

MEAN = (0.485, 0.456, 0.406)


def drawn(height: int = 30, width: int = 40):
    rng = np.random.default_rng(0)
    mask = np.zeros((height, width), bool)
    mask[8:18, 12:32] = rng.uniform(size=(10, 20)) < 0.8
    mask[8, 12] = mask[17, 31] = True
    return rng.normal(size=(height, width, 3)), mask


def plain_blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """The weighted sum of each pixel's neighborhood, mirrored as in "gfedcb|abcdefgh|gfedcba"."""
    height, width, _ = pixels.shape
    window = [np.exp(-(i**2) / (2 * sigma**2)) for i in range(-7, 8)]
    total = sum(window)

    def inside(i: int, length: int) -> int:
        i = -i if i < 0 else i
        return 2 * (length - 1) - i if i >= length else i

    out = np.zeros_like(pixels)
    for y in range(height):
        for x in range(width):
            for dy in range(-7, 8):
                for dx in range(-7, 8):
                    share = window[dy + 7] * window[dx + 7] / total**2
                    out[y, x] += share * pixels[inside(y + dy, height), inside(x + dx, width)]
    return out


def test_blur_is_a_gaussian_of_fifteen_pixels_mirrored_at_the_border():
    pixels = np.random.default_rng(4).normal(size=(16, 20, 3))
    np.testing.assert_allclose(gaussian_blur(pixels, 3.0), plain_blur(pixels, 3.0), atol=1e-12)


def test_blur_of_an_image_smaller_than_the_window():
    assert np.allclose(gaussian_blur(np.full((1, 2, 3), 4.0), 3), 4.0)


def test_the_background_is_blurred_and_faded_and_the_thing_is_not():
    pixels, mask = drawn()
    result = engineer(pixels, mask, background=0.1, blur=3)
    assert np.array_equal(result[mask], pixels[mask])
    np.testing.assert_allclose(result[~mask], 0.1 * gaussian_blur(pixels, 3)[~mask])


def test_the_crop_is_the_box_and_a_tenth_of_its_sides():
    pixels, mask = drawn()
    # rows 8 to 18 and a tenth of 10 more on each side, columns 12 to 32 and a tenth of 20
    assert np.array_equal(crop(pixels, mask, 0.1), pixels[7:19, 10:34])
    # never beyond the image
    assert crop(pixels, mask, 5.0).shape == pixels.shape


def test_padding_to_a_square_is_even_and_neutral():
    square = to_square(np.ones((2, 5, 3)))
    assert square.shape == (5, 5, 3)
    assert np.array_equal(square[:, 0, 0], [0, 1, 1, 0, 0])
    assert to_square(np.ones((5, 2, 3)))[0, :, 0].tolist() == [0, 1, 1, 0, 0]


def nearest_neighbors(before: int, after: int) -> list[int]:
    """torch's, whose scale and product are of float32."""
    scale = np.float32(before / after)
    return [min(int(np.float32(i) * scale), before - 1) for i in range(after)]


@pytest.mark.parametrize("side", [13, 26, 52, 104, 208, 416, 100, 352])
def test_the_nearest_neighbor_is_found_in_float32(side):
    """Of these sides, the first six have products that float32 rounds to a whole number."""
    pixel_values = np.random.default_rng(side).normal(size=(3, side, side)).astype(np.float32)
    made = crop_blur_highlight(pixel_values, np.ones((side, side)))
    nearest = nearest_neighbors(side, 352)
    np.testing.assert_array_equal(made, pixel_values[:, nearest][:, :, nearest])
    exact = [i * side // 352 for i in range(352)]
    assert (nearest == exact) == (side in (13, 100, 352))


def test_crop_blur_highlight_is_the_authors_recipe():
    """Their steps on a square normalized image: blend, box with context, pad, nearest."""
    rng = np.random.default_rng(1)
    pixel_values = rng.normal(size=(3, 40, 40)).astype(np.float32)
    mask = np.zeros((40, 40), np.float32)
    mask[5:25, 20:29] = 1
    blurred = np.moveaxis(plain_blur(np.moveaxis(pixel_values, 0, 2).astype(float), 3), 2, 0)
    blended = pixel_values * mask + 0.1 * blurred * (1 - mask)
    boxed = blended[:, 3:27, 19:29]  # 5 - 2 to 25 + 2; int(20 - 0.9) to int(29 + 0.9)
    padded = np.pad(boxed, ((0, 0), (0, 0), (7, 7)))
    nearest = nearest_neighbors(24, 352)
    expected = padded[:, nearest][:, :, nearest]
    result = crop_blur_highlight(pixel_values, mask)
    assert result.shape == (3, 352, 352) and result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_the_everyday_variant_is_the_same_recipe_in_bytes():
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    mask = np.zeros((40, 40), bool)
    mask[10:20, 10:20] = True
    result = VisualPrompt(image, mask).prepared(MEAN)
    normalised = np.moveaxis(image / 255 - np.array(MEAN), 2, 0)
    expected = np.moveaxis(crop_blur_highlight(normalised, mask, size=12), 0, 2) + np.array(MEAN)
    assert result.shape == (12, 12, 3) and result.dtype == np.uint8
    np.testing.assert_allclose(result / 255, expected, atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_changes_the_image_in_its_own_way(variant):
    image = np.random.default_rng(3).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    _, mask = drawn()
    result = VisualPrompt(image, mask, variant).prepared(MEAN)
    others = [
        VisualPrompt(image, mask, name).prepared(MEAN) for name in VARIANTS if name != variant
    ]
    assert not any(
        result.shape == other.shape and np.array_equal(result, other) for other in others
    )
    assert ("crop" in variant) == (result.shape[0] == result.shape[1])


def test_the_outline_is_red_and_lies_on_the_edge_only():
    image = np.full((20, 20, 3), 90, np.uint8)
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    result = VisualPrompt(image, mask, "outline").prepared(MEAN)
    red = (result == (255, 0, 0)).all(axis=2)
    assert red[5, 5:15].all() and red[3, 8] and red[6, 8]
    assert not red[7, 8] and not red[2, 8]
    assert (result[~red] == 90).all()


def test_unusable_masks_and_variants_are_refused():
    image = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(InputError, match="mask is empty"):
        VisualPrompt(image, np.zeros((20, 20), bool)).prepared(MEAN)
    with pytest.raises(InputError, match="21 x 20 and its image 20 x 20 pixels"):
        VisualPrompt(image, np.ones((20, 21), bool)).prepared(MEAN)
    with pytest.raises(InputError, match="unknown variant 'dye'"):
        VisualPrompt(image, np.ones((20, 20), bool), "dye").prepared(MEAN)


THING = np.zeros((20, 24), bool)
THING[4:9, 6:15] = True
COLORS = np.random.default_rng(5).integers(0, 256, (20, 24, 3), dtype=np.uint8)


def painted(thing, ground, mode: str) -> Image.Image:
    """An image of a mode in which the thing has one color and the ground another."""
    image = Image.new(mode, (24, 20), ground)
    image.paste(thing, mask=Image.fromarray(THING))
    return image


def palette(*colors: tuple[int, int, int]) -> Image.Image:
    """The thing is index 1, the ground index 0."""
    image = Image.frombytes("P", (24, 20), THING.astype(np.uint8).tobytes())
    image.putpalette(np.array(colors, np.uint8).tobytes())
    return image


def lit(alpha) -> Image.Image:
    return Image.fromarray(np.dstack([COLORS, np.where(THING, *alpha).astype(np.uint8)]))


TWO_VALUES = {
    "bool": THING,
    "bytes of 0 and 1": THING.astype(np.uint8),
    "integers of 0 and 255": THING * 255,
    "uint16 of 0 and 255": (THING * 255).astype(np.uint16),
    "big-endian uint16": THING.astype(">u2"),
    "levels of 10 and 30": np.where(THING, 30, 10).astype(np.uint8),
    "floats of 0 and 1": THING.astype(np.float32),
    "floats of -1 and 1": np.where(THING, 1.0, -1.0),
    "floats of 0 and 255": THING * 255.0,
    "with an axis in front": THING[None],
    "with an axis behind": THING[..., None],
    "dark red on black": np.where(THING[..., None], [90, 0, 0], 0).astype(np.uint8),
    "green on red, which are as bright": painted((0, 255, 0), (255, 0, 0), "RGB"),
    "mode 1": painted(1, 0, "1"),
    "mode L of 0 and 1": painted(1, 0, "L"),
    "mode I of 0 and 70000": painted(70000, 0, "I"),
    "mode F of 0 and 0.5": painted(0.5, 0.0, "F"),
    "mode I;16 of 0 and 1": Image.fromarray(THING.astype(np.uint16)),
    "VOC's palette": palette((0, 0, 0), (128, 0, 0)),
    "a palette that begins with white": palette((40, 40, 40), (255, 255, 255)),
    "a drawing on nothing": painted((0, 0, 0, 255), (0, 0, 0, 0), "RGBA"),
    "white on transparent white": painted((255, 255, 255, 255), (255, 255, 255, 0), "RGBA"),
    "black on nothing, in mode LA": painted((0, 255), (0, 0), "LA"),
    "the thing cut out": lit((255, 0)),
    "the thing more opaque": lit((200, 100)),
    "opaque, white on black": painted((255, 255, 255, 255), (0, 0, 0, 255), "RGBA"),
    "white on black that is transparent": painted((255, 255, 255, 255), (0, 0, 0, 0), "RGBA"),
}


@pytest.mark.parametrize("kind", TWO_VALUES)
def test_two_values_of_any_kind_are_a_mask(kind, tmp_path):
    mask = TWO_VALUES[kind]
    assert np.array_equal(load_mask(mask), THING)
    made = VisualPrompt(COLORS, mask).prepared(MEAN)
    assert np.array_equal(made, VisualPrompt(COLORS, THING).prepared(MEAN))
    if isinstance(mask, Image.Image):
        file = tmp_path / ("mask.tif" if mask.mode in ("F", "I") else "mask.png")
        mask.save(file)
        assert np.array_equal(load_mask(file), THING)
        assert np.array_equal(load_mask(str(file)), THING)


def test_a_palette_with_a_transparent_entry_is_a_mask(tmp_path):
    palette((90, 90, 90), (90, 90, 90)).save(tmp_path / "mask.png", transparency=0)
    palette((9, 9, 9), (200, 0, 0)).save(tmp_path / "mask.gif", transparency=0)
    for name in ("mask.png", "mask.gif"):
        assert np.array_equal(load_mask(tmp_path / name), THING)


def test_soft_edges_are_cut_at_half(tmp_path):
    soft = np.where(THING, 255, 0).astype(np.uint8)
    soft[3, 6:15], soft[9, 6:15] = 127, 128
    expected = THING.copy()
    expected[9, 6:15] = True
    Image.fromarray(soft).save(tmp_path / "mask.png")
    clear = np.dstack([COLORS, soft])
    deep = soft.astype(np.uint16) * 257
    for mask in (soft, soft / 255, deep, clear, Image.fromarray(clear), tmp_path / "mask.png"):
        assert np.array_equal(load_mask(mask), expected)
    assert np.array_equal(load_mask(deep // 257 * 16, white_level=4080), expected)
    Image.fromarray(np.where(THING, 255, 0).astype(np.uint8)).save(tmp_path / "mask.jpg")
    assert (load_mask(tmp_path / "mask.jpg") != THING).sum() <= 2


def test_masks_that_may_mean_two_things_are_refused():
    labels = palette((0, 0, 0), (128, 0, 0), (224, 224, 192))
    labels.putpixel((6, 3), 2)  # VOC's border
    with pytest.raises(InputError, match="the prompt's mask holds more than two colors"):
        load_mask(labels)
    both = painted((255, 255, 255, 255), (0, 0, 0, 255), "RGBA")
    both.putpixel((0, 0), (0, 0, 0, 0))
    with pytest.raises(InputError, match="is black and white, and transparent in part"):
        load_mask(both)
    with pytest.raises(InputError, match="nan"):
        load_mask(np.where(THING, np.nan, 0.0))
    with pytest.raises(FileNotFoundError, match=r"There is no image absent\.png"):
        load_mask("absent.png")


def test_the_segmenter_takes_it_as_an_image_prompt(segmenter, image):
    mask = np.zeros(image.shape[:2], bool)
    mask[10:30, 10:30] = True
    prompt = VisualPrompt(image, mask)
    mean = segmenter.processor.image_processor.image_mean
    result = segmenter(image, [prompt, "red", prompt.prepared(mean)])
    np.testing.assert_allclose(result.probabilities[0], result.probabilities[2], atol=1e-6)
    whole = segmenter(image, image).probabilities[0]
    assert np.abs(result.probabilities[0] - whole).max() > 1e-4


def test_on_the_command_line(checkpoint, image, image_file, tmp_path, capsys):
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[10:30, 10:30] = 255
    mask_file, output = tmp_path / "mask.png", tmp_path / "masks"
    Image.fromarray(mask).save(mask_file)
    asked = ["segment", str(image_file), "--model", str(checkpoint), "--output", str(output)]
    asked += ["--image-prompt", str(image_file), "--prompt-mask", str(mask_file)]
    assert main([*asked, "--threshold", "0.3"]) == 0
    expected = Segmenter.from_pretrained(checkpoint)(image, VisualPrompt(image, mask > 0))
    written = np.asarray(Image.open(output / "scene_1_scene-png.png"))
    assert np.array_equal(written > 0, expected.masks(0.3)[0])
    assert main([*asked, "--prompt-mask", str(mask_file)]) == 2
    assert "1 --image-prompt and 2 --prompt-mask" in capsys.readouterr().err
