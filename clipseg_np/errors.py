"""The errors that a caller can fix: unusable input, a missing library; text that can be shown."""

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
    """Put the path before an InputError's message, unless the message names it already."""
    try:
        yield
    except InputError as error:
        if re.search(rf"(^|\s){re.escape(os.fspath(path))}([\s/\\]|$)", str(error)):
            raise
        raise InputError(f"{os.fspath(path)}: {error}") from error


def printable(text: str) -> str:
    """The text with line feeds, escape codes and the like as Python writes them: "\\n"."""
    joiners = "\u200c\u200d"  # of letters and emoji
    return "".join(c if c.isprintable() or c in joiners else repr(c)[1:-1] for c in text)


class MissingExtra(ImportError):
    """An optional library is not installed; the message holds the pip line that adds it."""


def optional(module: str, extra: str) -> ModuleType:
    """Import a package of clipseg_np's extra `extra`. Raises MissingExtra if it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtra(
            f"{module} is needed here and is not installed ({error}). "
            f"Add it with: pip install {package} (it belongs to the extra {extra!r} of clipseg_np)."
        ) from error
