"""What one thread of the NumPy backend does with a piece of an array, as long as a core's cache holds it.

Each step writes over the one before: arrays called `out`, or named for what is made in them, are filled.
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np

from ..nn.ops import Array

MANY_TOKENS = 32  # from which on they lie in memory features first
MIN_MULTIPLIES_PER_THREAD = 1 << 23  # fewer are not worth a thread
FEW, ROWS = 44, 8  # columns at most and rows at least of a matrix that is better not packed
UNPACKED = 900_000  # multiplications, as many as OpenBLAS does without packing its matrices first
LARGE = 50.0  # e to it, times any value, is far from overflowing
SMALL = math.exp(-LARGE)  # far from losing digits

# A function of x, an array like it to work in, and where the result goes, which may be either.
Elementwise = Callable[[Array, Array, Array], None]


def multiply(weight: Array, columns: Array, out: Array) -> None:
    """weight @ columns.  (out,in), (in,n) -> (out,n)

    Of few columns in blocks of outputs, each so small that OpenBLAS does not pack it first: to do so takes as long as to
    multiply it.
    """
    (outputs, inputs), n = weight.shape, columns.shape[1]
    rows = _largest_divisor(outputs, UNPACKED // columns.size) if n <= FEW else 0
    if rows < ROWS:
        np.matmul(weight, columns, out=out)
    else:
        np.matmul(weight.reshape(-1, rows, inputs), columns, out=out.reshape(-1, rows, n))


@cache
def _largest_divisor(number: int, most: int) -> int:
    return max((n for n in range(1, min(number, most) + 1) if number % n == 0), default=0)


def bias_as_input(
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


def quick_gelu(x: Array, power: Array, out: Array) -> None:
    """x / (1 + e^(-1.702 x)); where the power overflows, the result is 0, as it should be.

    By tanh it would take less time, but lose digits where x is negative.
    """
    np.multiply(x, -1.702, out=power)
    with np.errstate(over="ignore"):
        np.exp(power, out=power)
    power += 1
    np.divide(x, power, out=out)


def relu(x: Array, _: Array, out: Array) -> None:
    zeros = np.zeros(x.shape[-1], x.dtype)  # with a number, NumPy takes three times as long
    np.maximum(x, zeros, out=out)


ELEMENTWISE: dict[str, Elementwise] = {"quick_gelu": quick_gelu, "relu": relu}


def attend(
    query: Array,
    key: Array,
    value: Array,
    allowed: Array | None,
    weights: Array,
    mixed: Array,
    kept: Array | None,
) -> None:
    """Attention of one head after another, (B,H,T,d) each, into `mixed`, (H,d,B,T).

    `allowed` is (B,1,T,T), or None. `weights` is (T,T), room for one head's; `kept` (B,H,T,T), for all, or None.
    """
    B, H, _, d = query.shape
    query = query * d**-0.5
    ones = np.ones(len(weights), weights.dtype)
    for b in range(B):
        hidden = None if allowed is None else ~allowed[b, 0].T
        for h in range(H):
            sums = _exponentials(query[b, h], key[b, h], hidden, ones, out=weights)
            mix = mixed[h, :, b]
            np.matmul(value[b, h].T, weights, out=mix)
            np.divide(mix, sums, out=mix)  # d numbers a query instead of T
            if kept is not None:
                np.divide(weights.T, sums[:, None], out=kept[b, h])


def _exponentials(query: Array, key: Array, hidden: Array | None, ones: Array, out: Array) -> Array:
    """A head's softmax of scaled queries before it is divided, (keys,queries); returns the sums that would divide it.

    As a rule no power overflows, and the largest need not be sought for each query and subtracted. It is where some
    would, or where all of a query's powers are so small that they lose digits.
    """
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
