"""Whole layers on a GPU, where launches can be joined: one product for queries, keys and values;
bias, activation, residual and the next layer norm in one pass over a product.

A layer's `forward` is the formula; a function of WHOLE_LAYERS has its arguments, after the backend
and the layer. It equals the formula, but for rounding (tests/backends/test_cupy_kernels.py).
"""

from typing import TYPE_CHECKING, Any

from ..nn.layers import MLP, Attention, DecoderLayer, EncoderLayer
from ..nn.ops import Array, join_heads

if TYPE_CHECKING:
    from .cupy_ops import CupyOps


def context(
    ops: "CupyOps", layer: Attention, x: Array, mask: Array | None, attentions: list | None
) -> Array:
    """The weighted values of all heads, side by side.  (B,T,D) -> (B,T,D)"""
    (B, T, D), N = x.shape, layer.num_heads
    packed = ops.linear(x, *ops.packed_projections(layer)).reshape(B, T, 3, N, D // N)
    # (B,N,T,d) each, where they lie
    query, key, value = packed.transpose(2, 0, 3, 1, 4)
    return join_heads(ops.attention(query, key, value, mask, attentions))


def hidden(ops: "CupyOps", layer: MLP, x: Array) -> Array:
    """The activated hidden features of an MLP."""
    return ops.linear(x, layer.fc1.weight, layer.fc1.bias, activation=layer.activation)


def encoder_layer(
    ops: "CupyOps", layer: EncoderLayer, x: Array, mask: Any = None, attentions: list | None = None
) -> Array:
    attended = context(ops, layer.self_attn, layer.layer_norm1(x), mask, attentions)
    x, normalized = ops.linear_and_norm(attended, layer.self_attn.out_proj, x, layer.layer_norm2)
    fc2 = layer.mlp.fc2
    return ops.linear(hidden(ops, layer.mlp, normalized), fc2.weight, fc2.bias, x)


def decoder_layer(
    ops: "CupyOps", layer: DecoderLayer, x: Array, attentions: list | None = None
) -> Array:
    attended = context(ops, layer.self_attn, x, None, attentions)
    _, x = ops.linear_and_norm(attended, layer.self_attn.out_proj, x, layer.layer_norm1)
    _, x = ops.linear_and_norm(hidden(ops, layer.mlp, x), layer.mlp.fc2, x, layer.layer_norm2)
    return x


WHOLE_LAYERS = {EncoderLayer: encoder_layer, DecoderLayer: decoder_layer}
