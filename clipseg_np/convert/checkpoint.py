"""A checkpoint stored anew: in another float type, in one file or in shards.

Tensors are mapped and written block by block, so that a checkpoint of any size takes little memory. The folder is
written whole or not at all. What is written loads here and in transformers: safetensors, and for shards the hub's
index.

bfloat16 is made by hand, since NumPy has none: the upper half of a float32, rounded to nearest, ties to even, as in
PyTorch. float64 is rounded to float32 first.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..atomic_files import folder_written_whole, write_json
from ..checkpoints.locate import checkpoint_path, read_json
from ..checkpoints.weights import (
    IGNORED_ENDINGS,
    INDEX_NAME,
    ITEM_SIZES,
    STORED_TYPES,
    WEIGHTS_NAME,
    Raw,
    give_back,
    stored_tensors,
)
from ..errors import InputError
from ..model.config import CONFIG_NAME
from .torch_archive import read_archive

STORED_AS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
OTHER_FILES = ("preprocessor_config.json", "processor_config.json", *TOKENIZER_FILES)
PYTORCH_NAME = "pytorch_model.bin"  # transformers' weights before safetensors, under the same names
BLOCK = 2**20  # numbers converted at a time


@dataclass(frozen=True)
class Written:
    """What was written: how many tensors, of how many bytes, in which files."""

    tensors: int
    size: int
    files: tuple[str, ...]


def convert(
    source: str | os.PathLike,
    output: str | os.PathLike,
    dtype: str | None = None,
    shard_size: float | None = None,
) -> Written:
    """Store a checkpoint anew in the new or empty folder `output`, with its config, tokenizer and processor files.

    source: a folder, one .safetensors file or a hub id; also a folder whose weights are a pytorch_model.bin.
    dtype: "float32", "float16" or "bfloat16"; None keeps each tensor's own.
    shard_size: the most bytes in one file, in MB (10**6); None writes one file. A larger tensor has a file of its own.

    Raises what loading the checkpoint raises, and InputError where `output` holds something, for an unknown dtype or
    shard size, and where a number that is finite would become infinite.
    """
    path = checkpoint_path(source)
    folder = path.parent if path.is_file() else path
    config = read_json(folder / CONFIG_NAME)
    tensors = _weights(path)
    with folder_written_whole(output) as temporary:
        copy_files(folder, temporary, OTHER_FILES)
        return write_checkpoint(temporary, config, tensors, dtype, shard_size)


def _weights(path: Path) -> dict[str, Raw]:
    """The weights of a checkpoint, without the buffers that no layer takes."""
    has_safetensors = path.is_file() or any((path / n).exists() for n in (WEIGHTS_NAME, INDEX_NAME))
    if not has_safetensors and (path / PYTORCH_NAME).is_file():
        found = read_archive(path / PYTORCH_NAME)
    else:
        found = stored_tensors(path)
    tensors = {}
    for name, tensor in found.items():
        if not name.endswith(IGNORED_ENDINGS):
            _require_floats(name, tensor.stored_type)
            tensors[name] = tensor if isinstance(tensor, Raw) else tensor.mapped()
    return tensors


def _require_floats(name: str, stored_type: str) -> None:
    if stored_type not in STORED_TYPES:
        raise InputError(
            f"{name} is stored as {stored_type}; expected one of {', '.join(STORED_TYPES)}."
        )


def copy_files(source: Path, folder: Path, names: tuple[str, ...]) -> None:
    """Copy those of these files that are there."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def write_checkpoint(
    folder: Path,
    config: dict,
    tensors: dict[str, Raw],
    dtype: str | None = None,
    shard_size: float | None = None,
) -> Written:
    """Write config.json and the weights into a folder; for the arguments see `convert`."""
    if dtype is not None and dtype not in STORED_AS:
        raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(STORED_AS)}")
    if shard_size is not None and not shard_size > 0:
        raise InputError(f"the shard size is {shard_size} MB; expected more than 0")
    types = {}
    for name, raw in tensors.items():
        _require_floats(name, raw.stored_type)
        types[name] = STORED_AS[dtype] if dtype else raw.stored_type
    sizes = {name: raw.array.size * ITEM_SIZES[types[name]] for name, raw in tensors.items()}
    shards = _shards(sizes, math.inf if shard_size is None else shard_size * 10**6)
    files = [WEIGHTS_NAME]
    if len(shards) > 1:
        count = len(shards)
        files = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
        place = {name: file for file, names in zip(files, shards) for name in names}
        total = sum(sizes.values())
        write_json(folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": place})
    for file, names in zip(files, shards):
        _write_file(folder / file, {name: (tensors[name], types[name]) for name in names})
    write_json(folder / CONFIG_NAME, _of_type(config, dtype) if dtype else config)
    return Written(len(tensors), sum(sizes.values()), tuple(files))


def _shards(sizes: dict[str, int], most: float) -> list[list[str]]:
    """Names in their order, shared out to files of at most so many bytes."""
    shards, room = [[]], most
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = most
        shards[-1].append(name)
        room -= size
    return shards


def _of_type(config: dict, dtype: str) -> dict:
    """A config that says how its weights are stored, wherever it did; transformers 4 calls the field torch_dtype."""
    changed = dict(config)
    for name in ("text_config", "vision_config"):
        part = config.get(name)
        if isinstance(part, dict):
            changed[name] = part | {key: dtype for key in ("dtype", "torch_dtype") if part.get(key)}
    if "torch_dtype" in config:
        changed["torch_dtype"] = dtype
    return changed | {"dtype": dtype}


def _write_file(path: Path, tensors: dict[str, tuple[Raw, str]]) -> None:
    """One safetensors file of tensors, each in the type that is named beside it.

    The library's own writer wants all arrays at once, in memory and in types that NumPy has. Wide types come first,
    as there, so that every number lies at a multiple of its size.
    """
    order = sorted(tensors, key=lambda name: (-ITEM_SIZES[tensors[name][1]], name))
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name in order:
        raw, stored_type = tensors[name]
        start, end = end, end + raw.array.size * ITEM_SIZES[stored_type]
        shape = list(raw.array.shape)
        header[name] = {"dtype": stored_type, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            raw, stored_type = tensors[name]
            for block in _blocks(raw):
                file.write(stored_as(block, stored_type, name).data)
            give_back([raw.array])


def _blocks(raw: Raw) -> Iterator[Raw]:
    """The numbers in order, a block at a time."""
    flat = np.ascontiguousarray(raw.array).reshape(-1)
    for start in range(0, flat.size, BLOCK):
        yield Raw(flat[start : start + BLOCK], raw.stored_type)


def stored_as(raw: Raw, stored_type: str, name: str = "a tensor") -> np.ndarray:
    """Numbers in another stored type (bfloat16 as uint16), rounded to the nearest, ties to even.

    Raises InputError, with the tensor's name, where a finite number would become infinite.
    """
    if raw.stored_type == stored_type:
        return raw.array
    floats = raw.floats()
    with np.errstate(over="ignore"):
        if stored_type == "BF16":
            stored = _upper_halves(floats.astype(np.float32))
            infinite = (stored & 0x7FFF) == 0x7F80
        else:
            stored = floats.astype(STORED_TYPES[stored_type])
            infinite = np.isinf(stored)
    lost = infinite & np.isfinite(floats)
    if lost.any():
        kind = next(kind for kind, short in STORED_AS.items() if short == stored_type)
        raise InputError(
            f"{name} holds {floats[lost][0]:.6g}, which is too large for {kind}. "
            f"Store the checkpoint as {'float32' if kind == 'bfloat16' else 'bfloat16 or float32'}."
        )
    return stored


def _upper_halves(floats: np.ndarray) -> np.ndarray:
    """float32 to bfloat16, as uint16. What is not a number stays so: a quiet one, of the same sign."""
    bits = floats.view(np.uint32)
    odd = (bits >> 16) & 1
    rounded = (bits + (0x7FFF + odd)) >> 16
    quiet = (bits >> 16) | 0x40
    return np.where(np.isnan(floats), quiet, rounded).astype(np.uint16)
