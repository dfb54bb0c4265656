"""Time this package against transformers, ONNX Runtime and OpenVINO, side by side in one run.

    python -m pip install '.[benchmark]'
    python benchmarks/speed.py --output benchmarks/cpu

Writes cpu.md and cpu.png, and gpu.md beside them where CuPy finds a GPU. In every round each system answers once, in
turn, so that a slow moment of the machine hits all; the medians and their ratios are what counts. All get the same token
ids and pixel values, in memory; logits are checked to agree before anything is timed.
"""

import argparse
import importlib.metadata
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import threadpoolctl
from PIL import Image
from process import in_a_small_process
from systems import OURS, REFERENCE, RUNTIME, SIDE, System, example, save_checkpoint, systems

from clipseg_np import InputError
from clipseg_np.backends import working_cupy
from clipseg_np.errors import MissingExtra

TOLERANCE = 1e-4  # of the largest logit
PAUSE = 0.25  # seconds: threads of the system before wait for work a while, and keep a core busy (OpenBLAS: 0.1)
TASKS = {  # name: what `example` makes, and the share of --rounds
    "1 prompt": ({"prompts": 1}, 1),
    "5 prompts": ({"prompts": 5}, 0.5),
    "20 prompts": ({"prompts": 20}, 0.25),
    "8 pictures, 1 prompt": ({"prompts": 8, "pictures": 8, "different": False}, 0.25),
}
SIDES = (224, 352, 480, 640)
PROMPTS = (1, 2, 5, 10, 20)
LIBRARIES = ("numpy", "torch", "transformers", "onnxruntime", "openvino", "clipseg_np")


def wait_awake(seconds: float) -> None:
    """Not asleep: a virtual processor that slept takes a while to be at full speed."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def interleaved(calls: dict, rounds: int) -> dict:
    """The median seconds of each call, all of them once a round."""
    seconds = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            wait_awake(PAUSE)
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def compare(contenders: dict[str, System], given: tuple, rounds: int) -> dict[str, float]:
    """The median seconds of each system, after a round that is not counted, in which their logits are compared."""
    expected = contenders[REFERENCE](*given)
    for name, run in contenders.items():
        off = np.abs(run(*given) - expected).max() / np.abs(expected).max()
        if not off <= TOLERANCE:
            raise SystemExit(f"{name} deviates by {off:.1e}; allowed {TOLERANCE:.0e}")
    return interleaved({name: lambda r=run: r(*given) for name, run in contenders.items()}, rounds)


def products(work: float) -> Callable[[], None]:
    """NumPy's matrix products in the shape of most of the work, as many as make up `work` with the last cut short."""
    rng = np.random.default_rng(0)
    tokens, width = (SIDE // 16) ** 2 + 1, 768
    a, b = rng.normal(size=(tokens, width)), rng.normal(size=(width, 4 * width))
    a, b = a.astype(np.float32), b.astype(np.float32)
    whole, rest = divmod(work, 2 * tokens * width * 4 * width)
    last = b[:, : round(rest / (2 * tokens * width))]

    def multiply() -> None:
        for _ in range(int(whole)):
            a @ b
        a @ last

    return multiply


def product_work(prompts: int, pictures: int = 1, depth: int = 10) -> float:
    """Multiplications and additions in the matrix products that pictures and prompts need."""

    def layer(tokens: int, width: int, hidden: int) -> float:
        return 2 * tokens * (4 * width**2 + 2 * width * hidden + 2 * tokens * width)

    patches = (SIDE // 16) ** 2
    vision = depth * layer(patches + 1, 768, 3072) + 2 * patches * 768 * 768
    text = prompts * 12 * layer(8, 512, 2048)
    decoder = pictures * 3 * 2 * (patches + 1) * 768 * 64 + prompts * 3 * layer(
        patches + 1, 64, 2048
    )
    head = prompts * 2 * patches * (9 * 64 * 64 + 64 * 32 * 16 + 16 * 32 * 16)
    return pictures * vision + text + decoder + head


def processor_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def blas_kernels() -> str:
    """The kernels of NumPy's BLAS, which an environment variable such as OPENBLAS_CORETYPE may have chosen."""
    libraries = threadpoolctl.threadpool_info()
    names = {part.get("architecture") for part in libraries if part["user_api"] == "blas"}
    return ", ".join(sorted(filter(None, names))) or "unknown"


def versions() -> str:
    found = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in [head, ["---", *["---:"] * (len(head) - 1)], *rows]]


def draw(found: dict, growth: dict, file: Path) -> None:
    """Bars of each task relative to the reference, and how our own time grows."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (bars, prompts, sides) = plt.subplots(
        1, 3, figsize=(13, 4.4), width_ratios=(2.2, 1, 1), layout="constrained"
    )
    names = list(next(iter(found.values())))
    height = 0.8 / len(names)
    for number, name in enumerate(names):
        shares = [times[name] / times[REFERENCE] for times in found.values()]
        places = np.arange(len(found)) + number * height
        drawn = bars.barh(places, shares, height, label=name)
        bars.bar_label(drawn, [f"{share:.2f}" for share in shares], padding=2, fontsize=7)
    bars.set_yticks(np.arange(len(found)) + 0.4 - height / 2, list(found))
    bars.invert_yaxis()
    bars.set_xlabel("time, as a share of transformers'")
    figure.legend(loc="outside upper center", ncols=len(names), fontsize=8, frameon=False)
    for axes, name, label in (
        (prompts, "prompts", "prompts on one picture"),
        (sides, "side", "picture's side, pixels"),
    ):
        axes.plot(list(growth[name]), list(growth[name].values()), marker="o")
        axes.set_xlabel(label)
        axes.set_ylabel("seconds")
        axes.set_ylim(0)
    for axes in (bars, prompts, sides):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--output", type=Path, help="write .md and .png under this name")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        save_checkpoint(folder)
        picture = folder / "picture.png"
        noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
        Image.fromarray(noise).save(picture)
        processes = in_a_small_process(folder, picture, max(1, args.rounds // 2))
        contenders = systems(folder)
        found = {
            task: compare(contenders, example(**given), max(1, round(args.rounds * share)))
            for task, (given, share) in TASKS.items()
        }
    run = contenders[OURS]
    by_prompts = {n: lambda n=n: run(*example(n)) for n in PROMPTS}
    by_side = {n: lambda n=n: run(*example(1, side=n)) for n in SIDES}
    growth = {
        "prompts": interleaved(by_prompts, args.rounds),
        "side": interleaved(by_side, args.rounds // 2),
    }
    one = example(1)
    calls = {"products": products(product_work(1)), OURS: lambda: run(*one)}
    floor, passed = interleaved(calls, args.rounds).values()
    fewest, most = min(PROMPTS), max(PROMPTS)
    first = growth["prompts"][fewest]
    further = (growth["prompts"][most] - first) / (most - fewest) / first

    lines = [
        (
            f"The rd64-refined architecture at {SIDE} x {SIDE}, float32, random weights, on {processor_name()}, "
            f"{os.cpu_count()} cores, Python {platform.python_version()}, {versions()}, BLAS kernels: "
            f"{blas_kernels()}. Medians of up to {args.rounds} interleaved rounds, in seconds, and as a share of transformers' time."
        ),
        "",
    ]
    rows = []
    for name in contenders:
        times = [(found[task][name], found[task][REFERENCE]) for task in TASKS]
        rows.append([name, *(f"{own:.2f} ({own / other:.2f})" for own, other in times)])
    lines += [*table(["", *TASKS], rows), ""]
    head = ["whole process, start to mask written", "seconds", "peak memory, MB", "installed, MB"]
    rows = [
        [name, f"{seconds:.2f}", f"{peak:.0f}", f"{size:.0f}"]
        for name, (seconds, peak, size) in processes.items()
    ]
    lines += [*table(head, rows), ""]
    lines += [
        (
            f"One picture and one prompt need {product_work(1) / 1e9:.0f} GFLOP of matrix products. NumPy's alone, in turn "
            f"with the pass, take {floor:.3f} s ({product_work(1) / floor / 1e9:.0f} GFLOP/s): {floor / passed:.2f} of its time. "
            f"Each further prompt costs {100 * further:.1f} % of the first."
        ),
        "",
    ]
    if RUNTIME in contenders:
        shares = (f"{times[OURS] / times[RUNTIME]:.3f} for {task}" for task, times in found.items())
        lines += [f"Of {RUNTIME}'s time, {OURS} takes {'; '.join(shares)}.", ""]
    for name, times in growth.items():
        rows = [["seconds", *(f"{seconds:.2f}" for seconds in times.values())]]
        lines += [*table([name, *map(str, times)], rows), ""]
    text = "\n".join(lines)
    print(text)
    if args.output:
        args.output.with_suffix(".md").write_text(text, encoding="utf-8")
        draw(found, growth, args.output.with_suffix(".png"))
    on_gpu(args.rounds, args.output)


def on_gpu(rounds: int, output: Path | None) -> None:
    try:
        working_cupy()
    except (InputError, MissingExtra) as error:
        print(f"No GPU is measured: {error}")
        return
    from gpu import measure

    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder))
        text = "\n".join(measure(Path(folder), rounds, interleaved, product_work))
    print(text)
    if output:
        (output.parent / "gpu.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
