"""What NumPy can do faster than the readable `Ops` does: the same numbers in fewer passes over memory, on all cores.

NumPy's elementwise arithmetic runs on one core, and each step of a formula reads and writes its whole array. Here
the steps reuse one array, a piece at a time that stays in the processor's cache. Pictures, prompts, heads and a
product's features, which are independent of each other, are shared out over threads: the larger what each takes,
the better, since to wake a thread, and to wait for it, takes as long as ten million multiplications. Each method equals
the one that it overrides, but for rounding (tests/test_numpy_ops.py).

Many tokens lie in memory features first: a (B,T,D) array is a view of one of (D,B,T). Matrix products are faster on
these, and so is all that one token's numbers have in common. Shapes are as everywhere.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .memory import Memory
from .ops import Array, Ops, slices
from .threads import Threads, between, evenly, one_blas_thread
from .trace import is_traced

MANY = 32  # tokens, from which on they lie features first
PRODUCTS = 1 << 23  # multiplications, as few as are worth a thread
UNPACKED = 900_000  # multiplications, as many as OpenBLAS does without first packing the weight
OUTPUTS = 384  # features of a matrix product at a time
NUMBERS = 1 << 17  # of elementwise work: as few as are worth a thread
PIECE = 1 << 17  # numbers at a time: they fit a core's cache
SCORES = 1 << 15  # of attention: as few as are worth a thread
LARGE = 50.0  # e to it, times any value, is far from overflowing
SMALL = math.exp(-LARGE)  # far from losing digits

# A function of x, an array like it to work in, and where the result goes, which may be either.
Elementwise = Callable[[Array, Array, Array], None]


class NumpyOps(Ops):
    """Overrides for NumPy arrays; no input is changed."""

    pictures_at_once, prompts_at_once = 2, 5  # the widest of their arrays then fit a last cache

    def __init__(self, threads: int | None = None):
        """`threads`: how many share out the work; as many as there are cores by default."""
        super().__init__()
        self.threads = Threads(threads)
        self.memory = Memory()

    def each(self, work: Callable[[slice], Any], length: int, at_once: int) -> list:
        """As many for every thread, at the same time; then the few that are left, which share all threads."""
        if is_traced():  # in their order
            return super().each(work, length, at_once)
        count = self.threads.count
        even = length - length % count
        parts = evenly(even, count * -(-even // (count * at_once))) if even else []
        found: list = [None] * len(parts)

        def one(number: slice) -> None:
            found[number.start] = work(parts[number.start])

        with one_blas_thread:  # once for all that the work shares out
            if parts:
                self.threads.share(one, len(parts), 1, 1)
            return found + [work(part) for part in slices(even, length, at_once)]

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
        threads = min(self.threads.count, work // PRODUCTS + 1)
        results, pieces = [], []
        for weight, bias in maps:
            y = self.memory.empty((len(weight), n), np.result_type(x, weight))
            results.append(y.T.reshape(*x.shape[:-1], len(weight)))
            pieces += _pieces(weight, columns, bias, y, threads)

        def some(part: slice) -> None:
            for weight, columns, bias, y in pieces[part]:
                np.matmul(weight, columns, out=y)
                if bias is not None:
                    y += bias
                if activate is not None:
                    activate(y, self.memory.empty(y.shape, y.dtype), y)

        self.threads.share(some, len(pieces), len(pieces) // threads, 1)
        return results

    def _linear_of_few(self, columns: Array, weight: Array, bias: Array | None) -> Array:
        """Of so few tokens, (in,n) -> (n,out), that what takes the time is to read the weight."""
        products = columns.size  # for each output
        y = np.empty((len(weight), columns.shape[1]), np.result_type(columns, weight))

        def some_outputs(part: slice) -> None:
            np.matmul(weight[part], columns, out=y[part])

        least, most = PRODUCTS // products + 1, UNPACKED // products + 1
        self.threads.share(some_outputs, len(weight), least, most)
        return np.ascontiguousarray(y.T) if bias is None else np.add(y.T, bias, order="C")

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        """On one thread: so many passes over so few numbers take longer on two."""
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

        heads = [(b, h) for b in range(B) for h in range(H)]

        def some_heads(part: slice) -> None:
            weights = self.memory.empty((T, T), query.dtype)  # (keys,queries)
            for head in heads[part]:
                hides = None if hidden is None else hidden[head[0], 0].T
                sums = _exponentials(query[head], key[head], hides, out=weights)
                mix = mixed[head]
                np.matmul(value[head].T, weights, out=mix.T)
                np.divide(mix, sums[:, None], out=mix)  # d numbers a query instead of T
                if kept is not None:
                    np.divide(weights.T, sums[:, None], out=kept[head])

        self.threads.share(some_heads, B * H, max(1, SCORES // T**2), 1)
        if attentions is not None:
            attentions.append(kept)
        return mixed

    def quick_gelu(self, x: Array) -> Array:
        return self._elementwise(_quick_gelu, x)

    def relu(self, x: Array) -> Array:
        return self._elementwise(_relu, x)

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
    (outputs, inputs), n = weight.shape, columns.shape[1]
    if bias is not None and outputs * n > 4 * inputs * (outputs + n):
        # Of few inputs: the bias as one more takes less than a pass over the result.
        columns = np.concatenate([columns, np.ones((1, n), columns.dtype)])
        weight, bias = np.concatenate([weight, bias[:, None]], axis=1), None
    bias = None if bias is None else bias[:, None]
    if outputs >= min(n, 2 * OUTPUTS):
        count = max(threads, -(-outputs // OUTPUTS))
        parts = _staggered(outputs, count) if count > threads > 1 else evenly(outputs, count)
        return [(weight[p], columns, None if bias is None else bias[p], y[p]) for p in parts]
    parts = evenly(n, min(threads, n // MANY))
    return [(weight, columns[:, p], bias, y[:, p]) for p in parts]


def _staggered(length: int, count: int) -> list[slice]:
    """As `evenly`, but that half of a slice stands at each end.

    Two threads that take them in turn are not both at the many short steps after a product at the same time, where
    they wait for each other at Python's lock.
    """
    middles = (length * part // (2 * count) for part in range(1, 2 * count, 2))
    return between([0, *middles, length])


def _quick_gelu(x: Array, power: Array, out: Array) -> None:
    """x / (1 + e^(-1.702 x)); where the power overflows, the result is 0, as it should be."""
    np.multiply(x, -1.702, out=power)
    with np.errstate(over="ignore"):
        np.exp(power, out=power)
    power += 1
    np.divide(x, power, out=out)


def _relu(x: Array, _: Array, out: Array) -> None:
    zeros = np.zeros(x.shape[-1], x.dtype)  # with a number, NumPy takes three times as long
    np.maximum(x, zeros, out=out)


ELEMENTWISE: dict[str, Elementwise] = {"quick_gelu": _quick_gelu, "relu": _relu}


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
        if subtracted or sums.min() > SMALL:
            break
    return sums
