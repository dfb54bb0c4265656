"""Whole layers on a GPU, where launches can be joined: one product for queries, keys and values; bias, activation, residual
and the next layer norm in one pass over a product.

A layer's `forward` is the formula; a function here has its arguments, after the backend's and the layer's own. Each
equals the formula, but for rounding (tests/backends/test_cupy_kernels.py).
"""

from typing import TYPE_CHECKING

from ..nn.layers import MLP, Attention, DecoderLayer, EncoderLayer
from ..nn.ops import Array, join_heads

if TYPE_CHECKING:
    from .cupy_ops import CupyOps


def attention(
    ops: "CupyOps",
    layer: Attention,
    x: Array,
    mask: Array | None = None,
    attentions: list | None = None,
) -> Array:
    return layer.out_proj(attended(ops, layer, x, mask, attentions))


def attended(
    ops: "CupyOps", layer: Attention, x: Array, mask: Array | None, attentions: list | None
) -> Array:
    """The heads' results, side by side.  (B,T,D) -> (B,T,D)"""
    (B, T, D), N = x.shape, layer.num_heads
    weight, bias = ops.packed_projections(layer)
    packed = ops.fused_linear(x, weight, bias).reshape(B, T, 3, N, D // N)
    query, key, value = packed.transpose(2, 0, 3, 1, 4)  # (B,N,T,d) each, where they lie
    return join_heads(ops.attention(query, key, value, mask, attentions))


def widened(ops: "CupyOps", layer: MLP, x: Array) -> Array:
    """The middle of an MLP, activated."""
    return ops.fused_linear(x, layer.fc1.weight, layer.fc1.bias, activation=layer.activation)


def mlp(ops: "CupyOps", layer: MLP, x: Array) -> Array:
    return layer.fc2(widened(ops, layer, x))


def encoder_layer(
    ops: "CupyOps",
    layer: EncoderLayer,
    x: Array,
    mask: Array | None = None,
    attentions: list | None = None,
) -> Array:
    mixed = attended(ops, layer.self_attn, layer.layer_norm1(x), mask, attentions)
    x, normalized = ops.linear_and_norm(mixed, layer.self_attn.out_proj, x, layer.layer_norm2)
    last = layer.mlp.fc2
    return ops.fused_linear(widened(ops, layer.mlp, normalized), last.weight, last.bias, x)


def decoder_layer(
    ops: "CupyOps", layer: DecoderLayer, x: Array, attentions: list | None = None
) -> Array:
    mixed = attended(ops, layer.self_attn, x, None, attentions)
    _, x = ops.linear_and_norm(mixed, layer.self_attn.out_proj, x, layer.layer_norm1)
    _, x = ops.linear_and_norm(widened(ops, layer.mlp, x), layer.mlp.fc2, x, layer.layer_norm2)
    return x


WHOLE_LAYERS = {
    Attention: attention,
    MLP: mlp,
    EncoderLayer: encoder_layer,
    DecoderLayer: decoder_layer,
}
