"""Whole layers on a GPU, where launches can be joined: one product for queries, keys and values, and what is added to a
branch in the same pass as its bias.

A layer's `forward` is the formula; a function here has its arguments, after the backend's and the layer's own, and
`residual`, which is added to the result. Each equals the formula, but for rounding (tests/test_cupy_kernels.py).
"""

from typing import TYPE_CHECKING

from .layers import MLP, Attention, DecoderLayer, EncoderLayer
from .ops import Array, joined_heads

if TYPE_CHECKING:
    from .cupy_ops import CupyOps


def attention(
    ops: "CupyOps",
    layer: Attention,
    x: Array,
    mask: Array | None = None,
    attentions: list | None = None,
    residual: Array | None = None,
) -> Array:
    (B, T, D), N = x.shape, layer.num_heads
    weight, bias = ops.packed_projections(layer)
    packed = ops.fused_linear(x, weight, bias).reshape(B, T, 3, N, D // N)
    query, key, value = packed.transpose(2, 0, 3, 1, 4)  # (B,N,T,d) each, where they lie
    mixed = joined_heads(ops.attention(query, key, value, mask, attentions))
    return ops.fused_linear(mixed, layer.out_proj.weight, layer.out_proj.bias, residual)


def mlp(ops: "CupyOps", layer: MLP, x: Array, residual: Array | None = None) -> Array:
    x = ops.fused_linear(x, layer.fc1.weight, layer.fc1.bias, activation=layer.activation)
    return ops.fused_linear(x, layer.fc2.weight, layer.fc2.bias, residual)


def encoder_layer(
    ops: "CupyOps",
    layer: EncoderLayer,
    x: Array,
    mask: Array | None = None,
    attentions: list | None = None,
) -> Array:
    x = attention(ops, layer.self_attn, layer.layer_norm1(x), mask, attentions, residual=x)
    return mlp(ops, layer.mlp, layer.layer_norm2(x), residual=x)


def decoder_layer(
    ops: "CupyOps", layer: DecoderLayer, x: Array, attentions: list | None = None
) -> Array:
    x = layer.layer_norm1(attention(ops, layer.self_attn, x, None, attentions, residual=x))
    return layer.layer_norm2(mlp(ops, layer.mlp, x, residual=x))


WHOLE_LAYERS = {
    Attention: attention,
    MLP: mlp,
    EncoderLayer: encoder_layer,
    DecoderLayer: decoder_layer,
}
