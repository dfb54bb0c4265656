"""A backend's name to its `Ops`. The only place that looks for CuPy.

"numpy-reference" and "cupy-reference" run the readable `Ops`; "numpy" and "cupy" override its
methods (numpy_ops.py, cupy_ops.py). "auto" is "cupy" if a GPU works, and else "numpy".
"""

import warnings
from functools import cache
from types import ModuleType

from ..errors import InputError, MissingExtra
from ..nn.ops import Ops
from .cupy_ops import CupyOps
from .numpy_ops import NumpyOps
from .threads import checked_count

NAMES = ("auto", "numpy", "numpy-reference", "cupy", "cupy-reference")
INSTEAD = "or use backend='numpy'"
INSTALL = (
    "pip install 'clipseg_np[cuda12]' (or [cuda13], to match the driver that nvidia-smi names)"
)


def ops_for(backend: str, threads: int | None = None) -> Ops:
    """The `Ops` of a backend. "numpy" uses so many `threads`; by default, one for each core.

    Raises InputError for an unknown name or number, or if no GPU works, and MissingExtra if CuPy is
    not installed.
    """
    checked_count(threads)
    if backend not in NAMES:
        raise InputError(f"unknown backend {backend!r}; expected one of {', '.join(NAMES)}")
    if backend == "auto":
        return _best(threads)
    if backend == "numpy":
        return NumpyOps(threads)
    if backend == "numpy-reference":
        return Ops()
    return CupyOps(working_cupy()) if backend == "cupy" else Ops(working_cupy())


# Cached, so that it warns once.
@cache
def _best(threads: int | None) -> Ops:
    try:
        return ops_for("cupy")
    except (InputError, MissingExtra) as error:
        warnings.warn(f"backend 'auto' uses NumPy: {error}", stacklevel=2)
        return ops_for("numpy", threads)


def working_cupy() -> ModuleType:
    """CuPy, after a test: it may see a GPU and yet lack the libraries to compute with it.

    Raises InputError if there is no GPU that works, and MissingExtra if CuPy is not installed.
    """
    try:
        import cupy
    except ImportError as error:
        raise MissingExtra(
            f"the backend 'cupy' needs CuPy, which is not installed ({error}). "
            f"Add it with: {INSTALL}, {INSTEAD}."
        ) from error
    try:
        is_there, reason = cupy.cuda.is_available(), ""
    except Exception as error:  # noqa: BLE001  (CuPy 13 without a driver)
        is_there, reason = False, f" ({error})"
    if not is_there:
        raise InputError(
            f"the backend 'cupy' needs an NVIDIA GPU, and CuPy finds none{reason}. "
            f"Check that nvidia-smi lists one, {INSTEAD}."
        )
    try:
        is_right = gives_right_sums(cupy)
    except Exception as error:  # of a dozen kinds: driver, compiler, cuBLAS, memory
        raise InputError(
            f"CuPy finds a GPU and cannot compute on it ({type(error).__name__}: {error}). "
            f"CuPy's own wheels bring neither CUDA's compiler nor cuBLAS: {INSTALL} adds them. "
            f"Check that only one of cupy-cuda12x and cupy-cuda13x is installed, {INSTEAD}."
        ) from error
    if not is_right:
        raise InputError(f"the GPU gives wrong sums through CuPy: fix its installation, {INSTEAD}.")
    return cupy


def gives_right_sums(cupy: ModuleType) -> bool:
    ones = cupy.ones((2, 2), dtype="float32")
    return float((ones @ ones + ones).sum()) == 12
