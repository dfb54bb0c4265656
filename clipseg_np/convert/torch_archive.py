"""The files of torch.save and torch.jit.save, read without PyTorch and without running their code.

Such a file is a zip archive. Its pickle, data.pkl, says where each tensor lies; other members hold
the numbers as raw bytes. A pickle may call any function by name. The unpickler below gives each
name that tensors need a harmless stand-in and refuses all other names. It runs only the opcodes
that PyTorch writes (pickle protocol 2): others reach objects past `find_class` or fill memory.

Sources: CPython's Modules/_pickle.c and pickletools; _rebuild_tensor_v2 in torch/_utils.py;
TorchScript's pickler.cpp.

Not read: the format before PyTorch 1.6, which is not a zip archive; whole pickled modules; sparse
or quantized tensors.
"""

import io
import math
import os
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.locate import what_to_do
from ..checkpoints.weights import STORED_TYPES, Raw
from ..errors import InputError

STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
OPCODES = (
    "PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE "
    "EMPTY_TUPLE EMPTY_LIST EMPTY_DICT TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS "
    "BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL NEWOBJ REDUCE BUILD BINPERSID"
)
NEW_DICTIONARY = b"ccollections\nOrderedDict\n)R"  # the opcodes that make a `_Dictionary`
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # opens files of PyTorch before 1.6
MAX_PICKLE_BYTES = 2**21  # CLIP's tensors need less than a tenth of it
MAX_AXES = 32
MAX_MODULE_DEPTH = 100


def read_archive(path: str | os.PathLike) -> dict[str, Raw]:
    """The tensors of a state dict or of a TorchScript module, by name: read-only views of the file.

    Raises FileNotFoundError, and InputError for a file that is not such an archive, is damaged, or
    holds anything but tensors and their description.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: expected a file that PyTorch has written.")
    with path.open("rb") as file:
        start = file.read(len(LEGACY_START))
    if start == LEGACY_START:
        raise InputError(
            f"{path} has the format of PyTorch before 1.6, which is not read. Save it again with a "
            f"later PyTorch: torch.save(torch.load(FILE, weights_only=True), NEW_FILE)."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return _tensors(_Unpickler(path, archive).load())
    except _Refusal as reason:
        expected = (
            "a state dict, alone (torch.save(model.state_dict(), FILE)) or beside numbers, or "
            "a module of torch.jit.save"
        )
        raise InputError(f"{path}: {str(reason)[:200]}. Expected {expected}.") from reason
    except Exception as error:  # zipfile, struct and pickle raise many kinds on damaged files
        fault, advice = f"{type(error).__name__}: {str(error)[:200]}", what_to_do(path)
        raise InputError(f"{path} is not a whole archive of PyTorch ({fault}). {advice}") from error


class _Refusal(Exception):
    """The reason why an archive is not read."""


class _Tensor(Raw):
    """A tensor, or the flat storage of one."""

    def __setstate__(self, state: Any) -> None:
        raise _Refusal("its pickle changes a tensor")


class _Dictionary(dict):
    """Stands for OrderedDict and for a pickle's own dictionaries.

    Its keys are printable text, or the small numbers of an optimizer's state. Other keys are
    refused before they are hashed: a deeply nested tuple overflows C's stack, and chosen integers
    collide in every lookup.
    """

    def __init__(self):
        super().__init__()

    def __setitem__(self, key: Any, value: Any) -> None:
        is_number = type(key) is int and 0 <= key < MAX_PICKLE_BYTES
        if not is_number and (type(key) is not str or not key.isprintable()):
            raise _Refusal(f"it has a key of type {type(key).__name__}; expected printable text")
        super().__setitem__(key, value)

    def __setstate__(self, state: Any) -> None:
        """Ignore a state dict's attributes, which are the versions of its layers."""


class _Module:
    """Stands for any class of TorchScript: a module, which is its attributes."""

    attributes: dict | None = None

    def __setstate__(self, state: Any) -> None:
        if self.attributes or not isinstance(state, dict):
            raise _Refusal("its pickle changes a module")
        self.attributes = state


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
    """A view of a storage; offset and strides are counted in numbers."""
    known = isinstance(storage, Raw) and isinstance(size, tuple) and isinstance(stride, tuple)
    if not known or any(type(n) is not int for n in (offset, *size, *stride)):
        raise _Refusal("its pickle describes a tensor in an unknown way")
    if len(size) != len(stride) or len(size) > MAX_AXES or min((offset, *stride)) < 0:
        raise _Refusal("a tensor's size and strides do not fit one another, or are negative")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    count, width = storage.array.size, storage.array.itemsize
    if min(size, default=1) < 1 or math.prod(size) > count or last >= count:
        raise _Refusal(f"a tensor is larger than its storage of {count} numbers, or empty")
    # NumPy checks strides along axes of one number too, where they are never taken.
    steps = [step * width if n > 1 else width for n, step in zip(size, stride)]
    array = np.ndarray(size, storage.array.dtype, storage.array, offset * width, steps)
    return _Tensor(array, storage.stored_type)


# TorchScript passes lists through functions that tell their types.
_LIST_FUNCTIONS = ("boollist", "doublelist", "intlist", "tensorlist")
# The BUILD opcode sets any attribute of a function, and none of its bound `__call__`.
_first_argument = (lambda value, *_: value).__call__
STAND_INS = {
    "collections.OrderedDict": _Dictionary,
    "torch._utils._rebuild_tensor_v2": _tensor.__call__,
    "torch._utils._rebuild_parameter": _first_argument,
    "torch.jit._pickle.restore_type_tag": _first_argument,
    **{f"torch.jit._pickle.build_{name}": _first_argument for name in _LIST_FUNCTIONS},
}


class _Unpickler(pickle.Unpickler):
    """Makes what the pickle of one archive describes."""

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self.archive = archive
        self.content = np.memmap(path, np.uint8, "r").view(np.ndarray)
        self.members = {member.filename: member for member in archive.infolist()}
        self.unread_bytes = self.content.size
        self.storages: dict[str, _Tensor] = {}
        names = [n for n in self.members if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(names) != 1:
            raise _Refusal(f"it holds {len(names)} members FOLDER/data.pkl; expected one")
        self.root = names[0].removesuffix("data.pkl")
        order = self.members.get(f"{self.root}byteorder")
        if order is not None and order.file_size == len("big"):
            raise _Refusal("its numbers are big-endian")
        member = self.member("data.pkl")
        size = member.file_size
        if size > MAX_PICKLE_BYTES:
            raise _Refusal(f"data.pkl has {size} bytes; expected at most {MAX_PICKLE_BYTES}")
        super().__init__(io.BytesIO(_scanned(archive.read(member))))

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return name
        if module.split(".")[0] == "__torch__":
            return _Module
        full_name = f"{module}.{name}"
        if full_name not in STAND_INS:
            raise _Refusal(f"its pickle asks for {full_name!a}, which no tensor needs")
        return STAND_INS[full_name]

    def persistent_load(self, description: Any) -> _Tensor:
        """The numbers of one member, whose checksum is compared: a flat view of the mapped file."""
        match description:
            case ("storage", str(kind), str(key), _, int(count)) if kind in STORAGES:
                stored_type = STORAGES[kind]
            case _:
                raise _Refusal("its pickle describes a storage in an unknown way")
        if key not in self.storages:
            member, dtype = self.member(f"data/{key}"), STORED_TYPES[stored_type]
            self.unread_bytes -= member.file_size
            if self.unread_bytes < 0:
                raise _Refusal("its members overlap: together they have more bytes than the file")
            with self.archive.open(member) as content:
                while content.read(2**20):  # zipfile compares the checksum at the end
                    pass
            header = self.content[member.header_offset :]
            start = 30 + sum(header[26:30].view("<u2").tolist())  # the name and the extra field
            size = member.file_size - member.file_size % dtype.itemsize
            self.storages[key] = _Tensor(header[start : start + size].view(dtype), stored_type)
        storage = self.storages[key]
        if storage.stored_type != stored_type or count > storage.array.size:
            raise _Refusal(f"storage {key!a} is not {count} numbers of type {stored_type}")
        return storage

    def member(self, name: str) -> zipfile.ZipInfo:
        """A member of the archive, which must be neither compressed nor encrypted."""
        member = self.members.get(self.root + name)
        if member is None:
            raise _Refusal(f"it lacks the member {self.root + name!a}")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise _Refusal(f"its member {member.filename!a} is compressed or encrypted")
        return member


def _scanned(program: bytes) -> bytes:
    """Refuse opcodes that no tensor needs, and make each dictionary a `_Dictionary`.

    The unpickler's memo is a table as long as its largest index: an index must be below the number
    of bytes. Dictionaries of the EMPTY_DICT opcode are filled without a look at their keys.
    """
    known, parts, start = set(OPCODES.split()), [], 0
    for opcode, argument, position in pickletools.genops(program):
        if opcode.name not in known:
            raise _Refusal(f"its pickle has the opcode {opcode.name}, which no tensor needs")
        if opcode.name == "LONG_BINPUT" and argument > len(program):
            raise _Refusal(f"its pickle has the memo index {argument}, more than it has bytes")
        if opcode.name == "EMPTY_DICT":
            parts.append(program[start:position])
            start = position + 1
    return NEW_DICTIONARY.join([*parts, program[start:]])


def _is_state_dict(values: dict) -> bool:
    return all(type(name) is str and isinstance(value, Raw) for name, value in values.items())


def _tensors(whole: Any) -> dict[str, Raw]:
    """The tensors of a state dict, or those of a module and its parts by dotted name.

    The state dict may be the one dictionary of tensors in a larger one, such as a training's.
    """
    if isinstance(whole, _Dictionary):
        inner = {
            name: value
            for name, value in whole.items()
            if isinstance(value, _Dictionary) and value and _is_state_dict(value)
        }
        if len(inner) > 1:
            raise _Refusal(
                f"it holds several dictionaries of tensors: {', '.join(map(ascii, inner))}"
            )
        for state in inner.values():
            return dict(state)
        for name, value in whole.items():
            if not _is_state_dict({name: value}):
                raise _Refusal(f"{name!a} is not a tensor")
        return dict(whole)
    if not isinstance(whole, _Module):
        raise _Refusal("it holds neither a state dict nor a module")
    tensors, seen, waiting = {}, set(), [(whole, "", 0)]
    while waiting:
        module, prefix, depth = waiting.pop()
        if id(module) in seen or depth > MAX_MODULE_DEPTH:
            raise _Refusal("it holds a module twice, or nests modules too deep")
        seen.add(id(module))
        for name, value in (module.attributes or {}).items():
            if isinstance(value, Raw):
                tensors[prefix + name] = value
            elif isinstance(value, _Module):
                waiting.append((value, f"{prefix}{name}.", depth + 1))
    return tensors
