"""Whole layers on the NumPy backend, whose operations are joined.

A function takes the backend, the layer and the arguments of its `forward`, which it equals but for
rounding (tests/backends/test_numpy_layers.py).
"""

from typing import Any

import numpy as np

from ..nn.layers import MLP, Attention
from ..nn.ops import Array, split_heads
from .numpy_kernels import ELEMENTWISE, MAX_FEATURES, MIN_MULTIPLIES_PER_THREAD, attend, project
from .threads import slices

# Shorter texts attend all at once: 20 texts gain 34 % (AVX-512), 22 % (AVX2 imitated).
MIN_TOKENS = 32
# A relu MLP whose hidden features are at least MIN_WIDENING times its inputs takes them in pieces
# of at most MAX_HIDDEN numbers: gains 5 % (AVX-512), 2 % (AVX2 imitated), 20 prompts.
MIN_WIDENING = 16
MAX_HIDDEN = 1 << 19


def attention(
    ops: Any, layer: Attention, x: Array, mask: Array | None = None, attentions: list | None = None
) -> Array:
    """Each thread takes its heads from the projections to the context."""
    (B, T, D), N = x.shape, layer.num_heads
    if T < MIN_TOKENS:
        return layer.forward(x, mask, attentions)
    d = D // N
    # (B,T,D) -> (D,n)
    columns = x.reshape(-1, D).T
    mask = None if mask is None else np.broadcast_to(mask, (B, 1, T, T))
    projections = [
        (p, np.empty((D, B * T), x.dtype)) for p in (layer.q_proj, layer.k_proj, layer.v_proj)
    ]
    context = np.empty((N, d, B, T), x.dtype)
    kept = None if attentions is None else np.empty((B, N, T, T), x.dtype)

    def some_heads(part: slice) -> None:
        features = slice(part.start * d, part.stop * d)
        qkv = (
            project(columns, linear.weight, linear.bias, features, out[features])
            for linear, out in projections
        )
        # (some of D,n) -> (B,T,some of D) -> (B,some of N,T,d)
        q, k, v = (split_heads(y.T.reshape(B, T, -1), part.stop - part.start) for y in qkv)
        attend(q, k, v, mask, context[part], None if kept is None else kept[:, part])

    # Of one head: three projections, the scores, and the context.
    multiplies = B * T * d * (3 * D + 2 * T)
    min_heads = MIN_MULTIPLIES_PER_THREAD // multiplies + 1
    # Short slices leave work for the thread that embeds the text: 3 % of a pass at 480 x 480.
    ops.threads.for_slices(some_heads, N, min_heads, max(1, MAX_FEATURES // d))
    if attentions is not None:
        attentions.append(kept)
    # (N,d,B,T) -> (D,B,T) -> (B,T,D)
    return layer.out_proj(context.reshape(D, B, T).transpose(1, 2, 0))


def mlp(ops: Any, layer: MLP, x: Array) -> Array:
    """Activate a piece of the hidden features, and use it if they are many, in a core's cache."""
    if layer.activation not in ELEMENTWISE:
        return layer.forward(x)
    activate, fc1, fc2 = ELEMENTWISE[layer.activation], layer.fc1, layer.fc2
    # (B,T,D) -> (D,n)
    columns = x.reshape(-1, x.shape[-1]).T
    (D, n), width = columns.shape, len(fc1.weight)
    is_wide_relu = width >= MIN_WIDENING * D and layer.activation == "relu"
    if not is_wide_relu or fc1.bias is None or fc2.bias is None:
        return fc2(ops.activated_linear(x, fc1.weight, fc1.bias, activate))
    y = np.empty((D, n), np.result_type(x, fc1.weight))
    # relu(h + b) = max(h, -b) + b: a pass less gains 2.5 % (AVX-512, AVX2 imitated), 20 prompts.
    lowest, constant = -fc1.bias[:, None], fc2.weight @ fc1.bias + fc2.bias

    def some_tokens(tokens: slice) -> None:
        inputs, sums = columns[:, tokens], y[:, tokens]
        sums[...] = constant[:, None]
        for features in slices(width, -(-MAX_HIDDEN // inputs.shape[1])):
            hidden = fc1.weight[features] @ inputs
            np.maximum(hidden, lowest[features], out=hidden)
            sums += fc2.weight[:, features] @ hidden

    min_tokens = MIN_MULTIPLIES_PER_THREAD // (width * 2 * D) + 1
    ops.threads.for_slices(some_tokens, n, min_tokens)
    return y.T.reshape(x.shape)


# Attention gains 26 % (AVX-512), 23 % (AVX2 imitated), 1 prompt; the MLP 35 %, 22 %.
WHOLE_LAYERS = {Attention: attention, MLP: mlp}
