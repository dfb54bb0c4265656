"""A pass that is shared out against the loss of the whole batch."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from clipseg_np import CLIPSegForImageSegmentation
from clipseg_np.backends.numpy_ops import NumpyOps
from clipseg_np.learn.step import cross_entropy_and_dice, focal_and_dice, joined, one_pass
from clipseg_np.nn.ops import Ops

from ..helpers.finite_differences import assert_gradients

GRID, PROMPTS = (2, 3), 5
LOSSES = [
    cross_entropy_and_dice,
    partial(cross_entropy_and_dice, pos_weight=3.0),
    focal_and_dice,
    partial(focal_and_dice, gamma=1.0),
]


def model_on(config, ops: Ops) -> CLIPSegForImageSegmentation:
    return CLIPSegForImageSegmentation(config, seed=1, dtype="float64", ops=ops)


def sliced(threads: int, size: int) -> NumpyOps:
    ops = NumpyOps(threads)
    ops.prompts_per_slice = size
    return ops


@pytest.fixture
def decoder(config):
    return model_on(config, Ops()).decoder


def batch(config, is_reduced: bool, images: int = PROMPTS) -> tuple:
    rng, T = np.random.default_rng(0), 1 + GRID[0] * GRID[1]
    width = config.reduce_dim if is_reduced else config.vision_config.hidden_size
    tokens = [rng.normal(size=(images, T, width)) for _ in config.extract_layers]
    embeddings = rng.normal(size=(PROMPTS, config.projection_dim))
    p = config.vision_config.patch_size
    labels = rng.uniform(size=(PROMPTS, GRID[0] * p, GRID[1] * p)).round()
    return tokens, embeddings, labels


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("is_reduced", [True, False])
def test_every_gradient_is_that_of_the_whole_batchs_loss(config, is_reduced, loss):
    tokens, embeddings, labels = batch(config, is_reduced)
    labels[0, :3], labels[1] = np.nan, np.nan
    model = model_on(config, sliced(2, 2))
    decoder = model.decoder
    found = one_pass(decoder, tokens, embeddings, labels, GRID, is_reduced=is_reduced, loss=loss)

    def whole() -> float:
        reduced = tokens if is_reduced else decoder.reduce(tokens)
        logits = decoder(reduced, embeddings, GRID).logits
        # A pixel that is ignored is right.
        logits = np.where(np.isnan(labels), -1e4, logits)
        return loss(Ops(), logits, np.nan_to_num(labels))[0]

    np.testing.assert_allclose(found.loss, whole(), rtol=1e-12)
    arrays = {
        name: array
        for name, array in model.scope.arrays.items()
        if name.startswith("decoder.") and not (is_reduced and "reduces" in name)
    }
    assert found.gradients.keys() == arrays.keys()
    gradients = {**found.gradients, "embeddings": found.d_embeddings}
    assert_gradients(whole, {**arrays, "embeddings": embeddings}, gradients, directions=2)


def assert_same(result, expected, rtol: float) -> None:
    assert result.gradients.keys() == expected.gradients.keys()
    np.testing.assert_allclose(result.loss, expected.loss, rtol=rtol)
    largest = max(np.abs(gradient).max() for gradient in expected.gradients.values())
    for name, gradient in expected.gradients.items():
        np.testing.assert_allclose(result.gradients[name], gradient, rtol=0, atol=rtol * largest)
    atol = rtol * np.abs(expected.d_embeddings).max()
    np.testing.assert_allclose(result.d_embeddings, expected.d_embeddings, rtol=0, atol=atol)


@pytest.mark.parametrize("images", [1, PROMPTS])
@pytest.mark.parametrize("is_reduced", [True, False])
def test_threads_and_slices_change_nothing(decoder, config, is_reduced, images):
    given = *batch(config, is_reduced, images), GRID
    expected = one_pass(decoder, *given, is_reduced=is_reduced)
    for threads, size in ((1, 5), (1, 2), (2, 1), (3, 2), (8, 5)):
        shared_out = model_on(config, sliced(threads, size)).decoder
        result = one_pass(shared_out, *given, is_reduced=is_reduced)
        assert_same(result, expected, 1e-12)
        again = one_pass(shared_out, *given, is_reduced=is_reduced)
        assert_same(again, result, 0)


def test_only_what_learns_has_a_gradient(decoder, config):
    given = *batch(config, False), GRID
    names = "decoder.reduces.1.weight", "decoder.film_add.bias", "decoder.layers.0.mlp.fc2.weight"
    every = one_pass(decoder, *given, is_reduced=False)
    for learned in (names, ()):
        found = one_pass(decoder, *given, is_reduced=False, learns=learned.__contains__)
        assert found.gradients.keys() == set(learned)
        for name in learned:
            np.testing.assert_array_equal(found.gradients[name], every.gradients[name])
        np.testing.assert_array_equal(found.d_embeddings, every.d_embeddings)


def test_tokens_in_float16_are_computed_with_in_the_models_type(config):
    # A layer comes before the prompt, whose type would widen what it meets.
    decoder = model_on(replace(config, conditional_layer=1), sliced(1, 5)).decoder
    tokens, embeddings, labels = batch(config, True)
    halves = [layer.astype(np.float16) for layer in tokens]
    found = one_pass(decoder, halves, embeddings, labels, GRID, is_reduced=True)
    wide = [layer.astype(np.float64) for layer in halves]
    expected = one_pass(decoder, wide, embeddings, labels, GRID, is_reduced=True)
    assert_same(found, expected, 0)
    assert {gradient.dtype for gradient in found.gradients.values()} == {np.dtype("float64")}


def test_the_sum_of_passes_leaves_the_arrays_of_later_ones_alone(decoder, config):
    given = *batch(config, True), GRID
    one, two = (one_pass(decoder, *given, is_reduced=True) for _ in range(2))
    before = {name: gradient.copy() for name, gradient in two.gradients.items()}
    total = joined(Ops(), [one, two])
    assert total.loss == 2 * two.loss and len(total.d_embeddings) == 2 * PROMPTS
    for name, gradient in before.items():
        np.testing.assert_array_equal(two.gradients[name], gradient)
        np.testing.assert_array_equal(total.gradients[name], 2 * gradient)
