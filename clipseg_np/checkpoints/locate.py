"""Find a checkpoint by path or hub id, and read its JSON."""

import json
import os
from pathlib import Path
from typing import Any

from ..errors import InputError, MissingExtra
from .hub import WHOLE, from_hub, is_hub_id

MAX_JSON_DEPTH = 50  # nested lists and objects; a checkpoint's files have 6
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"


def demo_folder() -> Path:
    """The demonstration checkpoint: beside the installed package, or in a checkout's weights/."""
    package = Path(__file__).resolve().parents[1]
    folders = (package / "demo", package.parent / "weights" / "demo")
    for folder in folders:
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(
        f"The demonstration checkpoint is missing: expected it in {folders[0]} or, in a checkout, "
        f"in {folders[1]}. Install the package again, or name a checkpoint's folder."
    )


def checkpoint_folder(folder_or_hub_id: str | os.PathLike, **options: Any) -> Path:
    """The folder of a checkpoint's files; for arguments and errors see `checkpoint_path`."""
    path = checkpoint_path(folder_or_hub_id, **options)
    return path.parent if path.is_file() else path


def checkpoint_path(
    folder_or_hub_id: str | os.PathLike,
    *,
    needed: tuple = WHOLE,
    suffixes: tuple[str, ...] = (".safetensors",),
    local_files_only: bool = False,
    subfolder: str | None = None,
    force_download: bool = False,
    cache_dir: str | os.PathLike | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Path:
    """The path of a checkpoint: a folder, or one file of these suffixes beside its config.json.

    An existing path is returned as it is; of a folder, the `subfolder` in it. Any other name
    "owner/name" is a checkpoint of the Hugging Face hub. Its folder comes from the hub's cache if
    all `needed` files are there; if not, it is fetched, unless `local_files_only`. cache_dir,
    revision, token and force_download are huggingface_hub's.

    Raises FileNotFoundError if the name is neither; MissingExtra without huggingface_hub;
    InputError if the name is empty, the path is another file, or the hub does not give the
    checkpoint.
    """
    is_path = isinstance(folder_or_hub_id, os.PathLike)
    name = os.fspath(folder_or_hub_id) if is_path else folder_or_hub_id
    if not isinstance(name, str) or not name:
        raise InputError(
            f"The checkpoint's name is {'empty' if name == '' else name}; expected its folder's "
            f"path (. is the current folder) or a hub id."
        )
    path, subfolder = Path(name), (subfolder or "").strip("/")
    if path.is_dir():
        if not (path / subfolder).is_dir():
            raise FileNotFoundError(f"There is no folder {subfolder} in {path}.")
        return path / subfolder
    if path.is_file() and name.endswith(suffixes):
        config = path.parent / "config.json"
        if not config.is_file():
            raise FileNotFoundError(
                f"{config} is missing: beside the one file {path.name} are expected config.json "
                f"and, for prompts and images, the tokenizer's files and preprocessor_config.json. "
                f"{_neighbors(path)}"
            )
        return path
    if path.exists():
        unfinished = " It is an unfinished download: fetch it again." * name.endswith(".incomplete")
        raise InputError(
            f"{name} is a file; expected a checkpoint's folder, with config.json and "
            f"model.safetensors in it, or one .safetensors file beside its config.json.{unfinished}"
        )
    if not is_hub_id(name):
        raise FileNotFoundError(
            f"There is no folder {name}. Expected a folder with config.json and model.safetensors, "
            f"or a hub id such as CIDAS/clipseg-rd64-refined."
        )
    try:
        options = {"cache_dir": cache_dir, "revision": revision, "token": token}
        return from_hub(name, local_files_only, needed, subfolder, force_download, **options)
    except (InputError, MissingExtra) as error:
        raise type(error)(f"There is no folder {name}; as a hub id: {error}") from error


def read_json(path: Path) -> dict:
    """Read a JSON object. Raises FileNotFoundError, or InputError if the file is not one."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. {_neighbors(path)}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if _depth(value) > MAX_JSON_DEPTH:
            raise RecursionError(f"more than {MAX_JSON_DEPTH} lists and objects within each other")
    except (ValueError, RecursionError) as error:  # ValueError also for a number of 5,000 digits
        raise InputError(f"{path} is not valid JSON ({error}). {what_to_do(path)}") from error
    if not isinstance(value, dict):
        raise InputError(
            f"{path} holds a JSON {type(value).__name__}; expected an object, {{...}}."
        )
    return value


def _depth(value: Any) -> int:
    """How many lists and objects lie within each other."""
    if not isinstance(value, (dict, list)):
        return 0
    children = value.values() if isinstance(value, dict) else value
    return 1 + max((_depth(c) for c in children if isinstance(c, (dict, list))), default=0)


def what_to_do(path: Path) -> str:
    """Advice on a file that cannot be read."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            return (
                "It is a git-LFS pointer, a few lines that stand for the file: fetch the file "
                "itself, with git lfs pull or clipseg-np download."
            )
    return "It may be cut off: fetch it again."


def unfinished_download(folder: Path) -> str:
    """A sentence if huggingface_hub's download into `folder` was broken off, or ""."""
    places = [folder, folder / ".cache" / "huggingface" / "download"]
    if folder.parent.name == "snapshots":  # the hub's cache keeps the bytes two folders up
        places.append(folder.parent.parent / "blobs")
    for part in (part for place in places for part in sorted(place.glob("*.incomplete"))):
        return (
            f" A download was broken off ({part}): fetch it again, which goes on where it stopped."
        )
    return ""


def _neighbors(path: Path) -> str:
    """A sentence on the files beside a missing file."""
    if not path.parent.is_dir():
        return f"There is no folder {path.parent} either."
    names = sorted(p.name for p in path.parent.iterdir())
    more = ", ..." if len(names) > 12 else ""
    return f"{path.parent} holds: {', '.join(names[:12]) or 'nothing'}{more}."
