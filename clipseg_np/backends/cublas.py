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

# cuBLAS's cublasOperation_t, its cudaDataType_t and cublasComputeType_t, and cublasGemmAlgo_t.
NOT_TRANSPOSED, TRANSPOSED = 0, 1
TYPES = {"float32": (0, 68), "float64": (1, 70), "float16": (2, 68)}
COMPUTE_TF32, DEFAULT_ALGORITHM = 77, -1
WORKSPACE = 1 << 25  # bytes, as NVIDIA advises for its largest GPUs


class Cublas:
    """cuBLAS with a handle for each device and stream, which lasts as long as the stream does.

    Raises OSError where its library is not found.
    """

    def __init__(self, cupy: ModuleType):
        self.cupy = cupy
        self.library = load_library(cupy.cuda.runtime.runtimeGetVersion() // 1000)
        self.handles: WeakKeyDictionary = WeakKeyDictionary()  # stream: {device: Handle}
        # CuPy's own switch: float32 is multiplied with 10 bits of each number, many times as fast.
        self.tf32 = os.environ.get("CUPY_TF32") == "1"

    def product(self, a: Array, b: Array, out: Array, alpha: float = 1.0) -> None:
        """out = alpha a b, for stacks (n,rows,k), (n,k,columns) and (n,rows,columns).

        The numbers of a row lie side by side, and rows and matrices at any distance; a and b may be
        transposed views (swapaxes) of such. Raises ValueError for other layouts.
        """
        n, rows, columns = out.shape
        size, (data_type, compute_type) = out.dtype.itemsize, TYPES[out.dtype.name]
        scalar = c_double if out.dtype == "float64" else c_float
        if self.tf32 and out.dtype == "float32":
            compute_type = COMPUTE_TF32

        def matrices(x: Array, lead: int) -> tuple:
            return c_void_p(address(x)), data_type, lead, c_longlong(x.strides[0] // size)

        # cuBLAS counts columns first: rows that lie one after the other are its transposed matrix,
        # and the product is bᵀ aᵀ.
        (order_a, lead_a), (order_b, lead_b) = _layout(a), _layout(b)
        handle = self._handle()  # held until cuBLAS has answered
        status = self.library.cublasGemmStridedBatchedEx(
            *(handle.value, order_b, order_a, columns, rows, a.shape[2]),
            *(byref(scalar(alpha)), *matrices(b, lead_b), *matrices(a, lead_a)),
            *(byref(scalar(0)), *matrices(out, max(out.strides[1] // size, columns))),
            *(n, compute_type, DEFAULT_ALGORITHM),
        )
        check(status)

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
    """cuBLAS's state for one stream. It has a workspace, lest one be allocated while recording."""

    def __init__(self, library: CDLL, cupy: ModuleType, stream: int):
        self.library, self.value = library, c_void_p()
        check(library.cublasCreate_v2(byref(self.value)))
        check(library.cublasSetStream_v2(self.value, c_void_p(stream)))
        self.workspace = cupy.get_default_memory_pool().malloc(WORKSPACE)
        workspace = c_void_p(self.workspace.ptr), c_size_t(WORKSPACE)
        check(library.cublasSetWorkspace_v2(self.value, *workspace))

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
        f"cublas: neither rows nor columns lie side by side in strides {stack.strides}"
    )
