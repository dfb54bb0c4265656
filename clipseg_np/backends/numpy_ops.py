"""What NumPy can do faster than the readable `Ops` does: the same numbers in fewer passes over memory, on all cores.

NumPy's elementwise arithmetic runs on one core, and each step of a formula reads and writes its whole array. Here
the steps reuse one array, a piece at a time that stays in the processor's cache. Images, prompts, heads and a
product's features, which are independent of each other, are shared out over threads: the larger what each takes,
the better, since to wake a thread, and to wait for it, takes as long as ten million multiplications. Each method equals
the one that it overrides, but for rounding (tests/backends/test_numpy_ops.py); whole layers are in backends/numpy_layers.py.

Many tokens lie in memory features first: a (B,T,D) array is a view of one of (D,B,T). Matrix products are faster on
these, and so is all that one token's numbers have in common. Shapes are as everywhere.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..nn.ops import MAX_MEMOIZED, Array, Ops, T
from .buffer_pool import Memory
from .numpy_kernels import (
    ELEMENTWISE,
    MANY_TOKENS,
    MIN_MULTIPLIES_PER_THREAD,
    Elementwise,
    attend,
    bias_as_input,
    multiply,
)
from .numpy_layers import WHOLE_LAYERS
from .threads import Threads, between, evenly, one_blas_thread, slices

NORMALISED = 192  # features at a time
OUTPUTS = 384  # features of a matrix product at a time
NUMBERS = 1 << 17  # of elementwise work: as few as are worth a thread
PIECE = 1 << 17  # numbers at a time: they fit a core's cache
SCORES = 1 << 15  # of attention: as few as are worth a thread


class NumpyOps(Ops):
    """Overrides for NumPy arrays; no input is changed."""

    # The widest of their arrays then fit a last cache.
    images_per_slice, prompts_per_slice = 2, 5

    def __init__(self, threads: int | None = None):
        """`threads`: how many share out the work; as many as there are cores by default."""
        super().__init__()
        self.threads = Threads(threads)
        self.workers = self.threads.count
        self.memory = Memory()

    def run(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        whole_layer = WHOLE_LAYERS.get(type(layer))
        if whole_layer is None:
            return layer.forward(*args, **kwargs)
        return whole_layer(self, layer, *args, **kwargs)

    def parallel_for(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        # Once for all that the tasks share out.
        with one_blas_thread:
            return self.threads.run(tasks) if len(tasks) > 1 else super().parallel_for(tasks)

    def memoize(self, function: Callable[..., Array]) -> Callable[..., Array]:
        return lru_cache(MAX_MEMOIZED)(function)

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        return self.linears(x, [(weight, bias)])[0]

    def linears(
        self,
        x: Array,
        maps: Sequence[tuple[Array, Array | None]],
        activate: Elementwise | None = None,
    ) -> list[Array]:
        """Linear maps, and the activation of each piece of them while the cache holds it."""
        columns = x.reshape(-1, x.shape[-1]).T  # (in,n)
        inputs, n = columns.shape
        if n < MANY_TOKENS:
            columns = np.ascontiguousarray(columns)
            few = [self._linear_of_few(columns, weight, bias) for weight, bias in maps]
            few = [y.reshape(*x.shape[:-1], y.shape[1]) for y in few]
            return few if activate is None else [self._elementwise(activate, y) for y in few]
        work = n * inputs * sum(len(weight) for weight, _ in maps)
        threads = min(self.threads.free, work // MIN_MULTIPLIES_PER_THREAD + 1)
        results, pieces = [], []
        for weight, bias in maps:
            y = self.memory.empty((len(weight), n), np.result_type(x, weight))
            results.append(y.T.reshape(*x.shape[:-1], len(weight)))
            pieces += _pieces(weight, columns, bias, y, threads)

        def some(part: slice) -> None:
            for weight, columns, bias, y in pieces[part]:
                multiply(weight, columns, out=y)
                if bias is not None:
                    y += bias
                if activate is not None:
                    activate(y, self.memory.empty(y.shape, y.dtype), y)

        self.threads.share(some, len(pieces), len(pieces) // threads, 1)
        return results

    def _linear_of_few(self, columns: Array, weight: Array, bias: Array | None) -> Array:
        """Of so few tokens, (in,n) -> (n,out), that what takes the time is to read the weight."""
        y = np.empty((len(weight), columns.shape[1]), np.result_type(columns, weight))

        def some_outputs(part: slice) -> None:
            multiply(weight[part], columns, out=y[part])

        self.threads.share(some_outputs, len(weight), MIN_MULTIPLIES_PER_THREAD // columns.size + 1)
        return np.ascontiguousarray(y.T) if bias is None else np.add(y.T, bias, order="C")

    def conv_transpose2d(self, x: Array, weight: Array, bias: Array) -> Array:
        """Blocks are painted a column of pixels at a time: a block's row is too short to be copied by itself."""
        (B, C, h, w), (_, D, p, _) = x.shape, weight.shape
        weight, bias = weight.reshape(C, D * p * p).T, np.repeat(bias, p * p)
        blocks = self.linear(x.transpose(0, 2, 3, 1), weight, bias)
        blocks = blocks.reshape(B, h, w, D, p, p).transpose(3, 0, 1, 4, 2, 5)  # (D,B,h,p,w,p)
        painted = self.memory.empty(blocks.shape, blocks.dtype)
        for column in range(p):
            painted[..., column] = blocks[..., column]
        return painted.reshape(D, B, h * p, w * p).swapaxes(0, 1)

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        """x (weight / deviation) + (bias - weight mean / deviation): each bracket is a product of two columns and two rows.

        Where a mean outweighs its deviation, to subtract squares would lose digits. On one thread: so many passes over so
        few numbers take longer on two.
        """
        columns = x.reshape(-1, x.shape[-1]).T  # (D,n)
        D, n = columns.shape
        if n < MANY_TOKENS or D < NORMALISED:
            return self._layer_norm_by_passes(x, weight, bias, eps)
        mean = np.full(D, 1 / D, x.dtype) @ columns
        square = mean * mean
        variance = np.einsum("dn,dn->n", columns, columns) / D - square
        if not (square <= variance).all():
            return self._layer_norm_by_passes(x, weight, bias, eps)
        rows = np.zeros((2, 2, n), x.dtype)
        rows[0, 0] = 1 / np.sqrt(variance + eps)
        rows[1, 0] = -mean * rows[0, 0]
        rows[1, 1] = 1
        features = np.stack([weight, bias], axis=1)
        out = self.memory.empty((D, n), x.dtype)
        shift = self.memory.empty((NORMALISED, n), x.dtype)
        for part in slices(D, NORMALISED):
            piece, some = out[part], features[part]
            np.matmul(some, rows[0], out=piece)
            piece *= columns[part]
            piece += np.matmul(some, rows[1], out=shift[: len(piece)])
        return out.T.reshape(x.shape)

    def _layer_norm_by_passes(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        rows = x.reshape(-1, x.shape[-1])
        n, D = rows.shape
        out = (
            self.memory.empty((D, n), x.dtype).T if n >= MANY_TOKENS else np.empty((n, D), x.dtype)
        )
        np.subtract(rows, rows.mean(axis=1, keepdims=True), out=out)
        variance = np.einsum("nd,nd->n", out, out) / D
        out *= (1 / np.sqrt(variance + eps))[:, None]
        out *= weight
        out += bias
        return out.reshape(x.shape)

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None = None,
        attentions: list | None = None,
    ) -> Array:
        B, H, T, d = q.shape
        if T < MANY_TOKENS:
            with one_blas_thread:
                return super().attention(q, k, v, mask, attentions)
        mixed = self.memory.empty((H, d, B, T), v.dtype)
        kept = None if attentions is None else np.empty((B, H, T, T), q.dtype)

        def some_heads(part: slice) -> None:
            some = (x[:, part] for x in (q, k, v))
            self.attend(*some, mask, mixed[part], None if kept is None else kept[:, part])

        self.threads.share(some_heads, H, max(1, SCORES // (B * T**2)), 1)
        if attentions is not None:
            attentions.append(kept)
        return mixed.transpose(2, 0, 3, 1)

    def attend(
        self,
        query: Array,
        key: Array,
        value: Array,
        mask: Array | None,
        mixed: Array,
        kept: Array | None = None,
    ) -> None:
        B, _, T, _ = query.shape
        mask = None if mask is None else np.broadcast_to(mask, (B, 1, T, T))
        attend(query, key, value, mask, self.memory.empty((T, T), query.dtype), mixed, kept)

    def quick_gelu(self, x: Array) -> Array:
        return self._elementwise(ELEMENTWISE["quick_gelu"], x)

    def relu(self, x: Array) -> Array:
        return self._elementwise(ELEMENTWISE["relu"], x)

    def _elementwise(self, one_piece: Elementwise, x: Array) -> Array:
        """An array like x, filled by `one_piece`, a cacheful of numbers at a time.

        Its axes lie in memory in the order in which x's do.
        """
        order = np.argsort([-abs(stride) for stride in x.strides], kind="stable")
        ordered = np.ascontiguousarray(x.transpose(order))
        out = self.memory.empty(ordered.shape, x.dtype)
        numbers, filled = ordered.reshape(-1), out.reshape(-1)

        def some(part: slice) -> None:
            one_piece(numbers[part], filled[part], filled[part])

        self.threads.share(some, x.size, NUMBERS, PIECE)
        return out.transpose(np.argsort(order))


def _pieces(
    weight: Array, columns: Array, bias: Array | None, y: Array, threads: int
) -> list[tuple[Array, Array, Array | None, Array]]:
    """What makes up y = weight @ columns + bias: the four for some outputs each, or for some tokens."""
    weight, columns, bias = bias_as_input(weight, columns, bias)
    outputs, n = y.shape
    if outputs >= min(n, 2 * OUTPUTS):
        count = max(threads, -(-outputs // OUTPUTS))
        parts = _staggered(outputs, count) if count > threads > 1 else evenly(outputs, count)
        return [(weight[p], columns, None if bias is None else bias[p], y[p]) for p in parts]
    parts = evenly(n, min(threads, n // MANY_TOKENS))
    return [(weight, columns[:, p], bias, y[:, p]) for p in parts]


def _staggered(length: int, count: int) -> list[slice]:
    """As `evenly`, but that half of a slice stands at each end.

    Two threads that take them in turn are not both at the many short steps after a product at the same time, where
    they wait for each other at Python's lock.
    """
    middles = (length * part // (2 * count) for part in range(1, 2 * count, 2))
    return between([0, *middles, length])
