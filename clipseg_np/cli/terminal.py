"""Lines for the terminal: results, messages, and how far a long work is."""

import sys
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from typing import TypeVar

from ..errors import printable

T = TypeVar("T")
MAX_MESSAGE = 2000  # characters
PROGRESS_SECONDS = 5


def say(kind: str, message: object) -> None:
    """Print one line to standard error; characters that cannot be printed are escaped."""
    line = printable(str(message))
    if len(line) > MAX_MESSAGE:
        line = f"{line[: MAX_MESSAGE - 3]}..."
    print(f"clipseg-np: {kind}: {line}", file=sys.stderr)


def show(*lines: str) -> None:
    for line in lines:
        print(printable(line))


def progress(parts: Collection[T], name: str) -> Iterable[T]:
    """The parts, with tqdm's bar or a line every few seconds."""
    return progress_of(len(parts), parts, name)


def progress_of(total: int, parts: Iterable[T], name: str) -> Iterable[T]:
    """As `progress`, for an iterator over `total` parts."""
    if sys.stderr and sys.stderr.isatty():
        with suppress(ImportError):
            from tqdm import tqdm

            return tqdm(parts, desc=name, total=total)
    return progress_lines(total, parts, name)


def progress_lines(total: int, parts: Iterable[T], name: str) -> Iterator[T]:
    """Say "learning: 120 of 400, 1:05 left" every few seconds."""
    start = said = time.monotonic()
    for number, part in enumerate(parts, 1):
        yield part
        now = time.monotonic()
        if now > said + PROGRESS_SECONDS:
            left = round((now - start) / number * (total - number))
            say("progress", f"{name}: {number} of {total}, {left // 60}:{left % 60:02} left")
            said = now
