"""Every gradient by hand against jax.grad of the readable forward. It needs the extra "jax"."""

import numpy as np
import pytest

from clipseg_np import CLIPSegForImageSegmentation, learning
from clipseg_np.model.clip import CLIPSegModel
from clipseg_np.nn.ops import Ops
from clipseg_np.nn.scope import Scope

from ..nn.test_gradients import numbers
from .test_gradients import IDS, MASK, PROMPTS, config, model_of

jax = pytest.importorskip("jax")

LIMIT = 1e-12  # of the model's largest gradient


class Given:
    def __init__(self, arrays):
        self.arrays = arrays

    def take(self, name, shape):
        assert self.arrays[name].shape == shape
        return self.arrays[name]


def jax_gradients(kind, config, arrays, inputs, loss):
    """Of `loss`, a function of a model's output, by the arrays and the inputs."""

    def value(arrays, inputs):
        model = kind(config, Scope(Given(arrays), Ops(jax.numpy), "float64"))
        return loss(model(**inputs, **rest))

    rest = {name: x for name, x in inputs.items() if x is True or x.dtype.kind != "f"}
    floats = {name: x for name, x in inputs.items() if name not in rest}
    found, of_inputs = jax.jit(jax.grad(value, argnums=(0, 1)))(arrays, floats)
    return {name: np.asarray(gradient) for name, gradient in {**found, **of_inputs}.items()}


def assert_agree(found, expected):
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    assert largest > 0 and set(found) <= set(expected)
    for name, gradient in expected.items():
        # An array that nothing depends on has a gradient of 0 there and may have none here.
        assert np.abs(found.get(name, 0) - gradient).max() <= LIMIT * largest, name


# JAX compiles each operation for each shape.
SEEDS = [2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(12) if seed != 2)]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_whole_model(seed):
    B, kind, refined = 1 + seed % 2, list(PROMPTS)[seed % 3], seed % 4 < 2
    act, layer = Ops.ACTIVATIONS[seed % 5], seed % 5 % 3
    drawn = {"conditional_layer": layer, "use_complex_transposed_convolution": refined}
    values = config(act=act, extract_layers=[2, 0, 2], **drawn)
    model, arrays = model_of(CLIPSegForImageSegmentation, values)
    inputs = {"pixel_values": numbers(B, 2, 13, 8, seed=seed), **PROMPTS[kind]}
    if kind == "ids":
        inputs["attention_mask"] = MASK
    shape = model(**inputs).logits.shape
    inputs["labels"] = np.random.default_rng(seed).uniform(size=shape)
    weights = {"loss": 1.5, "logits": numbers(*shape, seed=3) / 9, "pooled_output": numbers(B, 3)}

    def loss(output):
        return sum((weight * output[name]).sum() for name, weight in weights.items())

    with learning() as found:
        model(**inputs)
        found["pixel_values"], d_prompts = model.propagate(weights)
    if kind != "ids":
        found.update({name: d_prompts for name in PROMPTS[kind]})
    with jax.enable_x64(True):
        expected = jax_gradients(CLIPSegForImageSegmentation, values, arrays, inputs, loss)
    del expected["labels"]
    assert_agree(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("act", Ops.ACTIVATIONS)
def test_clip_with_its_contrastive_loss(act):
    values = config(act=act)
    model, arrays = model_of(CLIPSegModel, values)
    inputs = {"input_ids": IDS, "pixel_values": numbers(2, 2, 8, 12), "attention_mask": MASK}
    inputs["return_loss"] = True
    with learning() as found:
        model(**inputs)
        found["pixel_values"] = model.propagate({"loss": 1.0})
    with jax.enable_x64(True):
        expected = jax_gradients(CLIPSegModel, values, arrays, inputs, lambda output: output.loss)
    assert set(found) == set(expected)
    assert_agree(found, expected)
