"""How the processes of gpu.py write results and errors, and their clocks.

If DRY_GPU is in the environment this is a rehearsal: torch runs on the CPU, and CuPy on the dry
GPU, with small shapes.
"""

import json
import math
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 0)]
REHEARSE = "DRY_GPU" in os.environ
if REHEARSE:
    import dry_gpu  # noqa: F401  (before CuPy)

    from clipseg_np.backends import cupy_ops
    from clipseg_np.backends import select as backends

    cupy_ops.CupyOps._fault = lambda self, name: None
    backends.gives_right_sums = lambda cupy: True

from gpu import BROKEN

DEVICE = "cpu" if REHEARSE else "cuda"
LARGE = 256 if REHEARSE else 8192  # the side of a matrix that fills the GPU
CALLS = 20  # calls of an operation that are timed together
Call = Callable[[], object]


def write(**line) -> None:
    """Append to the results, which gpu.py reads."""
    with open(os.environ["GPU_RESULTS"], "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


@contextmanager
def noted(errors: dict[str, str], name: str) -> Iterator[None]:
    """Keep an exception under this name, and go on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  (of CUDA, cuBLAS, a compiler, torch)
        traceback.print_exc()
        errors[name] = f"{type(error).__name__}: {str(error)[:400]}"


def end_if_broken() -> None:
    """End this process if the GPU no longer answers: CUDA repeats some errors for ever."""
    try:
        if "cupy" in sys.modules:
            sys.modules["cupy"].ones(3).sum().get()
        if "torch" in sys.modules and not REHEARSE:
            sys.modules["torch"].ones(3, device=DEVICE).sum().item()
    except Exception:  # noqa: BLE001
        os._exit(BROKEN)  # no destructor may wait for the GPU


def finite(number: float) -> float | None:
    """The number, or None where JSON has no such number."""
    return float(number) if math.isfinite(number) else None


def medians(
    calls: dict[str, Call], errors: dict[str, str], seconds: float, least: int = 5, pause: float = 0
) -> tuple[dict[str, float], int]:
    """The median milliseconds of each call, and the number of rounds.

    The calls take turns for some seconds, at least `least` rounds, after one round that is not
    counted. A call that fails is dropped.
    """
    from clock import wait_awake

    times = {name: [] for name in calls}
    end, rounds = time.perf_counter() + seconds, 0
    while times and rounds <= 100 and (rounds <= least or time.perf_counter() < end):
        for name in list(times):
            with noted(errors, name):
                wait_awake(pause)
                start = time.perf_counter()
                calls[name]()
                times[name].append(1000 * (time.perf_counter() - start))
            if name in errors:
                del times[name]
        rounds += 1
    return {name: statistics.median(found[1:]) for name, found in times.items()}, max(0, rounds - 1)


@cache
def ceilings(dtype: str, tf32: bool = False) -> tuple[float, float]:
    """The GPU's measured bytes a second of a copy, and operations a second of a matrix product."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = tf32
    a = torch.randn(LARGE, LARGE, device=DEVICE, dtype=getattr(torch, dtype))
    values = torch.randn(4, LARGE, LARGE, device=DEVICE)
    copy = torch.empty_like(values)
    seconds = [time_torch(call, 3) / 1e6 for call in (lambda: copy.copy_(values), lambda: a @ a)]
    size = 2 * values.numel() * values.element_size()
    return tuple(work / s if s else math.inf for work, s in zip((size, 2 * LARGE**3), seconds))


def time_torch(call: Call, times: int = CALLS) -> float:
    """Microseconds of a call on the GPU, out of `times` in one graph."""
    import torch

    if REHEARSE:
        return 1000 * medians({"call": call}, {}, 0.01)[0]["call"]
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.inference_mode():
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
            call()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            for _ in range(times):
                call()
    event = partial(torch.cuda.Event, enable_timing=True)
    return median_launch(graph.replay, event, torch.cuda.Event.elapsed_time) / times


def time_cupy(call: Call, times: int = CALLS) -> float:
    """As `time_torch`, for CuPy."""
    cuda = sys.modules["cupy"].cuda
    with timing_stream() as stream:
        # The recorded calls reuse the memory that these allocate.
        call()
        call()
        stream.synchronize()
        stream.begin_capture()
        try:
            for _ in range(times):
                call()
            graph = stream.end_capture()
        except Exception:
            with suppress(Exception):
                stream.end_capture()
            raise
        return median_launch(graph.launch, cuda.Event, cuda.get_elapsed_time) / times


def median_launch(launch: Call, event: Callable, elapsed: Callable) -> float:
    """Microseconds between two events around a launch."""
    found = []
    for _ in range(12):
        start, end = event(), event()
        start.record()
        launch()
        end.record()
        end.synchronize()
        found.append(1000 * elapsed(start, end))
    return statistics.median(found[2:])


@cache
def timing_stream():
    return sys.modules["cupy"].cuda.Stream(non_blocking=True)
