"""Matrix products on an NVIDIA GPU by cuBLAS itself, called through ctypes.

CuPy's own products refuse to be recorded in a CUDA graph (cupy/cupy#6290), and turn and copy what they are given. Here one
call does a whole stack of products, scaled, and added to what is there. float16 is multiplied and summed in float32.
"""

import ctypes
import os
import sys
from ctypes import c_double, c_float, c_int, c_longlong, c_void_p
from types import ModuleType
from weakref import WeakKeyDictionary

from ..nn.ops import Array

# Of cuBLAS's documentation: cublasOperation_t, cudaDataType_t, cublasComputeType_t, cublasGemmAlgo_t
AS_IT_IS, TRANSPOSED = 0, 1
TYPES = {"float32": 0, "float64": 1, "float16": 2}
SUMS = {"float32": 68, "float64": 70, "float16": 68}
SUMS_TF32 = 77
USUAL_WAY = -1
WORKSPACE = 1 << 25  # bytes, as NVIDIA advises for its largest GPUs


class Cublas:
    """cuBLAS with a handle for each device and stream, which lasts as long as the stream does.

    Raises OSError where its library is not found.
    """

    def __init__(self, cupy: ModuleType):
        self.cupy = cupy
        self.library = load_library(cupy.cuda.runtime.runtimeGetVersion() // 1000)
        self.handles: WeakKeyDictionary = WeakKeyDictionary()  # stream: {device: Handle}
        # CuPy's own switch: products of float32 with 10 bits of each number, many times as fast.
        self.tf32 = os.environ.get("CUPY_TF32") == "1"

    def product(self, a: Array, b: Array, out: Array, alpha: float = 1.0) -> None:
        """out = alpha a b, for stacks (n,rows,k), (n,k,columns) and (n,rows,columns).

        The numbers of a row lie side by side, and rows and matrices at any distance; a and b may be transposed
        views (swapaxes) of such.
        """
        n, rows, columns = out.shape
        name, size = out.dtype.name, out.dtype.itemsize
        scalar = c_double if name == "float64" else c_float
        sums = SUMS_TF32 if self.tf32 and name == "float32" else SUMS[name]
        # cuBLAS counts columns first: what lies row after row is the transpose to it, and so is the product, bᵀ aᵀ.
        (how_b, step_b), (how_a, step_a) = _layout(b), _layout(a)
        handle = self._handle()  # held until cuBLAS has answered
        of_b = (address(b), TYPES[name], step_b, b.strides[0] // size)
        of_a = (address(a), TYPES[name], step_a, a.strides[0] // size)
        step_out = max(out.strides[1] // size, columns)
        of_out = (address(out), TYPES[name], step_out, out.strides[0] // size)
        alpha, none = ctypes.byref(scalar(alpha)), ctypes.byref(scalar(0))
        sizes = (how_b, how_a, columns, rows, a.shape[2])
        check(
            self.library.cublasGemmStridedBatchedEx(
                handle.value, *sizes, alpha, *of_b, *of_a, none, *of_out, n, sums, USUAL_WAY
            )
        )

    def _handle(self) -> "Handle":
        """Of the current device and stream."""
        cuda = self.cupy.cuda
        device, stream = cuda.runtime.getDevice(), cuda.get_current_stream()
        of_stream = self.handles.setdefault(stream, {})
        handle = of_stream.get(device)
        if handle is None:  # two threads may make one: the first stays
            handle = of_stream.setdefault(device, Handle(self.library, self.cupy, stream.ptr))
        return handle


class Handle:
    """cuBLAS's state for one stream, and a workspace of its own: none may be allocated while a graph is recorded."""

    def __init__(self, library: ctypes.CDLL, cupy: ModuleType, stream: int):
        self.library, self.value = library, c_void_p()
        check(library.cublasCreate_v2(ctypes.byref(self.value)))
        check(library.cublasSetStream_v2(self.value, stream))
        self.workspace = cupy.get_default_memory_pool().malloc(WORKSPACE)
        check(library.cublasSetWorkspace_v2(self.value, self.workspace.ptr, WORKSPACE))

    def __del__(self):
        if self.value and not sys.is_finalizing():
            self.library.cublasDestroy_v2(self.value)


def check(status: int) -> None:
    if status:
        raise RuntimeError(f"cuBLAS answers with status {status}")


def load_library(major: int) -> ctypes.CDLL:
    """The cuBLAS of this major version of CUDA, which CuPy has loaded or can be found."""
    windows = sys.platform == "win32"
    library = ctypes.CDLL(f"cublas64_{major}.dll" if windows else f"libcublas.so.{major}")
    matrix = (c_void_p, c_int, c_int, c_longlong)  # address, type, leading dimension, stride
    library.cublasSetStream_v2.argtypes = (c_void_p, c_void_p)
    library.cublasSetWorkspace_v2.argtypes = (c_void_p, c_void_p, ctypes.c_size_t)
    library.cublasGemmStridedBatchedEx.argtypes = (
        *(c_void_p, *[c_int] * 5),  # handle, how b and a lie, columns, rows, depth
        *(c_void_p, *matrix, *matrix),
        *(c_void_p, *matrix, *[c_int] * 3),  # number, type of the sums, algorithm
    )
    return library


def address(x: Array) -> int:
    """Where an array begins in the GPU's memory."""
    found = getattr(x, "__cuda_array_interface__", None) or x.__array_interface__
    return found["data"][0]


def _layout(stack: Array) -> tuple[int, int]:
    """Of (n,rows,columns): whether it lies row after row or is transposed, and the numbers from one line to the next."""
    size, (_, row, column) = stack.dtype.itemsize, stack.strides
    rows, columns = stack.shape[1:]
    if column == size and (row >= columns * size or rows == 1):
        return AS_IT_IS, max(row // size, columns)
    if row == size and (column >= rows * size or columns == 1):
        return TRANSPOSED, max(column // size, rows)
    raise ValueError(f"a stack of matrices {stack.shape} with strides {stack.strides}")
