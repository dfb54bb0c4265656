"""Whole layers' backwards on the NumPy backend, whose operations are joined.

A function takes the backend, the layer and the arguments of its `backward`, which it equals but for
rounding (tests/backends/test_numpy_gradients.py). It works on pieces that a core's cache holds, and
idle threads share them: 1 prompt gains 31 % (AVX2). learn/step.py shares out prompts.
"""

from functools import partial
from typing import Any

import numpy as np

from ..nn.layers import MLP, Attention
from ..nn.learning import current
from ..nn.ops import Array
from .numpy_kernels import exponentials
from .threads import slices

# Numbers of an MLP's hidden features at a time.
MAX_HIDDEN = 1 << 18


def attention(
    ops: Any, layer: Attention, d_y: Array, x: Array, mask: Array | None = None, *_: Any
) -> Array:
    """The weights of one head at a time are computed again, and then taken back in place."""
    (B, T, D), N = x.shape, layer.num_heads
    d, linears = D // N, (layer.q_proj, layer.k_proj, layer.v_proj)
    shape = N, d, B, T
    # (B,T,D) -> (n,D) -> (D,n) -> (N,d,B,T) each
    q, k, v = (linear.forward(x).reshape(-1, D).T.reshape(shape) for linear in linears)
    q = q * d**-0.5
    d_context = (layer.out_proj.weight.T @ d_y.reshape(-1, D).T).reshape(shape)
    context, d_q, d_k, d_v = results = np.empty((4, *shape), x.dtype)

    def one_head(b: int, head: int) -> None:
        hidden = None if mask is None else ~np.broadcast_to(mask, (B, 1, T, T))[b, 0].T
        one, (weights, d_weights) = (head, slice(None), b), np.empty((2, T, T), x.dtype)
        # (keys,queries); a query's sum divides d numbers instead of T.
        sums = exponentials(q[one].T, k[one].T, hidden, out=weights)
        d_sum = d_context[one] / sums
        np.matmul(d_sum, weights.T, out=d_v[one])
        context[one] = v[one] @ weights / sums
        np.matmul(v[one].T, d_sum, out=d_weights)
        # The softmax: a query's sum over its keys of weights * d_weights is one over d features.
        d_weights -= np.einsum("dt,dt->t", context[one], d_sum)
        weights *= d_weights
        if hidden is not None:
            weights[hidden] = 0
        np.matmul(k[one], weights, out=d_q[one])
        np.matmul(q[one], weights.T, out=d_k[one])

    ops.parallel_for([partial(one_head, *place) for place in np.ndindex(B, N)])
    d_q *= d**-0.5
    # (N,d,B,T) -> (D,n) -> (n,D) -> (B,T,D) each
    context, *d_qkv = (y.reshape(D, -1).T.reshape(x.shape) for y in results)
    layer.out_proj.learn_from(d_y, context)
    return sum(linear.backward(d, x) for linear, d in zip(linears, d_qkv))


def mlp(ops: Any, layer: MLP, d_y: Array, x: Array) -> Array:
    """A piece of the hidden features is computed again and taken back while the cache holds it."""
    fc1, fc2, learns = layer.fc1, layer.fc2, current().learns
    if layer.activation != "relu" or fc1.bias is None or fc2.bias is None:
        return layer.backward(d_y, x)
    names = f"{fc1.name}.weight", f"{fc1.name}.bias", f"{fc2.name}.weight"
    is_frozen = not any(map(learns, names))
    # (B,T,D) -> (n,D)
    rows, d_rows = x.reshape(-1, x.shape[-1]), d_y.reshape(-1, d_y.shape[-1])
    d_weight1, d_weight2 = np.empty_like(fc1.weight), np.empty_like(fc2.weight)
    d_bias1 = np.empty_like(fc1.bias)

    def some_features(part: slice) -> Array:
        hidden = fc1.weight[part] @ rows.T
        hidden += fc1.bias[part, None]
        is_active = (hidden > 0).astype(x.dtype)
        d_hidden = fc2.weight[:, part].T @ d_rows.T
        d_hidden *= is_active
        if not is_frozen:
            hidden *= is_active
            np.matmul(d_rows.T, hidden.T, out=d_weight2[:, part])
            np.matmul(d_hidden, rows, out=d_weight1[part])
            d_hidden.sum(axis=1, out=d_bias1[part])
        return fc1.weight[part].T @ d_hidden

    pieces = slices(len(fc1.weight), -(-MAX_HIDDEN // len(rows)))
    d_columns = sum(ops.parallel_for([partial(some_features, piece) for piece in pieces]))
    fc1.learn(weight=lambda: d_weight1, bias=lambda: d_bias1)
    fc2.learn(weight=lambda: d_weight2, bias=lambda: d_rows.sum(axis=0))
    return d_columns.T.reshape(x.shape)


# A pass with 8 prompts gains 27 % (AVX-512), 33 % (AVX2 imitated) by attention; 38 %, 32 % by MLP.
WHOLE_BACKWARDS = {Attention: attention, MLP: mlp}
