"""The operations of a GPU: one kernel where CuPy would launch several (backends/cupy_kernels.py).

A launch and a pass over memory cost more here than the arithmetic. Matrix products are cuBLAS's (backends/cublas.py); in float32 they
stay in float32: CuPy uses the shorter TF32 only where the environment says CUPY_TF32=1, and so does this. In float16,
attention is a kernel of its own, where the GPU has tensor cores that it knows (compute capability 8.0 and up).

Nothing here waits for the GPU or allocates but from CuPy's pool, so that a forward pass can be recorded (backends/cuda_graph.py).
Before its first use on a GPU each override is compared with the method that it replaces, and left out where they differ.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache, partial
from threading import RLock
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from ..nn.ops import MAX_MEMOIZED, Array, Ops, T
from .cublas import Cublas, address
from .cupy_kernels import ACTIVATIONS, HEAD_SIZES, THREADS, TYPES, WARP, expressions, source
from .cupy_layers import WHOLE_LAYERS

TOLERANCES = {"float16": 5e-3, "float32": 1e-5, "float64": 1e-12}  # of the largest number
CHECKED = ("linear", *ACTIVATIONS[1:], "layer_norm", "sum_and_norm", "softmax")
CHECKED += ("attention", "flash_attention")
READABLE = Ops()


class CupyOps(Ops):
    """Overrides for CuPy arrays; no input is changed."""

    FLOAT_TYPES = (*TYPES,)

    def __init__(self, cupy: ModuleType):
        super().__init__(cupy)
        has_tensor_cores = int(cupy.cuda.Device().compute_capability) >= 80
        self.head_sizes = HEAD_SIZES if has_tensor_cores else ()
        self.activations = {*ACTIVATIONS}
        self.lock = RLock()  # of the streams below
        self.whole_layers = WHOLE_LAYERS
        self.packed: WeakKeyDictionary = WeakKeyDictionary()
        for name in CHECKED:
            reason = self._fault(name)
            if reason:
                warnings.warn(f"the GPU's {name} is not used: {reason}", stacklevel=3)
                self._leave_out(name)

    def _leave_out(self, name: str) -> None:
        if name in ("linear", "layer_norm", "sum_and_norm"):
            self.whole_layers = {}  # which are made of these
        if name == "flash_attention":
            self.head_sizes = ()
        elif name in self.activations:
            self.activations.remove(name)
        elif name != "sum_and_norm":
            setattr(self, name, getattr(Ops(self.xp), name))

    @cached_property
    def _kernels(self) -> dict:
        """The compiled kernels by name and type, or size of a head."""
        names = expressions()
        module = self.xp.RawModule(code=source(), name_expressions=tuple(names.values()))
        return {key: module.get_function(name) for key, name in names.items()}

    def _launch(self, name: str, kind: Any, threads: int, *arguments: Any) -> None:
        blocks = -(-threads // THREADS)
        self._kernels[name, str(kind)]((blocks,), (THREADS,), arguments)

    @cached_property
    def _cublas(self) -> Cublas:
        return Cublas(self.xp)

    @cached_property
    def streams(self) -> tuple:
        """Two, on which all passes of this backend are recorded: cuBLAS has a workspace for each."""
        return tuple(self.xp.cuda.Stream(non_blocking=True) for _ in range(2))

    def memoize(self, function: Callable[..., Array]) -> Callable[..., Array]:
        return lru_cache(MAX_MEMOIZED)(function)

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

    def run(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        whole_layer = self.whole_layers.get(type(layer))
        if whole_layer is None:
            return layer.forward(*args, **kwargs)
        return whole_layer(self, layer, *args, **kwargs)

    def packed_projections(self, layer: Any) -> tuple[Array, Array]:
        """The weights of an Attention's queries, keys and values as one, (3D,D), and their biases, (3D); made once."""
        if layer not in self.packed:
            projections = layer.q_proj, layer.k_proj, layer.v_proj
            # Not from the pool of a pass that is being recorded: it may go before the layer does.
            with self.xp.cuda.using_allocator(self.xp.get_default_memory_pool().malloc):
                weight = self.xp.concatenate([part.weight for part in projections])
                biases = (
                    self.xp.zeros(len(part.weight), weight.dtype)
                    if part.bias is None
                    else part.bias
                    for part in projections
                )
                bias = self.xp.concatenate([*biases])
            self.packed[layer] = weight, bias
        return self.packed[layer]

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        return self.fused_linear(x, weight, bias)

    def fused_linear(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        residual: Array | None = None,
        activation: str = "",
    ) -> Array:
        """activation(x Wᵀ + b) + residual: a product, and one pass over its result.  (..., in) -> (..., out)"""
        if activation not in self.activations:
            y = self.activation(activation, self.fused_linear(x, weight, bias))
            return y if residual is None else y + residual
        y = self._product(x, weight)
        if bias is not None or activation or residual is not None:
            self._finish(y, bias, activation, residual)
        return y

    def linear_and_norm(
        self, x: Array, linear: Any, residual: Array, norm: Any
    ) -> tuple[Array, Array]:
        """x Wᵀ + b + residual, and its layer norm, in one pass over the product.  (..., in) -> (..., out) twice

        `linear` and `norm` are layers.
        """
        y = self._product(x, linear.weight)
        return y, self._norm(y, norm.weight, norm.bias, linear.bias, residual, norm.eps)

    def _product(self, x: Array, weight: Array) -> Array:
        """x Wᵀ.  (..., in) -> (..., out)"""
        y = self.xp.empty((1, x.size // x.shape[-1], len(weight)), x.dtype)
        rows = self.xp.ascontiguousarray(x).reshape(1, -1, x.shape[-1])
        if not weight.T.flags.c_contiguous:
            weight = self.xp.ascontiguousarray(weight)
        self._cublas.product(rows, weight.T[None], y)
        return y.reshape(*x.shape[:-1], len(weight))

    def _finish(
        self, y: Array, bias: Array | None, activation: str, residual: Array | None
    ) -> None:
        """Add a bias, activate and add a residual, in place: the end of a product."""
        arrays = y, *(self._contiguous(part) for part in (bias, residual))
        width, together = y.shape[-1], 16 // y.itemsize
        at_once = width % together == 0 and _are_aligned(*arrays)
        numbers = ACTIVATIONS.index(activation), at_once, width
        sizes = *(np.int32(n) for n in numbers), np.uint64(y.size)
        self._launch("finish", y.dtype, y.size // (together if at_once else 1), *arrays, *sizes)

    def _norm(
        self,
        x: Array,
        weight: Array,
        bias: Array,
        added: Array | None,
        residual: Array | None,
        eps: float,
    ) -> Array:
        """The layer norm of x, to which a bias and a residual are added before, in place."""
        out, width = self.xp.empty_like(x), x.shape[-1]
        arrays = x, *map(self._contiguous, (added, residual, weight, bias)), out
        at_once = width % (16 // x.itemsize) == 0 and width <= 1024 and _are_aligned(*arrays)
        sizes = *(np.int32(n) for n in (at_once, x.size // width, width)), np.float64(eps)
        self._launch("layer_norm", x.dtype, WARP * (x.size // width), *arrays, *sizes)
        return out

    def _contiguous(self, x: Array | None) -> Any:
        """As the kernels take an array that may be missing."""
        return np.intp(0) if x is None else self.xp.ascontiguousarray(x)

    def conv2d(self, x: Array, weight: Array, bias: Array) -> Array:
        """Each cell's neighbors are a view of the padded array, copied once: two launches instead of five."""
        (B, C, h, w), (D, _, k, _) = x.shape, weight.shape
        margin = k // 2
        padded = self.xp.zeros((C, B, h + 2 * margin, w + 2 * margin), dtype=x.dtype)
        padded[:, :, margin : margin + h, margin : margin + w] = x.transpose(1, 0, 2, 3)
        c, b, row, column = padded.strides
        neighbors = self.xp.lib.stride_tricks.as_strided(
            padded, (C, k, k, B, h, w), (c, row, column, b, row, column)
        )
        neighbors = neighbors.reshape(C * k * k, B, h, w).transpose(1, 2, 3, 0)
        return self.linear(neighbors, weight.reshape(D, C * k * k), bias).transpose(0, 3, 1, 2)

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        return self._norm(self.xp.ascontiguousarray(x), weight, bias, None, None, eps)

    def softmax(self, x: Array) -> Array:
        return self._softmax(self.xp.array(x, order="C"), None)

    def _softmax(self, x: Array, mask: Array | None) -> Array:
        """Masked and normalized along the last axis, in place: (B,H,queries,keys)."""
        heads, queries = (x.shape[1], x.shape[2]) if x.ndim == 4 else (1, 1)
        rows = x.size // x.shape[-1]
        sizes = [np.int32(number) for number in (heads, queries, x.shape[-1], rows)]
        self._launch("softmax", x.dtype, WARP * rows, x, *self._mask(mask), *sizes)
        return x

    def _mask(self, mask: Array | None) -> tuple[Any, np.int32]:
        """As the kernels take it, and whether it is one for all images."""
        return self._contiguous(mask), np.int32(mask is not None and len(mask) == 1)

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None = None,
        attentions: list | None = None,
    ) -> Array:
        B, H, T, d = q.shape
        if mask is not None:
            mask = self.xp.broadcast_to(mask, (len(mask), 1, T, T))
        if attentions is None and q.dtype == "float16" and d in self.head_sizes:
            return self.flash_attention(q, k, v, mask)
        # Heads of one image are read, and written, where they lie; those of several are copied together.
        q, k, v = (x.reshape(B * H, T, d) for x in (q, k, v))
        weights = self.xp.empty((B * H, T, T), q.dtype)
        # Scaled before it is rounded: in float16 it could overflow.
        self._cublas.product(q, k.swapaxes(1, 2), weights, alpha=d**-0.5)
        weights = self._softmax(weights.reshape(B, H, T, T), mask)
        if attentions is not None:
            attentions.append(weights)
        if B == 1:
            mixed = self.xp.empty((T, H, d), v.dtype).swapaxes(0, 1)
        else:
            mixed = self.xp.empty((B * H, T, d), v.dtype)
        self._cublas.product(weights.reshape(B * H, T, T), v, mixed)
        return mixed.reshape(B, H, T, d)

    def flash_attention(
        self, query: Array, key: Array, value: Array, mask: Array | None = None
    ) -> Array:
        """Attention in float16 whose scores never leave the chip, for heads of HEAD_SIZES features."""
        B, H, T, d = query.shape
        steps = query.strides
        lie_well = key.strides == value.strides == steps and steps[3] == 2
        if not lie_well or any(s % 16 for s in steps[:3]) or not _are_aligned(query, key, value):
            query, key, value = (self.xp.ascontiguousarray(x) for x in (query, key, value))
        steps = [np.int64(stride // 2) for stride in query.strides[:3]]
        mixed = self.xp.empty((B, T, H, d), query.dtype)
        blocks = B * H * -(-T // (THREADS // 2))  # 16 queries for each warp of 32
        sizes = np.int32(H), np.int32(T), *steps, np.float32(d**-0.5)
        arrays = query, key, value, mixed, *self._mask(mask)
        self._launch("attention", d, THREADS * blocks, *arrays, *sizes)
        return mixed.transpose(0, 2, 1, 3)

    def quick_gelu(self, x: Array) -> Array:
        return self._activated("quick_gelu", x)

    def gelu(self, x: Array) -> Array:
        return self._activated("gelu", x)

    def _activated(self, name: str, x: Array) -> Array:
        if name not in self.activations:
            return getattr(Ops, name)(self, x)
        out = self.xp.array(x, order="C")
        self._finish(out, None, name, None)
        return out

    def _fault(self, name: str) -> str | None:
        """What is wrong with an override on this device, found on small arrays; None where nothing is.

        The yardstick is NumPy's, in float64: a GPU that makes all of it 0 cannot agree with itself.
        """
        rng = np.random.default_rng(0)
        shapes = {
            "linear": [(2, 5, 8), (3, 8), (3,)],
            "layer_norm": [(2, 5, 200), (200,), (200,)],
            "sum_and_norm": [(2, 5, 203), *[(203,)] * 3, (2, 5, 203)],
            "softmax": [(2, 3, 7, 200)],
            "attention": [(2, 3, 7, 4)] * 3,
            # More tokens than it has on the chip at a time.
            "flash_attention": [(2, 1, 70, 16)] * 3,
        }.get(name, [(2, 5, 8), (16, 8), (16,), (2, 5, 16)])
        more = []
        if name.endswith("norm"):
            more = [1e-5]
        elif name.endswith("attention"):
            order = np.tri(shapes[0][2]) > 0
            more = [np.stack([order, order.T])[:, None]]
        if name in ACTIVATIONS:
            ours = partial(self.fused_linear, activation=name)
            readable = partial(_fused_linear, activation=name)
        elif name == "sum_and_norm":
            ours, readable = self._norm, _sum_and_norm
        else:
            ours, readable = getattr(self, name), getattr(READABLE, name.removeprefix("flash_"))
        for dtype, tolerance in TOLERANCES.items():
            if name == "flash_attention" and (dtype != "float16" or not self.head_sizes):
                continue
            given = [rng.normal(size=shape).astype(dtype) for shape in shapes]
            expected = readable(*(a.astype("float64") for a in given), *more)
            try:
                there = [
                    self.asarray(a) if isinstance(a, np.ndarray) else a for a in (*given, *more)
                ]
                found = self.to_numpy(ours(*there))
                is_product = name in ("linear", "attention", *ACTIVATIONS)
                if dtype == "float32" and is_product and self._cublas.tf32:
                    tolerance = TOLERANCES["float16"]  # as few bits of each number
            except Exception as error:  # noqa: BLE001  (of compiler, driver or launch)
                return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            if (
                found.dtype != dtype
                or not abs(found - expected).max() <= tolerance * abs(expected).max()
            ):
                return f"ours deviates in {dtype}"
        return None


def _fused_linear(x: Array, weight: Array, bias: Array, residual: Array, activation: str) -> Array:
    return READABLE.activation(activation, READABLE.linear(x, weight, bias)) + residual


def _sum_and_norm(
    x: Array, weight: Array, bias: Array, added: Array, residual: Array, eps: float
) -> Array:
    return READABLE.layer_norm(x + added + residual, weight, bias, eps)


def _are_aligned(*arrays: Any) -> bool:
    """Whether each array begins where 16 bytes may be read at once; what is none does."""
    return all(address(x) % 16 == 0 for x in arrays if hasattr(x, "strides") and x.ndim)
