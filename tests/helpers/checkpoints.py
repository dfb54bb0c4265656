"""Checkpoints to test with: the small committed ones, and files written byte by byte."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

PLAIN = Path(__file__).parents[1] / "data" / "plain"
REFINED = Path(__file__).parents[1] / "data" / "refined"

STORED_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64"}


def stored_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint of one file."""
    return load_file(folder / "model.safetensors")


def write_file(path: Path, arrays: dict, stored_types: dict | None = None) -> None:
    """A safetensors file by the format's own description: header length, header, bytes.

    `stored_types` states the type of arrays that NumPy has no type for: "BF16" for uint16 halves.
    """
    header, data = {}, b""
    for name, array in arrays.items():
        stored_type = (stored_types or {}).get(name) or STORED_NAMES[array.dtype.name]
        start = len(data)
        data += np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": stored_type,
            "shape": list(array.shape),
            "data_offsets": [start, len(data)],
        }
    write_raw(path, json.dumps(header).encode(), data)


def write_raw(path: Path, header: bytes, data: bytes, length: int | None = None) -> None:
    """A safetensors file whose header may lie."""
    length = len(header) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + header + data)


def checkpoint(folder: Path, arrays: dict, like: Path = PLAIN) -> Path:
    """A folder with the config of `like` and these arrays in one file."""
    folder.mkdir(exist_ok=True)
    shutil.copy(like / "config.json", folder)
    write_file(folder / "model.safetensors", arrays)
    return folder


def clip_checkpoint(folder: Path, like: Path = PLAIN, **changes: Any) -> Path:
    """A checkpoint of CLIP itself: the towers and projections of `like`, with CLIP's names."""
    folder.mkdir(exist_ok=True)
    whole = json.loads((like / "config.json").read_text())
    towers = {f"{name}_config": whole[f"{name}_config"] for name in ("text", "vision")}
    for name, tower in towers.items():
        tower["model_type"] = f"clip_{name.removesuffix('_config')}_model"
    config = {"model_type": "clip", "projection_dim": whole["projection_dim"], **towers, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    arrays = stored_arrays(like).items()
    start = "clip."
    kept = {name.removeprefix(start): a for name, a in arrays if name.startswith(start)}
    write_file(folder / "model.safetensors", kept)
    return folder


def sharded(folder: Path, arrays: dict, shards: int = 3) -> Path:
    """The same in several files with an index."""
    folder.mkdir(exist_ok=True)
    shutil.copy(PLAIN / "config.json", folder)
    place = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: arrays[name] for name in list(arrays)[i::shards]}
        write_file(folder / file, part)
        place |= dict.fromkeys(part, file)
    write_index(folder, place)
    return folder


def write_index(folder: Path, weight_map) -> None:
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
