"""safetensors in and out.

Loading is strict: each key is taken exactly once, in the expected shape, and a key that is missing or left
over is an error that names it. transformers only warns of either.

Files are mapped, not read: an array whose stored type is the wanted one costs no memory of its own until
it is used. The safetensors library reads and checks the header; NumPy has no bfloat16, so the numbers are
viewed here.
"""

import difflib
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
from safetensors.numpy import save_file

from ..atomic_files import written_whole
from ..errors import InputError
from ..nn.ops import Array
from .locate import read_json, unfinished_download, what_to_do

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"

# Buffers that old checkpoints carry and no layer takes; the only keys that may be left over.
IGNORED_ENDINGS = ("position_ids",)

STORED_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
TYPES_BY_SIZE = {
    8: "F64 I64 U64",
    4: "F32 I32 U32",
    2: "F16 BF16 I16 U16",
    1: "I8 U8 BOOL F8_E4M3 F8_E5M2",
}
ITEM_SIZES = {name: size for size, names in TYPES_BY_SIZE.items() for name in names.split()}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file: where it lies, and as what."""

    file: Path
    stored_type: str
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file

    def mapped(self) -> "Raw":
        """The numbers as they are stored: a read-only view of the mapped file."""
        raw_type = STORED_TYPES[self.stored_type]
        count = math.prod(self.shape)
        if count == 0:
            return Raw(np.zeros(self.shape, raw_type), self.stored_type)
        raw = np.memmap(self.file, raw_type, "r", self.offset, (count,)).view(np.ndarray)
        return Raw(raw.reshape(self.shape), self.stored_type)

    def read(self, dtype: Any) -> np.ndarray:
        """The numbers as `dtype`: a read-only view of the mapped file where they are stored so."""
        return self.mapped().floats().astype(dtype, copy=False)


@dataclass(frozen=True, eq=False)
class Raw:
    """Numbers as they are stored. NumPy has no bfloat16, the upper half of a float32: here it is uint16."""

    array: np.ndarray
    stored_type: str

    def floats(self) -> np.ndarray:
        """The numbers in a type that NumPy has: the same array, or bfloat16 as float32."""
        if self.stored_type != "BF16":
            return self.array
        return (self.array.astype(np.uint32) << 16).view(np.float32)


def give_back(arrays: Iterable[Array]) -> None:
    """Return the memory that mapped arrays took up when they were read; used again, they are read again.

    Nothing happens to arrays that are not mapped, nor where the system has no such call.
    """
    for array in arrays:
        while isinstance(array, np.ndarray):
            array = array.base
        if isinstance(array, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            array.madvise(mmap.MADV_DONTNEED)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint by name: of one file, or of a folder with one file or shards named by an index.

    Raises FileNotFoundError where there is no checkpoint, and InputError for a damaged file or index.
    """
    if folder.is_file():
        if re.search(r"-\d{5}-of-\d{5}\.safetensors$", folder.name):
            raise InputError(
                f"{folder} is one of several shards of a checkpoint: give their folder, {folder.parent}."
            )
        return tensors_of_file(folder)
    if (folder / WEIGHTS_NAME).is_file():
        return tensors_of_file(folder / WEIGHTS_NAME)
    if not (folder / INDEX_NAME).is_file():
        held = sorted(path.name for path in folder.iterdir())
        advice = unfinished_download(folder)
        for name in held:
            if name.endswith((".bin", ".pth", ".pt")):
                what = f"{folder / name} NEW_FOLDER --clip ViT-B-16.pt"
                advice += (
                    f" Weights in PyTorch's own format are not loaded: make safetensors of them once, with "
                    f"clipseg-np convert {f'{folder} NEW_FOLDER' if name.endswith('.bin') else what}"
                )
                break
        raise FileNotFoundError(
            f"There is no checkpoint in {folder}: expected {WEIGHTS_NAME}, or {INDEX_NAME} with its "
            f"shards. It holds: {', '.join(held) or 'nothing'}.{advice}"
        )
    index = read_json(folder / INDEX_NAME)
    shard_of = index.get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(s, str) for s in shard_of.values()):
        raise InputError(
            f"{folder / INDEX_NAME} has no weight_map from tensor names to file names."
        )
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(shard_of.values())):
        if Path(shard).name != shard:
            raise InputError(f"{folder / INDEX_NAME} names {shard!r}; expected files beside it.")
        for name, tensor in tensors_of_file(folder / shard).items():
            if shard_of.get(name) != shard:
                raise InputError(
                    f"{shard} holds {name}, which {INDEX_NAME} places in {shard_of.get(name, 'no file')}. "
                    f"Index and shards are not of one checkpoint: fetch them together."
                )
            tensors[name] = tensor
    absent = sorted(set(shard_of) - set(tensors))
    if absent:
        raise InputError(
            f"{shard_of[absent[0]]} lacks {absent[0]}, which {INDEX_NAME} places there."
        )
    return tensors


def tensors_of_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, by name, without reading their numbers."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing. It may not have been fetched: fetch it again."
            f"{unfinished_download(path.parent)}"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            headers = {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is not a whole safetensors file ({error}). {what_to_do(path)}"
        ) from error
    with path.open("rb") as file:
        offset = 8 + int.from_bytes(file.read(8), "little")
    tensors = {}
    for name, (stored_type, shape) in headers.items():  # in the order of their bytes, without gaps
        if stored_type not in ITEM_SIZES:
            raise InputError(f"{path}: {name} is stored as {stored_type}, which is not supported.")
        tensors[name] = StoredTensor(path, stored_type, shape, offset)
        offset += math.prod(shape) * ITEM_SIZES[stored_type]
    return tensors


def save_weights(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as one safetensors file that transformers loads too; whole, or not at all."""
    contiguous = {
        name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()
    }
    with written_whole(path) as temporary:
        save_file(contiguous, temporary, metadata={"format": "pt"})


class Checkpoint:
    """The tensors of a folder or of one file, each to be taken once.

    `prefixes` are the places where the wanted model may begin (a text tower's keys begin with
    nothing, with "text_model." or with "clip.text_model."); `landmark` is a key that the model certainly has.
    """

    def __init__(self, folder: Path, dtype: Any, landmark: str, prefixes: tuple[str, ...] = ("",)):
        self.folder = folder
        self.dtype = dtype
        self.tensors = stored_tensors(folder)
        self.taken: set[str] = set()
        found = [prefix for prefix in prefixes if prefix + landmark in self.tensors]
        self.prefix = found[0] if found else prefixes[0]

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        key = self.prefix + name
        if key in self.taken:
            raise AssertionError(f"{key} was taken twice: two layers share a name")
        tensor = self.tensors.get(key)
        if tensor is None:
            near = difflib.get_close_matches(key, set(self.tensors) - self.taken, n=1)
            hint = f" The nearest key there is {near[0]}." if near else ""
            raise InputError(
                f"{self.folder} lacks {key}; expected an array of shape {shape}.{hint} "
                f"Check that config.json and the weights belong together."
            )
        if tensor.shape != shape:
            raise InputError(
                f"{tensor.file}: {key} has shape {tensor.shape}; config.json makes it {shape}. "
                f"Check that config.json and the weights belong together."
            )
        if tensor.stored_type not in STORED_TYPES:
            raise InputError(
                f"{tensor.file}: {key} is stored as {tensor.stored_type}; expected one of {', '.join(STORED_TYPES)}."
            )
        self.taken.add(key)
        return tensor.read(self.dtype)

    def finish(self) -> None:
        """Raise InputError for keys that no layer took, save the known buffers and other parts of a whole model."""
        left = [
            key
            for key in sorted(set(self.tensors) - self.taken)
            if key.startswith(self.prefix) and not key.endswith(IGNORED_ENDINGS)
        ]
        if left:
            raise InputError(
                f"{self.folder} holds {len(left)} key(s) that the model of config.json has no place for: "
                f"{', '.join(left[:3])}{', ...' if len(left) > 3 else ''}. Check that config.json and the "
                f"weights belong together (extract_layers, num_hidden_layers and "
                f"use_complex_transposed_convolution decide which keys there are)."
            )
