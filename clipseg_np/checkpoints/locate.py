"""Files in and out: a checkpoint's folder from a path or a hub id, JSON, and writing nothing half."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError, MissingExtra
from .hub import WHOLE, from_hub, is_hub_id

NOT_UTF8 = "backslashreplace"  # file names may hold bytes that are no UTF-8; \\udcff is how JSON writes one
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
                f"config.json and, for prompts and pictures, the tokenizer's files and preprocessor_config.json. "
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


def write_json(path: Path, value: dict) -> None:
    """Write an object as indented JSON with sorted keys, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n",
            "utf-8",
            errors=NOT_UTF8,
        )


@contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure."""
    path = Path(path)
    if path.exists() and not path.is_file():  # a device would be replaced by a file
        raise InputError(f"{path} is no file and cannot be written; expected a file's name")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".part-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(folder: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; rename it to `folder` on success, remove it on failure.

    Raises InputError where `folder` is a file, or a folder that holds something.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} is there already; expected the name of a new or empty folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def written_together(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder inside `folder`; move its files to `folder` on success, remove them on failure."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as part:
            yield Path(part)
            files = sorted(Path(part).iterdir())
            for target in (folder / file.name for file in files):
                if target.exists() and not target.is_file():
                    raise InputError(f"{target} is no file and cannot be written")
            for file in files:
                os.replace(file, folder / file.name)
    except BaseException:
        for place in made:  # the innermost first
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
