"""On a GPU: this package against transformers, eager and compiled, for one picture and for many, in float32 and float16.

Called by speed.py where CuPy finds a GPU. Arrays are on the device before and after; the clock stops when it is done.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from systems import REFERENCE, SIDE, Logits, example

import clipseg_np
from clipseg_np.backends import working_cupy
from clipseg_np.cuda_graph import recorded

BATCHES = (1, 32)  # pictures, each with a prompt of its own
# Of the largest logit; a batch's sums are in another order.
TOLERANCES = {"float32": 1e-3, "float16": 5e-2}


def contenders(folder: Path, dtype: str, batch: int) -> dict[str, Callable[[], np.ndarray]]:
    """Each a call that starts one pass, waits for it and returns what it holds on the device."""
    ids, pixels = example(batch, batch)
    found = {REFERENCE: with_transformers(folder, dtype, ids, pixels)}
    try:
        run = with_transformers(folder, dtype, ids, pixels, compiled=True)
        run()  # it compiles now, or fails
        found[f"{REFERENCE}, torch.compile"] = run
    except Exception as error:  # noqa: BLE001  (a compiler is not there)
        print(f"torch.compile is left out: {type(error).__name__}: {str(error)[:200]}", flush=True)
    cupy = working_cupy()
    model = clipseg_np.CLIPSegForImageSegmentation.from_pretrained(
        folder, backend="cupy", dtype=dtype
    )
    ids, pixels = cupy.asarray(ids), cupy.asarray(pixels, dtype=dtype)

    def embeddings():
        return model.get_conditional_embeddings(input_ids=ids)

    def waited(logits):
        cupy.cuda.get_current_stream().synchronize()
        return logits

    found["clipseg_np, cupy"] = lambda: waited(model.decode(*model.encode(pixels, input_ids=ids)))
    graph = recorded(model, pixels, embeddings())
    found["clipseg_np, cupy, recorded"] = lambda: waited(graph(pixels, embeddings()))
    return found


def with_transformers(folder: Path, dtype: str, ids, pixels, compiled: bool = False) -> Callable:
    model = Logits(folder).to("cuda", getattr(torch, dtype))
    if compiled:
        model = torch.compile(model, mode="max-autotune")
    ids = torch.from_numpy(ids).cuda()
    pixels = torch.from_numpy(pixels).to("cuda", getattr(torch, dtype))

    def run():
        with torch.inference_mode():
            logits = model(ids, pixels)
        torch.cuda.synchronize()
        return logits

    return run


def to_numpy(logits) -> np.ndarray:
    return logits.float().cpu().numpy() if torch.is_tensor(logits) else logits.get().astype("f4")


def product_rate(dtype: str, interleaved: Callable) -> float:
    """Multiplications and additions a second of the device's matrix products, where they are large."""
    cupy, side = working_cupy(), 8192
    a = cupy.ones((side, side), dtype)

    def product():
        a @ a
        cupy.cuda.get_current_stream().synchronize()

    product()
    return 2 * side**3 / interleaved({"product": product}, 10)["product"]


def measure(folder: Path, rounds: int, interleaved: Callable, work: Callable) -> list[str]:
    """Tables as lines of text; `interleaved` and `work` (of products for pictures and prompts) are speed.py's."""
    cupy = working_cupy()
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    lines = [
        (
            f"The rd64-refined architecture at {SIDE} x {SIDE}, random weights, on {name}, CuPy {cupy.__version__}, torch "
            f"{torch.__version__}. Medians of {rounds} interleaved rounds: milliseconds, the share of transformers' time, "
            f"and the share of the device's own matrix-product rate. No TF32, but where the environment asks for it."
        ),
        "",
    ]
    for dtype, tolerance in TOLERANCES.items():
        rate = product_rate(dtype, interleaved)
        lines += [f"| {dtype}, {rate / 1e12:.0f} TFLOP/s | {' | '.join(map(str, BATCHES))} |"]
        lines += [f"|---|{'---:|' * len(BATCHES)}"]
        cells = {}
        for batch in BATCHES:
            calls = contenders(folder, dtype, batch)
            expected = to_numpy(calls[REFERENCE]())
            for who, call in calls.items():
                off = np.abs(to_numpy(call()) - expected).max() / np.abs(expected).max()
                if not off <= tolerance:
                    raise SystemExit(f"{who} deviates by {off:.1e} in {dtype}")
            times = interleaved(calls, rounds)
            for who, seconds in times.items():
                share, used = seconds / times[REFERENCE], work(batch, batch) / rate / seconds
                cell = f"{1000 * seconds:.2f} ({share:.2f}, {used:.2f})"
                cells.setdefault(who, {})[batch] = cell
        for who, found in cells.items():
            lines.append(f"| {who} | {' | '.join(found.get(batch, '') for batch in BATCHES)} |")
        lines.append("")
    return lines
