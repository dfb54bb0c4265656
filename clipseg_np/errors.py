"""What a caller can mend: one exception for unusable input, one for an optional library that is missing."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType


class InputError(ValueError):
    """An image, prompt, option, config or checkpoint that cannot be used.

    The message says what was wrong, what was expected and what to do. The command line prints it
    without a traceback and exits with code 2, as it does for OSError and MissingExtra.
    """


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Put the file or folder at fault before an InputError's message, unless the message has it already."""
    try:
        yield
    except InputError as error:
        if re.search(rf"(^|\s){re.escape(os.fspath(path))}([\s/\\]|$)", str(error)):
            raise
        raise InputError(f"{os.fspath(path)}: {error}") from error


class MissingExtra(ImportError):
    """An optional library is not installed; the message holds the pip line that adds it."""


def optional(module: str, extra: str) -> ModuleType:
    """Import `module`, a package on PyPI which this package's extra `extra` installs.

    Raises MissingExtra with the pip line where it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"{module} is needed here and is not installed ({error}). "
            f"Add it with: pip install {module} (it belongs to the extra {extra!r} of clipseg_np)."
        ) from error
