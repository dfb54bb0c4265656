"""A backend's name to its arithmetic. The only place that looks for CuPy.

"numpy-reference" and "cupy-reference" run the readable `Ops`; "numpy" and "cupy" the overrides of `backends/numpy_ops.py` and
`backends/cupy_ops.py`. "auto" is "cupy" where a GPU is there and working, and "numpy" elsewhere.
"""

import warnings
from functools import cache
from types import ModuleType

from ..errors import InputError, MissingExtra
from ..nn.ops import Ops
from .cupy_ops import CupyOps
from .numpy_ops import NumpyOps

NAMES = ("auto", "numpy", "numpy-reference", "cupy", "cupy-reference")
INSTEAD = "or use backend='numpy'"


def ops_for(backend: str, threads: int | None = None) -> Ops:
    """The `Ops` of a backend; `threads` share out the work of "numpy", by default as many as there are cores.

    Raises InputError for an unknown name and for a GPU that is asked for and not there or not working, and
    MissingExtra where CuPy is not installed.
    """
    if backend not in NAMES:
        raise InputError(f"unknown backend {backend!r}; expected one of {', '.join(NAMES)}")
    if backend == "auto":
        return _best(threads)
    if backend == "numpy":
        return NumpyOps(threads)
    if backend == "numpy-reference":
        return Ops()
    return CupyOps(working_cupy()) if backend == "cupy" else Ops(working_cupy())


@cache
def _best(threads: int | None) -> Ops:
    """Looked for once, so that it says once why there is no GPU."""
    try:
        return ops_for("cupy")
    except (InputError, MissingExtra) as error:
        warnings.warn(f"backend 'auto' uses NumPy: {error}", stacklevel=2)
        return ops_for("numpy", threads)


def working_cupy() -> ModuleType:
    """CuPy, after a first computation: it can be imported, and even see a GPU, and yet lack what it compiles with.

    Raises InputError where there is no GPU that works, and MissingExtra where CuPy is not installed.
    """
    try:
        import cupy
    except ImportError as error:
        raise MissingExtra(
            f"the backend 'cupy' needs CuPy, which is not installed ({error}). Add it with: "
            f"pip install 'clipseg_np[cuda12]' (or [cuda13], to match the driver that nvidia-smi names), {INSTEAD}."
        ) from error
    try:
        is_there, reason = cupy.cuda.is_available(), ""
    except Exception as error:  # noqa: BLE001  (CuPy 13, where there is no driver)
        is_there, reason = False, f" ({error})"
    if not is_there:
        raise InputError(
            f"the backend 'cupy' needs an NVIDIA GPU, and CuPy finds none{reason}. Check that nvidia-smi lists one, {INSTEAD}."
        )
    try:
        is_right = gives_right_sums(cupy)
    except Exception as error:  # of a dozen kinds: driver, compiler, cuBLAS, memory
        raise InputError(
            f"CuPy finds a GPU and cannot compute on it ({type(error).__name__}: {error}). CuPy's own wheels bring neither "
            f"CUDA's compiler nor cuBLAS: pip install 'clipseg_np[cuda12]' (or [cuda13], to match the driver that nvidia-smi "
            f"names) adds them. Check that only one of cupy-cuda12x and cupy-cuda13x is installed, {INSTEAD}."
        ) from error
    if not is_right:
        raise InputError(f"the GPU gives wrong sums through CuPy: mend it, {INSTEAD}.")
    return cupy


def gives_right_sums(cupy: ModuleType) -> bool:
    ones = cupy.ones((2, 2), dtype="float32")
    return float((ones @ ones + ones).sum()) == 12
