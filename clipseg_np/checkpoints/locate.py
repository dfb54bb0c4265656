"""Where a checkpoint lies: its folder from a path or a hub id, and its JSON."""

import json
import os
from pathlib import Path
from typing import Any

from ..errors import InputError, MissingExtra
from .hub import WHOLE, from_hub, is_hub_id

DEEPEST = 50  # lists and objects within each other in a JSON file; a checkpoint's have 6
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"


def demo_folder() -> Path:
    """The demonstration checkpoint: beside the installed package, or in a checkout's weights/."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "demo", here.parent / "weights" / "demo"):
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(
        f"The demonstration checkpoint is missing: expected it in {here / 'demo'} or, in a checkout, in "
        f"{here.parent / 'weights' / 'demo'}. Install the package again, or name a checkpoint's folder."
    )


def checkpoint_path(folder_or_hub_id: str | os.PathLike, **from_hub: Any) -> Path:
    """What holds a checkpoint's weights: one .safetensors file as it is, or else the checkpoint's folder.

    Takes the keywords of `checkpoint_folder`, and raises what it raises.
    """
    folder = checkpoint_folder(folder_or_hub_id, **from_hub)
    return Path(folder_or_hub_id) if _is_weights_file(folder_or_hub_id) else folder


def _is_weights_file(path: str | os.PathLike) -> bool:
    return os.fspath(path).endswith(".safetensors") and Path(path).is_file()


def checkpoint_folder(
    folder_or_hub_id: str | os.PathLike, *, local_files_only: bool = False, needed: tuple = WHOLE
) -> Path:
    """A folder as it is; anything else of the form "owner/name" is a checkpoint of the Hugging Face hub.

    That comes from the hub's cache where all that is `needed` lies there, and is fetched only where it does not, with
    `local_files_only` never (see checkpoints/hub.py).

    For one .safetensors file, it is the folder around it, where config.json and the other files lie.

    Raises FileNotFoundError where the name is neither, MissingExtra where the hub is asked for and
    huggingface_hub is not installed, and InputError where the name is empty, the hub cannot be reached or refuses, or
    the cache lacks something and the network is not to be used.
    """
    name = os.fspath(folder_or_hub_id)
    if not name:
        raise InputError(
            "The checkpoint's name is empty; expected its folder's path (. is the current folder) or a hub id."
        )
    folder = Path(name)
    if folder.is_dir():
        return folder
    if _is_weights_file(folder):
        if not (folder.parent / "config.json").is_file():
            raise FileNotFoundError(
                f"{folder.parent / 'config.json'} is missing: beside the one file {folder.name} are expected "
                f"config.json and, for prompts and images, the tokenizer's files and preprocessor_config.json. "
                f"{_neighbours(folder)}"
            )
        return folder.parent
    if folder.exists():
        unfinished = " It is an unfinished download: fetch it again." * name.endswith(".incomplete")
        raise InputError(
            f"{name} is a file; expected a checkpoint's folder, with config.json and model.safetensors in it, "
            f"or one .safetensors file beside its config.json.{unfinished}"
        )
    if not is_hub_id(name):
        raise FileNotFoundError(
            f"There is no folder {name}. Expected a folder with config.json and model.safetensors, "
            f"or a hub id such as CIDAS/clipseg-rd64-refined."
        )
    try:
        return from_hub(name, local_files_only, needed)
    except (InputError, MissingExtra) as error:
        raise type(error)(f"There is no folder {name}; as a hub id: {error}") from error


def read_json(path: Path) -> dict:
    """A JSON object from a file. Raises FileNotFoundError, or InputError where it is not a JSON object."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. {_neighbours(path)}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if _deeper_than(DEEPEST, value):
            raise RecursionError(f"more than {DEEPEST} lists and objects within each other")
    except (ValueError, RecursionError) as error:  # ValueError also for a number of 5,000 digits
        raise InputError(f"{path} is not valid JSON ({error}). {what_to_do(path)}") from error
    if not isinstance(value, dict):
        raise InputError(
            f"{path} holds a JSON {type(value).__name__}; expected an object, {{...}}."
        )
    return value


def _deeper_than(levels: int, value: Any) -> bool:
    """Whether lists and objects lie deeper within each other: Python's recursion is limited, a file is not."""
    inside = [value]
    for _ in range(levels):
        lists = [one.values() if isinstance(one, dict) else one for one in inside if _nests(one)]
        inside = [child for children in lists for child in children]
    return any(map(_nests, inside))


def _nests(value: Any) -> bool:
    return isinstance(value, (dict, list))


def what_to_do(path: Path) -> str:
    """Advice on a file that cannot be read as what it should be."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            return (
                "It is a git-LFS pointer, a few lines that stand for the file: fetch the file itself, with "
                "git lfs pull or clipseg-np download."
            )
    return "It may be cut off: fetch it again."


def unfinished_download(folder: Path) -> str:
    """Where a download into `folder` by huggingface_hub was broken off, a sentence that says so; else nothing."""
    places = [folder, folder / ".cache" / "huggingface" / "download"]
    if folder.parent.name == "snapshots":  # the hub's cache keeps the bytes two folders up
        places.append(folder.parent.parent / "blobs")
    parts = [part for place in places for part in sorted(place.glob("*.incomplete"))]
    if not parts:
        return ""
    return (
        f" A download was broken off ({parts[0]}): fetch it again, which goes on where it stopped."
    )


def _neighbours(path: Path) -> str:
    """What is there instead of the missing file."""
    if not path.parent.is_dir():
        return f"There is no folder {path.parent} either."
    names = sorted(p.name for p in path.parent.iterdir())
    return f"{path.parent} holds: {', '.join(names[:12]) or 'nothing'}{', ...' if len(names) > 12 else ''}."
