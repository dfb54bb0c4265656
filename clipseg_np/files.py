"""Files in and out: a checkpoint's folder from a path or a hub id, JSON, and writing nothing half."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError, MissingExtra, optional

# What a checkpoint's folder may hold that this package reads; weights of other frameworks stay on the hub.
CHECKPOINT_FILES = ["*.json", "*.txt", "*.safetensors"]
NOT_UTF8 = "backslashreplace"  # file names may hold bytes that are no UTF-8; \\udcff is how JSON writes one
DEEPEST = 50  # lists and objects within each other in a JSON file; a checkpoint's have 6


def demo_folder() -> Path:
    """The demonstration checkpoint: beside the installed package, or in a checkout's weights/."""
    here = Path(__file__).resolve().parent
    for folder in (here / "demo", here.parent / "weights" / "demo"):
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(
        f"The demonstration checkpoint is missing: expected it in {here / 'demo'} or, in a checkout, in "
        f"{here.parent / 'weights' / 'demo'}. Install the package again, or name a checkpoint's folder."
    )


def checkpoint_folder(folder_or_hub_id: str | os.PathLike) -> Path:
    """A folder as it is; anything of the form "owner/name" is fetched from the Hugging Face hub.

    Raises FileNotFoundError where the name is neither, MissingExtra where the hub is asked for and
    huggingface_hub is not installed, and InputError where the hub cannot be reached or refuses.
    """
    folder = Path(folder_or_hub_id)
    if folder.is_dir():
        return folder
    name = os.fspath(folder_or_hub_id)
    if folder.exists():
        raise InputError(
            f"{name} is a file; expected a checkpoint's folder, with config.json and model.safetensors in it."
        )
    if not _is_hub_id(name):
        raise FileNotFoundError(
            f"There is no folder {name}. Expected a folder with config.json and model.safetensors, "
            f"or a hub id such as CIDAS/clipseg-rd64-refined."
        )
    try:
        return download(name)
    except (InputError, MissingExtra) as error:
        raise type(error)(f"There is no folder {name}; as a hub id: {error}") from error


def download(hub_id: str, folder: str | os.PathLike | None = None) -> Path:
    """Fetch a checkpoint from the Hugging Face hub, into its cache or into `folder`; shows progress.

    Raises MissingExtra without huggingface_hub, and InputError where the hub cannot be reached, has no
    such checkpoint, or holds it without safetensors weights.
    """
    if not _is_hub_id(hub_id):
        raise InputError(
            f"{hub_id!r} is not a hub id: expected owner/name, such as CIDAS/clipseg-rd64-refined."
        )
    hub = optional("huggingface_hub", extra="hub")
    try:
        found = Path(
            hub.snapshot_download(hub_id, allow_patterns=CHECKPOINT_FILES, local_dir=folder)
        )
    except Exception as error:
        # The library raises its own errors, the network's and the system's alike.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"Could not fetch {hub_id} from the Hugging Face hub: {reason.rstrip('.')}. Check the name and "
            f"the network, or give the path of a checkpoint's folder."
        ) from error
    if not any(found.glob("*.safetensors")):
        raise InputError(
            f"{hub_id} holds no safetensors weights. Ask for a revision that does, or convert it with "
            f"transformers: CLIPSegForImageSegmentation.from_pretrained({hub_id!r}).save_pretrained(FOLDER)."
        )
    return found


def _is_hub_id(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~")) and "\\" not in name


def read_json(path: Path) -> dict:
    """A JSON object from a file. Raises FileNotFoundError, or InputError where it is not a JSON object."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. {_neighbours(path)}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if _deeper_than(DEEPEST, value):
            raise RecursionError(f"more than {DEEPEST} lists and objects within each other")
    except (ValueError, RecursionError) as error:  # ValueError also for a number of 5,000 digits
        raise InputError(
            f"{path} is not valid JSON ({error}). It may be cut off: fetch it again."
        ) from error
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
