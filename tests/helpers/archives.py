"""PyTorch's archives, written without PyTorch: pickles, one instruction at a time, in zip files."""

import zipfile
from pathlib import Path

import numpy as np

KINDS = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "uint16": "BFloat16Storage",
    "int64": "LongStorage",
}
DICTIONARY = b"ccollections\nOrderedDict\n)R"


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def number(value: int) -> bytes:
    """Any whole number of up to 254 bytes."""
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def group(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + group(*arguments) + b"R"


def storage(kind: str, key: str, count: int) -> bytes:
    named = f"ctorch\n{kind}\n".encode()
    return group(text("storage"), named, text(key), text("cpu"), number(count)) + b"Q"


def tensor(stored: bytes, offset: int, size: tuple, stride: tuple) -> bytes:
    layout = number(offset), *(group(*map(number, each)) for each in (size, stride))
    return call("torch._utils", "_rebuild_tensor_v2", stored, *layout, b"\x89", DICTIONARY)


def contents(parts: dict[str, bytes]) -> bytes:
    """The items of a dictionary."""
    return b"(" + b"".join(text(name) + value for name, value in parts.items()) + b"u"


def state_dict(parts: dict[str, bytes]) -> bytes:
    return b"\x80\x02" + DICTIONARY + contents(parts) + b"."


def module(parts: dict[str, bytes]) -> bytes:
    """A TorchScript module with these attributes."""
    return b"c__torch__.a.___torch_mangle_1\nModule\n)\x81}" + contents(parts) + b"b"


def write_archive(path: Path, program: bytes, members: dict[str, bytes], **options) -> Path:
    """`options` are those of zipfile.ZipFile."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("name/data.pkl", program)
        for name, content in members.items():
            archive.writestr(f"name/{name}", content)
    return path


def described(arrays: dict[str, np.ndarray]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Each array as a tensor of its own storage, and the storages; uint16 stands for bfloat16."""
    tensors, members = {}, {}
    for key, (name, array) in enumerate(arrays.items()):
        strides = tuple(
            step // array.itemsize for step in np.empty(array.shape, array.dtype).strides
        )
        stored = storage(KINDS[array.dtype.name], str(key), array.size)
        tensors[name] = tensor(stored, 0, array.shape, strides)
        members[f"data/{key}"] = array.tobytes()
    return tensors, members


def write_state_dict(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """As torch.save does."""
    tensors, members = described(arrays)
    return write_archive(path, state_dict(tensors), members)


def write_module(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """As torch.jit.save does, with a module for each dot in a name."""
    tensors, members = described(arrays)
    tree: dict = {}
    for name, described_tensor in tensors.items():
        *places, last = name.split(".")
        branch = tree
        for place in places:
            branch = branch.setdefault(place, {})
        branch[last] = described_tensor

    def program(branch: dict) -> bytes:
        parts = {name: program(p) if isinstance(p, dict) else p for name, p in branch.items()}
        return module({"training": b"\x88", "_is_full_backward_hook": b"N", **parts})

    return write_archive(path, b"\x80\x02" + program(tree) + b".", members)
