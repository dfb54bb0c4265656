"""Time whole passes with and without each trick of the NumPy backend, in turn in one process.

    python benchmarks/tricks.py
    python benchmarks/tricks.py --new-processes
    OPENBLAS_CORETYPE=Haswell NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL AVX512_SPR" \\
        python benchmarks/tricks.py

With --new-processes each time is the median of a new process's first passes: malloc has not yet
learned to keep memory then. The last command imitates a processor without AVX-512. A gain is how
much longer a pass takes without the trick: the median of the rounds' ratios, less 1. tricks.md has
the tables.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from unittest.mock import patch

import numpy as np
from clock import timed
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
    "MAX_POWER": [(numpy_kernels, "MAX_POWER", -NEVER)],
    "mlp": [(OURS, "whole_layers", {Attention: numpy_layers.attention})],
    "quick_gelu": [
        (numpy_layers, "ELEMENTWISE", {**numpy_kernels.ELEMENTWISE, "quick_gelu": quick_gelu})
    ],
    "MIN_WIDENING": [(numpy_layers, "MIN_WIDENING", NEVER)],
    "MAX_UNPACKED": [(numpy_kernels, "MAX_UNPACKED", 0)],
    "MAX_FEATURES": [(numpy_ops, "MAX_FEATURES", NEVER)],
    "few heads at a time": [(numpy_layers, "MAX_FEATURES", NEVER)],
    "malloc keeps memory": [(OURS, "__init__", without_a_large_array)],
}
PASSES = 4  # of a new process, after its first


@contextmanager
def switched_off(*tricks: str) -> Iterator[None]:
    with ExitStack() as stack:
        for change in chain(*map(TRICKS.get, tricks)):
            stack.enter_context(patch.object(*change))
        yield


def seconds(run: Callable, off: str | None) -> float:
    """Of one call, with the trick `off` switched off."""
    with switched_off(*[off] if off else []):
        return timed(run)[0]


def seconds_in_new_process(folder: str, task: str, off: str | None) -> float:
    command = [sys.executable, __file__, "--child", folder, task, *([off] if off else [])]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def gain(seconds: Callable[[str | None], float], trick: str, rounds: int) -> str:
    ratios = []
    for number in range(rounds):
        order = (None, trick) if number % 2 else (trick, None)
        taken = {off: seconds(off) for off in order}
        ratios.append(taken[trick] / taken[None] - 1)
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return f"{middle:.1%} ({low:.1%} to {high:.1%})"


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        folder, task, *off = sys.argv[2:]
        with switched_off(*off):
            run = partial(with_clipseg_np(Path(folder), "numpy"), *example(**TASKS[task]))
            _, *times = (timed(run)[0] for _ in range(PASSES + 1))
        return print(statistics.median(times))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tasks", choices=TASKS, nargs="*", default=[*TASKS])
    parser.add_argument("--tricks", choices=TRICKS, nargs="*", default=[*TRICKS])
    parser.add_argument("--new-processes", action="store_true")
    args = parser.parse_args()
    rows = {name: [name] for name in args.tricks}
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint_without_torch(Path(folder))
        one_pass = with_clipseg_np(Path(folder), "numpy")
        for task in args.tasks:
            if args.new_processes:
                time_pass = partial(seconds_in_new_process, folder, task)
            else:
                time_pass = partial(seconds, partial(one_pass, *example(**TASKS[task])))
                time_pass(None)
            for name, row in rows.items():
                row.append(gain(time_pass, name, args.rounds))
                print(task, name, row[-1], sep=" | ", flush=True)
    print("", setup(), "", *table(["", *args.tasks], list(rows.values())), sep="\n")


if __name__ == "__main__":
    main()
