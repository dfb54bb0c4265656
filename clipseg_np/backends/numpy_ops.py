"""NumPy's operations, faster than the readable `Ops`: fewer passes over memory, on all cores.

The steps of a formula reuse one array, and threads share out images, prompts, heads and features. A
method equals the one that it overrides, but for rounding (tests/backends/test_numpy_ops.py).

Tokens lie in memory features first: a (B,T,D) array is a view of one of (D,B,T). This gains 15 %
(AVX-512), 4 % (AVX2 imitated) of a pass at 352 x 352 with 1 prompt (benchmarks/tricks.md).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from ..nn.ops import Array, Ops, T
from .numpy_gradients import WHOLE_BACKWARDS
from .numpy_kernels import MAX_FEATURES, MIN_MULTIPLIES_PER_THREAD, Elementwise, project
from .numpy_layers import WHOLE_LAYERS
from .threads import Threads


class NumpyOps(Ops):
    """Overrides for NumPy arrays; no input is changed."""

    # They bound memory, and take no more time than 64 of each.
    images_per_slice, prompts_per_slice = 2, 5
    whole_layers = WHOLE_LAYERS
    whole_backwards = WHOLE_BACKWARDS
    # Position embeddings are resized once for each grid: 0.5 % of a pass at 352 x 352.
    memoize = staticmethod(lru_cache(maxsize=8))

    def __init__(self, threads: int | None = None):
        super().__init__()
        self.threads = Threads(threads)
        self.workers = self.threads.count
        # glibc gives the memory of large arrays back to the system, which clears it, page by page,
        # before a pass gets it again: 5,400 pages at 480 x 480. Once it has seen an array of this
        # size freed, it keeps up to 62 MB.
        np.empty(31 << 20, np.uint8)

    def parallel_for(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        # Gains 3 % (AVX-512), 2 % (AVX2 imitated), 1 prompt; 8 %, 7 %, 20 prompts.
        return self.threads.run(tasks)

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        return self.activated_linear(x, weight, bias, None)

    def activated_linear(
        self, x: Array, weight: Array, bias: Array | None, activate: Elementwise | None
    ) -> Array:
        """`linear`, and the activation of MAX_FEATURES features while the cache holds them."""
        # (B,T,in) -> (in,n)
        columns = x.reshape(-1, x.shape[-1]).T
        y = np.empty((len(weight), columns.shape[1]), np.result_type(x, weight))

        def some_features(part: slice) -> None:
            piece = project(columns, weight, bias, part, out=y[part])
            if activate is not None:
                activate(piece)

        min_features = MIN_MULTIPLIES_PER_THREAD // max(1, columns.size) + 1
        self.threads.for_slices(some_features, len(weight), min_features, MAX_FEATURES)
        # (out,n) -> (B,T,out)
        return y.T.reshape(*x.shape[:-1], len(weight))

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        # (B,T,D) -> (n,D), features first in memory
        rows = x.reshape(-1, x.shape[-1])
        out = np.empty(rows.shape[::-1], x.dtype).T
        np.subtract(rows, rows.mean(axis=1, keepdims=True), out=out)
        variance = np.einsum("nd,nd->n", out, out) / rows.shape[1]
        out *= (1 / np.sqrt(variance + eps))[:, None]
        out *= weight
        out += bias
        return out.reshape(x.shape)

    def sigmoid(self, x: Array) -> Array:
        # Without `where`, a pass that learns from 8 prompts gains 6 % (AVX-512), 3 % (AVX2
        # imitated). e is at most 1: the numerator is 1 or e.
        e = np.exp(-abs(x))
        y = np.maximum(e, x >= 0)
        y /= 1 + e
        return y
