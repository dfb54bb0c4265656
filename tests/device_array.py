"""An array module that pretends to live on a device, for finding where code would break on a real one.

Its arrays behave as NumPy's do, save that they never meet NumPy's: mixing the two, or turning one into the
other other than by `asarray` and `get`, is a TypeError, as it is in CuPy.
"""

import operator
from typing import Any

import numpy

CROSSINGS = {"asarray", "array"}  # the functions that may bring arrays onto the device
BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
METHODS = ("reshape", "transpose", "swapaxes", "astype", "ravel", "copy", "take", "repeat")
REDUCTIONS = ("mean", "sum", "max", "min", "argmax", "argmin", "any", "all", "cumsum")


class DeviceArray:
    """A NumPy array behind glass."""

    __array_ufunc__ = None  # NumPy's operators leave the answer to this class
    __hash__ = None

    def __init__(self, values: numpy.ndarray):
        self._values = values

    def __array__(self, *_: Any, **__: Any):
        raise TypeError("implicit conversion of a device array to a NumPy array")

    def get(self) -> numpy.ndarray:
        return self._values.copy()

    shape = property(lambda self: self._values.shape)
    ndim = property(lambda self: self._values.ndim)
    size = property(lambda self: self._values.size)
    dtype = property(lambda self: self._values.dtype)
    T = property(lambda self: DeviceArray(self._values.T))

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self):
        return (DeviceArray(row) for row in self._values)

    def __getitem__(self, key: Any) -> "DeviceArray":
        return wrapped(self._values[inside(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._values[inside(key)] = inside(value)

    def __bool__(self) -> bool:
        return bool(self._values)

    def __int__(self) -> int:
        return int(self._values)

    def __float__(self) -> float:
        return float(self._values)

    def __neg__(self):
        return wrapped(-self._values)

    def __abs__(self):
        return wrapped(abs(self._values))

    def __invert__(self):
        return wrapped(~self._values)


def inside(value: Any) -> Any:
    """What a device function may be given, as NumPy values: device arrays and plain Python values."""
    if isinstance(value, DeviceArray):
        return value._values
    if isinstance(value, numpy.ndarray):
        raise TypeError("a NumPy array where a device array is expected")
    if isinstance(value, (tuple, list)):
        return type(value)(inside(part) for part in value)
    return value


def wrapped(value: Any) -> Any:
    return (
        DeviceArray(numpy.asarray(value))
        if isinstance(value, (numpy.ndarray, numpy.generic))
        else value
    )


def _operator(name: str, reflected: bool = False):
    function = getattr(operator, name if hasattr(operator, name) else f"{name}_")

    def method(self, other):
        pair = (inside(other), self._values) if reflected else (self._values, inside(other))
        return wrapped(function(*pair))

    return method


def _method(name: str):
    def method(self, *args, **kwargs):
        kwargs = {key: inside(value) for key, value in kwargs.items()}
        return wrapped(getattr(self._values, name)(*map(inside, args), **kwargs))

    return method


for _name in BINARY:
    setattr(DeviceArray, f"__{_name}__", _operator(_name))
    setattr(DeviceArray, f"__r{_name}__", _operator(_name, reflected=True))
for _name in COMPARISONS:
    setattr(DeviceArray, f"__{_name}__", _operator(_name))
for _name in METHODS + REDUCTIONS:
    setattr(DeviceArray, _name, _method(_name))


class DeviceModule:
    """NumPy's functions, for device arrays only."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(numpy, name)
        if not callable(found) or isinstance(found, type):
            return found

        def function(*args, **kwargs):
            given = (
                (lambda v: v._values if isinstance(v, DeviceArray) else v)
                if name in CROSSINGS
                else inside
            )
            kwargs = {key: given(value) for key, value in kwargs.items()}
            return wrapped(found(*map(given, args), **kwargs))

        return function
