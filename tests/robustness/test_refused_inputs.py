"""Inputs that the models cannot use: an error that names what was given and what was expected."""

import numpy as np
import pytest

from clipseg_np import CLIPSegForImageSegmentation, CLIPSegTextModel, CLIPSegVisionConfig
from clipseg_np.errors import InputError

from ..helpers.checkpoints import PLAIN

IDS = np.array([[22, 3, 23, 1, 1], [22, 17, 4, 6, 23], [22, 9, 9, 23, 1]])
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])


@pytest.fixture(scope="module")
def plain():
    return CLIPSegForImageSegmentation.from_pretrained(PLAIN)


def images(B, height, width):
    return np.zeros((B, 1, height, width))


def refuses(message, call):
    with pytest.raises(InputError, match=message):
        call()


def test_numbers_of_images_and_prompts_that_do_not_fit(plain):
    two = images(2, 32, 32)
    refuses("2 images and 3 prompts", lambda: plain(pixel_values=two, input_ids=IDS))
    refuses("2 images and 1 prompts", lambda: plain(pixel_values=two, input_ids=IDS[:1]))
    refuses(
        "2 images and 3 prompts",
        lambda: plain(pixel_values=two, conditional_pixel_values=images(3, 32, 32)),
    )
    refuses(
        "2 images and 3 prompts", lambda: plain.decode(plain.encode_image(two), np.ones((3, 20)))
    )
    refuses("got 3 prompts; expected 2", lambda: plain.get_conditional_embeddings(2, input_ids=IDS))


def test_prompts_in_no_form_or_two(plain):
    x, vectors = images(1, 32, 32), np.ones((1, 20))
    refuses("neither", lambda: plain(pixel_values=x))
    refuses("both", lambda: plain(pixel_values=x, input_ids=IDS, conditional_pixel_values=x))
    refuses(
        "another kind", lambda: plain(pixel_values=x, input_ids=IDS, conditional_embeddings=vectors)
    )
    refuses("pixel_values are missing", lambda: plain(input_ids=IDS))


@pytest.mark.parametrize("shape", [(2, 19), (20,), (0, 20), (1, 1, 20)])
def test_embeddings_of_another_shape(plain, shape):
    x = images(1, 32, 32)
    refuses(
        r"expected \(prompts, 20\) \(projection_dim\)",
        lambda: plain(pixel_values=x, conditional_embeddings=np.ones(shape)),
    )


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 1, 15, 32), (1, 32, 32), (0, 1, 32, 32)])
def test_images_of_another_shape(plain, shape):
    refuses(
        r"expected \(images, 1, height, width\).*patch of 16 by 16",
        lambda: plain(pixel_values=np.zeros(shape), input_ids=IDS),
    )


@pytest.mark.parametrize("shape", [(3,), (1, 3, 32, 32)])
def test_images_of_another_shape_where_positions_are_not_interpolated(plain, shape):
    vision = plain.clip.vision_model
    for pixels in (np.zeros(shape), np.zeros(shape).tolist()):
        refuses("expected .images, 1, height", lambda: vision(pixels, False))  # noqa: B023
    assert vision(images(1, 32, 32).tolist(), False).pooler_output.shape == (1, 16)


@pytest.mark.parametrize(
    "ids, message",
    [
        ([[0, 24]], "input_ids hold 24; the vocabulary has ids 0 to 23"),
        ([[-1, 2]], "input_ids hold -1;"),
        ([[0] * 8], "a text has 8 tokens; the model has 7 positions"),
        ([[0.0, 1.0]], "whole numbers"),
        ([[]], "at least one token"),
        (3, "whole numbers"),
    ],
)
def test_ids_that_do_not_fit(plain, ids, message):
    refuses(message, lambda: plain.clip.text_model(np.array(ids)))


def test_masks_and_positions_that_do_not_fit(plain):
    text = plain.clip.text_model
    refuses(r"shape \(3, 4\); .*\(3, 5\)", lambda: text(IDS, attention_mask=MASK[:, :4]))
    refuses(r"shape \(2, 5\); expected \(3, 5\)", lambda: text(IDS, position_ids=MASK[:2]))
    refuses("0 to 6", lambda: text(IDS, position_ids=MASK * 7))
    refuses("0 to 6", lambda: text(IDS, position_ids=MASK * -1))
    refuses("whole numbers in 0 to 6", lambda: text(IDS, position_ids=MASK * 1.0))


def test_the_contrastive_loss_needs_pairs(plain):
    refuses("got 3 and 2", lambda: plain.clip(IDS, images(2, 32, 32), return_loss=True))


def test_a_model_needs_its_own_config():
    refuses(
        "CLIPSegTextModel needs a CLIPSegTextConfig; got CLIPSegVisionConfig",
        lambda: CLIPSegTextModel(CLIPSegVisionConfig()),
    )


@pytest.mark.parametrize("dtype", ["float16", "int32", "bfloat16", "nonsense", None])
def test_P26_arithmetic_in_float16_is_refused_as_are_other_types(dtype):
    if dtype is None:
        assert CLIPSegTextModel.from_pretrained(PLAIN).dtype == "float32"
    else:
        refuses(
            "expected one of float32, float64",
            lambda: CLIPSegTextModel.from_pretrained(PLAIN, dtype=dtype),
        )
