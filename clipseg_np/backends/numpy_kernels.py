"""The NumPy backend's work of one thread, on a piece of an array that stays in a core's cache."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np

from ..nn.ops import Array

# A thread gets no fewer multiplications: gains 6 % (AVX-512), 4 % (AVX2 imitated), demo checkpoint.
MIN_MULTIPLIES_PER_THREAD = 1 << 23
# Of a product at a time: on one thread, 10 % less time than for all features of a wide layer.
MAX_FEATURES = 384
# Multiplications of a product that OpenBLAS does not pack, and the shapes for which blocks pay.
MAX_UNPACKED, MAX_TOKENS_OF_BLOCKS, MIN_BLOCK_ROWS = 900_000, 32, 8
# Sums of e^score from MIN_SUM on keep all digits; up to 1 / MIN_SUM they are far from overflowing:
# no maximum is subtracted. Gains 3 % (AVX-512), 1 % (AVX2 imitated), 1 prompt.
MIN_SUM = math.exp(-50)

# A function that writes over its argument.
Elementwise = Callable[[Array], None]


@cache
def block_rows(outputs: int, size: int) -> int:
    """The largest divisor of `outputs` for which a product with `size` numbers is not packed."""
    largest = min(outputs, MAX_UNPACKED // max(1, size))
    return max((rows for rows in range(1, largest + 1) if outputs % rows == 0), default=0)


def project(
    columns: Array, weight: Array, bias: Array | None, features: slice, out: Array
) -> Array:
    """Some features of a linear map, into `out`.  (in,n), (out,in), (out) -> (some of out,n)

    OpenBLAS first packs the matrices of a large product. For few tokens that takes as long as the
    product: blocks that are not packed gain 40 % of a short text's time.
    """
    weight, (inputs, n) = weight[features], columns.shape
    rows = block_rows(len(weight), columns.size) if n <= MAX_TOKENS_OF_BLOCKS else 0
    if rows < MIN_BLOCK_ROWS:
        np.matmul(weight, columns, out=out)
    else:
        np.matmul(weight.reshape(-1, rows, inputs), columns, out=out.reshape(-1, rows, n))
    if bias is not None:
        out += bias[features, None]
    return out


def quick_gelu(x: Array) -> None:
    """x / (1 + e^(-1.702 x)); where the power overflows, the result is 0, as it should be.

    In place it gains 14 % (AVX-512), 10 % (AVX2 imitated), 1 prompt. tanh would take less time, but
    lose digits where x is negative.
    """
    power = x * -1.702
    with np.errstate(over="ignore"):
        np.exp(power, out=power)
    power += 1
    x /= power


def relu(x: Array) -> None:
    np.maximum(x, 0, out=x)


ELEMENTWISE: dict[str, Elementwise] = {"quick_gelu": quick_gelu, "relu": relu}


def attend(
    q: Array, k: Array, v: Array, mask: Array | None, out: Array, kept: Array | None
) -> None:
    """Attention of some heads, (B,N,T,d) each, with a mask (B,1,T,T), into `out` (N,d,B,T).

    The weights are written into `kept` (B,N,T,T), if there is one.
    """
    B, N, T, d = q.shape
    weights = np.empty((T, T), q.dtype)
    q = q * d**-0.5
    for b in range(B):
        hidden = None if mask is None else ~mask[b, 0].T
        for head in range(N):
            sums = exponentials(q[b, head], k[b, head], hidden, out=weights)
            context = np.matmul(v[b, head].T, weights, out=out[head, :, b])
            # Divides d numbers for each query instead of T.
            context /= sums
            if kept is not None:
                np.divide(weights.T, sums[:, None], out=kept[b, head])


def exponentials(q: Array, k: Array, hidden: Array | None, out: Array) -> Array:
    """Fill `out` (keys,queries) with e^scores of a head; return its sums, the softmax's divisors.

    Each query's largest score is subtracted only where a power would overflow, or where all of a
    query's are so small that they lose digits.
    """
    for is_subtracted in (False, True):
        np.matmul(k, q.T, out=out)
        if hidden is not None:
            out[hidden] = np.finfo(out.dtype).min
        if is_subtracted:
            out -= out.max(axis=0)
        with np.errstate(over="ignore"):
            np.exp(out, out=out)
            sums = out.sum(axis=0)
        if MIN_SUM < sums.min() and sums.max() < 1 / MIN_SUM:
            break
    return sums
