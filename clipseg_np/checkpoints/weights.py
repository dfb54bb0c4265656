"""Read and write safetensors.

Loading is strict: each key is taken exactly once, in the expected shape; a missing or left-over key
is an error, where transformers only warns. Files are mapped, not read: an array whose stored type
is the wanted one costs no memory until it is used. The safetensors library checks the header; it
makes no arrays of bfloat16.
"""

import difflib
import json
import math
import mmap
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ..atomic_files import written_whole
from ..errors import InputError
from ..nn.ops import Array
from .locate import read_json, unfinished_download, what_to_do

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"

# Buffers of old checkpoints that no layer takes; the only keys that may be left over.
IGNORED_ENDINGS = ("position_ids",)

# The types of safetensors, and the NumPy types that hold their bytes.
STORED_TYPES = {
    "BF16": np.dtype("uint16"),
    "BOOL": np.dtype("bool"),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2"), np.dtype("uint8")),
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
}
FLOAT_TYPES = ("F64", "F32", "F16", "BF16")
# By NumPy's names; U8 and U16 come last, and so replace the types that NumPy has not.
SHORT_NAMES = {dtype.name: name for name, dtype in STORED_TYPES.items()}


def require_float(name: str, stored_type: str) -> None:
    expected = ", ".join(FLOAT_TYPES)
    if stored_type not in FLOAT_TYPES:
        raise InputError(f"{name} is stored as {stored_type}; expected one of {expected}.")


@dataclass(frozen=True, eq=False)
class Raw:
    """Numbers as they are stored. bfloat16, the upper half of a float32, is held in uint16."""

    array: np.ndarray
    stored_type: str

    def floats(self) -> np.ndarray:
        """The numbers in a type that NumPy has: the same array, or bfloat16 as float32."""
        if self.stored_type != "BF16":
            return self.array
        return (self.array.astype(np.uint32) << 16).view(np.float32)


def give_back(arrays: Iterable[Array]) -> None:
    """Return the memory of mapped arrays to the system, if it can; their next use reads them."""
    for array in arrays:
        file = array
        while isinstance(file, np.ndarray):
            file = file.base
        if isinstance(file, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED") and array.size:
            start = array.ctypes.data - np.frombuffer(file, np.uint8).ctypes.data
            # Whole pages: a neighbor's numbers in them are read again as well.
            before = start % mmap.PAGESIZE
            file.madvise(mmap.MADV_DONTNEED, start - before, before + array.nbytes)


def stored_tensors(path: Path) -> dict[str, Raw]:
    """The tensors of a checkpoint by name: of one file, or of a folder with one file or shards.

    Raises FileNotFoundError for a folder without weights, InputError for a damaged file or index.
    """
    if path.is_file() and re.search(r"-\d{5}-of-\d{5}\.safetensors$", path.name):
        raise InputError(f"{path} is one of several shards: give their folder, {path.parent}.")
    file = path if path.is_file() else path / WEIGHTS_NAME
    if file.is_file():
        return tensors_of_file(file)
    if not (path / INDEX_NAME).is_file():
        raise _no_weights(path)
    index = read_json(path / INDEX_NAME)
    shard_of = index.get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(s, str) for s in shard_of.values()):
        raise InputError(f"{path / INDEX_NAME} has no weight_map from tensor names to file names.")
    tensors, places = {}, set()
    for shard in sorted(set(shard_of.values())):
        if Path(shard).name != shard:
            raise InputError(f"{path / INDEX_NAME} names {shard!r}; expected files beside it.")
        part = tensors_of_file(path / shard)
        tensors |= part
        places |= {(name, shard) for name in part}
    for name, shard in sorted(places ^ set(shard_of.items())):
        state = "holds" if (name, shard) in places else "lacks"
        place = f"{INDEX_NAME} places in {shard_of.get(name, 'no file')}"
        raise InputError(f"{shard} {state} {name}, which {place}. Fetch all of them together.")
    return tensors


def _no_weights(folder: Path) -> FileNotFoundError:
    names = sorted(path.name for path in folder.iterdir())
    advice = unfinished_download(folder)
    for name in [name for name in names if name.endswith((".bin", ".pth", ".pt"))][:1]:
        clip = "" if name.endswith(".bin") else " --clip ViT-B-16.pt"
        place = folder / name if clip else folder
        advice += f" Convert PyTorch's weights with clipseg-np convert {place} NEW_FOLDER{clip}"
    return FileNotFoundError(
        f"There is no checkpoint in {folder}: expected {WEIGHTS_NAME}, or {INDEX_NAME} with its "
        f"shards. It holds: {', '.join(names) or 'nothing'}.{advice}"
    )


def tensors_of_file(path: Path) -> dict[str, Raw]:
    """The tensors of one safetensors file by name: read-only views of the mapped file."""
    if not path.is_file():
        advice = unfinished_download(path.parent)
        raise FileNotFoundError(f"{path} is missing: fetch it again.{advice}")
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            headers = {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        advice = what_to_do(path)
        raise InputError(f"{path} is not a whole safetensors file ({error}). {advice}") from error
    start = 8 + int(np.fromfile(path, "<u8", 1)[0])
    # A mapping holds a file descriptor: there is one, and all tensors are views of it.
    rest = np.memmap(path, np.uint8, "r", start).view(np.ndarray) if headers else None
    tensors = {}
    for name, (stored_type, shape) in headers.items():  # in the order of their bytes, without gaps
        if stored_type not in STORED_TYPES:
            raise InputError(f"{path}: {name} is stored as {stored_type}, which is not supported.")
        dtype = STORED_TYPES[stored_type]
        size = math.prod(shape) * dtype.itemsize
        tensors[name] = Raw(rest[:size].view(dtype).reshape(shape), stored_type)
        rest = rest[size:]
    return tensors


def save_weights(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as one safetensors file that transformers loads too; whole, or not at all."""
    tensors = {name: (SHORT_NAMES[x.dtype.name], x.shape, [x]) for name, x in arrays.items()}
    with written_whole(path) as temporary:
        write_tensors(temporary, tensors, {"format": "pt"})


def write_tensors(
    path: Path, tensors: dict[str, tuple[str, tuple, Iterable[np.ndarray]]], metadata: dict
) -> None:
    """Write one safetensors file: for each tensor its stored type, shape, and numbers in blocks.

    The library's writer takes all numbers at once. As there, wide types come first, so that every
    number lies at a multiple of its size.
    """
    order = sorted(tensors, key=lambda name: (-STORED_TYPES[tensors[name][0]].itemsize, name))
    header, end = {"__metadata__": metadata}, 0
    for name in order:
        stored_type, shape, _ = tensors[name]
        start, end = end, end + math.prod(shape) * STORED_TYPES[stored_type].itemsize
        header[name] = {"dtype": stored_type, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for block in (block for name in order for block in tensors[name][2]):
            file.write(np.ascontiguousarray(block).data)


class Checkpoint:
    """The tensors of a folder or of one file that are left to be taken.

    `prefixes` are those that the wanted model's keys may have (a text tower's: none, "text_model."
    or "clip.text_model."); `landmark` is a key that the model certainly has.
    """

    def __init__(self, folder: Path, dtype: Any, landmark: str, prefixes: tuple[str, ...] = ("",)):
        self.folder = folder
        self.dtype = dtype
        self.tensors = stored_tensors(folder)
        present = (prefix for prefix in prefixes if prefix + landmark in self.tensors)
        self.prefix = next(present, prefixes[0])

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """One array. Raises InputError if it is missing, or has another shape or no float type."""
        key = self.prefix + name
        tensor = self.tensors.pop(key, None)
        if tensor is None:
            near = difflib.get_close_matches(key, self.tensors, n=1)
            hint = f" The nearest key there is {near[0]}." if near else ""
            raise InputError(
                f"{self.folder} lacks {key}; expected an array of shape {shape}.{hint} "
                f"Check that config.json and the weights belong together."
            )
        if tensor.array.shape != shape:
            raise InputError(
                f"{self.folder}: {key} has shape {tensor.array.shape}; config.json makes it "
                f"{shape}. Check that config.json and the weights belong together."
            )
        require_float(f"{self.folder}: {key}", tensor.stored_type)
        return tensor.floats().astype(self.dtype, copy=False)

    def finish(self) -> None:
        """Raise InputError for left-over keys of the model, except IGNORED_ENDINGS."""
        own = sorted(key for key in self.tensors if key.startswith(self.prefix))
        left = [key for key in own if not key.endswith(IGNORED_ENDINGS)]
        if left:
            more = ", ..." if len(left) > 3 else ""
            raise InputError(
                f"{self.folder} holds {len(left)} key(s) that the model of config.json has no "
                f"place for: {', '.join(left[:3])}{more}. Check that config.json and the weights "
                f"belong together (extract_layers, num_hidden_layers and "
                f"use_complex_transposed_convolution decide which keys there are)."
            )
