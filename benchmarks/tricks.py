"""Time whole passes with and without each trick of the NumPy backend, in turn in one process.

    python benchmarks/tricks.py
    python benchmarks/tricks.py --new-processes
    python benchmarks/tricks.py --avx2

With --new-processes each time is the median of a new process's first passes: malloc has not yet
learned to keep memory then. --avx2 imitates a processor without AVX-512. A gain is how much longer
a pass takes without the trick: the median of the rounds' ratios, less 1. tricks.md has the tables.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
from clock import timed
from instruction_set import choose
from speed import TASKS, setup, table
from systems import example, save_checkpoint_without_torch, with_clipseg_np

from clipseg_np.backends import numpy_kernels, numpy_layers, numpy_ops, threads
from clipseg_np.nn.layers import MLP, Attention
from clipseg_np.nn.ops import Ops

OURS, THREADS, NEVER = numpy_ops.NumpyOps, threads.Threads, 1 << 60
TASKS = {task: arguments for task, (arguments, _) in TASKS.items()}
TASKS["1 prompt, 480 x 480"] = {"prompts": 1, "side": 480}


def linear_by_tokens(self, x, weight, bias=None, activate=None):
    """`activated_linear`, tokens first in memory."""
    rows = x.reshape(-1, x.shape[-1])
    y = np.empty((len(rows), len(weight)), x.dtype)

    def some_tokens(part: slice) -> None:
        np.matmul(rows[part], weight.T, out=y[part])
        y[part] += 0 if bias is None else bias
        if activate is not None:
            activate(y[part])

    self.threads.for_slices(some_tokens, len(rows), (1 << 23) // weight.size + 1)
    return y.reshape(*x.shape[:-1], len(weight))


def quick_gelu(x):
    np.copyto(x, Ops().quick_gelu(x))


def exponentials(q, k, hidden, out):
    np.matmul(k, q.T, out=out)
    if hidden is not None:
        out[hidden] = np.finfo(out.dtype).min
    out -= out.max(axis=0)
    np.exp(out, out=out)
    return out.sum(axis=0)


def without_a_large_array(self, threads=None):
    Ops.__init__(self)
    self.threads = THREADS(threads)
    self.workers = self.threads.count


alone = property(lambda self: 1 if threads._is_inside_task.get() else self.count)
# The patches that switch each trick off.
TRICKS = {
    "threads, not BLAS's": [
        (THREADS, "free", 1),
        (OURS, "parallel_for", Ops.parallel_for),
        (threads, "one_blas_thread", nullcontext()),
    ],
    "idle threads help": [(THREADS, "free", alone)],
    "parallel_for": [(OURS, "parallel_for", Ops.parallel_for)],
    "features first": [(OURS, "activated_linear", linear_by_tokens)],
    "layer_norm": [(OURS, "layer_norm", Ops.layer_norm)],
    "attention": [(OURS, "whole_layers", {MLP: numpy_layers.mlp})],
    "MIN_TOKENS": [(numpy_layers, "MIN_TOKENS", 0)],
    "MIN_SUM": [(numpy_kernels, "exponentials", exponentials)],
    "mlp": [(OURS, "whole_layers", {Attention: numpy_layers.attention})],
    "quick_gelu": [
        (numpy_layers, "ELEMENTWISE", {**numpy_kernels.ELEMENTWISE, "quick_gelu": quick_gelu})
    ],
    "MIN_WIDENING": [(numpy_layers, "MIN_WIDENING", NEVER)],
    "MAX_UNPACKED": [(numpy_kernels, "MAX_UNPACKED", 0)],
    "MAX_FEATURES": [(numpy_ops, "MAX_FEATURES", NEVER)],
    "few heads at a time": [(numpy_layers, "MAX_FEATURES", NEVER)],
    "malloc keeps memory": [(OURS, "__init__", without_a_large_array)],
    "position embeddings are kept": [(OURS, "memoize", Ops.memoize)],
}
PASSES = 4  # of a new process, after its first


@contextmanager
def patched(changes: list[tuple]) -> Iterator[None]:
    with ExitStack() as stack:
        for change in changes:
            stack.enter_context(patch.object(*change))
        # It remembers by which MAX_UNPACKED it chose.
        numpy_kernels.block_rows.cache_clear()
        yield


def seconds(run: Callable, patches: dict[str, list[tuple]], name: str) -> float:
    with patched(patches[name]):
        return timed(run)[0]


def seconds_in_new_process(folder: str, task: str, name: str) -> float:
    command = [sys.executable, sys.argv[0], "--child", folder, task, name]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def more_time(time_pass: Callable[[str], float], name: str, rounds: int) -> str:
    """How much longer a pass takes with the patches of this name, as a share."""
    shares = []
    for number in range(rounds):
        order = ("", name) if number % 2 else (name, "")
        taken = {which: time_pass(which) for which in order}
        shares.append(taken[name] / taken[""] - 1)
    low, middle, high = np.quantile(shares, (0.25, 0.5, 0.75))
    return f"{middle:.1%} ({low:.1%} to {high:.1%})"


def main(patches: dict[str, list[tuple]], description: str) -> None:
    """Print how much longer a pass takes with each of these named lists of patches."""
    names, patches = [*patches], {"": [], **patches}
    if sys.argv[1:2] == ["--child"]:
        folder, task, name = sys.argv[2:]
        with patched(patches[name]):
            run = partial(with_clipseg_np(Path(folder), "numpy"), *example(**TASKS[task]))
            _, *times = (timed(run)[0] for _ in range(PASSES + 1))
        return print(statistics.median(times))
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tasks", choices=TASKS, nargs="*", default=[*TASKS])
    parser.add_argument("--only", choices=names, nargs="*", default=names)
    parser.add_argument("--new-processes", action="store_true")
    parser.add_argument("--avx2", action="store_true", help="imitate a processor without AVX-512")
    args = parser.parse_args()
    choose(args.avx2)
    rows = {name: [name] for name in args.only}
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint_without_torch(Path(folder))
        one_pass = with_clipseg_np(Path(folder), "numpy")
        for task in args.tasks:
            if args.new_processes:
                time_pass = partial(seconds_in_new_process, folder, task)
            else:
                run = partial(one_pass, *example(**TASKS[task]))
                run()
                time_pass = partial(seconds, run, patches)
            for name, row in rows.items():
                row.append(more_time(time_pass, name, args.rounds))
                print(task, name, row[-1], sep=" | ", flush=True)
    print("", setup(), "", *table(["", *args.tasks], list(rows.values())), sep="\n")


if __name__ == "__main__":
    main(TRICKS, __doc__)
