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
    expected = padded[:, [i * 24 // 352 for i in range(352)]]
    expected = expected[:, :, [i * 24 // 352 for i in range(352)]]
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
    with pytest.raises(InputError, match="20 by 21 .* 20 by 20"):
        VisualPrompt(image, np.ones((20, 21), bool)).prepared(MEAN)
    with pytest.raises(InputError, match="unknown variant 'dye'"):
        VisualPrompt(image, np.ones((20, 20), bool), "dye").prepared(MEAN)


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
