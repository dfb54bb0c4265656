"""The operations of a GPU: one kernel where CuPy would launch several (backends/cupy_kernels.py).

A launch and a pass over memory cost more here than the arithmetic. Matrix products are cuBLAS's
(backends/cublas.py); float32 stays float32: CuPy uses the shorter TF32 only where the environment
says CUPY_TF32=1, and so does this. Attention is one kernel in float32, and in float16 where the GPU
has tensor cores that the kernel knows (compute capability 8.0 and up).

Nothing here waits for the GPU or allocates but from CuPy's pool, so that a forward pass can be
recorded (backends/cuda_graph.py). Before its first use on a GPU each override is compared with the
method that it replaces, and left out where they differ.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from threading import RLock
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from ..nn.ops import Array, Ops, T
from .cublas import Cublas, address
from .cupy_kernels import (
    ACTIVATIONS,
    EXPRESSIONS,
    FEW_ROWS,
    HEAD_SIZES,
    THREADS,
    TYPES,
    WARP,
    source,
)
from .cupy_layers import WHOLE_LAYERS

TOLERANCES = {"float16": 5e-3, "float32": 1e-5, "float64": 1e-12}  # of the largest number


class CupyOps(Ops):
    """Overrides for CuPy arrays. Inputs are not changed, but for the x of layer_norm, see there."""

    FLOAT_TYPES = (*TYPES,)

    def __init__(self, cupy: ModuleType):
        super().__init__(cupy)
        self.whole_layers = WHOLE_LAYERS
        has_tensor_cores = int(cupy.cuda.Device().compute_capability) >= 80
        # The types whose attention is one kernel.
        self.flash_types = {"float16", "float32"} if has_tensor_cores else {"float32"}
        self.few_rows = FEW_ROWS
        self.activations = {*ACTIVATIONS}
        self.packed: WeakKeyDictionary = WeakKeyDictionary()
        # Held by whoever records or launches on `streams`.
        self.lock = RLock()
        faults = {name: fault for name in checks("float64") if (fault := self._fault(name))}
        for name, fault in faults.items():
            warnings.warn(f"the GPU's {name} is not used: {fault}", stacklevel=3)
            if name in ("linear", "layer_norm", "sum_and_norm", "conv2d", "conv_transpose2d"):
                # Whole layers are made of these.
                self.whole_layers = {}
            if name == "flash_attention":
                self.flash_types = set()
            elif name == "few_rows":
                self.few_rows = 0
            elif name in self.activations:
                self.activations.remove(name)
            elif hasattr(Ops, name):
                setattr(self, name, getattr(Ops(cupy), name))

    @cached_property
    def _kernels(self) -> dict:
        """The compiled kernels by name and type, or head size."""
        module = self.xp.RawModule(code=source(), name_expressions=(*EXPRESSIONS.values(),))
        return {key: module.get_function(name) for key, name in EXPRESSIONS.items()}

    def _launch(self, name: str, kind: Any, threads: int, *arguments: Any) -> None:
        blocks = -(-threads // THREADS)
        self._kernels[name, str(kind)]((blocks,), (THREADS,), arguments)

    @cached_property
    def _cublas(self) -> Cublas:
        return Cublas(self.xp)

    @cached_property
    def streams(self) -> tuple:
        """The two streams that all passes are recorded on: cuBLAS has a workspace for each."""
        return tuple(self.xp.cuda.Stream(non_blocking=True) for _ in range(2))

    # The results are tables on the GPU: position embeddings of 1.5 MB for the official size.
    memoize = staticmethod(lru_cache(maxsize=8))

    def parallel_for(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """While a pass is recorded, the tasks after the first are recorded on the second stream."""
        first, second = self.streams
        if len(tasks) < 2 or self.xp.cuda.get_current_stream() is not first:
            return super().parallel_for(tasks)
        second.wait_event(first.record())
        with second:
            others = super().parallel_for(tasks[1:])
        done = second.record()
        result = tasks[0]()
        first.wait_event(done)
        return [result, *others]

    def packed_projections(self, layer: Any) -> tuple[Array, Array]:
        """An Attention's projections as one: weight (3D,D) and bias (3D).

        Computed once a layer, and again after a backward: weights set otherwise are not seen.
        """
        if layer not in self.packed:
            parts = layer.q_proj, layer.k_proj, layer.v_proj
            weights, biases = [part.weight for part in parts], [part.bias for part in parts]
            # Not from the pool of a pass that is being recorded: the pass may go before the layer.
            with self.xp.cuda.using_allocator(self.xp.get_default_memory_pool().malloc):
                biases = [self.xp.zeros_like(weights[0][0]) if b is None else b for b in biases]
                self.packed[layer] = self.xp.concatenate(weights), self.xp.concatenate(biases)
        return self.packed[layer]

    def run_backward(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        # The copy of weights that are going to change
        self.packed.pop(layer, None)
        return super().run_backward(layer, *args, **kwargs)

    def linear(
        self, x: Array, weight: Array, bias: Any = None, residual: Any = None, activation: str = ""
    ) -> Array:
        """activation(x Wᵀ + b) + residual: a product and one pass.  (..., in) -> (..., out)"""
        if activation not in self.activations:
            y = self.activation(activation, self.linear(x, weight, bias))
            return y if residual is None else y + residual
        return self._product(x, weight, bias, residual, activation)

    def linear_and_norm(self, x: Array, linear: Any, residual: Array, norm: Any) -> tuple:
        """The sum x Wᵀ + b + residual, and its layer norm, by the weights of two layers."""
        y = self._product(x, linear.weight)
        return y, self.layer_norm(y, norm.weight, norm.bias, norm.eps, linear.bias, residual)

    def _product(
        self, x: Array, weight: Array, bias: Any = None, residual: Any = None, activation: str = ""
    ) -> Array:
        """`linear` by cuBLAS and `finish`; few rows by one kernel.  (..., in) -> (..., out)"""
        (out_features, width), shape = weight.shape, (*x.shape[:-1], len(weight))
        x = self.xp.ascontiguousarray(x).reshape(1, -1, width)
        if not weight.T.flags.c_contiguous:
            weight = self.xp.ascontiguousarray(weight)
        y, rows = self.xp.empty((1, x.shape[1], out_features), x.dtype), x.shape[1]
        in_packs = width % (16 // x.itemsize) == 0 and _are_aligned(x, weight)
        if 0 < rows <= self.few_rows and in_packs and weight.flags.c_contiguous:
            arrays = x, weight, self._contiguous(bias), self._contiguous(residual), y
            sizes = map(np.int32, (ACTIVATIONS.index(activation), rows, width, out_features))
            self._launch("few_rows", x.dtype, WARP * out_features, *arrays, *sizes)
            return y.reshape(shape)
        self._cublas.product(x, weight.T[None], y)
        y = y.reshape(shape)
        if bias is not None or activation or residual is not None:
            self._finish(y, bias, activation, residual)
        return y

    def _finish(self, y: Array, bias: Any, activation: str, residual: Any) -> None:
        """y = activation(y + bias) + residual, in place: the end of a product."""
        arrays = y, self._contiguous(bias), self._contiguous(residual)
        width, pack = y.shape[-1], 16 // y.itemsize
        in_packs = width % pack == 0 and _are_aligned(*arrays)
        sizes = *map(np.int32, (ACTIVATIONS.index(activation), in_packs, width)), np.uint64(y.size)
        self._launch("finish", y.dtype, y.size // (pack if in_packs else 1), *arrays, *sizes)

    def layer_norm(
        self, x: Array, weight: Array, bias: Array, eps: float, added=None, residual=None
    ) -> Array:
        """The norm of x + added + residual. Where one of the two is given, x becomes this sum."""
        x = self.xp.ascontiguousarray(x)
        out, width, rows = self.xp.empty_like(x), x.shape[-1], x.size // x.shape[-1]
        arrays = x, *map(self._contiguous, (added, residual, weight, bias)), out
        in_packs = width % (16 // x.itemsize) == 0 and width <= 1024 and _are_aligned(*arrays)
        sizes = *map(np.int32, (in_packs, rows, width)), np.float64(eps)
        self._launch("layer_norm", x.dtype, WARP * rows, *arrays, *sizes)
        return out

    def _contiguous(self, x: Array | None) -> Any:
        """An array in the layout that the kernels read; a null pointer for None."""
        return np.intp(0) if x is None else self.xp.ascontiguousarray(x)

    def conv2d(self, x: Array, weight: Array, bias: Array, activation: str = "") -> Array:
        """Each cell's neighbors are copied by one kernel."""
        (B, C, h, w), (D, _, k, _) = x.shape, weight.shape
        neighbors = self.xp.empty((B, h, w, C * k * k), x.dtype)
        sizes = *map(np.int32, (C, h, w, k)), np.uint64(neighbors.size)
        self._launch("neighbors", x.dtype, neighbors.size, x, neighbors, *_steps(x), *sizes)
        weight = weight.reshape(D, C * k * k)
        return self.linear(neighbors, weight, bias, None, activation).transpose(0, 3, 1, 2)

    def conv_transpose2d(self, x: Array, weight: Array, bias: Array, activation: str = "") -> Array:
        """The product, its bias and the place of each pixel in one kernel."""
        (B, C, h, w), (_, D, p, _) = x.shape, weight.shape
        weight = self.xp.ascontiguousarray(weight)
        if p % 4 or activation not in self.activations or not _are_aligned(weight):
            y = super().conv_transpose2d(x, weight, bias)
            return self.activation(activation, y) if activation else y
        out = self.xp.empty((B, D, h * p, w * p), x.dtype)
        arrays = x, weight, self._contiguous(bias), out, *_steps(x)
        sizes = map(np.int32, (ACTIVATIONS.index(activation), C, D, h, w, p))
        count = np.uint64(out.size)
        self._launch("conv_transpose", x.dtype, out.size // 4, *arrays, *sizes, count)
        return out

    def softmax(self, x: Array) -> Array:
        x = self.xp.ascontiguousarray(x)
        return self._softmax(x, None, self.xp.empty_like(x))

    def _softmax(self, x: Array, mask: Array | None, out: Array) -> Array:
        """The masked softmax along the last axis; `out` may be x.  (B,N,T,T), (B or 1,1,T,T)"""
        heads, queries = (x.shape[1], x.shape[2]) if x.ndim == 4 else (1, 1)
        rows = x.size // x.shape[-1]
        sizes = map(np.int32, (heads, queries, x.shape[-1], rows))
        self._launch("softmax", x.dtype, WARP * rows, x, *self._mask(mask, queries), out, *sizes)
        return out

    def _mask(self, mask: Array | None, T: int) -> tuple[Any, np.int32]:
        """A mask as the kernels take it, (B or 1,1,T,T), and whether all images share it."""
        if mask is None:
            return np.intp(0), np.int32(0)
        mask = self.xp.broadcast_to(mask, (len(mask), 1, T, T))
        return self.xp.ascontiguousarray(mask), np.int32(len(mask) == 1)

    def attention(
        self, q: Array, k: Array, v: Array, mask: Any = None, attentions: list | None = None
    ) -> Array:
        B, N, T, d = q.shape
        if attentions is None and self.is_flash(q.dtype, d):
            return self.flash_attention(q, k, v, mask)
        # The heads of one image are read and written where they lie; those of several are copied.
        q, k, v = (x.reshape(B * N, T, d) for x in (q, k, v))
        weights = self.xp.empty((B * N, T, T), q.dtype)
        # Scaled before it is rounded: in float16 it could overflow.
        self._cublas.product(q, k.swapaxes(1, 2), weights, alpha=d**-0.5)
        weights = weights.reshape(B, N, T, T)
        self._softmax(weights, mask, weights)
        if attentions is not None:
            attentions.append(weights)
        if B == 1:
            context = self.xp.empty((T, N, d), v.dtype).swapaxes(0, 1)
        else:
            context = self.xp.empty((B * N, T, d), v.dtype)
        self._cublas.product(weights.reshape(B * N, T, T), v, context)
        return context.reshape(B, N, T, d)

    def is_flash(self, dtype: Any, d: int) -> bool:
        """Whether attention with heads of d features is one kernel. It does not know TF32."""
        is_known = dtype == "float16" or not self._cublas.tf32
        return is_known and str(dtype) in self.flash_types and d in HEAD_SIZES

    def flash_attention(
        self, q: Array, k: Array, v: Array, mask: Any = None, bias: Any = None
    ) -> Array:
        """Attention whose scores never leave the chip, of q, k and v plus their biases (3Nd)."""
        B, N, T, d = q.shape
        is_alike = k.strides == v.strides == q.strides and q.strides[3] == q.itemsize
        if not is_alike or any(s % 16 for s in q.strides[:3]) or not _are_aligned(q, k, v):
            q, k, v = map(self.xp.ascontiguousarray, (q, k, v))
        q_bias, _, v_bias = [None] * 3 if bias is None else bias.reshape(3, N * d)
        context = self.xp.empty((B, T, N, d), q.dtype)
        arrays = q, k, v, *map(self._contiguous, (q_bias, v_bias)), context, *self._mask(mask, T)
        sizes = np.int32(N), np.int32(T), *_steps(q)[:3], np.float32(d**-0.5)
        # With tensor cores, a warp has 16 queries; without, a block has one for each of a warp.
        is_half = q.dtype == "float16"
        name, queries = ("attention", THREADS // 2) if is_half else ("attention_float32", WARP)
        self._launch(name, d, THREADS * B * N * -(-T // queries), *arrays, *sizes)
        return context.transpose(0, 2, 1, 3)

    def activation(self, name: str, x: Array) -> Array:
        if name not in self.activations:
            return super().activation(name, x)
        out = self.xp.array(x, order="C")
        self._finish(out, None, name, None)
        return out

    def _fault(self, name: str) -> str | None:
        """The reason why an override is wrong on this device, or None.

        It is compared with NumPy in float64: a GPU that makes everything 0 agrees with itself.
        """
        for dtype, tolerance in TOLERANCES.items():
            if name == "flash_attention" and dtype not in self.flash_types:
                continue
            method, *given = checks(dtype)[name]
            exact = (x.astype("float64") if getattr(x, "dtype", "") == dtype else x for x in given)
            expected = getattr(FORMULAS, method)(*exact)
            try:
                there = (self.asarray(x) if isinstance(x, np.ndarray) else x for x in given)
                result = self.to_numpy(getattr(self, method)(*there))
                is_product = method in ("linear", "attention", "conv2d")
                if dtype == "float32" and is_product and self._cublas.tf32:
                    # TF32 has as few bits.
                    tolerance = TOLERANCES["float16"]
            except Exception as error:  # noqa: BLE001  (of compiler, driver or launch)
                return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            limit = tolerance * abs(expected).max()
            if result.dtype != dtype or not abs(result - expected).max() <= limit:
                return f"its result in {dtype} deviates from NumPy's"
        return None


class Formulas(Ops):
    """The readable methods, with the arguments that CupyOps adds."""

    def linear(self, x, weight, bias=None, residual=0, activation=""):
        y = super().linear(x, weight, bias)
        return (self.activation(activation, y) if activation else y) + residual

    def layer_norm(self, x, weight, bias, eps, added=0, residual=0):
        return super().layer_norm(x + added + residual, weight, bias, eps)

    def flash_attention(self, q, k, v, mask, bias):
        q, k, v = (x + b for x, b in zip((q, k, v), bias.reshape(3, q.shape[1], 1, q.shape[3])))
        return self.attention(q, k, v, mask)


FORMULAS = Formulas()


def checks(dtype: str) -> dict[str, tuple]:
    """For each override that is checked: a method and its arguments, drawn in this type."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(dtype)

    def heads(*shape: int) -> tuple:
        causal = np.tri(shape[2]) > 0
        return *(draw(*shape) for _ in range(3)), np.stack([causal, causal.T])[:, None]

    norm = draw(2, 5, 203), draw(203), draw(203), 1e-5
    # More rows than `few_rows` has.
    activated = draw(2, 9, 8), draw(16, 8), draw(16), draw(2, 9, 16)
    image = draw(2, 3, 5, 8).transpose(0, 3, 1, 2)
    return {
        "linear": ("linear", draw(2, 9, 8), draw(3, 8), draw(3)),
        "few_rows": ("linear", draw(2, 7, 40), draw(5, 40), draw(5), draw(2, 7, 5)),
        **{name: ("linear", *activated, name) for name in ACTIVATIONS[1:]},
        "layer_norm": ("layer_norm", draw(2, 5, 200), draw(200), draw(200), 1e-5),
        "sum_and_norm": ("layer_norm", *norm, draw(203), draw(2, 5, 203)),
        # More than a warp has at a time; in "attention", fewer.
        "softmax": ("softmax", draw(2, 3, 7, 600)),
        "attention": ("attention", *heads(2, 3, 7, 4)),
        # Many tokens: more than the kernel has on the chip at a time.
        "flash_attention": ("flash_attention", *heads(2, 2, 70, 16), draw(3 * 2 * 16)),
        "conv2d": ("conv2d", image, draw(4, 8, 3, 3), draw(4)),
        "conv_transpose2d": ("conv_transpose2d", image, draw(8, 2, 4, 4), draw(2)),
    }


def _are_aligned(*arrays: Any) -> bool:
    """Whether 16 bytes may be read at once from where each array begins; null pointers count."""
    return all(address(x) % 16 == 0 for x in arrays if getattr(x, "ndim", 0))


def _steps(x: Any) -> list[np.int64]:
    """An array's strides, in numbers."""
    return [np.int64(stride // x.itemsize) for stride in x.strides]
