"""Whole layers on the NumPy backend, where the operations inside can be joined: the same numbers in less time.

A layer's `forward` is the formula; a function here has its arguments, after the backend's and the layer's own. Each
equals the formula, but for rounding (tests/backends/test_numpy_layers.py). A traced layer does without, so that its children
are seen.
"""

from typing import TYPE_CHECKING

import numpy as np

from ..nn.layers import MLP, Attention
from ..nn.ops import Array, join_heads, split_heads
from .numpy_kernels import ELEMENTWISE, MANY_TOKENS, MIN_MULTIPLIES_PER_THREAD, bias_as_input
from .threads import evenly, slices

if TYPE_CHECKING:
    from .numpy_ops import NumpyOps

MIN_WIDENING = 16  # how many times the result's features the middle of an MLP has, from which on it is made in pieces
MAX_MIDDLE = 1 << 19  # numbers of a piece of the middle: they fit a last cache
MAX_TOKENS = 1 << 11  # of a piece of the middle


def attention(
    ops: "NumpyOps",
    layer: Attention,
    x: Array,
    mask: Array | None = None,
    attentions: list | None = None,
) -> Array:
    """A thread takes its heads from projection to result, with one wait for the others instead of two."""
    projections = (layer.q_proj, layer.k_proj, layer.v_proj)
    maps = [(projection.weight, projection.bias) for projection in projections]
    (B, T, D), N = x.shape, layer.num_heads
    threads = min(ops.threads.free, N, B * T * D * 3 * D // MIN_MULTIPLIES_PER_THREAD + 1)
    if T < MANY_TOKENS or threads == 1 or attentions is not None:
        query, key, value = (split_heads(y, N) for y in ops.linears(x, maps))
        return layer.out_proj(join_heads(ops.attention(query, key, value, mask, attentions)))
    mixed = ops.memory.empty((N, D // N, B, T), x.dtype)
    parts = evenly(N, threads)

    def attend(numbers: slice) -> None:
        for heads in parts[numbers]:
            features = slice(heads.start * D // N, heads.stop * D // N)
            own = [(w[features], None if b is None else b[features]) for w, b in maps]
            made = (split_heads(y, heads.stop - heads.start) for y in ops.linears(x, own))
            ops.attend(*made, mask, mixed[heads])

    ops.threads.share(attend, threads)
    # (N,d,B,T) -> (D,B,T) -> (B,T,D)
    return layer.out_proj(mixed.reshape(D, B, T).transpose(1, 2, 0))


def mlp(ops: "NumpyOps", layer: MLP, x: Array) -> Array:
    """The activation of a piece of `fc1` while the cache holds it.

    Where the middle is much wider than the result, it is made and used up a cacheful at a time.
    """
    if layer.activation not in ELEMENTWISE:
        return layer.forward(x)
    activate = ELEMENTWISE[layer.activation]
    weight, bias, last, last_bias = (
        layer.fc1.weight,
        layer.fc1.bias,
        layer.fc2.weight,
        layer.fc2.bias,
    )
    columns = x.reshape(-1, x.shape[-1]).T
    (D, n), width = columns.shape, len(weight)
    if n < MANY_TOKENS or width < MIN_WIDENING * D:
        return layer.fc2(ops.linears(x, [(weight, bias)], activate)[0])
    weight, columns, bias = bias_as_input(weight, columns, bias)
    y = ops.memory.empty((D, n), np.result_type(x, weight))

    def some_tokens(part: slice) -> None:
        given, made = columns[:, part], y[:, part]
        made[...] = 0 if last_bias is None else last_bias[:, None]
        for features in slices(width, -(-MAX_MIDDLE // given.shape[1])):
            middle = ops.memory.empty((features.stop - features.start, given.shape[1]), y.dtype)
            np.matmul(weight[features], given, out=middle)
            if bias is not None:
                middle += bias[features]
            activate(middle, ops.memory.empty(middle.shape, y.dtype), middle)
            made += last[:, features] @ middle

    least = max(MANY_TOKENS, MIN_MULTIPLIES_PER_THREAD // (width * 2 * D) + 1)
    ops.threads.share(some_tokens, n, least, MAX_TOKENS)
    return y.T.reshape(x.shape)


# Without attention's, one prompt at 224 by 224 takes 2 to 3 % more time (352 by 352: 1 %); without the MLP's, 20 prompts take
# 7 % more; without both, one prompt takes 5 % more at 224 by 224 and 3 % more at 352 by 352. A sum in its branch's place
# gained less than 1 %. (Two cores, AVX-512, float32, medians of 14 rounds in turn in one process.)
WHOLE_LAYERS = {Attention: attention, MLP: mlp}
