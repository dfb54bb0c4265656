"""What NumPy can do faster than the readable `Ops` does: the same numbers in fewer passes over memory, on all cores.

NumPy's elementwise arithmetic runs on one core, and each step of a formula reads and writes its whole array. Here
the steps reuse one array, a piece at a time that stays in the processor's cache. Pictures, prompts, heads and a
product's features, which are independent of each other, are shared out over threads: the larger what each takes,
the better, since to wake a thread, and to wait for it, takes as long as ten million multiplications. Each method equals
the one that it overrides, but for rounding (tests/test_numpy_ops.py).

Many tokens lie in memory features first: a (B,T,D) array is a view of one of (D,B,T). Matrix products are faster on
these, and so is all that one token's numbers have in common. Shapes are as everywhere.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from .memory import Memory
from .numpy_pieces import ELEMENTWISE, Elementwise, attend, multiply
from .ops import MAX_MEMOIZED, Array, Ops, slices, split_heads
from .threads import Threads, between, evenly, one_blas_thread
from .trace import is_traced

MANY = 32  # tokens, from which on they lie features first
NORMALISED = 192  # features at a time
PRODUCTS = 1 << 23  # multiplications, as few as are worth a thread
WIDER = 16  # times
MIDDLE = 1 << 19  # numbers at a time between two maps
TOKENS = 1 << 11  # at a time
OUTPUTS = 384  # features of a matrix product at a time
NUMBERS = 1 << 17  # of elementwise work: as few as are worth a thread
PIECE = 1 << 17  # numbers at a time: they fit a core's cache
SCORES = 1 << 15  # of attention: as few as are worth a thread


class NumpyOps(Ops):
    """Overrides for NumPy arrays; no input is changed, but the branch that a residual is added to."""

    pictures_at_once, prompts_at_once = 2, 5  # the widest of their arrays then fit a last cache

    def __init__(self, threads: int | None = None):
        """`threads`: how many share out the work; as many as there are cores by default."""
        super().__init__()
        self.threads = Threads(threads)
        self.memory = Memory()

    def each(self, work: Callable[[slice], Any], length: int, at_once: int) -> list:
        """Several at the same time, as many for each thread, or one more; who is done helps the others."""
        if is_traced():  # in their order
            return super().each(work, length, at_once)
        with one_blas_thread:  # once for all that the work shares out
            if length < 2:
                return super().each(work, length, at_once)
            rounds = -(-length // (self.threads.count * at_once))
            parts = evenly(length, min(length, rounds * self.threads.count))
            found: list = [None] * len(parts)

            def one(number: slice) -> None:  # the longest first
                found[-1 - number.start] = work(parts[-1 - number.start])

            self.threads.share(one, len(parts), 1, 1)
            return found

    def memoize(self, function: Callable[..., Array]) -> Callable[..., Array]:
        return lru_cache(MAX_MEMOIZED)(function)

    def aside(self, work: Callable[[], Any]) -> Callable[[], Any]:
        return super().aside(work) if is_traced() else self.threads.aside(work)

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        return self._linears(x, [(weight, bias)])[0]

    def linears(self, x: Array, maps: Sequence[tuple[Array, Array | None]]) -> list[Array]:
        return self._linears(x, maps)

    def linear_activated(
        self, x: Array, weight: Array, bias: Array | None, activation: str
    ) -> Array:
        if activation not in ELEMENTWISE:
            return super().linear_activated(x, weight, bias, activation)
        return self._linears(x, [(weight, bias)], ELEMENTWISE[activation])[0]

    def _linears(
        self,
        x: Array,
        maps: Sequence[tuple[Array, Array | None]],
        activate: Elementwise | None = None,
    ) -> list[Array]:
        """Linear maps, and the activation of each piece of them while the cache holds it."""
        columns = x.reshape(-1, x.shape[-1]).T  # (in,n)
        inputs, n = columns.shape
        if n < MANY:
            columns = np.ascontiguousarray(columns)
            few = [self._linear_of_few(columns, weight, bias) for weight, bias in maps]
            few = [y.reshape(*x.shape[:-1], y.shape[1]) for y in few]
            return few if activate is None else [self._elementwise(activate, y) for y in few]
        work = n * inputs * sum(len(weight) for weight, _ in maps)
        threads = min(self.threads.free, work // PRODUCTS + 1)
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

        self.threads.share(some_outputs, len(weight), PRODUCTS // columns.size + 1)
        return np.ascontiguousarray(y.T) if bias is None else np.add(y.T, bias, order="C")

    def mlp(
        self,
        x: Array,
        widen: tuple[Array, Array | None],
        narrow: tuple[Array, Array | None],
        activation: str,
    ) -> Array:
        """Where the middle is much wider than the result, it is made and used up a cacheful at a time."""
        (weight, bias), (last, last_bias) = widen, narrow
        columns = x.reshape(-1, x.shape[-1]).T
        (inputs, n), (outputs, hidden) = columns.shape, last.shape
        if n < MANY or hidden < WIDER * outputs or activation not in ELEMENTWISE:
            return super().mlp(x, widen, narrow, activation)
        weight, columns, bias = _bias_as_input(weight, columns, bias)
        y = self.memory.empty((outputs, n), np.result_type(x, weight))

        def some_tokens(part: slice) -> None:
            some, made = columns[:, part], y[:, part]
            made[...] = 0 if last_bias is None else last_bias[:, None]
            for features in slices(0, hidden, -(-MIDDLE // some.shape[1])):
                middle = self.memory.empty((features.stop - features.start, some.shape[1]), y.dtype)
                np.matmul(weight[features], some, out=middle)
                if bias is not None:
                    middle += bias[features]
                ELEMENTWISE[activation](middle, self.memory.empty(middle.shape, y.dtype), middle)
                made += last[:, features] @ middle

        least = PRODUCTS // (hidden * (inputs + outputs)) + 1
        self.threads.share(some_tokens, n, max(MANY, least), TOKENS)
        return y.T.reshape(*x.shape[:-1], outputs)

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

    def residual(self, x: Array, branch: Array) -> Array:
        return x + branch if is_traced() else np.add(x, branch, out=branch)

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        """x (weight / deviation) + (bias - weight mean / deviation): each bracket is a product of two columns and two rows.

        Where a mean outweighs its deviation, to subtract squares would lose digits. On one thread: so many passes over so
        few numbers take longer on two.
        """
        columns = x.reshape(-1, x.shape[-1]).T  # (D,n)
        D, n = columns.shape
        if n < MANY or D < NORMALISED:
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
        for part in slices(0, D, NORMALISED):
            piece, some = out[part], features[part]
            np.matmul(some, rows[0], out=piece)
            piece *= columns[part]
            piece += np.matmul(some, rows[1], out=shift[: len(piece)])
        return out.T.reshape(x.shape)

    def _layer_norm_by_passes(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        rows = x.reshape(-1, x.shape[-1])
        n, D = rows.shape
        out = self.memory.empty((D, n), x.dtype).T if n >= MANY else np.empty((n, D), x.dtype)
        np.subtract(rows, rows.mean(axis=1, keepdims=True), out=out)
        variance = np.einsum("nd,nd->n", out, out) / D
        out *= (1 / np.sqrt(variance + eps))[:, None]
        out *= weight
        out += bias
        return out.reshape(x.shape)

    def attention(
        self,
        query: Array,
        key: Array,
        value: Array,
        mask: Array | None = None,
        attentions: list | None = None,
    ) -> Array:
        B, H, T, d = query.shape
        if T < MANY:
            with one_blas_thread:
                return super().attention(query, key, value, mask, attentions)
        mixed = self.memory.empty((H, d, B, T), value.dtype)
        kept = None if attentions is None else np.empty((B, H, T, T), query.dtype)

        def some_heads(part: slice) -> None:
            some = (x[:, part] for x in (query, key, value))
            self._attend(*some, mask, mixed[part], None if kept is None else kept[:, part])

        self.threads.share(some_heads, H, max(1, SCORES // (B * T**2)), 1)
        if attentions is not None:
            attentions.append(kept)
        return mixed.transpose(2, 0, 3, 1)

    def _attend(
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

    def multi_head_attention(
        self,
        x: Array,
        projections: Sequence[tuple[Array, Array | None]],
        num_heads: int,
        mask: Array | None = None,
        attentions: list | None = None,
    ) -> Array:
        """A thread takes its heads from projection to result, with one wait for the others instead of two."""
        (B, T, inputs), D = x.shape, len(projections[0][0])
        threads = min(self.threads.free, num_heads, B * T * inputs * 3 * D // PRODUCTS + 1)
        if T < MANY or threads == 1 or attentions is not None:
            return super().multi_head_attention(x, projections, num_heads, mask, attentions)
        mixed = self.memory.empty((num_heads, D // num_heads, B, T), x.dtype)
        parts = evenly(num_heads, threads)

        def some_heads(part: slice) -> None:
            for some in parts[part]:
                features = slice(*(end * D // num_heads for end in (some.start, some.stop)))
                maps = [(w[features], b if b is None else b[features]) for w, b in projections]
                made = (split_heads(y, some.stop - some.start) for y in self._linears(x, maps))
                self._attend(*made, mask, mixed[some])

        self.threads.share(some_heads, threads)
        return mixed.reshape(D, B, T).transpose(1, 2, 0)

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
    weight, columns, bias = _bias_as_input(weight, columns, bias)
    outputs, n = y.shape
    if outputs >= min(n, 2 * OUTPUTS):
        count = max(threads, -(-outputs // OUTPUTS))
        parts = _staggered(outputs, count) if count > threads > 1 else evenly(outputs, count)
        return [(weight[p], columns, None if bias is None else bias[p], y[p]) for p in parts]
    parts = evenly(n, min(threads, n // MANY))
    return [(weight, columns[:, p], bias, y[:, p]) for p in parts]


def _bias_as_input(
    weight: Array, columns: Array, bias: Array | None
) -> tuple[Array, Array, Array | None]:
    """The three of weight @ columns + bias; where there are few inputs, the bias as one more, and None in its place.

    To copy the two then takes less than a pass over the result.
    """
    (outputs, inputs), n = weight.shape, columns.shape[1]
    if bias is None or outputs * n <= 4 * inputs * (outputs + n):
        return weight, columns, None if bias is None else bias[:, None]
    columns = np.concatenate([columns, np.ones((1, n), columns.dtype)])
    return np.concatenate([weight, bias[:, None]], axis=1), columns, None


def _staggered(length: int, count: int) -> list[slice]:
    """As `evenly`, but that half of a slice stands at each end.

    Two threads that take them in turn are not both at the many short steps after a product at the same time, where
    they wait for each other at Python's lock.
    """
    middles = (length * part // (2 * count) for part in range(1, 2 * count, 2))
    return between([0, *middles, length])
