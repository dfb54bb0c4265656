"""Likely mistakes in a backward pass: the test of the layer, or of the formula, reports each."""

import inspect

import numpy as np
import pytest

from clipseg_np.model import clip as clip_module
from clipseg_np.model import clipseg as clipseg_module
from clipseg_np.model.clip import (
    CLIPSegModel,
    CLIPSegTextModel,
    CLIPSegVisionModel,
    GridPositions,
    TextEmbeddings,
    VisionEmbeddings,
)
from clipseg_np.model.clipseg import CLIPSegForImageSegmentation, Decoder
from clipseg_np.nn import gradients
from clipseg_np.nn import layers as nn_layers
from clipseg_np.nn.layers import Layer

from ..model import test_gradients as of_models
from ..nn import test_gradients as of_layers

SCALE = 1.001
BIASES = ("Linear", "Conv2d", "ConvTranspose2d", "LayerNorm")
WEIGHTS = (*BIASES, "PatchEmbedding", "Embedding", "GridPositions")


def layer(name):
    return lambda: of_layers.test_a_layer(*of_layers.LAYERS[name])


def loss(name):
    return lambda: of_layers.test_a_loss(*of_layers.LOSSES[name], labels="shares")


def activation(name):
    return lambda: of_layers.test_an_activation(name)


def masked():
    of_layers.test_attention_with_a_mask(of_layers.PADDED)


def decoder(refined=False, conditional_layer=1, B=1):
    return lambda: of_models.test_the_decoder(refined, conditional_layer, B)


def vision_embeddings(size=(9, 15)):
    return lambda: of_models.test_vision_embeddings(size)


def positions():
    of_models.test_positions_of_a_grid((3, 5))


def encoder():
    of_models.test_an_encoder((1, 0))


def text_tower(outputs=("last_hidden_state", "pooler_output", "hidden_states")):
    rest = of_models.TEXTS["padded on the left"]
    return lambda: of_models.test_the_text_tower(of_models.EOS, rest, outputs)


def vision_tower():
    of_models.test_the_vision_tower((9, 15), of_models.TOWERS_OUTPUTS[-1])


def clip(outputs=("loss", "logits_per_text", "logits_per_image", "text_embeds", "image_embeds")):
    return lambda: of_models.test_clip(outputs)


def whole(B=1, kind="images"):
    outputs = ("loss", "logits", "conditional_embeddings", "pooled_output")
    return lambda: of_models.test_a_whole_model(B, kind, outputs)


# Each function of nn/gradients.py, and a test that reports it if it is wrong by a thousandth
FORMULAS = {
    "sum_rows": layer("Linear"),
    "sum_cells": layer("Conv2d"),
    "unshare": decoder(),
    "linear": layer("Linear"),
    "linear_weight": layer("Linear"),
    "patch_conv2d": vision_embeddings(),
    "patch_conv2d_weight": vision_embeddings(),
    "conv2d": layer("Conv2d"),
    "conv2d_weight": layer("Conv2d"),
    "conv_transpose2d": layer("ConvTranspose2d"),
    "conv_transpose2d_weight": layer("ConvTranspose2d"),
    "resize_bicubic": positions,
    "embedding": of_models.test_token_and_position_embeddings,
    "cells": layer("Conv2d"),
    "layer_norm": layer("LayerNorm"),
    "layer_norm_weight": layer("LayerNorm"),
    "normalized": layer("LayerNorm"),
    "unit": clip(),
    "softmax": layer("Attention"),
    "attention": layer("Attention"),
    "activation": activation("gelu"),
    "quick_gelu": activation("quick_gelu"),
    "gelu": activation("gelu"),
    "gelu_new": activation("gelu_new"),
    "relu": activation("relu"),
    "selu": activation("selu"),
    "binary_cross_entropy": loss("binary cross-entropy with a weight"),
    "dice": loss("dice"),
    "focal": loss("focal"),
    "cross_entropy": clip(("loss",)),
}


def test_each_formula_is_in_the_table():
    functions = inspect.getmembers(gradients, inspect.isfunction)
    own = {name for name, function in functions if function.__module__ == gradients.__name__}
    assert own == set(FORMULAS)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula_that_is_wrong_by_a_thousandth(name, monkeypatch):
    def wrong(*args, **options):
        result = right(*args, **options)
        return (result[0] * SCALE, *result[1:]) if isinstance(result, tuple) else result * SCALE

    right = getattr(gradients, name)
    FORMULAS[name]()
    if name in gradients.ACTIVATIONS:
        monkeypatch.setitem(gradients.ACTIVATIONS, name, wrong)
    monkeypatch.setattr(gradients, name, wrong)
    assert_reported(FORMULAS[name])


def assert_reported(test):
    with pytest.raises(AssertionError, match="allowed 1e-08, found"):
        test()


# Each layer, and its test
LAYERS = {
    **{kind: layer(kind.__name__) for kind in of_layers.KINDS},
    nn_layers.MLP: lambda: of_layers.test_an_mlp("gelu"),
    nn_layers.PatchEmbedding: vision_embeddings(),
    nn_layers.Embedding: of_models.test_token_and_position_embeddings,
    nn_layers.Encoder: encoder,
    TextEmbeddings: of_models.test_token_and_position_embeddings,
    GridPositions: positions,
    VisionEmbeddings: vision_embeddings(),
    CLIPSegTextModel: text_tower(),
    CLIPSegVisionModel: vision_tower,
    CLIPSegModel: clip(),
    Decoder: decoder(),
    CLIPSegForImageSegmentation: whole(),
}


def test_each_layer_is_in_the_table():
    modules = (nn_layers, clip_module, clipseg_module)
    kinds = {kind for module in modules for kind in vars(module).values() if isinstance(kind, type)}
    assert {kind for kind in kinds if "backward" in vars(kind)} == set(LAYERS)


def scaled(d):
    """A derivative that is wrong by a thousandth: an array, or the first of several."""
    if isinstance(d, dict):
        return dict(zip(d, scaled(tuple(d.values()))))
    if isinstance(d, list | tuple):
        return type(d)([scaled(d[0]), *d[1:]])
    return d * SCALE


@pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)
def test_a_layer_that_takes_a_wrong_derivative(kind, monkeypatch):
    right = kind.backward
    monkeypatch.setattr(
        kind, "backward", lambda one, d_y, *a, **k: right(one, scaled(d_y), *a, **k)
    )
    assert_reported(LAYERS[kind])


@pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)
def test_a_layer_that_returns_a_wrong_derivative(kind, monkeypatch):
    def wrong(*args, **kwargs):
        result = right(*args, **kwargs)
        returned.append(result)
        return result if result is None else scaled(result)

    right, returned = kind.backward, []
    monkeypatch.setattr(kind, "backward", wrong)
    if kind in (nn_layers.Embedding, TextEmbeddings, GridPositions, CLIPSegTextModel):
        LAYERS[kind]()
        assert returned and set(returned) == {None}  # ids and sizes have no derivative
    else:
        assert_reported(LAYERS[kind])


ARRAYS = [
    *((kind, "weight") for kind in LAYERS if kind.__name__ in WEIGHTS),
    *((kind, "bias") for kind in LAYERS if kind.__name__ in BIASES),
    (VisionEmbeddings, "class_embedding"),
    (CLIPSegModel, "logit_scale"),
]


@pytest.mark.parametrize(("kind", "array"), ARRAYS, ids=lambda value: str(value))
def test_an_array_whose_gradient_is_forgotten(kind, array, monkeypatch):
    def learn(self, **derivatives):
        if type(self) is kind and array in derivatives:
            derivatives[array] = lambda: np.zeros_like(getattr(self, array))
        return right(self, **derivatives)

    right = Layer.learn
    monkeypatch.setattr(Layer, "learn", learn)
    assert_reported(LAYERS[kind])


# Mistakes: a function gets the right one, then its arguments.


def kernel_not_turned(right, ops, d_y, weight):
    return right(ops, d_y, weight[:, :, ::-1, ::-1])


def kernels_axes_swapped(right, *args):
    return right(*args).swapaxes(2, 3)


def margin_on_the_other_side(right, *args):
    return np.roll(right(*args), 1, axis=2)


def last_place_of_an_id_alone(right, ops, d_y, ids, count):
    table = np.zeros((count, d_y.shape[-1]))
    table[ids] = d_y
    return table


def mean_forgotten(right, d_y, x, weight, eps):
    normal, deviation = gradients.normalized(x, eps)
    size = (d_y * weight * normal).mean(axis=-1, keepdims=True)
    return (d_y * weight - size * normal) / deviation


def variance_without_epsilon(right, x, eps):
    return right(x, 0.0)


def sum_forgotten(right, d_y, y):
    return y * d_y


def scale_forgotten(right, d_y, q, *rest):
    d_q, d_k, d_v = right(d_y, q, *rest)
    return d_q * q.shape[-1] ** 0.5, d_k, d_v


def queries_and_keys_swapped(right, *args):
    d_q, d_k, d_v = right(*args)
    return d_k, d_q, d_v


def mask_forgotten(right, *args):
    return right(*args[:-1], None)


def slope_of_the_activated(right, ops, name, d_y, x):
    return right(ops, name, d_y, ops.activation(name, x))


def no_residual_at_attention(right, self, d_y, *_):
    d_y = d_y + self.layer_norm2.propagate(self.mlp.propagate(d_y))
    return self.layer_norm1.propagate(self.self_attn.propagate(d_y))


def no_residual_at_the_mlp(right, self, d_y, *_):
    d_sum = self.layer_norm1.propagate(self.mlp.propagate(self.layer_norm2.propagate(d_y)))
    return d_sum + self.self_attn.propagate(d_sum)


def norms_swapped(right, self, d_y, *_):
    d_sum = self.layer_norm1.propagate(d_y)
    d_sum = self.layer_norm2.propagate(d_sum + self.mlp.propagate(d_sum))
    return d_sum + self.self_attn.propagate(d_sum)


def outputs_in_another_order(right, self, d_outputs, *rest):
    return right(self, d_outputs[::-1], *rest)


def relu_forgotten(right, self, d_y, x):
    cells = self[0].forward(x)
    blocks = self[2].forward(self.ops.relu(cells))
    d_blocks = gradients.relu(self.ops, self[4].backward(d_y, self.ops.relu(blocks)), blocks)
    return self[0].backward(self[2].backward(d_blocks, self.ops.relu(cells)), x)


def class_position_forgotten(right, self, d_y, grid):
    return np.concatenate([0 * d_y[:1], right(self, d_y, grid)[1:]])


def columns_before_rows(right, self, d_y, grid):
    return right(self, d_y, grid[::-1])


def patches_before_the_class_token(right, self, d_y, pixel_values):
    return right(self, np.roll(d_y, -1, axis=1), pixel_values)


def hidden_states_one_late(right, self, d_y, *rest, **options):
    states = d_y["hidden_states"]
    return right(self, {**d_y, "hidden_states": [states[-1], *states[:-1]]}, *rest, **options)


def pooled_output_forgotten(right, self, d_y, *rest, **options):
    names = d_y.keys() - {"pooler_output", "pooled_output"}
    return right(self, {name: d_y[name] for name in names}, *rest, **options)


def length_kept(right, d_y, x):
    return d_y / (x * x).sum(axis=-1, keepdims=True) ** 0.5


def images_texts_as_texts_images(right, self, logits):
    return right(self, logits).T


def film_without_its_product(right, self, d_y, x, embeddings):
    return gradients.unshare(d_y, len(x)), right(self, d_y, x, embeddings)[1]


def film_of_the_reduced_tokens_alone(right, self, d_y, x, embeddings):
    return right(self, d_y, x - self.layers[0].again(), embeddings)


def first_prompts_share_alone(right, d_x, B):
    return d_x[:B]


def class_token_painted(right, self, d_logits):
    return np.roll(right(self, d_logits), 1, axis=1)


def reduces_in_the_layers_order(right, self, d_reduced):
    return right(self, d_reduced)[::-1]


def weight_forgotten(right, ops, logits, labels, pos_weight=1):
    return right(ops, logits, labels)


def gamma_forgotten(right, ops, logits, labels, gamma=2):
    return right(ops, logits, labels)


MISTAKES = [
    (gradients, "conv2d", kernel_not_turned, layer("Conv2d of width 5")),
    (gradients, "conv2d_weight", kernels_axes_swapped, layer("Conv2d")),
    (gradients, "conv_transpose2d", kernel_not_turned, layer("ConvTranspose2d")),
    (gradients, "conv_transpose2d_weight", kernels_axes_swapped, layer("ConvTranspose2d")),
    (gradients, "patch_conv2d", margin_on_the_other_side, vision_embeddings()),
    (gradients, "embedding", last_place_of_an_id_alone, LAYERS[TextEmbeddings]),
    (gradients, "layer_norm", mean_forgotten, layer("LayerNorm")),
    (gradients, "normalized", variance_without_epsilon, layer("LayerNorm")),
    (gradients, "softmax", sum_forgotten, layer("Attention")),
    (gradients, "attention", scale_forgotten, layer("Attention")),
    (gradients, "attention", queries_and_keys_swapped, layer("Attention")),
    (gradients, "attention", mask_forgotten, masked),
    (gradients, "activation", slope_of_the_activated, LAYERS[nn_layers.MLP]),
    (nn_layers.EncoderLayer, "backward", no_residual_at_attention, layer("EncoderLayer")),
    (nn_layers.DecoderLayer, "backward", no_residual_at_the_mlp, layer("DecoderLayer")),
    (nn_layers.DecoderLayer, "backward", norms_swapped, layer("DecoderLayer")),
    (nn_layers.Encoder, "backward", outputs_in_another_order, encoder),
    (nn_layers.RefinedHead, "backward", relu_forgotten, layer("RefinedHead")),
    (GridPositions, "_d_weight", class_position_forgotten, positions),
    (GridPositions, "_d_weight", columns_before_rows, positions),
    (VisionEmbeddings, "backward", patches_before_the_class_token, vision_embeddings((8, 8))),
    (CLIPSegTextModel, "backward", hidden_states_one_late, text_tower()),
    (CLIPSegTextModel, "backward", pooled_output_forgotten, text_tower()),
    (CLIPSegVisionModel, "backward", hidden_states_one_late, vision_tower),
    (CLIPSegVisionModel, "backward", pooled_output_forgotten, vision_tower),
    (gradients, "unit", length_kept, clip()),
    (CLIPSegModel, "_contrastive_gradient", images_texts_as_texts_images, clip(("loss",))),
    (Decoder, "film_backward", film_without_its_product, decoder()),
    (Decoder, "film_backward", film_of_the_reduced_tokens_alone, decoder()),
    (gradients, "unshare", first_prompts_share_alone, decoder()),
    (Decoder, "paint_backward", class_token_painted, decoder(refined=True)),
    (Decoder, "reduce_backward", reduces_in_the_layers_order, decoder()),
    (CLIPSegForImageSegmentation, "backward", pooled_output_forgotten, whole()),
    (gradients, "binary_cross_entropy", weight_forgotten, FORMULAS["binary_cross_entropy"]),
    (gradients, "focal", gamma_forgotten, loss("focal with its gamma")),
]


@pytest.mark.parametrize(
    ("owner", "name", "mistake", "test"),
    MISTAKES,
    ids=[f"{owner.__name__}.{name}-{mistake.__name__}" for owner, name, mistake, _ in MISTAKES],
)
def test_a_likely_mistake(owner, name, mistake, test, monkeypatch):
    right = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *a, **k: mistake(right, *a, **k))
    assert_reported(test)
