"""Sizes, numbers of prompts, outputs and activations on a GPU, against float64 on the host."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from clipseg_np.model.recorded import recorded
from clipseg_np.nn.ops import Ops

from ..helpers.checkpoints import PLAIN, REFINED, stored_arrays
from ..model.test_device_clean import flat
from .agreement import EXACT, assert_near, eager_logits, loaded, model_of

pytestmark = pytest.mark.gpu

SHAPES = {  # height and width, in patches and pixels beside them; images; prompts
    "one patch, one prompt": ((1, 0), (1, 0), 1, 1),
    "wide, two prompts": ((1, 0), (3, 0), 1, 2),
    "pixels past the last patch, five prompts": ((2, 3), (1, 5), 1, 5),
    "more prompts than are decoded at once": ((3, 0), (2, 0), 1, 70),
    "three images with a prompt each": ((2, 0), (2, 1), 3, 3),
    "more images than are encoded at once": ((1, 0), (2, 0), 66, 66),
}
each_type = pytest.mark.parametrize("dtype", EXACT)
each_checkpoint = pytest.mark.parametrize("folder", [PLAIN, REFINED], ids=["plain", "refined"])
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def drawn_inputs(config, shape):
    """Images (B,C,H,W), and the ids of texts (P,5), which end with the highest id."""
    *sides, images, prompts = shape
    rng, p = np.random.default_rng(0), config.vision_config.patch_size
    sides = [patches * p + beside for patches, beside in sides]
    input_ids = rng.integers(3, config.text_config.vocab_size - 1, (prompts, 5))
    input_ids[:, -1] = config.text_config.vocab_size - 1
    return rng.normal(size=(images, config.vision_config.num_channels, *sides)), input_ids


@each_type
@each_checkpoint
@each_shape
def test_the_eager_pass(shape, folder, dtype):
    model, exact = loaded(folder, dtype), loaded(folder, "float64", "numpy")
    inputs = drawn_inputs(model.config, shape)
    assert_near(eager_logits(model, *inputs), eager_logits(exact, *inputs), EXACT[dtype])


@each_type
@each_checkpoint
@each_shape
def test_the_recorded_pass(shape, folder, dtype):
    model, exact = loaded(folder, dtype), loaded(folder, "float64", "numpy")
    pixel_values, input_ids = drawn_inputs(model.config, shape)
    found = recorded(model, -pixel_values, input_ids[::-1])(pixel_values, input_ids)
    assert found.dtype == dtype
    assert_near(found, eager_logits(exact, pixel_values, input_ids), EXACT[dtype])


@each_type
@each_checkpoint
@pytest.mark.parametrize("kind", ["texts", "images"])
def test_every_output(kind, folder, dtype):
    model, exact = loaded(folder, dtype), loaded(folder, "float64", "numpy")
    pixel_values, ids = drawn_inputs(model.config, SHAPES["three images with a prompt each"])
    labels = eager_logits(exact, pixel_values, ids) > 0
    inputs = {
        "texts": {"input_ids": ids, "attention_mask": np.ones_like(ids)},
        "images": {"conditional_pixel_values": np.repeat(pixel_values[::-1], 2, axis=2)},
    }[kind]
    inputs |= {"pixel_values": pixel_values, "labels": labels}
    record = {"output_attentions": True, "output_hidden_states": True}
    found, expected = (flat(each(**inputs, **record)) for each in (model, exact))
    for array, other in zip(found, expected, strict=True):
        assert array.dtype == dtype
        assert_near(array, other, EXACT[dtype])


@each_type
@pytest.mark.parametrize("activation", Ops.ACTIVATIONS)
def test_every_activation(activation, dtype):
    config, arrays = loaded(REFINED, dtype).config, stored_arrays(REFINED)
    towers = {
        name: replace(getattr(config, name), hidden_act=activation)
        for name in ("text_config", "vision_config")
    }
    config, weights = replace(config, **towers), SimpleNamespace(take=lambda name, _: arrays[name])
    model, exact = model_of(config, weights, dtype), model_of(config, weights, "float64", False)
    inputs = drawn_inputs(config, SHAPES["wide, two prompts"])
    expected = eager_logits(exact, *inputs)
    assert_near(eager_logits(model, *inputs), expected, EXACT[dtype])
    assert_near(recorded(model, *inputs)(*inputs), expected, EXACT[dtype])
