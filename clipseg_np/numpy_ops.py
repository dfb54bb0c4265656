"""What NumPy can do faster than the readable `Ops` does: the same numbers in fewer passes over memory, on all cores.

NumPy's elementwise arithmetic runs on one core, and each step of a formula reads and writes its whole array. Here
the steps reuse one array, a piece at a time that stays in the processor's cache, and rows, heads or pictures, which are
independent of each other, are shared out over threads. Each method equals the one that it overrides, but for
rounding (tests/test_numpy_ops.py).
"""

import numpy as np

from .ops import Array, Ops
from .threads import Threads

ROWS = 64  # as few as make a matrix product efficient
NUMBERS = 1 << 15  # as few as are worth a thread, and so many at a time: they fit a core's cache


class NumpyOps(Ops):
    """Overrides for NumPy arrays; no input is changed."""

    def __init__(self, threads: int | None = None):
        """`threads`: how many share out the work; as many as there are cores by default."""
        super().__init__()
        self.threads = Threads(threads)

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        rows = x.reshape(-1, x.shape[-1])
        y = np.empty((len(rows), len(weight)), np.result_type(x, weight))

        def some_rows(part: slice) -> None:
            np.matmul(rows[part], weight.T, out=y[part])
            if bias is not None:
                y[part] += bias

        def some_outputs(part: slice) -> None:
            y[:, part] = rows @ weight[part].T
            if bias is not None:
                y[:, part] += bias[part]

        if len(rows) >= 2 * ROWS:
            self.threads.share(some_rows, len(rows), ROWS)
        else:  # a prompt's few tokens: what takes the time is to read the weight
            self.threads.share(some_outputs, len(weight), ROWS)
        return y.reshape(*x.shape[:-1], len(weight))

    def patch_conv2d(self, x: Array, weight: Array) -> Array:
        return self._by_pictures(super().patch_conv2d, x, weight)

    def conv2d(self, x: Array, weight: Array, bias: Array) -> Array:
        return self._by_pictures(super().conv2d, x, weight, bias)

    def conv_transpose2d(self, x: Array, weight: Array, bias: Array) -> Array:
        return self._by_pictures(super().conv_transpose2d, x, weight, bias)

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        def one_piece(rows: Array, out: Array) -> None:
            np.subtract(rows, rows.mean(axis=-1, keepdims=True), out=out)
            variance = np.einsum("nd,nd->n", out, out)[:, None] / out.shape[1]
            out /= np.sqrt(variance + eps)
            out *= weight
            out += bias

        return self._by_rows(one_piece, x)

    def softmax(self, x: Array) -> Array:
        return self._by_rows(_softmax, x)

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
        kept = None if attentions is None else np.empty((B, H, T, T), query.dtype)
        hidden = None if allowed is None else np.broadcast_to(~allowed, (B, 1, T, T))

        def some_heads(part: slice) -> None:
            for b, h in list(np.ndindex(B, H))[part]:
                scores = (query[b, h] * d**-0.5) @ key[b, h].T
                if hidden is not None:
                    scores[hidden[b, 0]] = np.finfo(scores.dtype).min
                sums = _exponentials(scores, out=scores)
                np.matmul(scores, value[b, h], out=mixed[b, h])
                mixed[b, h] /= sums  # d numbers a row instead of T
                if kept is not None:
                    np.divide(scores, sums, out=kept[b, h])

        self.threads.share(some_heads, B * H, max(1, NUMBERS // T**2))
        if attentions is not None:
            attentions.append(kept)
        return mixed

    def quick_gelu(self, x: Array) -> Array:
        """x / (1 + e^(-1.702 x)); where the power overflows, the result is 0, as it should be."""

        def one_piece(rows: Array, out: Array) -> None:
            np.multiply(rows, -1.702, out=out)
            with np.errstate(over="ignore"):
                np.exp(out, out=out)
            out += 1
            np.divide(rows, out, out=out)

        return self._by_rows(one_piece, x)

    def relu(self, x: Array) -> Array:
        return self._by_rows(lambda rows, out: np.maximum(rows, 0, out=out), x)

    def _by_rows(self, one_piece, x: Array) -> Array:
        """An array like x, filled by `one_piece(rows, out)`, a cacheful of x's rows at a time."""
        rows = x.reshape(-1, x.shape[-1])
        out = np.empty_like(rows)
        few = max(1, NUMBERS // rows.shape[1])

        def some_rows(part: slice) -> None:
            for start in range(part.start, part.stop, few):
                piece = slice(start, min(start + few, part.stop))
                one_piece(rows[piece], out[piece])

        self.threads.share(some_rows, len(rows), few)
        return out.reshape(x.shape)

    def _by_pictures(self, method, x: Array, *weights: Array) -> Array:
        """`method` on each of x's pictures (B,C,H,W), shared out."""
        found = [None] * len(x)

        def some_pictures(part: slice) -> None:
            for b in range(part.start, part.stop):
                found[b] = method(x[b : b + 1], *weights)

        self.threads.share(some_pictures, len(x))
        return np.concatenate(found)


def _softmax(rows: Array, out: Array) -> None:
    """Along the last axis; `out` may be `rows`."""
    out /= _exponentials(rows, out)


def _exponentials(rows: Array, out: Array) -> Array:
    """The softmax before it is divided; returns the sums that would divide it."""
    np.subtract(rows, rows.max(axis=-1, keepdims=True), out=out)
    np.exp(out, out=out)
    return out.sum(axis=-1, keepdims=True)
