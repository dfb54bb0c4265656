"""How a run went: a line of JSON for each evaluation, a plot of them, and the time left."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from ..atomic_files import written_whole
from ..errors import optional

T = TypeVar("T")
LOG_NAME, PLOT_NAME = "learning.jsonl", "learning.png"


def write_log(folder: Path, records: list[dict]) -> None:
    """Write the records as JSON lines, whole or not at all."""
    with written_whole(folder / LOG_NAME) as temporary:
        temporary.write_text("".join(f"{json.dumps(record)}\n" for record in records), "utf-8")


def write_plot(folder: Path, records: list[dict]) -> None:
    """Plot the loss and, beside it, every IoU by step. Raises MissingExtra without matplotlib."""
    figure = optional("matplotlib.figure", extra="notebooks").Figure((8, 3), layout="tight")
    steps = [record["step"] for record in records]
    for axis, label in zip(figure.subplots(1, 2), ("loss", "IoU")):
        for name in records[0]:
            if name.endswith(label.lower()):
                axis.plot(steps, [record[name] for record in records], label=name)
        axis.set_xlabel("step")
        axis.set_ylabel(label)
        axis.legend()
    with written_whole(folder / PLOT_NAME) as temporary:
        figure.savefig(temporary)


def progress_lines(
    say: Callable[[str], object], seconds: float = 5
) -> Callable[[Sequence[T], str], Iterator[T]]:
    """A Progress that says "learning: 120 of 400, 1:05 left" every few seconds."""

    def shown(parts: Sequence[T], name: str) -> Iterator[T]:
        start = said = time.monotonic()
        for number, part in enumerate(parts, 1):
            yield part
            now = time.monotonic()
            if now > said + seconds:
                left = round((now - start) / number * (len(parts) - number))
                say(f"{name}: {number} of {len(parts)}, {left // 60}:{left % 60:02} left")
                said = now

    return shown
