"""Matrix products on an NVIDIA GPU by cuBLAS itself, called through ctypes.

CuPy's own products refuse to be recorded in a CUDA graph (cupy/cupy#6290), and turn and copy what they are given. Here one
call does a whole stack of products, scaled, and added to what is there. float16 is multiplied and summed in float32.
"""

import ctypes
import os
import sys
from types import ModuleType

from .ops import Array

# Of cuBLAS's documentation: cublasOperation_t, cudaDataType_t, cublasComputeType_t, cublasGemmAlgo_t
AS_IT_IS, TRANSPOSED = 0, 1
TYPES = {"float32": 0, "float64": 1, "float16": 2}
SUMS = {"float32": 68, "float64": 70, "float16": 68}
SUMS_TF32 = 77
USUAL_WAY = -1
WORKSPACE = 1 << 25  # bytes, as NVIDIA advises for its largest GPUs


class Cublas:
    """cuBLAS with one handle for each stream. Raises OSError where its library is not found."""

    def __init__(self, cupy: ModuleType):
        self.cupy = cupy
        self.library = load_library(cupy.cuda.runtime.runtimeGetVersion() // 1000)
        self.handles: dict[tuple[int, int], ctypes.c_void_p] = {}
        self.workspaces: list[Array] = []
        # CuPy's own switch: products of float32 with 10 bits of each number, many times as fast.
        self.tf32 = os.environ.get("CUPY_TF32") == "1"

    def product(
        self, a: Array, b: Array, out: Array, alpha: float = 1.0, beta: float = 0.0
    ) -> None:
        """out = alpha a b + beta out, for stacks (n,rows,k), (n,k,columns) and (n,rows,columns).

        `out` lies row after row; a and b do, or are transposed views (swapaxes) of what does. A stack of one may
        have any stride between its matrices.
        """
        n, rows, columns = out.shape
        name, size = out.dtype.name, out.dtype.itemsize
        # cuBLAS counts columns first: what lies row after row is the transpose to it, and so is the product, bᵀ aᵀ.
        (how_b, step_b), (how_a, step_a) = _layout(b), _layout(a)
        scalar = ctypes.c_double if name == "float64" else ctypes.c_float
        sums = SUMS_TF32 if self.tf32 and name == "float32" else SUMS[name]
        self._check(
            self.library.cublasGemmStridedBatchedEx(
                self._handle(),
                ctypes.c_int(how_b),
                ctypes.c_int(how_a),
                ctypes.c_int(columns),
                ctypes.c_int(rows),
                ctypes.c_int(a.shape[2]),
                ctypes.byref(scalar(alpha)),
                ctypes.c_void_p(address(b)),
                ctypes.c_int(TYPES[name]),
                ctypes.c_int(step_b),
                ctypes.c_longlong(b.strides[0] // size),
                ctypes.c_void_p(address(a)),
                ctypes.c_int(TYPES[name]),
                ctypes.c_int(step_a),
                ctypes.c_longlong(a.strides[0] // size),
                ctypes.byref(scalar(beta)),
                ctypes.c_void_p(address(out)),
                ctypes.c_int(TYPES[name]),
                ctypes.c_int(columns),
                ctypes.c_longlong(out.strides[0] // size),
                ctypes.c_int(n),
                ctypes.c_int(sums),
                ctypes.c_int(USUAL_WAY),
            )
        )

    def _handle(self) -> ctypes.c_void_p:
        """Of the current device and stream. A workspace of its own: none may be allocated while a graph is recorded."""
        cuda = self.cupy.cuda
        place = cuda.runtime.getDevice(), cuda.get_current_stream().ptr
        if place not in self.handles:
            handle = ctypes.c_void_p()
            self._check(self.library.cublasCreate_v2(ctypes.byref(handle)))
            self._check(self.library.cublasSetStream_v2(handle, ctypes.c_void_p(place[1])))
            workspace = self.cupy.empty(WORKSPACE, dtype="uint8")
            size = ctypes.c_size_t(WORKSPACE)
            pointer = ctypes.c_void_p(address(workspace))
            self._check(self.library.cublasSetWorkspace_v2(handle, pointer, size))
            self.workspaces.append(workspace)
            self.handles[place] = handle
        return self.handles[place]

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(f"cuBLAS answers with status {status}")


def load_library(major: int) -> ctypes.CDLL:
    """The cuBLAS of this major version of CUDA, which CuPy has loaded or can be found."""
    windows = sys.platform == "win32"
    return ctypes.CDLL(f"cublas64_{major}.dll" if windows else f"libcublas.so.{major}")


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
