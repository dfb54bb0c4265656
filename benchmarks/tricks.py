"""Time whole passes with and without each trick of the NumPy backend, in turn in one process.

    python benchmarks/tricks.py
    OPENBLAS_CORETYPE=Haswell NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL AVX512_SPR" \\
        python benchmarks/tricks.py

The second command imitates a processor without AVX-512. A gain is how much longer a pass takes
without the trick: the median of the rounds' ratios, less 1. tricks.md has both tables.
"""

import argparse
import tempfile
from contextlib import ExitStack, nullcontext
from functools import partial
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


def linear_by_tokens(self, x, weight, bias=None, activate=None):
    """`activated_linear`, tokens first in memory."""
    rows = x.reshape(-1, x.shape[-1])
    y = np.empty((len(rows), len(weight)), x.dtype)

    def some_tokens(part: slice) -> None:
        np.matmul(rows[part], weight.T, out=y[part])
        y[part] += 0 if bias is None else bias
        if activate is not None:
            activate(y[part], np.empty_like(y[part]), y[part])

    self.threads.for_slices(some_tokens, len(rows), (1 << 23) // weight.size + 1)
    return y.reshape(*x.shape[:-1], len(weight))


def quick_gelu(x, _, out):
    np.copyto(out, Ops().quick_gelu(x))


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
}


def gain(run, patches: list[tuple], rounds: int) -> str:
    ratios = []
    for number in range(rounds):
        seconds = [0.0, 0.0]
        for is_off in (0, 1) if number % 2 else (1, 0):
            with ExitStack() as stack:
                for change in patches if is_off else ():
                    stack.enter_context(patch.object(*change))
                seconds[is_off], _ = timed(run)
        ratios.append(seconds[1] / seconds[0] - 1)
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return f"{middle:.1%} ({low:.1%} to {high:.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tasks", choices=TASKS, nargs="*", default=[*TASKS])
    parser.add_argument("--tricks", choices=TRICKS, nargs="*", default=[*TRICKS])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint_without_torch(Path(folder))
        one_pass = with_clipseg_np(Path(folder), "numpy")
    rows = {name: [name] for name in args.tricks}
    for task in args.tasks:
        run = partial(one_pass, *example(**TASKS[task]))
        run()
        for name, row in rows.items():
            row.append(gain(run, TRICKS[name], args.rounds))
            print(task, name, row[-1], sep=" | ", flush=True)
    print("", setup(), "", *table(["", *args.tasks], list(rows.values())), sep="\n")


if __name__ == "__main__":
    main()
