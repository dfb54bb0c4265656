"""Files and folders that are written whole or not at all."""

import errno
import filecmp
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError

# File names may hold bytes that are not UTF-8. This error handler writes them as JSON does: \udcff.
NOT_UTF8 = "backslashreplace"
PART = ".part-"  # the start of temporary folders' names


def write_json(path: Path, value: dict) -> None:
    """Write an object as indented JSON with sorted keys, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False))


def write_text(path: Path, text: str) -> None:
    """Write lines of text, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(f"{text}\n", "utf-8", errors=NOT_UTF8)


@contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a path in a temporary folder; move the file from there to `path` on success only."""
    path = Path(path)
    _require_file(path)
    with written_together(path.parent) as part, _named_in_errors(path, part / path.name):
        yield part / path.name


@contextmanager
def folder_written_whole(folder: str | os.PathLike) -> Iterator[Path]:
    """Yield a folder in a temporary one; move it from there to `folder` on success only.

    Raises InputError if `folder` is a file or not empty.
    """
    folder = Path(folder).resolve()
    require_new_folder(folder)
    with written_together(folder.parent) as part:
        temporary = part / folder.name
        temporary.mkdir()
        with _named_in_errors(folder, temporary):
            yield temporary
        if folder.exists():
            folder.rmdir()


@contextmanager
def folder_replaced(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; put it in the place of `folder` on success only."""
    part = _part_of(folder)
    remove_part(folder)
    try:
        with _named_in_errors(folder, part):
            part.mkdir(parents=True)
            yield part
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(part, folder)
    finally:
        remove_part(folder)


def remove_part(folder: Path) -> None:
    """Remove what a killed process left that was to replace `folder`."""
    shutil.rmtree(_part_of(folder), ignore_errors=True)


def _part_of(folder: Path) -> Path:
    return folder.with_name(f".{digest(folder.name)}.part")  # the name may be as long as can be


def digest(text: str) -> str:
    """The first 11 hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:11]


@contextmanager
def written_together(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder inside `folder`; move its files there on success only.

    On failure nothing is left, nor the folders that were made for it.
    """
    new_folders = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _new_part(folder) as part, _named_in_errors(folder, Path(part)):
            yield Path(part)
            files = sorted(Path(part).iterdir())
            for file in files:
                _require_file(folder / file.name)
            for file in files:
                os.replace(file, folder / file.name)
    except BaseException:
        for place in new_folders:  # the innermost first
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()
        raise


def _new_part(folder: Path) -> tempfile.TemporaryDirectory:
    try:
        return tempfile.TemporaryDirectory(prefix=PART, dir=folder)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


def remove_parts(folder: Path, min_age: float = 0) -> None:
    """Remove what a killed process left that was to be moved into `folder`.

    min_age: seconds; younger ones may be those of a process that is alive.
    """
    for part in folder.glob(f"{PART}*"):
        with suppress(FileNotFoundError):  # its process has just removed it
            if time.time() - part.stat().st_mtime >= min_age:
                shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _named_in_errors(path: Path, temporary: Path) -> Iterator[None]:
    """Errors of the disk name `path` instead of `temporary`, or of nothing."""
    try:
        yield
    except OSError as error:
        name, start = str(error.filename or temporary), str(temporary)
        if not name.startswith(start):
            raise
        number, text = error.errno or errno.EIO, error.strerror or str(error)
        raise OSError(number, text, name.replace(start, str(path), 1)) from error


def require_new_folder(folder: Path) -> None:
    """Raise InputError for a file, or a folder that is not empty."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} is there already; expected the name of a new or empty folder.")


def is_other_file(new: Path, old: Path) -> bool:
    """Whether there is a file `old` whose content differs from that of `new`.

    Raises InputError if `old` is a folder or a device.
    """
    _require_file(old)
    return old.exists() and not filecmp.cmp(new, old, shallow=False)


def _require_file(path: Path) -> None:
    """Raise InputError for a folder, or for a device, which a file would replace."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file and cannot be written; expected a file's name")
