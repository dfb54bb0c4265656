"""How a run went: a line of JSON for each evaluation, a plot of them, and the time left."""

import json
import time
from pathlib import Path

from ..atomic_files import written_whole
from ..errors import optional

LOG_NAME, PLOT_NAME = "learning.jsonl", "learning.png"


def write_log(folder: Path, records: list[dict]) -> None:
    """Write the records as JSON lines, whole or not at all."""
    with written_whole(folder / LOG_NAME) as temporary:
        temporary.write_text("".join(f"{json.dumps(record)}\n" for record in records), "utf-8")


def write_plot(folder: Path, records: list[dict]) -> None:
    """Plot the loss and, beside it, every IoU by step. Raises MissingExtra without matplotlib."""
    figure = optional("matplotlib.figure", extra="notebooks").Figure((8, 3), layout="tight")
    axes = figure.subplots(1, 2)
    for axis, label in zip(axes, ("loss", "IoU")):
        for name in (name for name in records[-1] if name.endswith(label)):
            known = [record for record in records if record[name] is not None]
            axis.plot([r["step"] for r in known], [r[name] for r in known], label=name)
        axis.set_xlabel("step")
        axis.set_ylabel(label)
        axis.legend()
    with written_whole(folder / PLOT_NAME) as temporary:
        figure.savefig(temporary)


class Clock:
    """The time that a run of so many steps has left, by the steps since this clock was made."""

    def __init__(self, first: int, steps: int):
        self.first, self.steps, self.start = first, steps, time.monotonic()

    def left(self, step: int) -> str:
        """After so many steps, such as "1:05 left"; "" before one is done."""
        if step == self.first:
            return ""
        pace = (time.monotonic() - self.start) / (step - self.first)
        minutes, seconds = divmod(round(pace * (self.steps - step)), 60)
        return f"{minutes}:{seconds:02} left"
