"""Each formula of nn/gradients.py, and each layer's backward, against finite differences."""

import numpy as np
import pytest

from clipseg_np.nn import gradients
from clipseg_np.nn.layers import (
    MLP,
    Attention,
    Conv2d,
    ConvTranspose2d,
    DecoderLayer,
    EncoderLayer,
    LayerNorm,
    Linear,
    RefinedHead,
)
from clipseg_np.nn.learning import learning
from clipseg_np.nn.ops import Ops
from clipseg_np.nn.scope import Scope

from ..helpers.finite_differences import assert_gradients

OPS = Ops()


class Drawn:
    """A source of drawn arrays, biases and norms too."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)

    def take(self, name, shape):
        return self.rng.normal(0.3, 0.7, shape)


def built(kind, *sizes, ops=OPS, **options):
    """A layer of drawn arrays, and these by their dotted names."""
    scope = Scope(Drawn(), ops, "float64", "layer")
    return kind(scope, *sizes, **options), scope.arrays


def numbers(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape)


def check(layer, arrays, x, *rest):
    """Every array and the input, for a loss that weighs the output's numbers."""
    d_y = numbers(*layer(x, *rest).shape, seed=2)
    with learning() as found:
        layer(x, *rest)
        found["x"] = layer.propagate(d_y)
    assert_gradients(lambda: (layer(x, *rest) * d_y).sum(), {**arrays, "x": x}, found)


CAUSAL = np.tril(np.ones((1, 1, 4, 4), bool))
# The first text's keys are all hidden from its first two queries: padding on the left.
PADDED = CAUSAL & np.array([[0, 0, 1, 1], [1, 1, 1, 0]], bool)[:, None, None]
ACTIVATIONS = pytest.mark.parametrize("activation", Ops.ACTIVATIONS)

LAYERS = {
    "Linear": (Linear, (3, 4), (2, 5, 3)),
    "Linear without a bias": (Linear, (3, 4, False), (5, 3)),
    "Conv2d": (Conv2d, (2, 3, 3), (2, 2, 3, 4)),
    "Conv2d of width 5": (Conv2d, (2, 3, 5), (1, 2, 2, 3)),
    "ConvTranspose2d": (ConvTranspose2d, (3, 2, 2), (2, 3, 2, 3)),
    "LayerNorm": (LayerNorm, (5, 1e-3), (2, 3, 5)),
    "Attention": (Attention, (6, 3), (2, 4, 6)),
    "DecoderLayer": (DecoderLayer, (4, 2, 5, "relu", 1e-5), (2, 3, 4)),
    "EncoderLayer": (EncoderLayer, (4, 2, 5, "quick_gelu", 1e-5), (2, 3, 4)),
    "RefinedHead": (RefinedHead, (4, 8), (2, 4, 2, 3)),
}
KINDS = list(dict.fromkeys(kind for kind, *_ in LAYERS.values()))


@pytest.mark.parametrize(("kind", "sizes", "shape"), LAYERS.values(), ids=LAYERS)
def test_a_layer(kind, sizes, shape):
    check(*built(kind, *sizes), numbers(*shape))


@ACTIVATIONS
def test_an_mlp(activation):
    check(*built(MLP, 3, 5, activation), numbers(2, 2, 3))


@pytest.mark.parametrize("mask", [CAUSAL, PADDED], ids=["causal", "padded"])
def test_attention_with_a_mask(mask):
    check(*built(Attention, 4, 2), numbers(2, 4, 4), mask)
    check(*built(EncoderLayer, 4, 2, 3, "gelu", 1e-5), numbers(2, 4, 4), mask)


@ACTIVATIONS
def test_an_activation(activation):
    x, d_y = 3 * numbers(4, 5), numbers(4, 5, seed=2)
    found = {"x": gradients.activation(OPS, activation, d_y, x)}
    assert_gradients(lambda: (OPS.activation(activation, x) * d_y).sum(), {"x": x}, found)


LOSSES = {
    "binary cross-entropy": ("binary_cross_entropy", {}),
    "binary cross-entropy with a weight": ("binary_cross_entropy", {"pos_weight": 3.0}),
    "dice": ("dice", {}),
    "focal": ("focal", {}),
    "focal with its gamma": ("focal", {"gamma": 1.5}),
}


@pytest.mark.parametrize("labels", ["masks", "shares"])
@pytest.mark.parametrize(("name", "options"), LOSSES.values(), ids=LOSSES)
def test_a_loss(name, options, labels):
    logits, targets = 2 * numbers(2, 3, 4), np.random.default_rng(3).uniform(size=(2, 3, 4))
    targets = targets.round() if labels == "masks" else targets
    found = {"logits": getattr(gradients, name)(OPS, logits, targets, **options)}
    loss = getattr(OPS, name)
    assert_gradients(lambda: loss(logits, targets, **options), {"logits": logits}, found)
