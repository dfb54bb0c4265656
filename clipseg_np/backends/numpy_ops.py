"""NumPy's operations, faster than the readable `Ops`: fewer passes over memory, on all cores.

The steps of a formula reuse one array, and threads share out images, prompts, heads and features. A
method equals the one that it overrides, but for rounding (tests/backends/test_numpy_ops.py).

Tokens lie in memory features first: a (B,T,D) array is a view of one of (D,B,T). This gains 13 %
(AVX-512), 3 % (AVX2 imitated) of a pass at 352 x 352 with 1 prompt (benchmarks/tricks.md).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from ..nn.ops import Array, Ops, T
from .numpy_kernels import MAX_FEATURES, MIN_MULTIPLIES_PER_THREAD, Elementwise, project
from .numpy_layers import MIN_TOKENS, WHOLE_LAYERS
from .threads import Threads, slices

# Features of a layer norm at a time.
MAX_NORM_FEATURES = 192


class NumpyOps(Ops):
    """Overrides for NumPy arrays; no input is changed."""

    # They bound memory, and take no more time than 64 of each.
    images_per_slice, prompts_per_slice = 2, 5
    whole_layers = WHOLE_LAYERS

    def __init__(self, threads: int | None = None):
        super().__init__()
        self.threads = Threads(threads)
        self.workers = self.threads.count
        # glibc gives the memory of large arrays back to the system, which clears it, page by page,
        # before a pass gets it again: 2 % of a pass at 480 x 480. Once it has seen an array of this
        # size freed, it keeps up to 62 MB.
        np.empty(31 << 20, np.uint8)

    # 1.5 % of a pass at 352 x 352: position embeddings.
    memoize = staticmethod(lru_cache(maxsize=8))

    def parallel_for(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        # Gains 4 % (AVX-512), 2 % (AVX2 imitated), 1 prompt; 14 %, 7 %, 20 prompts.
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
        """x (weight / deviation) + (bias - weight mean / deviation): the brackets are products.

        In place of passes over x this gains 2 % of a pass at 640 x 640 (AVX-512). Where a mean
        outweighs its deviation, a difference of squares would lose digits.
        """
        # (B,T,D) -> (D,n)
        columns = x.reshape(-1, x.shape[-1]).T
        D, n = columns.shape
        mean = np.full(D, 1 / D, x.dtype) @ columns
        square = mean * mean
        variance = np.einsum("dn,dn->n", columns, columns) / D - square
        if n < MIN_TOKENS or D < MAX_FEATURES or not (square <= variance).all():
            return self._layer_norm_by_passes(x, weight, bias, eps)
        rows = np.zeros((2, 2, n), x.dtype)
        rows[0, 0] = 1 / np.sqrt(variance + eps)
        rows[1, 0] = -mean * rows[0, 0]
        rows[1, 1] = 1
        features = np.stack([weight, bias], axis=1)
        out = np.empty((D, n), x.dtype)
        for part in slices(D, MAX_NORM_FEATURES):
            piece = np.matmul(features[part], rows[0], out=out[part])
            piece *= columns[part]
            piece += features[part] @ rows[1]
        return out.T.reshape(x.shape)

    def _layer_norm_by_passes(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        # (B,T,D) -> (n,D), features first in memory
        rows = x.reshape(-1, x.shape[-1])
        out = np.empty(rows.shape[::-1], x.dtype).T
        np.subtract(rows, rows.mean(axis=1, keepdims=True), out=out)
        variance = np.einsum("nd,nd->n", out, out) / rows.shape[1]
        out *= (1 / np.sqrt(variance + eps))[:, None]
        out *= weight
        out += bias
        return out.reshape(x.shape)

    def conv_transpose2d(self, x: Array, weight: Array, bias: Array) -> Array:
        """Paints blocks a column of pixels at a time: gains 3 %, 20 prompts."""
        (B, C, h, w), (_, D, p, _) = x.shape, weight.shape
        weight, bias = weight.reshape(C, D * p * p).T, np.repeat(bias, p * p)
        blocks = self.linear(x.transpose(0, 2, 3, 1), weight, bias)
        # (B,h,w,Dpp) -> (D,B,h,p,w,p)
        blocks = blocks.reshape(B, h, w, D, p, p).transpose(3, 0, 1, 4, 2, 5)
        painted = np.empty(blocks.shape, blocks.dtype)
        for column in range(p):
            painted[..., column] = blocks[..., column]
        return painted.reshape(D, B, h * p, w * p).swapaxes(0, 1)
