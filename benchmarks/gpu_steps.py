"""The steps of gpu.py, for processes of their own.

    GPU_RESULTS=FILE GPU_CHECKPOINT=FOLDER python benchmarks/gpu_steps.py TASKS

TASKS is a JSON list of {"step": the name of a function below, and its arguments}. Each appends a
line of JSON to FILE.
"""

import ctypes
import gc
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from gpu_process import (
    DEVICE,
    REHEARSE,
    Call,
    ceilings,
    end_if_broken,
    finite,
    medians,
    noted,
    time_cupy,
    time_torch,
    write,
)
from gpu_report import COMPILED, EAGER, OURS, RECORDED

SIDE = 64 if REHEARSE else 352
TOKENS, WIDTH, HEADS, HIDDEN = (17, 64, 4, 128) if REHEARSE else (485, 768, 12, 3072)
MAX_IMAGES = 8  # at a time in float64
TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
TOWER |= {"num_hidden_layers": 4}
SMALL = {"text": TOWER, "vision": TOWER, "extract_layers": [0, 1, 2], "projection_dim": 32}
SMALL |= {"reduce_dim": 16, "decoder_intermediate_size": 64}
VERSIONS = ("numpy", "cupy-cuda13x", "cupy-cuda12x", "torch", "transformers", "triton")


CHECKPOINT = Path(os.environ["GPU_CHECKPOINT"])


def to_numpy(x) -> np.ndarray:
    return (x.double().cpu().numpy() if hasattr(x, "cpu") else x.get()).astype(np.float64)


def deviation(logits, exact: np.ndarray | None) -> float | None:
    """The largest difference, relative to the largest logit; None if unknown or not finite."""
    if exact is None:
        return None
    return finite(np.abs(to_numpy(logits) - exact).max() / np.abs(exact).max())


def their_model(dtype: str, batch: int, tf32: bool = False) -> tuple:
    """transformers' model, token ids and pixels, on the device."""
    import torch
    from systems import Logits, example

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    ids, pixels = (torch.from_numpy(x).to(DEVICE) for x in example(batch, batch, SIDE))
    kind = getattr(torch, dtype)
    return Logits(CHECKPOINT).to(DEVICE, kind), ids, pixels.to(kind)


def with_transformers(dtype: str, batch: int, mode: str | None = None, tf32: bool = False) -> Call:
    import torch

    model, ids, pixels = their_model(dtype, batch, tf32)
    if mode:
        torch._dynamo.reset()
        model = torch.compile(model, mode=mode, dynamic=False)

    def run():
        with torch.inference_mode():
            logits = model(ids, pixels)
        if not REHEARSE:
            torch.cuda.synchronize()
        return logits

    return run


@cache
def our_model(dtype: str):
    from clipseg_np import CLIPSegForImageSegmentation

    return CLIPSegForImageSegmentation.from_pretrained(CHECKPOINT, backend="cupy", dtype=dtype)


def with_clipseg_np(dtype: str, batch: int, record: bool) -> Call:
    """Pixels are on the GPU; token ids are checked in main memory and copied in each call."""
    import cupy
    from systems import example

    from clipseg_np.model.batched import encode
    from clipseg_np.model.recorded import recorded

    model = our_model(dtype)
    ids, pixels = example(batch, batch, SIDE)
    pixels = cupy.asarray(pixels, dtype=dtype)
    graph = recorded(model, pixels, ids) if record else None

    def run():
        logits = (
            graph(pixels, ids) if graph else model.decode(*encode(model, pixels, input_ids=ids))
        )
        cupy.cuda.get_current_stream().synchronize()
        return logits

    return run


def float64_by_transformers(batch: int) -> np.ndarray:
    import torch

    model, *inputs = their_model("float64", batch)
    with torch.inference_mode():
        parts = [model(*part) for part in zip(*(x.split(MAX_IMAGES) for x in inputs))]
    return to_numpy(torch.cat(parts))


def truth(batch: int) -> np.ndarray:
    """The logits in float64, computed once; by this package where transformers cannot."""
    file, errors = CHECKPOINT / f"float64-{batch}.npy", {}
    if not file.exists():
        with noted(errors, "float64"):
            np.save(file, float64_by_transformers(batch))
        if errors:
            np.save(file, to_numpy(with_clipseg_np("float64", batch, record=False)()))
    return np.load(file)


def card(errors: dict) -> dict:
    found = {"cores": os.cpu_count(), "Python": platform.python_version()}
    for name in VERSIONS:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    if shutil.which("nvidia-smi"):
        with noted(errors, "nvidia-smi"):
            wanted = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit"
            command = ["nvidia-smi", f"--query-gpu={wanted}", "--format=csv,noheader"]
            found["nvidia-smi"] = subprocess.check_output(command, text=True, timeout=20).strip()
    with noted(errors, "CuPy"):
        import cupy

        runtime, device = cupy.cuda.runtime, cupy.cuda.Device()
        found["name"] = runtime.getDeviceProperties(0)["name"].decode()
        found["compute capability"] = device.compute_capability
        found["CUDA runtime"] = runtime.runtimeGetVersion()
        found["CUDA driver"] = runtime.driverGetVersion()
    return found


def checkpoint(errors: dict) -> dict:
    """Draw the rd64-refined architecture by transformers or, where that fails, by this package."""
    import systems

    changes = {"vision": {}, **(SMALL if REHEARSE else {})}
    changes["vision"] = {**changes["vision"], "image_size": SIDE}
    with noted(errors, "transformers"):
        systems.save_checkpoint(CHECKPOINT, **changes)
        return {}
    systems.save_checkpoint_without_torch(CHECKPOINT, **changes)
    return {}


def cell(errors: dict, dtype: str, batch: int, systems: list[str], tf32: bool = False) -> dict:
    """A pass in one float type, for a number of images, by systems that need no compiler."""
    rate = None
    with noted(errors, "matrix product"):
        rate = finite(ceilings(dtype, tf32)[1])
    build = {
        EAGER: partial(with_transformers, dtype, batch, tf32=tf32),
        OURS: partial(with_clipseg_np, dtype, batch, record=False),
        RECORDED: partial(with_clipseg_np, dtype, batch, record=True),
    }
    chosen = {name: build[name] for name in systems}
    return {"rate": rate, **compared(chosen, errors, batch, seconds=3)}


def compiled(errors: dict, dtype: str, batch: int, mode: str, go: str) -> dict:
    """transformers compiled; beside it eager, and our recorded pass.

    It writes when it is ready, and waits for the file `go`: nothing is timed while others compile.
    """
    build = {
        COMPILED: partial(with_transformers, dtype, batch, mode),
        EAGER: partial(with_transformers, dtype, batch),
        RECORDED: partial(with_clipseg_np, dtype, batch, record=True),
    }

    def wait() -> None:
        write(ready=True)
        while not Path(go).exists():
            time.sleep(0.02)

    return compared(build, errors, batch, seconds=2, wait=wait)


def compared(
    build: dict[str, Callable[[], Call]], errors: dict, batch: int, seconds: float, wait: Call = int
) -> dict:
    """Build each system, compare its logits, call `wait`, and time them in turn."""
    from speed import product_work

    exact, calls, off = None, {}, {}
    with noted(errors, "float64"):
        exact = truth(batch)
    for name, make in build.items():
        write(system=name)
        with noted(errors, name):
            call = make()
            for _ in range(3):
                logits = call()
            off[name] = deviation(logits, exact)
            calls[name] = call
        if COMPILED in errors:
            return {}
    wait()
    ms, rounds = medians(calls, errors, seconds)
    return {"ms": ms, "rounds": rounds, "off": off, "work": product_work(batch, batch)}


def launches(errors: dict, dtype: str) -> dict:
    """The nodes of a recorded pass for one image and one prompt, as the driver counts them."""
    import cupy
    from systems import example

    from clipseg_np.model.recorded import recorded

    ids, pixels = example(1, side=SIDE)
    run = recorded(our_model(dtype), cupy.asarray(pixels, dtype=dtype), ids)
    driver = ctypes.CDLL("libcuda.so.1")
    if REHEARSE:  # its driver does not count
        return {}
    graph, count = ctypes.c_void_p(run.graph.graph.graph), ctypes.c_size_t()

    def check(status: int) -> None:
        if status:
            raise RuntimeError(f"the driver answers with status {status}")

    check(driver.cuGraphGetNodes(graph, None, ctypes.byref(count)))
    nodes, kind = (ctypes.c_void_p * count.value)(), ctypes.c_int()
    check(driver.cuGraphGetNodes(graph, nodes, ctypes.byref(count)))
    kinds = []
    for node in nodes:
        check(driver.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind)))
        kinds.append(kind.value)
    # CUgraphNodeType's numbers.
    counts = {name: kinds.count(n) for n, name in enumerate(("kernels", "copies", "memsets"))}
    return {"nodes": count.value, **counts}


def our_operations(arrays: dict, dtype: str) -> dict[str, Call]:
    import cupy

    from clipseg_np.backends.select import ops_for

    ops = ops_for("cupy")
    a = SimpleNamespace(**{name: cupy.asarray(x, dtype=dtype) for name, x in arrays.items()})
    cupy.cuda.Device().synchronize()
    return {
        "layer norm": partial(ops.layer_norm, a.x, a.weight, a.b, 1e-5),
        "softmax": partial(ops.softmax, a.scores),
        "attention": partial(ops.attention, a.q, a.k, a.v),
        "linear": partial(ops.linear, a.x, a.w, a.b),
        "linear, quick_gelu": partial(ops.linear, a.x, a.wide, a.wide_b, activation="quick_gelu"),
    }


def torch_operations(arrays: dict, dtype: str) -> dict[str, Call]:
    import torch
    from torch.nn import functional as F

    kind = getattr(torch, dtype)
    a = {name: torch.from_numpy(x).to(DEVICE, kind) for name, x in arrays.items()}
    a = SimpleNamespace(**a)

    def wide_gelu():
        y = F.linear(a.x, a.wide, a.wide_b)
        return y * torch.sigmoid(1.702 * y)

    return {
        "layer norm": partial(F.layer_norm, a.x, (WIDTH,), a.weight, a.b, 1e-5),
        "softmax": partial(F.softmax, a.scores, -1),
        "attention": partial(F.scaled_dot_product_attention, a.q, a.k, a.v),
        "linear": partial(F.linear, a.x, a.w, a.b),
        "linear, quick_gelu": wide_gelu,
    }


def operations(errors: dict, dtype: str, batch: int, systems: list[str]) -> dict:
    """Microseconds of each operation at the model's shapes, and the least that the GPU allows."""
    B, T, D, N, W = batch, TOKENS, WIDTH, HEADS, HIDDEN
    shapes = {"x": (B, T, D), "scores": (B, N, T, T), "w": (D, D), "wide": (W, D), "wide_b": (W,)}
    shapes |= dict.fromkeys("qkv", (B, N, T, D // N)) | dict.fromkeys(("b", "weight"), (D,))
    rng = np.random.default_rng(0)
    arrays = {name: rng.random(shape, np.float32) * 2 - 1 for name, shape in shapes.items()}
    size, (bandwidth, rate) = np.dtype(dtype).itemsize, ceilings(dtype)
    x, scores = B * T * D, B * N * T * T
    # Numbers that are read or written once, and operations.
    work = {
        "layer norm": (2 * x, 0),
        "softmax": (2 * scores, 0),
        "attention": (4 * x, 4 * scores * (D // N)),
        "linear": (2 * x + D * D, 2 * x * D),
        "linear, quick_gelu": (x + B * T * W + D * W, 2 * x * W),
    }
    limits = {}
    for name, (numbers, count) in work.items():
        moved, multiplied = 1e6 * numbers * size / bandwidth, 1e6 * count / rate
        by = "arithmetic" if multiplied > moved else "bandwidth"
        limits[name] = {"us": finite(max(moved, multiplied)), "by": by}
    found = {"limits": limits, "bandwidth": finite(bandwidth), "rate": finite(rate)}
    timers = {"clipseg_np": (time_cupy, our_operations), "torch": (time_torch, torch_operations)}
    for system in systems:
        write(system=system)
        timer, build = timers[system]
        times = found[f"us, {system}"] = {}
        for name, call in build(arrays, dtype).items():
            with noted(errors, f"{system}, {name}"):
                us = timer(call)
                # The dry GPU has no clock.
                times[name] = us if us > 0.01 else None
    return found


def threads(errors: dict, count: int) -> dict:
    """One image and one prompt on the host, float32, with so many threads."""
    import torch
    from speed import blas_kernels, processor_name, product_work, products
    from systems import Logits, example
    from threadpoolctl import threadpool_limits

    from clipseg_np import CLIPSegForImageSegmentation
    from clipseg_np.model.batched import encode

    torch.set_num_threads(count)
    ids, pixels = example(1, side=SIDE)
    model = CLIPSegForImageSegmentation.from_pretrained(CHECKPOINT, threads=count)
    multiply = products(product_work(1) / (100 if REHEARSE else 1))
    given = torch.from_numpy(ids), torch.from_numpy(pixels)
    calls = {"clipseg_np": lambda: model.decode(*encode(model, pixels, input_ids=ids))}
    with noted(errors, "torch"):
        their = Logits(CHECKPOINT)
        calls["torch"] = torch.inference_mode()(lambda: their(*given))

    def plain_products() -> None:
        with threadpool_limits(count, user_api="blas"):
            multiply()

    calls["products"] = plain_products
    ms, rounds = medians(calls, errors, seconds=2, least=3, pause=0.1)
    return {"ms": ms, "rounds": rounds, "processor": processor_name(), "kernels": blas_kernels()}


STEPS = (card, checkpoint, cell, compiled, launches, operations, threads)


def main() -> None:
    by_name = {step.__name__: step for step in STEPS}
    for task in json.loads(sys.argv[1]):
        print(f"task {json.dumps(task)}", flush=True)
        arguments, errors, found = dict(task), {}, {}
        start = time.perf_counter()
        with noted(errors, "task"):
            found = by_name[arguments.pop("step")](errors, **arguments)
        seconds = round(time.perf_counter() - start, 1)
        write(task=task, **found, errors=errors, seconds=seconds)
        gc.collect()
        if "cupy" in sys.modules and not errors:
            sys.modules["cupy"].get_default_memory_pool().free_all_blocks()
        if errors:
            end_if_broken()
    sys.stdout.flush()
    os._exit(0)  # CUDA and torch's compiler would take seconds to take leave


if __name__ == "__main__":
    main()
