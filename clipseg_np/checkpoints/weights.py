"""Read and write safetensors.

Loading is strict: each key is taken exactly once, in the expected shape; a missing or left-over key
is an error, where transformers only warns. Files are mapped, not read: an array whose stored type
is the wanted one costs no memory until it is used. The safetensors library checks the header; it
makes no arrays of bfloat16.
"""

import difflib
import hashlib
import json
import math
import mmap
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
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
MAX_MAPPED = 32  # shards; some systems let a process open 64 files

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
        # NumPy 1.26 would shift an array without axes in int64.
        return np.asarray(np.left_shift(self.array, 16, dtype=np.uint32)).view(np.float32)


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
    tensors, places, shards = {}, set(), sorted(set(shard_of.values()))
    for shard in shards:
        if Path(shard).name != shard:
            raise InputError(f"{path / INDEX_NAME} names {shard!r}; expected files beside it.")
        part = tensors_of_file(path / shard, len(shards) <= MAX_MAPPED)
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
    for name in [n for n in names if n.endswith((".bin", ".pth", ".pt", ".ckpt"))][:1]:
        advice += f" Convert PyTorch's weights with clipseg-np convert {folder / name} NEW_FOLDER"
    return FileNotFoundError(
        f"There is no checkpoint in {folder}: expected {WEIGHTS_NAME}, or {INDEX_NAME} with its "
        f"shards. It holds: {', '.join(names) or 'nothing'}.{advice}"
    )


def tensors_of_file(path: Path, is_mapped: bool = True) -> dict[str, Raw]:
    """The tensors of one safetensors file by name: read-only views of the mapped file.

    If not `is_mapped`, the file is read into memory.
    """
    file_metadata(path)
    # A mapping holds a file descriptor: there is one, and all tensors are views of it.
    read = partial(np.memmap, mode="r") if is_mapped else np.fromfile
    header, start = read_header(path)
    tensors = {}
    numbers = read(path, dtype=np.uint8, offset=start).view(np.ndarray) if header else None
    for name, about in header.items():
        stored_type, (first, end) = about["dtype"], about["data_offsets"]
        if stored_type not in STORED_TYPES:
            raise InputError(f"{path}: {name} is stored as {stored_type}, which is not supported.")
        array = numbers[first:end].view(STORED_TYPES[stored_type]).reshape(about["shape"])
        tensors[name] = Raw(array, stored_type)
    return tensors


def file_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, which the library checks.

    Raises FileNotFoundError, or InputError for a damaged file.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected a .safetensors file")
    if not path.is_file():
        advice = unfinished_download(path.parent)
        raise FileNotFoundError(f"{path} is missing: fetch it again.{advice}")
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        advice = what_to_do(path)
        raise InputError(f"{path} is not a whole safetensors file ({error}). {advice}") from error


def read_header(path: Path) -> tuple[dict[str, dict], int]:
    """The description of each tensor in the order of their numbers, and where these begin.

    The library must have checked the file. Before 0.6.1, it does not tell the order.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    order = sorted(header, key=lambda name: header[name]["data_offsets"])
    return {name: header[name] for name in order}, 8 + length


def arrays_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """A SHA-256, in hexadecimal, of arrays of floats and their names.

    They are rounded to float16: neither the files' layout nor storing or loading a checkpoint as
    float16 changes the hash. Storing it as bfloat16 does.
    """
    sha256 = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        sha256.update(name.encode())
        # A float64 checkpoint, too, is rounded to float32 first, in which models are loaded.
        with np.errstate(over="ignore"):
            sha256.update(array.astype(np.float32).astype("<f2").tobytes())
    return sha256.hexdigest()


def save_weights(path: str | os.PathLike, arrays: dict[str, np.ndarray], **about: str) -> None:
    """Write arrays as one safetensors file that transformers loads too; whole, or not at all.

    `about` is added to its metadata.
    """
    tensors = {name: (SHORT_NAMES[x.dtype.name], x.shape, [x]) for name, x in arrays.items()}
    with written_whole(path) as temporary:
        write_tensors(temporary, tensors, {"format": "pt", **about})


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
            file.write(np.ascontiguousarray(block, block.dtype.newbyteorder("<")).data)


class Checkpoint:
    """The tensors of a folder or of one file that are left to be taken.

    `prefixes` are those that the wanted model's keys may have (a text tower's: none, "text_model."
    or "clip.text_model."); `landmark` is a key that the model certainly has.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        tensors: dict[str, Raw],
        dtype: Any,
        landmark: str,
        prefixes: tuple[str, ...] = ("",),
    ):
        self.folder = folder
        self.dtype = dtype
        self.tensors = dict(tensors)
        present = (prefix for prefix in prefixes if prefix + landmark in self.tensors)
        self.prefix = next(present, prefixes[0])

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """One array. Raises InputError if it is missing, or has another shape or no float type."""
        key = self.prefix + name
        tensor = self.tensors.pop(key, None)
        if tensor is None:
            near = difflib.get_close_matches(key, self.tensors, n=1)
            hint = f" The nearest key there is {near[0]}." if near else ""
            if near and f".{near[0]}".endswith(f".{key}"):
                hint += " `clipseg-np convert` takes the names that PyTorch's wrappers add away."
            raise InputError(
                f"{self.folder} lacks {key}; expected an array of shape {shape}.{hint} "
                f"Check that the config and the weights belong together."
            )
        if tensor.array.shape != shape:
            raise InputError(
                f"{self.folder}: {key} has shape {tensor.array.shape}; the config makes it "
                f"{shape}. Check that the config and the weights belong together."
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
                f"{self.folder} holds {len(left)} key(s) that the model of the config has no "
                f"place for: {', '.join(left[:3])}{more}. Check that the config and the weights "
                f"belong together (extract_layers, num_hidden_layers and "
                f"use_complex_transposed_convolution decide which keys there are)."
            )
