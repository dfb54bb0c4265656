"""How a run goes: its progress, a line of JSON for each evaluation, and a plot of them."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..atomic_files import written_whole
from ..errors import optional

# Gets the parts of a long work and its name, and returns the parts: tqdm.tqdm is one.
Progress = Callable[[Sequence, str], Iterable]
LOG_NAME, PLOT_NAME = "learning.jsonl", "learning.png"


def unseen(parts: Sequence, name: str) -> Iterable:
    """Show no progress."""
    return parts


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
