"""Two versions of this package, timed in turn: speed.py --before.

One process cannot import both, so each version answers in a worker process of its own, which
sleeps while the other one is timed. Run as a script, this file is such a worker. Nothing here needs
torch.
"""

import pickle
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from clock import timed
from process import in_a_small_process, inside

import clipseg_np


def one_pass(model, ids: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Token ids (P,T), pixel values (B,C,H,W) -> logits (P,H,W). Embeds equal prompts once."""
    different, place = np.unique(ids, axis=0, return_inverse=True)
    # `encode` reads the prompts beside the image. In older versions it is the model's.
    encode = getattr(model, "encode", None) or partial(clipseg_np.model.batched.encode, model)
    features, embeddings = encode(pixels, input_ids=different)
    return model.decode(features, embeddings[place.ravel()])


def work(folder: str) -> None:
    """Answer each pickled (backend, ids, pixels) with seconds and logits, until the pipe ends."""
    assert Path(clipseg_np.__file__).parents[1].samefile("."), clipseg_np.__file__
    answers, sys.stdout = sys.stdout.buffer, sys.stderr  # no print may come between two answers
    load = clipseg_np.CLIPSegForImageSegmentation.from_pretrained
    models = {}
    while True:
        try:
            backend, *given = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        if backend not in models:
            models[backend] = load(folder, backend=backend)
        pickle.dump(timed(partial(one_pass, models[backend], *given)), answers)
        answers.flush()


def answer(worker: subprocess.Popen, task: tuple) -> tuple[float, np.ndarray]:
    """A worker's seconds and logits for a task. Raises SystemExit if the worker has died."""
    try:
        pickle.dump(task, worker.stdin)
        worker.stdin.flush()
        return pickle.load(worker.stdout)
    except (BrokenPipeError, EOFError):
        raise SystemExit(f"the version in {worker.args[-1]} failed") from None


def compare_versions(
    checkouts: list[Path], folder: Path, image: Path, tasks: dict[str, tuple], rounds: int
) -> dict[str, tuple[np.ndarray, float | None]]:
    """Time the whole process and all tasks (backend, ids, pixels), in two checkouts.

    Returns for each line the values of both checkouts, (rounds,2), and the largest difference of
    their logits, as a share of the largest. Before the rounds, each worker does the task once, for
    these logits.
    """
    processes = in_a_small_process(folder, image, rounds, *checkouts)
    seconds, peaks = np.moveaxis(list(processes.values()), 2, 0)  # (2,rounds) each
    found = {
        "whole process, start to mask written": (seconds.T, None),
        "its peak memory, MB": (peaks.T, None),
    }
    command = [sys.executable, __file__, folder]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with ExitStack() as stack:
        workers = [
            stack.enter_context(subprocess.Popen([*command, path], **pipes, **inside(path)))
            for path in checkouts
        ]
        for name, task in tasks.items():
            before, now = (answer(worker, task)[1] for worker in workers)
            off = np.abs(now - before).max() / np.abs(before).max()
            seconds = np.zeros((rounds, 2))
            for number in range(rounds):
                for which in (0, 1) if number % 2 else (1, 0):
                    seconds[number, which], _ = answer(workers[which], task)
            found[name] = seconds, off
    return found


if __name__ == "__main__":
    work(sys.argv[1])
