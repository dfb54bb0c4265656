"""Convert a checkpoint to another float type, to one file or to shards, from PyTorch's files too.

What is written can be loaded: tensors that no model has a place for are refused. They are mapped
and written in blocks, so that a checkpoint of any size needs little memory. The output is
safetensors, with the hub's index for shards; transformers loads it too.
"""

import math
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..atomic_files import folder_written_whole, write_json
from ..checkpoints.hub import WORDS_NAME
from ..checkpoints.locate import checkpoint_path, read_json
from ..checkpoints.weights import (
    IGNORED_ENDINGS,
    INDEX_NAME,
    STORED_TYPES,
    WEIGHTS_NAME,
    Raw,
    give_back,
    require_float,
    stored_tensors,
    write_tensors,
)
from ..errors import InputError
from ..model.clip import CLIPSegModel, CLIPSegTextModel, CLIPSegVisionModel
from ..model.clipseg import CLIPSegForImageSegmentation
from ..model.config import CONFIG_NAME, with_dtype
from ..nn.ops import Ops
from .torch_archive import read_archive

STORED_AS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
OTHER_FILES = (
    *("preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"),
    *("tokenizer_config.json", "special_tokens_map.json", WORDS_NAME),
)
PYTORCH_NAME = "pytorch_model.bin"  # transformers' weights before safetensors, under the same names
PYTORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
# torch.compile, FSDP and others put these into the names of inner modules; a landmark tells what
# they put before all names.
WRAPPERS = re.compile(r"(?<=\.)(_orig_mod|module|_(fsdp|checkpoint)_wrapped_module)\.")
LANDMARKS = ("clip.text_projection.weight", "text_projection.weight")  # of CLIPSeg, and of CLIP
MODELS = (CLIPSegForImageSegmentation, CLIPSegModel, CLIPSegTextModel, CLIPSegVisionModel)
BLOCK_SIZE = 2**20  # numbers converted at a time


@dataclass(frozen=True)
class Written:
    """The number of tensors written, their size in bytes, and the names of the files."""

    tensors: int
    size: int
    files: tuple[str, ...]


def convert(
    source: str | os.PathLike,
    output: str | os.PathLike,
    dtype: str | None = None,
    shard_size: float | None = None,
) -> Written:
    """Write a checkpoint with its config, tokenizer and processor files to the folder `output`.

    source: a folder, one .safetensors file, a hub id, a folder with a pytorch_model.bin, or a file
    of PyTorch with config.json beside it, such as {"model_state_dict": model.state_dict(), ...}.
    output: a new or empty folder; it is written whole or not at all.
    dtype: "float32", "float16" or "bfloat16"; None keeps each tensor's own type.
    shard_size: the size limit of a file in MB (10**6 bytes); None writes one file. A larger tensor
    has a file of its own.

    Raises the errors of loading the checkpoint, and InputError if `output` is not empty, for an
    unknown dtype or shard size, where a finite number would become infinite, and for tensors that
    no model has a place for.
    """
    path = checkpoint_path(source, suffixes=(".safetensors", *PYTORCH_SUFFIXES))
    folder = path.parent if path.is_file() else path
    config = read_json(folder / CONFIG_NAME)
    if not any((path / name).exists() for name in (WEIGHTS_NAME, INDEX_NAME)):
        path = path / PYTORCH_NAME if (path / PYTORCH_NAME).is_file() else path
    is_pytorch = path.name.endswith(PYTORCH_SUFFIXES) and path.is_file()
    tensors = unwrapped(read_archive(path) if is_pytorch else stored_tensors(path), LANDMARKS)
    kept = {name: raw for name, raw in tensors.items() if not name.endswith(IGNORED_ENDINGS)}
    require_place(path, config, kept)
    with folder_written_whole(output) as temporary:
        for file in (folder / name for name in OTHER_FILES):
            if file.is_file():
                shutil.copyfile(file, temporary / file.name)
        return write_checkpoint(temporary, config, kept, dtype, shard_size)


def has_transformers_names(path: str | os.PathLike) -> bool:
    """Whether a file of PyTorch holds transformers' model; if not, it may be the authors'."""
    return any(f".{name}".endswith(f".{LANDMARKS[1]}") for name in read_archive(path))


def unwrapped(tensors: dict[str, Raw], landmarks: Iterable[str]) -> dict[str, Raw]:
    """The tensors without what wrappers put before and into their names; others are left out.

    One of the `landmarks` is a name in each model. Warns of what is left out. Raises InputError if
    there are several models.
    """
    names = {name: WRAPPERS.sub("", name) for name in tensors}
    for landmark in landmarks:
        ends = [name for name in names.values() if f".{name}".endswith(f".{landmark}")]
        if len(ends) > 1:
            raise InputError(
                f"there are {len(ends)} models in one file, with {' and '.join(sorted(ends))}: "
                f"save the one that is wanted alone"
            )
        if ends:
            start = ends[0].removesuffix(landmark)
            others = [name for name, plain in names.items() if not plain.startswith(start)]
            if others:
                more = ", ..." if others[3:] else ""
                warnings.warn(
                    f"left out, as no part of the model {start}*: {', '.join(others[:3])}{more}",
                    stacklevel=3,
                )
            own = {name: plain for name, plain in names.items() if plain.startswith(start)}
            return {plain.removeprefix(start): tensors[name] for name, plain in own.items()}
    return tensors


def write_checkpoint(
    folder: Path, config: dict, tensors: dict[str, Raw], dtype: str | None, shard_size: float | None
) -> Written:
    """Write config.json and the weights to a folder; for the arguments see `convert`."""
    if dtype is not None and dtype not in STORED_AS:
        raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(STORED_AS)}")
    if shard_size is not None and not shard_size > 0:
        raise InputError(f"the shard size is {shard_size} MB; expected more than 0")
    parts, sizes = {}, {}
    for name, raw in tensors.items():
        require_float(name, raw.stored_type)
        stored_type = STORED_AS[dtype] if dtype else raw.stored_type
        sizes[name] = raw.array.size * STORED_TYPES[stored_type].itemsize
        parts[name] = stored_type, raw.array.shape, _blocks(raw, stored_type, name)
    total = sum(sizes.values())
    shards = _shards(sizes, (shard_size or math.inf) * 10**6)
    count, files = len(shards), [WEIGHTS_NAME]
    if count > 1:
        files = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
        file_of = {name: file for file, names in zip(files, shards) for name in names}
        write_json(folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": file_of})
    for file, names in zip(files, shards):
        write_tensors(folder / file, {name: parts[name] for name in names}, {"format": "pt"})
    config = with_dtype(config | {"dtype": dtype}, dtype) if dtype else config
    write_json(folder / CONFIG_NAME, config)
    return Written(len(tensors), total, tuple(files))


def require_place(source: str | os.PathLike, config: dict, tensors: dict[str, Raw]) -> None:
    """Raise InputError unless a model takes all tensors; it gets zeros, which need no memory."""
    zeros = {
        n: Raw(np.broadcast_to(np.float32(0), t.array.shape), "F32") for n, t in tensors.items()
    }
    starts = ((model, prefix + model.landmark) for model in MODELS for prefix in model.prefixes)
    model = next((model for model, landmark in starts if landmark in tensors), MODELS[0])
    values = model.config_class.from_dict(config)
    model.from_tensors(source, zeros, values, Ops(), np.dtype(np.float32))


def _shards(sizes: dict[str, int], max_bytes: float) -> list[list[str]]:
    """The names in order, divided into shards of at most `max_bytes` or of one tensor."""
    shards, left = [[]], max_bytes
    for name, size in sizes.items():
        if size > left and shards[-1]:
            shards.append([])
            left = max_bytes
        shards[-1].append(name)
        left -= size
    return shards


def _blocks(raw: Raw, stored_type: str, name: str) -> Iterator[np.ndarray]:
    """The numbers of a tensor in order, BLOCK_SIZE at a time, in another stored type."""
    flat = np.ascontiguousarray(raw.array).reshape(-1)
    for start in range(0, flat.size, BLOCK_SIZE):
        yield stored_as(Raw(flat[start : start + BLOCK_SIZE], raw.stored_type), stored_type, name)
    give_back([raw.array])


def stored_as(raw: Raw, stored_type: str, name: str = "a tensor") -> np.ndarray:
    """Round to nearest, ties to even. Raises InputError where a number would become infinite."""
    if raw.stored_type == stored_type:
        return raw.array
    floats = raw.floats()
    with np.errstate(over="ignore"):
        # As in PyTorch, float64 is rounded to float32 first.
        is_half = stored_type == "BF16"
        stored = floats.astype(np.float32 if is_half else STORED_TYPES[stored_type])
        stored = _bfloat16(stored) if is_half else stored
    lost = np.isinf(Raw(stored, stored_type).floats()) & np.isfinite(floats)
    if lost.any():
        dtype = next(dtype for dtype, short in STORED_AS.items() if short == stored_type)
        number = f"{floats[lost][0]:.6g}"
        raise InputError(f"{name} holds {number}, which is too large for {dtype}; choose another")
    return stored


def _bfloat16(floats: np.ndarray) -> np.ndarray:
    """Upper halves of float32, rounded as in PyTorch. A NaN becomes the quiet NaN of its sign."""
    bits = floats.view(np.uint32)
    odd = (bits >> 16) & 1
    rounded = (bits + (0x7FFF + odd)) >> 16
    quiet = (bits >> 16) | 0x40
    return np.where(np.isnan(floats), quiet, rounded).astype(np.uint16)
