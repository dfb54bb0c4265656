"""Matrix products on an NVIDIA GPU by cuBLAS itself, called through ctypes.

CuPy's own products refuse to be recorded in a CUDA graph (cupy/cupy#6290), and transpose and copy
their operands. Here one call computes a whole stack of products, scaled. float16 is multiplied and
summed in float32.
"""

import os
import sys
from ctypes import CDLL, byref, c_double, c_float, c_longlong, c_size_t, c_void_p
from types import ModuleType
from weakref import WeakKeyDictionary

from ..nn.ops import Array

# cuBLAS's cublasOperation_t, cudaDataType_t, cublasComputeType_t and cublasGemmAlgo_t.
NOT_TRANSPOSED, TRANSPOSED = 0, 1
TYPES = {"float32": 0, "float64": 1, "float16": 2}
SUM_TYPES = {"float32": 68, "float64": 70, "float16": 68}
SUM_TYPE_TF32 = 77
DEFAULT_ALGORITHM = -1
# In bytes, as NVIDIA advises for its largest GPUs.
WORKSPACE = 1 << 25


class Cublas:
    """cuBLAS with a handle for each device and stream, which lasts as long as the stream does.

    Raises OSError where its library is not found.
    """

    def __init__(self, cupy: ModuleType):
        self.cupy = cupy
        self.library = load_library(cupy.cuda.runtime.runtimeGetVersion() // 1000)
        # stream: {device: Handle}
        self.handles: WeakKeyDictionary = WeakKeyDictionary()
        # CuPy's own switch: float32 is multiplied with 10 bits of each number, many times as fast.
        self.tf32 = os.environ.get("CUPY_TF32") == "1"

    def product(self, a: Array, b: Array, out: Array, alpha: float = 1.0) -> None:
        """out = alpha a b, for stacks (n,rows,k), (n,k,columns) and (n,rows,columns).

        The numbers of a row lie side by side, and rows and matrices at any distance; a and b may be
        transposed views (swapaxes) of such. Raises ValueError for other layouts.
        """
        n, rows, columns = out.shape
        name, size = out.dtype.name, out.dtype.itemsize
        scalar = c_double if name == "float64" else c_float
        sum_type = SUM_TYPE_TF32 if self.tf32 and name == "float32" else SUM_TYPES[name]

        def matrices(x: Array, lead: int) -> tuple:
            return c_void_p(address(x)), TYPES[name], lead, c_longlong(x.strides[0] // size)

        # cuBLAS counts columns first: it takes a matrix that lies row after row for its transpose,
        # and so the product is bᵀ aᵀ.
        (order_a, lead_a), (order_b, lead_b) = _layout(a), _layout(b)
        # Held until cuBLAS has answered.
        handle = self._handle()
        check(
            self.library.cublasGemmStridedBatchedEx(
                handle.value,
                *(order_b, order_a, columns, rows, a.shape[2]),
                *(byref(scalar(alpha)), *matrices(b, lead_b), *matrices(a, lead_a)),
                *(byref(scalar(0)), *matrices(out, max(out.strides[1] // size, columns))),
                *(n, sum_type, DEFAULT_ALGORITHM),
            )
        )

    def _handle(self) -> "Handle":
        """The handle of the current device and stream."""
        cuda = self.cupy.cuda
        device, stream = cuda.runtime.getDevice(), cuda.get_current_stream()
        by_device = self.handles.setdefault(stream, {})
        if device not in by_device:
            # Two threads may create one: the first stays.
            by_device.setdefault(device, Handle(self.library, self.cupy, stream.ptr))
        return by_device[device]


class Handle:
    """cuBLAS's state for one stream, with a workspace of its own.

    Without it, cuBLAS would allocate one while a graph is recorded.
    """

    def __init__(self, library: CDLL, cupy: ModuleType, stream: int):
        self.library, self.value = library, c_void_p()
        check(library.cublasCreate_v2(byref(self.value)))
        check(library.cublasSetStream_v2(self.value, c_void_p(stream)))
        self.workspace = memory = cupy.get_default_memory_pool().malloc(WORKSPACE)
        pointer, size = c_void_p(memory.ptr), c_size_t(WORKSPACE)
        check(library.cublasSetWorkspace_v2(self.value, pointer, size))

    def __del__(self):
        if self.value and not sys.is_finalizing():
            self.library.cublasDestroy_v2(self.value)


def check(status: int) -> None:
    if status:
        raise RuntimeError(f"cuBLAS answers with status {status}")


def load_library(major: int) -> CDLL:
    """The cuBLAS of this major version of CUDA, if CuPy has loaded it or the system finds it."""
    return CDLL(f"cublas64_{major}.dll" if sys.platform == "win32" else f"libcublas.so.{major}")


def address(x: Array) -> int:
    """The address of an array's first number in the GPU's memory."""
    interface = getattr(x, "__cuda_array_interface__", None) or x.__array_interface__
    return interface["data"][0]


def _layout(stack: Array) -> tuple[int, int]:
    """Whether (n,rows,columns) is stored by rows or transposed, and the step to the next line."""
    size, (_, row, column) = stack.dtype.itemsize, stack.strides
    rows, columns = stack.shape[1:]
    if column == size and (row >= columns * size or rows == 1):
        return NOT_TRANSPOSED, max(row // size, columns)
    if row == size and (column >= rows * size or columns == 1):
        return TRANSPOSED, max(column // size, rows)
    raise ValueError(
        f"cublas: a stack of matrices {stack.shape} with strides {stack.strides}; "
        "expected the numbers of each row, or of each column, side by side"
    )
