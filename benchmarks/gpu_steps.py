"""The steps of gpu.py, for processes of their own.

    GPU_RESULTS=FILE GPU_CHECKPOINT=FOLDER python benchmarks/gpu_steps.py TASKS

TASKS is a JSON list of {"step": the name of a function below, and its arguments}. Each appends a line of JSON to FILE.
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
from functools import cache
from pathlib import Path

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
PIECES = 8  # images at a time in float64
TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
TOWER |= {"num_hidden_layers": 4}
SMALL = {"text": TOWER, "vision": TOWER, "extract_layers": [0, 1, 2], "projection_dim": 32}
SMALL |= {"reduce_dim": 16, "decoder_intermediate_size": 64}
VERSIONS = ("numpy", "cupy-cuda13x", "cupy-cuda12x", "torch", "transformers", "triton")


def checkpoint_folder() -> Path:
    return Path(os.environ["GPU_CHECKPOINT"])


def to_numpy(x) -> np.ndarray:
    return (x.double().cpu().numpy() if hasattr(x, "cpu") else x.get()).astype(np.float64)


def deviation(logits, exact: np.ndarray | None) -> float | None:
    """The largest difference, relative to the largest logit; None where there is none, or it is not finite."""
    if exact is None:
        return None
    return finite(np.abs(to_numpy(logits) - exact).max() / np.abs(exact).max())


# The two libraries


def with_transformers(dtype: str, batch: int, mode: str | None = None, tf32: bool = False) -> Call:
    import torch
    from systems import Logits, example

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    kind = getattr(torch, dtype)
    model = Logits(checkpoint_folder()).to(DEVICE, kind)
    if mode:
        torch._dynamo.reset()
        model = torch.compile(model, mode=mode, dynamic=False)
    ids, pixels = (torch.from_numpy(x).to(DEVICE) for x in example(batch, batch, SIDE))
    pixels = pixels.to(kind)

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

    return CLIPSegForImageSegmentation.from_pretrained(
        checkpoint_folder(), backend="cupy", dtype=dtype
    )


def with_clipseg_np(dtype: str, batch: int, record: bool) -> Call:
    """Pixels are on the GPU. Token ids are in main memory, where they are checked, and copied there in each call."""
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
    from systems import Logits, example

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    model = Logits(checkpoint_folder()).to(DEVICE, torch.float64)
    ids, pixels = (torch.from_numpy(x).to(DEVICE) for x in example(batch, batch, SIDE))
    with torch.inference_mode():
        parts = [model(*part) for part in zip(ids.split(PIECES), pixels.double().split(PIECES))]
    return to_numpy(torch.cat(parts))


def truth(batch: int) -> np.ndarray:
    """The logits in float64, computed once; by this package where transformers cannot."""
    file, errors = checkpoint_folder() / f"float64-{batch}.npy", {}
    if not file.exists():
        with noted(errors, "float64"):
            np.save(file, float64_by_transformers(batch))
        if errors:
            np.save(file, to_numpy(with_clipseg_np("float64", batch, record=False)()))
    return np.load(file)


# The steps


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

        runtime = cupy.cuda.runtime
        found["name"] = runtime.getDeviceProperties(0)["name"].decode()
        found["compute capability"] = cupy.cuda.Device().compute_capability
        found["CUDA runtime"] = runtime.runtimeGetVersion()
        found["CUDA driver"] = runtime.driverGetVersion()
    return found


def checkpoint(errors: dict) -> dict:
    """The rd64-refined architecture for images of 352 pixels, drawn by transformers or, failing that, by this package."""
    changes = {"text": {}, "vision": {}, **(SMALL if REHEARSE else {})}
    changes["vision"] = {**changes["vision"], "image_size": SIDE}
    with noted(errors, "transformers"):
        from systems import save_checkpoint

        save_checkpoint(checkpoint_folder(), **changes)
        return {}
    from clipseg_np import CLIPSegConfig, CLIPSegForImageSegmentation

    config = CLIPSegConfig(
        text_config={"eos_token_id": 2, **changes.pop("text")},
        vision_config={"patch_size": 16, **changes.pop("vision")},
        use_complex_transposed_convolution=True,
        initializer_factor=0.02,  # the decoder's: with 1, attention would choose one token
        **changes,
    )
    CLIPSegForImageSegmentation(config, seed=0).save_pretrained(checkpoint_folder())
    return {}


def cell(errors: dict, dtype: str, batch: int, systems: list[str], tf32: bool = False) -> dict:
    """A pass in one float type, for a number of images, by systems that need no compiler."""
    rate = None
    with noted(errors, "matrix product"):
        rate = finite(ceilings(dtype, tf32)[1])
    build = {
        EAGER: lambda: with_transformers(dtype, batch, tf32=tf32),
        OURS: lambda: with_clipseg_np(dtype, batch, record=False),
        RECORDED: lambda: with_clipseg_np(dtype, batch, record=True),
    }
    build = {name: build[name] for name in systems}
    return {"rate": rate, **compared(build, errors, batch, seconds=3)}


def compiled(errors: dict, dtype: str, batch: int, mode: str, go: str) -> dict:
    """transformers compiled; beside it eager, and our recorded pass.

    Says when it is ready, and waits for the file `go`: others compile meanwhile, and nothing is timed until they are done.
    """
    build = {
        COMPILED: lambda: with_transformers(dtype, batch, mode),
        EAGER: lambda: with_transformers(dtype, batch),
        RECORDED: lambda: with_clipseg_np(dtype, batch, record=True),
    }

    def wait() -> None:
        write(ready=True)
        while not Path(go).exists():
            time.sleep(0.02)

    return compared(build, errors, batch, seconds=2, wait=wait)


def compared(
    build: dict[str, Callable[[], Call]], errors: dict, batch: int, seconds: float, wait: Call = int
) -> dict:
    """Build each system, see how far it is off, `wait`, and time them in turn."""
    from speed import product_work

    exact, calls, off = None, {}, {}
    with noted(errors, "float64"):
        exact = truth(batch)
    for name, make in build.items():
        write(at=name)
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
    names = {0: "kernels", 1: "copies", 2: "memsets"}  # of CUgraphNodeType
    found = {"nodes": count.value, **dict.fromkeys(names.values(), 0)}
    for node in nodes:
        check(driver.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind)))
        if kind.value in names:
            found[names[kind.value]] += 1
    return found


def operations(errors: dict, dtype: str, batch: int, systems: list[str]) -> dict:
    """Microseconds of each operation at the model's shapes, and the least that the GPU's measured rates allow."""
    import cupy
    import torch
    from torch.nn import functional as F

    from clipseg_np.backends.select import ops_for

    B, T, D, H, W = batch, TOKENS, WIDTH, HEADS, HIDDEN
    shapes = {
        "x": (B, T, D),
        "scores": (B, H, T, T),
        **dict.fromkeys(("q", "k", "v"), (B, H, T, D // H)),
        **dict.fromkeys(("b", "weight"), (D,)),
        "w": (D, D),
        "wide": (W, D),
        "wide_b": (W,),
    }
    rng = np.random.default_rng(0)
    arrays = {n: rng.random(s, np.float32) * 2 - 1 for n, s in shapes.items()}
    torch.backends.cuda.matmul.allow_tf32 = False
    size, (bandwidth, rate) = np.dtype(dtype).itemsize, ceilings(dtype)
    x, scores = B * T * D, B * H * T * T
    work = {  # numbers read and written once, and operations
        "layer norm": (2 * x, 0),
        "softmax": (2 * scores, 0),
        "attention": (4 * x, 4 * scores * (D // H)),
        "linear": (2 * x + D * D, 2 * x * D),
        "linear, quick_gelu": (x + B * T * W + D * W, 2 * x * W),
    }
    timed = {}
    if "clipseg_np" in systems:
        ops = ops_for("cupy")
        a = {n: cupy.asarray(v, dtype=dtype) for n, v in arrays.items()}
        cupy.cuda.Device().synchronize()
        timed["clipseg_np"] = (
            time_cupy,
            {
                "layer norm": lambda: ops.layer_norm(a["x"], a["weight"], a["b"], 1e-5),
                "softmax": lambda: ops.softmax(a["scores"]),
                "attention": lambda: ops.attention(a["q"], a["k"], a["v"]),
                "linear": lambda: ops.linear(a["x"], a["w"], a["b"]),
                "linear, quick_gelu": lambda: ops.linear(
                    a["x"], a["wide"], a["wide_b"], activation="quick_gelu"
                ),
            },
        )
    if "torch" in systems:
        t = {n: torch.from_numpy(v).to(DEVICE, getattr(torch, dtype)) for n, v in arrays.items()}

        def wide_gelu():
            y = F.linear(t["x"], t["wide"], t["wide_b"])
            return y * torch.sigmoid(1.702 * y)

        timed["torch"] = (
            time_torch,
            {
                "layer norm": lambda: F.layer_norm(t["x"], (D,), t["weight"], t["b"], 1e-5),
                "softmax": lambda: F.softmax(t["scores"], -1),
                "attention": lambda: F.scaled_dot_product_attention(t["q"], t["k"], t["v"]),
                "linear": lambda: F.linear(t["x"], t["w"], t["b"]),
                "linear, quick_gelu": wide_gelu,
            },
        )
    limits = {}
    for name, (numbers, each) in work.items():
        moved, multiplied = 1e6 * numbers * size / bandwidth, 1e6 * each / rate
        by = "arithmetic" if multiplied > moved else "bandwidth"
        limits[name] = {"us": finite(max(moved, multiplied)), "by": by}
    found = {"limits": limits, "bandwidth": finite(bandwidth), "rate": finite(rate)}
    for system in systems:
        write(at=system)
        timer, calls = timed[system]
        times = found[f"us, {system}"] = {}
        for name, call in calls.items():
            with noted(errors, f"{system}, {name}"):
                us = timer(call)
                times[name] = us if us > 0.01 else None  # the dry GPU has no clock
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
    model = CLIPSegForImageSegmentation.from_pretrained(checkpoint_folder(), threads=count)
    multiply = products(product_work(1) / (100 if REHEARSE else 1))
    given = torch.from_numpy(ids), torch.from_numpy(pixels)
    calls = {"clipseg_np": lambda: model.decode(*encode(model, pixels, input_ids=ids))}
    with noted(errors, "torch"):
        their = Logits(checkpoint_folder())
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
