"""A backend's name to its arithmetic. The only place that looks for CuPy.

"numpy-reference" and "cupy-reference" run the readable `Ops`. "numpy" runs the overrides of `numpy_ops.py`; CuPy has
none yet, and "cupy" is its reference.
"""

from .errors import InputError, MissingExtra
from .numpy_ops import NumpyOps
from .ops import Ops

NAMES = ("numpy", "numpy-reference", "cupy", "cupy-reference")


def ops_for(backend: str) -> Ops:
    """The `Ops` of a backend.

    Raises InputError for an unknown name, and MissingExtra where CuPy is asked for and cannot be used.
    """
    if backend not in NAMES:
        raise InputError(f"unknown backend {backend!r}; expected one of {', '.join(NAMES)}")
    if backend == "numpy":
        return NumpyOps()
    if backend == "numpy-reference":
        return Ops()
    return Ops(_working_cupy())


def _working_cupy():
    try:
        import cupy
    except ImportError as error:
        raise MissingExtra(
            f"the backend 'cupy' needs CuPy, which is not installed ({error}). Add it with: "
            f"pip install cupy-cuda12x (or cupy-cuda13x, to match the driver), or use backend='numpy'."
        ) from error
    if not cupy.cuda.is_available():
        raise InputError(
            "the backend 'cupy' needs an NVIDIA GPU, and CuPy finds none. Check that nvidia-smi lists one, "
            "or use backend='numpy'."
        )
    return cupy
