"""What NumPy can do faster than the readable `Ops` does: the same numbers in fewer passes over memory, on all cores.

NumPy's elementwise arithmetic runs on one core, and each step of a formula reads and writes its whole array. Here
the steps reuse one array, a piece at a time that stays in the processor's cache, and columns, heads or pictures, which
are independent of each other, are shared out over threads. Each method equals the one that it overrides, but for
rounding (tests/test_numpy_ops.py).

Many tokens lie in memory features first: a (B,T,D) array is a view of one of (D,B,T). Matrix products are faster on
these, and so is all that one token's numbers have in common. Shapes are as everywhere.
"""

from collections.abc import Callable

import numpy as np

from .memory import Memory
from .ops import Array, Ops
from .threads import Threads, one_blas_thread

MANY = 32  # tokens, from which on they lie features first
PRODUCTS = 1 << 22  # multiplications, as few as are worth a thread
UNPACKED = 900_000  # multiplications, as many as OpenBLAS does without first packing the weight
OUTPUTS = 384  # features of a matrix product at a time
NUMBERS = 1 << 17  # of elementwise work: as few as are worth a thread
PIECE = 1 << 17  # numbers at a time: they fit a core's cache
SCORES = 1 << 15  # of attention: as few as are worth a thread
LARGE = 50.0  # e to it, times any value, is far from overflowing; e to minus it, from losing digits


class NumpyOps(Ops):
    """Overrides for NumPy arrays; no input is changed."""

    pictures_at_once, prompts_at_once = 2, 5  # the widest of their arrays then fit a last cache

    def __init__(self, threads: int | None = None):
        """`threads`: how many share out the work; as many as there are cores by default."""
        super().__init__()
        self.threads = Threads(threads)
        self.memory = Memory()

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        columns = x.reshape(-1, x.shape[-1]).T  # (in,n)
        outputs, (inputs, n) = len(weight), columns.shape
        if n < MANY:
            return self._linear_of_few(columns, weight, bias).reshape(*x.shape[:-1], outputs)
        y = self.memory.empty((outputs, n), np.result_type(x, weight))

        def product(weight: Array, columns: Array, y: Array, bias: Array | None) -> None:
            np.matmul(weight, columns, out=y)
            if bias is not None:
                y += bias[:, None]

        def some_outputs(part: slice) -> None:
            product(weight[part], columns, y[part], None if bias is None else bias[part])

        def some_columns(part: slice) -> None:
            product(weight, columns[:, part], y[:, part], bias)

        if outputs >= min(n, 2 * OUTPUTS):
            self.threads.share(some_outputs, outputs, PRODUCTS // (n * inputs) + 1, OUTPUTS)
        else:
            self.threads.share(some_columns, n, max(MANY, PRODUCTS // weight.size))
        return y.T.reshape(*x.shape[:-1], outputs)

    def _linear_of_few(self, columns: Array, weight: Array, bias: Array | None) -> Array:
        """Of so few tokens, (in,n) -> (n,out), that what takes the time is to read the weight."""
        columns = np.ascontiguousarray(columns)
        products = columns.size  # for each output
        y = np.empty((len(weight), columns.shape[1]), np.result_type(columns, weight))

        def some_outputs(part: slice) -> None:
            np.matmul(weight[part], columns, out=y[part])

        least, most = PRODUCTS // products + 1, UNPACKED // products + 1
        self.threads.share(some_outputs, len(weight), least, most)
        return np.ascontiguousarray(y.T) if bias is None else np.add(y.T, bias, order="C")

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        rows = x.reshape(-1, x.shape[-1])
        n, D = rows.shape
        out = self.memory.empty((D, n), x.dtype).T if n >= MANY else np.empty((n, D), x.dtype)
        average = np.full(D, 1 / D, x.dtype)

        def some_rows(part: slice) -> None:
            centred = out[part]
            np.subtract(rows[part], (rows[part] @ average)[:, None], out=centred)
            variance = np.einsum("nd,nd->n", centred, centred) / D
            centred *= (1 / np.sqrt(variance + eps))[:, None]
            centred *= weight
            centred += bias

        self.threads.share(some_rows, n, max(1, NUMBERS // D))
        return out.reshape(x.shape)

    def attention(
        self,
        query: Array,
        key: Array,
        value: Array,
        allowed: Array | None = None,
        attentions: list | None = None,
    ) -> Array:
        B, H, T, d = query.shape
        if T < MANY:
            with one_blas_thread:
                return super().attention(query, key, value, allowed, attentions)
        mixed = self.memory.empty((H, d, B, T), value.dtype).transpose(2, 0, 3, 1)
        kept = None if attentions is None else np.empty((B, H, T, T), query.dtype)
        hidden = None if allowed is None else np.broadcast_to(~allowed, (B, 1, T, T))

        def some_heads(part: slice) -> None:
            for b, h in list(np.ndindex(B, H))[part]:
                weights = self.memory.empty((T, T), query.dtype)  # (keys,queries)
                hides = None if hidden is None else hidden[b, 0].T
                sums = _exponentials(query[b, h], key[b, h], hides, out=weights)
                np.matmul(value[b, h].T, weights, out=mixed[b, h].T)
                mixed[b, h] /= sums[:, None]  # d numbers a query instead of T
                if kept is not None:
                    np.divide(weights.T, sums[:, None], out=kept[b, h])

        self.threads.share(some_heads, B * H, max(1, SCORES // T**2), 1)
        if attentions is not None:
            attentions.append(kept)
        return mixed

    def quick_gelu(self, x: Array) -> Array:
        """x / (1 + e^(-1.702 x)); where the power overflows, the result is 0, as it should be."""

        def one_piece(x: Array, out: Array) -> None:
            np.multiply(x, -1.702, out=out)
            with np.errstate(over="ignore"):
                np.exp(out, out=out)
            out += 1
            np.divide(x, out, out=out)

        return self._elementwise(one_piece, x)

    def relu(self, x: Array) -> Array:
        def one_piece(x: Array, out: Array) -> None:
            out[:] = 0
            np.maximum(x, out, out=out)  # with a number, NumPy takes three times as long

        return self._elementwise(one_piece, x)

    def _elementwise(self, one_piece: Callable[[Array, Array], None], x: Array) -> Array:
        """An array like x, filled by `one_piece(x, out)`, a cacheful of numbers at a time.

        Its axes lie in memory in the order in which x's do.
        """
        order = np.argsort([-abs(stride) for stride in x.strides], kind="stable")
        ordered = np.ascontiguousarray(x.transpose(order))
        out = self.memory.empty(ordered.shape, x.dtype)
        numbers, filled = ordered.reshape(-1), out.reshape(-1)

        def some(part: slice) -> None:
            one_piece(numbers[part], filled[part])

        self.threads.share(some, x.size, NUMBERS, PIECE)
        return out.transpose(np.argsort(order))


def _exponentials(query: Array, key: Array, hidden: Array | None, out: Array) -> Array:
    """A head's softmax before it is divided, (keys,queries); returns the sums that would divide it, (queries).

    As a rule no power overflows, and the largest need not be sought for each query and subtracted. It is where some
    would, or where all of a query's powers are so small that they lose digits.
    """
    query = query * query.shape[1] ** -0.5
    ones = np.ones(len(key), out.dtype)
    for subtracted in (False, True):
        np.matmul(key, query.T, out=out)
        if hidden is not None:
            out[hidden] = np.finfo(out.dtype).min
        subtracted = subtracted or not out.max() < LARGE
        if subtracted:
            out -= out.max(axis=0)
        np.exp(out, out=out)
        sums = ones @ out
        if subtracted or sums.min() > np.exp(-LARGE):
            break
    return sums
