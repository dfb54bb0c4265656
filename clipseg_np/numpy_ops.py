"""What NumPy can do faster than the readable `Ops` does: the same numbers in fewer passes over memory.

NumPy's elementwise arithmetic runs on one core, and each step of a formula reads and writes its whole array. Here
the steps reuse one array, and attention takes one head at a time, whose scores then stay in the processor's cache.
Matrix products, which take most of the time, are as they were. Each method equals the one that it overrides, but for
rounding (tests/test_numpy_ops.py).
"""

import numpy as np

from .ops import Array, Ops


class NumpyOps(Ops):
    """Overrides for NumPy arrays; no input is changed."""

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        y = x @ weight.T
        if bias is not None:
            y += bias
        return y

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        y = x - x.mean(axis=-1, keepdims=True)
        variance = np.einsum("...d,...d->...", y, y)[..., None] / y.shape[-1]
        y /= np.sqrt(variance + eps)
        y *= weight
        y += bias
        return y

    def softmax(self, x: Array) -> Array:
        e = x - x.max(axis=-1, keepdims=True)
        np.exp(e, out=e)
        e /= e.sum(axis=-1, keepdims=True)
        return e

    def attention(
        self,
        query: Array,
        key: Array,
        value: Array,
        allowed: Array | None = None,
        attentions: list | None = None,
    ) -> Array:
        B, H, T, d = query.shape
        mixed = np.empty((B, T, H, d), value.dtype).transpose(0, 2, 1, 3)  # as the heads are joined
        scaled = query * d**-0.5
        kept = None if attentions is None else np.empty((B, H, T, T), query.dtype)
        hidden = None if allowed is None else np.broadcast_to(~allowed, (B, 1, T, T))
        for b, h in np.ndindex(B, H):
            scores = scaled[b, h] @ key[b, h].T
            if hidden is not None:
                scores[hidden[b, 0]] = np.finfo(scores.dtype).min
            weights = self.softmax(scores)
            np.matmul(weights, value[b, h], out=mixed[b, h])
            if kept is not None:
                kept[b, h] = weights
        if attentions is not None:
            attentions.append(kept)
        return mixed

    def quick_gelu(self, x: Array) -> Array:
        """x / (1 + e^(-1.702 x)); where the power overflows, the result is 0, as it should be."""
        e = x * -1.702
        with np.errstate(over="ignore"):
            np.exp(e, out=e)
        e += 1
        np.divide(x, e, out=e)
        return e
