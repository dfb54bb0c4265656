"""The files of torch.save and torch.jit.save, read without PyTorch and without running anything that is in them.

Such a file is a zip archive: a pickle, data.pkl, says where each tensor lies, and members of raw bytes hold the
numbers. A pickle is a program for a stack machine, and Python's own machine calls whatever function the program
names. The one below is written out instead: it knows the instructions that PyTorch writes (protocol 2) and a
handful of names, and can make nothing but numbers, texts, tuples, lists, dictionaries, tensors, and holders of
attributes in place of TorchScript's modules. All else is refused by name.

Sources: the standard library's pickletools; _rebuild_tensor_v2 in torch/_utils.py; TorchScript's pickler.cpp.

Not read: the format from before PyTorch 1.6, which is no zip archive; whole pickled modules; sparse or quantised tensors.
"""

import math
import os
import pickletools
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..checkpoints.locate import what_to_do
from ..checkpoints.weights import Raw
from ..errors import InputError

STORAGES = {
    "torch DoubleStorage": ("F64", np.float64),
    "torch FloatStorage": ("F32", np.float32),
    "torch HalfStorage": ("F16", np.float16),
    "torch BFloat16Storage": ("BF16", np.uint16),
    "torch LongStorage": ("I64", np.int64),
    "torch IntStorage": ("I32", np.int32),
    "torch ShortStorage": ("I16", np.int16),
    "torch CharStorage": ("I8", np.int8),
    "torch ByteStorage": ("U8", np.uint8),
    "torch BoolStorage": ("BOOL", np.bool_),
}
DICTIONARY = "collections OrderedDict"
TENSOR = "torch._utils _rebuild_tensor_v2"
PARAMETER = "torch._utils _rebuild_parameter"
# TorchScript's way to say of what type a list is: given the list, they return it.
TYPED = {
    f"torch.jit._pickle {name}"
    for name in (
        "build_boollist",
        "build_doublelist",
        "build_intlist",
        "build_tensorlist",
        "restore_type_tag",
    )
}
# How TorchScript's classes begin; a module of any of them is here a holder of attributes.
MODULES = ("__torch__ ", "__torch__.")

LEGACY_START = (
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that opens files of before 1.6
)
LARGEST_PICKLE = 2**21  # bytes; a pickle that describes CLIP's tensors has less than a tenth of it
MOST_AXES = 32
DEEPEST = 100  # modules inside modules
BLOCK = 2**20  # bytes read at a time

_MARK = object()


@dataclass(frozen=True)
class Name:
    """A function or class that the pickle names."""

    text: str


@dataclass
class Holder:
    """A TorchScript module: its attributes."""

    attributes: dict = field(default_factory=dict)


def read_archive(path: str | os.PathLike) -> dict[str, Raw]:
    """The tensors of a state dict, or of a TorchScript module, by name: read-only views of the mapped file.

    Raises FileNotFoundError, and InputError for a file that is no such archive, is damaged, or holds anything
    but tensors and what describes them.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: expected a file that PyTorch has written.")
    with path.open("rb") as file:
        start = file.read(len(LEGACY_START))
    if start == LEGACY_START:
        raise InputError(
            f"{path} has the format of PyTorch before 1.6, which is not read. Write it anew with a later PyTorch: "
            f"torch.save(torch.load(FILE, weights_only=True), NEW_FILE)."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return _Reader(path, archive).tensors()
    except InputError:
        raise
    except Exception as error:  # zipfile and struct raise many kinds on damaged files
        raise InputError(
            f"{path} is not a whole archive of PyTorch ({type(error).__name__}: {str(error)[:200]}). {what_to_do(path)}"
        ) from error


class _Reader:
    """The stack machine, and the archive that it reads from."""

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self.path = path
        self.archive = archive
        self.members = {member.filename: member for member in archive.infolist()}
        self.unread = path.stat().st_size
        self.storages: dict[str, Raw] = {}
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        found = [
            name for name in self.members if name.count("/") == 1 and name.endswith("/data.pkl")
        ]
        if len(found) != 1:
            self.refuse(f"it holds {len(found)} members FOLDER/data.pkl; expected one")
        self.root = found[0].removesuffix("data.pkl")

    def refuse(self, reason: str) -> NoReturn:
        raise InputError(
            f"{self.path} is not read: {reason}. Expected the tensors of a state dict (torch.save) or of a "
            f"TorchScript module (torch.jit.save), as their authors published them."
        )

    def tensors(self) -> dict[str, Raw]:
        """Run the pickle, and name the tensors of what it makes."""
        member = self.member("data.pkl")
        if member.file_size > LARGEST_PICKLE:
            self.refuse(f"data.pkl has {member.file_size} bytes; expected at most {LARGEST_PICKLE}")
        order = self.members.get(f"{self.root}byteorder")
        if order is not None and order.file_size == 3:  # "big"
            self.refuse("its numbers are big-endian")
        whole = self.run(self.archive.read(member))
        if isinstance(whole, Holder):
            return self.of_module(whole)
        if not isinstance(whole, dict):
            self.refuse(f"it holds a {type(whole).__name__}")
        for name, value in whole.items():
            if not isinstance(value, Raw):
                self.refuse(f"{_shown(name)} is a {type(value).__name__}, not a tensor")
        return whole

    def of_module(self, module: Holder) -> dict[str, Raw]:
        """The tensors among a module's attributes and its parts', by dotted name."""
        found, seen = {}, set()
        waiting = [(module, "", 0)]
        while waiting:
            holder, place, depth = waiting.pop()
            if id(holder) in seen or depth > DEEPEST:
                self.refuse("a module stands in it twice, or too deep")
            seen.add(id(holder))
            for name, value in holder.attributes.items():
                if isinstance(value, Raw):
                    found[place + name] = value
                elif isinstance(value, Holder):
                    waiting.append((value, f"{place}{name}.", depth + 1))
        return found

    def run(self, program: bytes) -> Any:
        """What the pickle makes."""
        stack, memo = self.stack, self.memo
        for opcode, argument, _ in pickletools.genops(program):
            match opcode.name:
                case "PROTO":
                    pass
                case "STOP":
                    return stack.pop()
                case "MARK":
                    stack.append(_MARK)
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(opcode.name == "NEWTRUE")
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                    stack.append(argument)
                case "EMPTY_TUPLE":
                    stack.append(())
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_DICT":
                    stack.append({})
                case "TUPLE":
                    stack.append(tuple(self.since_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    count = int(opcode.name[-1])
                    stack[-count:] = [tuple(stack[-count:])]
                case "APPEND":
                    value = stack.pop()
                    self.top(list).append(value)
                case "APPENDS":
                    values = self.since_mark()
                    self.top(list).extend(values)
                case "SETITEM":
                    value, key = stack.pop(), stack.pop()
                    self.put([key, value])
                case "SETITEMS":
                    self.put(self.since_mark())
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "GLOBAL":
                    stack.append(self.named(argument))
                case "NEWOBJ" | "REDUCE":
                    arguments, function = stack.pop(), stack.pop()
                    stack.append(self.made(function, arguments))
                case "BUILD":
                    self.build(stack.pop())
                case "BINPERSID":
                    stack.append(self.storage(stack.pop()))
                case other:
                    self.refuse(f"its pickle has the instruction {other}, which no tensor needs")
        raise EOFError("the pickle has no end")

    def since_mark(self) -> list:
        """Take what was put on the stack since the last mark."""
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise IndexError("no mark on the stack")
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    def top(self, kind: type) -> Any:
        """What is on top of the stack, which must be of this kind."""
        if type(self.stack[-1]) is not kind:
            self.refuse(
                f"its pickle fills a {type(self.stack[-1]).__name__} as if it were a {kind.__name__}"
            )
        return self.stack[-1]

    def put(self, pairs: list) -> None:
        """Add keys and values, in turn, to the dictionary on top of the stack."""
        target = self.top(dict)
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str) or not key.isprintable():
                self.refuse(f"a {type(key).__name__} that is no plain text names a thing in it")
            target[key] = value

    def named(self, text: str) -> Name:
        known = {DICTIONARY, TENSOR, PARAMETER, *TYPED, *STORAGES}
        if text not in known and not text.startswith(MODULES):
            self.refuse(
                f"its pickle asks for {_shown(text.replace(' ', '.'))}, which no tensor needs"
            )
        return Name(text)

    def made(self, function: Any, arguments: Any) -> Any:
        """What a named function returns, or a named class makes."""
        text = function.text if isinstance(function, Name) else None
        if not isinstance(arguments, tuple):
            text = None
        if text == DICTIONARY and not arguments:
            return {}
        if text == TENSOR and len(arguments) >= 4:
            return self.tensor(*arguments[:4])
        if text == PARAMETER and arguments and isinstance(arguments[0], Raw):
            return arguments[0]
        if text in TYPED and arguments and isinstance(arguments[0], list | dict):
            return arguments[0]
        if text is not None and text.startswith(MODULES) and not arguments:
            return Holder()
        self.refuse(
            f"its pickle calls {_shown(text) if text else f'a {type(function).__name__}'} in an unknown way"
        )

    def build(self, state: Any) -> None:
        """Give a module its attributes. A dictionary's own (the versions of a state dict's layers) are left out."""
        target = self.stack[-1]
        if isinstance(target, Holder) and type(state) is dict and not target.attributes:
            target.attributes = state
        elif type(target) is not dict:
            self.refuse(f"its pickle changes a {type(target).__name__}")

    def member(self, name: str) -> zipfile.ZipInfo:
        """A member of the archive, which must be stored as it is."""
        found = self.members.get(self.root + name)
        if found is None:
            self.refuse(f"it lacks the member {_shown(self.root + name)}")
        if found.compress_type != zipfile.ZIP_STORED or found.flag_bits & 1:
            self.refuse(f"its member {_shown(found.filename)} is compressed or encrypted")
        return found

    def storage(self, described: Any) -> Raw:
        """The numbers of one member: a flat view of the mapped file."""
        if not isinstance(described, tuple) or len(described) != 5 or described[0] != "storage":
            self.refuse("its pickle describes a storage in an unknown way")
        _, kind, key, _, count = described
        if not isinstance(kind, Name) or kind.text not in STORAGES or not isinstance(key, str):
            self.refuse("its pickle describes a storage in an unknown way")
        stored_type, dtype = STORAGES[kind.text]
        if key not in self.storages:
            self.storages[key] = Raw(self.mapped(f"data/{key}", dtype), stored_type)
        found = self.storages[key]
        if found.stored_type != stored_type or type(count) is not int or count > found.array.size:
            self.refuse(
                f"storage {_shown(key)} is said to hold more than, or others than, its numbers"
            )
        return found

    def mapped(self, name: str, dtype: Any) -> np.ndarray:
        member = self.member(name)
        self.unread -= member.file_size
        if self.unread < 0:
            self.refuse("its members overlap: together they have more bytes than the file")
        with self.archive.open(member) as content:
            while content.read(BLOCK):  # at its end, the checksum is compared
                pass
        with self.path.open("rb") as file:
            file.seek(member.header_offset + 26)
            lengths = struct.unpack("<HH", file.read(4))  # of the name and of what stands behind it
        count = member.file_size // np.dtype(dtype).itemsize
        if not count:
            return np.zeros(0, dtype)
        offset = member.header_offset + 30 + sum(lengths)
        return np.memmap(self.path, dtype, "r", offset, (count,)).view(np.ndarray)

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any) -> Raw:
        """A view of a storage; offset and strides are counted in numbers."""
        described = (
            isinstance(storage, Raw) and isinstance(size, tuple) and isinstance(stride, tuple)
        )
        if not described or any(type(n) is not int for n in (offset, *size, *stride)):
            self.refuse("its pickle describes a tensor in an unknown way")
        if len(size) != len(stride) or len(size) > MOST_AXES or min((offset, *stride)) < 0:
            self.refuse("the axes of a tensor do not fit one another, or its strides are negative")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        held = storage.array.size
        if min(size, default=1) < 1 or math.prod(size) > held or last >= held:
            self.refuse(f"a tensor is larger than its storage of {held} numbers, or empty")
        width = storage.array.itemsize
        steps = [step * width if n > 1 else width for n, step in zip(size, stride)]
        array = np.ndarray(size, storage.array.dtype, storage.array, offset * width, steps)
        return Raw(array, storage.stored_type)


def _shown(text: str) -> str:
    """A text of the file's, short and harmless on a terminal."""
    return ascii(text if len(text) <= 100 else text[:100] + "...")
