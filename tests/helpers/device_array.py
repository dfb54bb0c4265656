"""An array module that pretends to live on a device, to find where code would fail on a real one.

Its arrays behave as NumPy's do, but never mix with them: to combine the two, or to convert one to
the other except by `asarray` and `get`, is a TypeError, as it is in CuPy. While a stream records,
an operation that waits for the device or copies numbers to it is an error too; all others are
kept, to be run again (helpers/recording_device.py).
"""

import operator
from functools import partialmethod
from types import ModuleType
from typing import Any

import numpy as np

CROSSINGS = {"asarray", "array"}  # the functions that may bring arrays onto the device
JOINS, MAX_JOINED = {"stack", "concatenate"}, 8  # CuPy copies the addresses of more from the host
BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
METHODS = ("reshape", "transpose", "swapaxes", "astype", "ravel", "copy", "take", "repeat")
REDUCTIONS = ("mean", "sum", "max", "min", "argmax", "argmin", "any", "all", "cumsum")


class DeviceArray:
    """A NumPy array behind glass."""

    __array_ufunc__ = None  # NumPy's operators leave the answer to this class
    __hash__ = None

    def __init__(self, values: np.ndarray):
        self._values = values

    def __array__(self, *_: Any, **__: Any):
        raise TypeError("implicit conversion of a device array to a NumPy array")

    def get(self) -> np.ndarray:
        _to_host("get")
        return self._values.copy()

    def set(self, values: np.ndarray) -> None:
        assert isinstance(values, np.ndarray) and values.dtype == self.dtype
        _from_host("set")
        self._values[...] = values

    shape = property(lambda self: self._values.shape)
    strides = property(lambda self: self._values.strides)
    flags = property(lambda self: self._values.flags)
    ndim = property(lambda self: self._values.ndim)
    itemsize = property(lambda self: self._values.itemsize)
    size = property(lambda self: self._values.size)
    dtype = property(lambda self: self._values.dtype)
    T = property(lambda self: DeviceArray(self._values.T))
    __cuda_array_interface__ = property(lambda self: self._values.__array_interface__)

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self):
        return (DeviceArray(row) for row in self._values)

    def __getitem__(self, key: Any) -> "DeviceArray":
        _check_key(key)
        return run(operator.getitem, self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        _check_key(key)
        run(operator.setitem, self, key, value)

    def __bool__(self) -> bool:
        _to_host("bool()")
        return bool(self._values)

    def __int__(self) -> int:
        _to_host("int()")
        return int(self._values)

    def __float__(self) -> float:
        _to_host("float()")
        return float(self._values)


class Recording:
    """The work that a stream records, to be run again: `steps` are functions without arguments."""

    def __init__(self):
        self.steps: list = []

    def keep(self, step: Any) -> None:
        self.steps.append(step)


recording: Recording | None = None
on_new_array: Any = None  # called with each array that takes memory


def record_into(new: Recording | None) -> None:
    global recording
    recording = new


def count_into(counter: Any) -> None:
    global on_new_array
    on_new_array = counter


def _to_host(what: str) -> None:
    if recording is not None:
        raise RuntimeError(f"{what} waits for the device, which a stream that records may not")


def _from_host(what: str) -> None:
    if recording is not None:
        raise RuntimeError(
            f"{what}: the current stream is capturing, so H2D transfers are disallowed"
        )


def _check_key(key: Any) -> None:
    parts = key if isinstance(key, tuple) else (key,)
    if any(isinstance(part, list) for part in parts):
        _from_host("a list as an index")


def run(function: Any, *args: Any, **kwargs: Any) -> Any:
    """`function` of the device arrays' values. A recording keeps it and its result's memory."""
    args = [inside(arg) for arg in args]
    kwargs = {name: inside(value) for name, value in kwargs.items()}
    result = function(*args, **kwargs)
    if not isinstance(result, (np.ndarray, np.generic)):
        if recording is not None:
            recording.keep(lambda: function(*args, **kwargs))
        return result
    result = np.asarray(result)
    if recording is not None:
        recording.keep(lambda: np.copyto(result, function(*args, **kwargs)))
    is_new = not any(result is arg for arg in args)
    return wrapped(result) if is_new else DeviceArray(result)


def inside(value: Any) -> Any:
    """An argument of a device function as NumPy values. NumPy arrays are refused."""
    if isinstance(value, DeviceArray):
        return value._values
    if isinstance(value, np.ndarray):
        raise TypeError("a NumPy array where a device array is expected")
    if isinstance(value, (tuple, list)):
        return type(value)(inside(part) for part in value)
    return value


def wrapped(values: np.ndarray) -> DeviceArray:
    if on_new_array is not None and values.base is None:
        on_new_array(values)
    return DeviceArray(values)


def _operator(name: str, reflected: bool = False):
    function = getattr(operator, name if hasattr(operator, name) else f"{name}_")

    def method(self, other):
        return run(function, other, self) if reflected else run(function, self, other)

    return method


def _in_place(name: str):
    function = getattr(operator, f"i{name}")

    def method(self, other):
        run(function, self, other)
        return self

    return method


def _unary(self, function: Any):
    return run(function, self)


def _method(name: str):
    def method(self, *args, **kwargs):
        return run(getattr(np.ndarray, name), self, *args, **kwargs)

    return method


for _name in BINARY:
    setattr(DeviceArray, f"__{_name}__", _operator(_name))
    setattr(DeviceArray, f"__r{_name}__", _operator(_name, reflected=True))
    setattr(DeviceArray, f"__i{_name}__", _in_place(_name))
for _name in COMPARISONS:
    setattr(DeviceArray, f"__{_name}__", _operator(_name))
for _name in ("neg", "abs", "invert"):
    setattr(DeviceArray, f"__{_name}__", partialmethod(_unary, getattr(operator, _name)))
for _name in METHODS + REDUCTIONS:
    setattr(DeviceArray, _name, _method(_name))


class DeviceModule:
    """NumPy's functions, for device arrays only."""

    ndarray = DeviceArray

    def __init__(self, path: str = ""):
        self._path = path  # of a module within NumPy's

    def __getattr__(self, name: str) -> Any:
        found = operator.attrgetter(f"{self._path}{name}")(np)
        if isinstance(found, ModuleType):
            return DeviceModule(f"{self._path}{name}.")
        if not callable(found) or isinstance(found, type):
            return found

        def function(*args, **kwargs):
            if name in CROSSINGS and not isinstance(args[0], DeviceArray):
                _from_host(name)
                return wrapped(np.array(*args, **kwargs))
            if name in JOINS and len(args[0]) > MAX_JOINED:
                _from_host(f"{name} of {len(args[0])} arrays")
            return run(found, *args, **kwargs)

        return function
