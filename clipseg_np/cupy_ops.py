"""What a GPU can do faster than the readable `Ops` does: one kernel where CuPy would launch several.

A launch and a pass over memory cost more here than the arithmetic. Sums are in float32, and in float64 for float64,
whatever the type of the array. Matrix products are cuBLAS's (cublas.py); in float32 they stay in float32: CuPy uses the
shorter TF32 only where the environment says CUPY_TF32=1, and so does this.

Nothing here waits for the GPU or allocates but from CuPy's pool, so that a forward pass can be recorded (cuda_graph.py).

The kernels are plain C++ but for CUDA's words for blocks and threads; tests/test_cupy_kernels.py runs them on the CPU.
Before its first use on a GPU each override is compared with the method that it replaces, and left out where they differ.
"""

import warnings
from collections.abc import Callable
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy

from .cublas import Cublas
from .ops import Array, Ops

THREADS = 128  # of a block that shares out a row; a power of two
TYPES = {"float16": "__half", "float32": "float", "float64": "double"}
TOLERANCES = {"float16": 5e-3, "float32": 1e-5, "float64": 1e-12}  # of the largest number

SOURCE = """
template <typename T> struct Wide { typedef float type; };
template <> struct Wide<double> { typedef double type; };

// What all threads of a block make of their values: the sum, or the largest. Each gets it.
template <typename A>
__device__ A over_block(A value, A* shared, bool largest) {
    int me = threadIdx.x;
    shared[me] = value;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (me < half) {
            A other = shared[me + half];
            shared[me] = !largest ? shared[me] + other : shared[me] < other ? other : shared[me];
        }
        __syncthreads();
    }
    A found = shared[0];
    __syncthreads();  // before anyone writes there again
    return found;
}

// A block for each row of x, (rows, width).
template <typename T>
__global__ void layer_norm(const T* x, const T* weight, const T* bias, T* out, int width, double eps) {
    typedef typename Wide<T>::type A;
    __shared__ A shared[THREADS];
    const T* row = x + (size_t)blockIdx.x * width;
    A sum = 0;
    for (int i = threadIdx.x; i < width; i += THREADS) sum += (A)row[i];
    A mean = over_block(sum, shared, false) / width;
    sum = 0;
    for (int i = threadIdx.x; i < width; i += THREADS) {
        A centred = (A)row[i] - mean;
        sum += centred * centred;
    }
    A deviation = sqrt(over_block(sum, shared, false) / width + (A)eps);
    for (int i = threadIdx.x; i < width; i += THREADS)
        out[(size_t)blockIdx.x * width + i] =
            (T)(((A)row[i] - mean) / deviation * (A)weight[i] + (A)bias[i]);
}

// In place, a block for each row of x, (B,H,queries,width). `allowed` is (B,1,queries,width), (1,1,queries,width) for
// all alike, or null.
template <typename T>
__global__ void softmax(T* x, const bool* allowed, int alike, int heads, int queries, int width) {
    typedef typename Wide<T>::type A;
    __shared__ A shared[THREADS];
    T* row = x + (size_t)blockIdx.x * width;
    int query = blockIdx.x % queries, image = alike ? 0 : blockIdx.x / queries / heads;
    const bool* seen = allowed ? allowed + ((size_t)image * queries + query) * width : 0;
    const A lowest = -3e38;  // a row in which nothing is allowed becomes uniform
    A largest = lowest;
    for (int i = threadIdx.x; i < width; i += THREADS) {
        A score = seen && !seen[i] ? lowest : (A)row[i];
        largest = largest < score ? score : largest;
    }
    largest = over_block(largest, shared, true);
    A sum = 0;
    for (int i = threadIdx.x; i < width; i += THREADS)
        sum += exp((seen && !seen[i] ? lowest : (A)row[i]) - largest);
    sum = over_block(sum, shared, false);
    for (int i = threadIdx.x; i < width; i += THREADS)
        row[i] = (T)(exp((seen && !seen[i] ? lowest : (A)row[i]) - largest) / sum);
}

// A thread for each number.
template <typename T>
__global__ void quick_gelu(const T* x, T* out, size_t count) {
    typedef typename Wide<T>::type A;
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < count) out[i] = (T)((A)x[i] / (1 + exp((A)-1.702 * (A)x[i])));
}

template <typename T>
__global__ void gelu(const T* x, T* out, size_t count) {
    typedef typename Wide<T>::type A;
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < count) out[i] = (T)((A)0.5 * (A)x[i] * (1 + erf((A)x[i] * (A)0.7071067811865476)));
}
"""
NAMES = ("layer_norm", "softmax", "quick_gelu", "gelu")
READABLE = Ops()


def source() -> str:
    """All kernels, as CUDA's compiler takes them."""
    return f"#include <cuda_fp16.h>\n#define THREADS {THREADS}\n{SOURCE}"


class CupyOps(Ops):
    """Overrides for CuPy arrays; no input is changed."""

    FLOAT_TYPES = (*TYPES,)

    def __init__(self, cupy: ModuleType):
        super().__init__(cupy)
        for name in ("linear", *NAMES, "attention"):
            reason = self._fault(name)
            if reason:
                warnings.warn(f"the GPU's {name} is CuPy's own: {reason}", stacklevel=3)
                setattr(self, name, getattr(Ops(cupy), name))

    @cached_property
    def _kernels(self) -> dict:
        """The compiled kernels by name and type, (name, dtype)."""
        expressions = {(n, t): f"{n}<{TYPES[t]}>" for n in NAMES for t in TYPES}
        module = self.xp.RawModule(code=source(), name_expressions=tuple(expressions.values()))
        return {key: module.get_function(name) for key, name in expressions.items()}

    def _launch(self, name: str, x: Array, blocks: int, *arguments) -> None:
        self._kernels[name, x.dtype.name]((blocks,), (THREADS,), arguments)

    @cached_property
    def _cublas(self) -> Cublas:
        return Cublas(self.xp)

    @cached_property
    def streams(self) -> tuple:
        """Two, on which all passes of this backend are recorded: cuBLAS has a workspace for each."""
        return tuple(self.xp.cuda.Stream(non_blocking=True) for _ in range(2))

    def aside(self, work: Callable[[], Any]) -> Callable[[], Any]:
        """While a pass is recorded, begun on the second stream; else done where the result is asked for."""
        first, second = self.streams
        current = self.xp.cuda.get_current_stream
        if current() is not first:
            return work
        second.wait_event(first.record())
        with second:
            result = work()
        done = second.record()

        def joined() -> Any:
            current().wait_event(done)
            return result

        return joined

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        y = self.xp.empty((1, x.size // x.shape[-1], len(weight)), x.dtype)
        if bias is not None:
            y[...] = bias
        rows = self.xp.ascontiguousarray(x).reshape(1, -1, x.shape[-1])
        if not weight.T.flags.c_contiguous:
            weight = self.xp.ascontiguousarray(weight)
        self._cublas.product(rows, weight.T[None], y, beta=0.0 if bias is None else 1.0)
        return y.reshape(*x.shape[:-1], len(weight))

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        x = self.xp.ascontiguousarray(x)
        out, width = self.xp.empty_like(x), x.shape[-1]
        sizes = numpy.int32(width), numpy.float64(eps)
        self._launch("layer_norm", x, x.size // width, x, weight, bias, out, *sizes)
        return out

    def softmax(self, x: Array) -> Array:
        return self._softmax(self.xp.array(x, order="C"), None)

    def _softmax(self, x: Array, allowed: Array | None) -> Array:
        """Masked and normalised along the last axis, in place: (B,H,queries,keys)."""
        heads, queries = (x.shape[1], x.shape[2]) if x.ndim == 4 else (1, 1)
        mask = self.xp.ascontiguousarray(allowed) if allowed is not None else numpy.intp(0)
        alike = allowed is not None and len(allowed) == 1
        sizes = [numpy.int32(number) for number in (alike, heads, queries, x.shape[-1])]
        rows = x.size // x.shape[-1]
        self._launch("softmax", x, rows, x, mask, *sizes)
        return x

    def attention(
        self,
        query: Array,
        key: Array,
        value: Array,
        allowed: Array | None = None,
        attentions: list | None = None,
    ) -> Array:
        B, H, T, d = query.shape
        if allowed is not None:
            allowed = self.xp.broadcast_to(allowed, (len(allowed), 1, T, T))
        query, key, value = (
            self.xp.ascontiguousarray(x).reshape(B * H, T, d) for x in (query, key, value)
        )
        weights = self.xp.empty((B * H, T, T), query.dtype)
        # Scaled before it is rounded: in float16 it could overflow.
        self._cublas.product(query, key.swapaxes(1, 2), weights, alpha=d**-0.5)
        weights = self._softmax(weights.reshape(B, H, T, T), allowed)
        if attentions is not None:
            attentions.append(weights)
        mixed = self.xp.empty((B * H, T, d), value.dtype)
        self._cublas.product(weights.reshape(B * H, T, T), value, mixed)
        return mixed.reshape(B, H, T, d)

    def quick_gelu(self, x: Array) -> Array:
        return self._each("quick_gelu", x)

    def gelu(self, x: Array) -> Array:
        return self._each("gelu", x)

    def _each(self, name: str, x: Array) -> Array:
        x = self.xp.ascontiguousarray(x)
        out = self.xp.empty_like(x)
        self._launch(name, x, -(-x.size // THREADS), x, out, numpy.uint64(x.size))
        return out

    def _fault(self, name: str) -> str | None:
        """What is wrong with an override on this device, found on small arrays; None where nothing is.

        The yardstick is NumPy's, in float64: a GPU that makes all of it 0 cannot agree with itself.
        """
        rng = numpy.random.default_rng(0)
        shapes = {
            "linear": [(2, 5, 8), (3, 8), (3,)],
            "layer_norm": [(2, 5, 200), (200,), (200,)],
            "attention": [(2, 3, 7, 4)] * 3,
        }.get(name, [(2, 3, 7, 200)])
        order = numpy.tri(7) > 0
        masks = numpy.stack([order, order.T])[:, None]
        more = {"layer_norm": [1e-5], "attention": [masks]}.get(name, [])
        for dtype, tolerance in TOLERANCES.items():
            given = [rng.normal(size=shape).astype(dtype) for shape in shapes]
            expected = getattr(READABLE, name)(*(a.astype("float64") for a in given), *more)
            try:
                there = [
                    self.asarray(a) if isinstance(a, numpy.ndarray) else a for a in (*given, *more)
                ]
                found = self.to_numpy(getattr(self, name)(*there))
                if dtype == "float32" and name in ("linear", "attention") and self._cublas.tf32:
                    tolerance = TOLERANCES["float16"]  # as few bits of each number
            except Exception as error:  # noqa: BLE001  (of compiler, driver or launch)
                return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            if (
                found.dtype != dtype
                or not abs(found - expected).max() <= tolerance * abs(expected).max()
            ):
                return f"ours deviates in {dtype}"
        return None
