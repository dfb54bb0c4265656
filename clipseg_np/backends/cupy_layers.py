"""Whole layers on a GPU, where launches can be joined: one product for queries, keys and values;
bias, activation, residual and the next layer norm in one pass over a product. Thus a stack of
layers is one function: a layer's last sum and the next one's first norm are one launch.

A layer's `forward` is the formula; a function of WHOLE_LAYERS has its arguments, after the backend
and the layer. It equals the formula, but for rounding (tests/backends/test_cupy_kernels.py).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..nn.layers import MLP, Attention, DecoderLayer, Encoder, RefinedHead
from ..nn.ops import Array, join_heads

if TYPE_CHECKING:
    from .cupy_ops import CupyOps


def context(
    ops: "CupyOps", layer: Attention, x: Array, mask: Array | None, attentions: list | None
) -> Array:
    """The weighted values of all heads, side by side.  (B,T,D) -> (B,T,D)"""
    (B, T, D), N = x.shape, layer.num_heads
    weight, bias = ops.packed_projections(layer)
    is_flash = attentions is None and ops.is_flash(x.dtype, D // N)
    packed = ops.linear(x, weight, None if is_flash else bias).reshape(B, T, 3, N, D // N)
    # (B,N,T,d) each, where they lie
    query, key, value = packed.transpose(2, 0, 3, 1, 4)
    if is_flash:
        return join_heads(ops.flash_attention(query, key, value, mask, bias))
    return join_heads(ops.attention(query, key, value, mask, attentions))


def hidden(ops: "CupyOps", layer: MLP, x: Array) -> Array:
    """The activated hidden features of an MLP."""
    return ops.linear(x, layer.fc1.weight, layer.fc1.bias, activation=layer.activation)


def encoder(
    ops: "CupyOps",
    layer: Encoder,
    x: Array,
    mask: Any = None,
    attentions: list | None = None,
    only: Sequence[int] = (),
) -> list[Array]:
    hidden_states = {-1: x}
    layers = layer.layers[: max(only) + 1] if only else layer.layers
    normalized = layers[0].layer_norm1(x)
    for i, (one, following) in enumerate(zip(layers, [*layers[1:], None])):
        attended = context(ops, one.self_attn, normalized, mask, attentions)
        x, normalized = ops.linear_and_norm(attended, one.self_attn.out_proj, x, one.layer_norm2)
        activated, fc2 = hidden(ops, one.mlp, normalized), one.mlp.fc2
        if following:
            x, normalized = ops.linear_and_norm(activated, fc2, x, following.layer_norm1)
        else:
            x = ops.linear(activated, fc2.weight, fc2.bias, x)
        if not only or i in only:
            hidden_states[i] = x
    return [hidden_states[i] for i in only or hidden_states]


def decoder_layer(
    ops: "CupyOps", layer: DecoderLayer, x: Array, attentions: list | None = None
) -> Array:
    attended = context(ops, layer.self_attn, x, None, attentions)
    _, x = ops.linear_and_norm(attended, layer.self_attn.out_proj, x, layer.layer_norm1)
    _, x = ops.linear_and_norm(hidden(ops, layer.mlp, x), layer.mlp.fc2, x, layer.layer_norm2)
    return x


def refined_head(ops: "CupyOps", layer: RefinedHead, x: Array) -> Array:
    first, second, third = layer.steps.values()
    x = ops.conv2d(x, first.weight, first.bias, "relu")
    x = ops.conv_transpose2d(x, second.weight, second.bias, "relu")
    return ops.conv_transpose2d(x, third.weight, third.bias)


WHOLE_LAYERS = {Encoder: encoder, DecoderLayer: decoder_layer, RefinedHead: refined_head}
