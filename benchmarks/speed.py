"""Time this package against transformers, ONNX Runtime and OpenVINO, side by side in one run.

    python -m pip install '.[benchmark]'
    python benchmarks/speed.py --output benchmarks/cpu
    python benchmarks/speed.py --output benchmarks/cpu --avx2
    python benchmarks/speed.py --before FOLDER

Writes cpu.md and cpu.png. In every round each system answers once, in turn, so that a slow moment
of the machine hits all; the medians and their ratios count. All get the same token ids and pixel
values, in memory; their logits must agree before anything is timed. Only CPUs are measured.

--avx2 imitates a processor without AVX-512 (instruction_set.py) and writes cpu_avx2.md, without the
systems that cannot take part.

--before compares this checkout with an older one in FOLDER, and with nothing else. A ratio is
reliable if the middle half of its rounds is narrow: on a busy machine, or with few --rounds, it is
not.
"""

import argparse
import importlib.metadata
import os
import platform
import statistics
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import threadpoolctl
from clock import timed
from instruction_set import choose, instruction_set, second_level_cache
from PIL import Image
from process import in_a_small_process
from systems import (
    OURS,
    REFERENCE,
    RUNTIME,
    SIDE,
    System,
    example,
    save_checkpoint,
    save_checkpoint_without_torch,
    systems,
)
from versions import compare_versions

TOLERANCE = 1e-4  # of the largest logit
TASKS = {  # name: what `example` makes, and the share of --rounds
    "1 prompt": ({"prompts": 1}, 1),
    "5 prompts": ({"prompts": 5}, 0.5),
    "20 prompts": ({"prompts": 20}, 0.25),
    "8 images, 1 prompt": ({"prompts": 8, "images": 8, "different": False}, 0.25),
}
SIDES = (224, 352, 480, 640)
PROMPTS = (1, 2, 5, 10, 20)
IMITATED = (
    "Environment variables keep NumPy, its BLAS and torch from AVX-512. The caches are those of "
    "this processor. ONNX Runtime, OpenVINO and torch.compile cannot be kept from it, and are "
    "left out."
)
LIBRARIES = ("numpy", "torch", "transformers", "onnxruntime", "openvino", "clipseg_np")


def interleaved(calls: dict, rounds: int) -> dict:
    """The median seconds of each call, all of them once a round."""
    seconds = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(timed(call)[0])
    return {name: statistics.median(times) for name, times in seconds.items()}


def compare(contenders: dict[str, System], given: tuple, rounds: int) -> dict[str, float]:
    """The median seconds of each system, after an uncounted round that compares their logits."""
    expected = contenders[REFERENCE](*given)
    for name, run in contenders.items():
        off = np.abs(run(*given) - expected).max() / np.abs(expected).max()
        if not off <= TOLERANCE:
            raise SystemExit(f"{name} deviates by {off:.1e}; allowed {TOLERANCE:.0e}")
    return interleaved({name: lambda r=run: r(*given) for name, run in contenders.items()}, rounds)


def products(work: float) -> Callable[[], None]:
    """A function that multiplies matrices of the most frequent shape by NumPy, `work` in all."""
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


def product_work(prompts: int, images: int = 1, depth: int = 10) -> float:
    """Multiplications and additions in the matrix products that images and prompts need."""

    def layer(tokens: int, width: int, hidden: int) -> float:
        return 2 * tokens * (4 * width**2 + 2 * width * hidden + 2 * tokens * width)

    patches = (SIDE // 16) ** 2
    vision = depth * layer(patches + 1, 768, 3072) + 2 * patches * 768 * 768
    text = prompts * 12 * layer(8, 512, 2048)
    decoder = images * 3 * 2 * (patches + 1) * 768 * 64 + prompts * 3 * layer(patches + 1, 64, 2048)
    head = prompts * 2 * patches * (9 * 64 * 64 + 64 * 32 * 16 + 16 * 32 * 16)
    return images * vision + text + decoder + head


def processor_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def blas_kernels() -> str:
    """The kernels of NumPy's BLAS. An environment variable (OPENBLAS_CORETYPE) can choose them."""
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


def setup() -> str:
    return (
        f"The rd64-refined architecture at {SIDE} x {SIDE}, float32, random weights, on "
        f"{processor_name()} ({instruction_set()}), {os.cpu_count()} cores with a second-level "
        f"cache of {second_level_cache()} each, Python {platform.python_version()}, "
        f"{versions()}, BLAS kernels: {blas_kernels()}."
    )


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
        (prompts, "prompts", "prompts on one image"),
        (sides, "side", "image's side, pixels"),
    ):
        axes.plot(list(growth[name]), list(growth[name].values()), marker="o")
        axes.set_xlabel(label)
        axes.set_ylabel("seconds")
        axes.set_ylim(0)
    for axes in (bars, prompts, sides):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)


def save_inputs(folder: Path) -> Path:
    """Save a checkpoint and an image in `folder`; return the path of the image."""
    save = save_checkpoint if find_spec("transformers") else save_checkpoint_without_torch
    save(folder)
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    Image.fromarray(noise).save(folder / "image.png")
    return folder / "image.png"


def before_and_now(before: Path, rounds: int) -> str:
    """A table that compares the checkout `before` with the one that this file is part of."""
    given = {task: example(**arguments) for task, (arguments, _) in TASKS.items()}
    given |= {f"1 prompt, {n} x {n}": example(1, side=n) for n in SIDES if n != SIDE}
    tasks = {
        f"{backend}, {task}": (backend, *arrays)
        for backend in ("numpy", "numpy-reference")
        for task, arrays in given.items()
    }
    checkouts = [before, Path(__file__).resolve().parents[1]]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        found = compare_versions(checkouts, folder, save_inputs(folder), tasks, rounds)
    rows = []
    for name, (measured, off) in found.items():
        was, now = np.median(measured, axis=0)
        low, ratio, high = np.quantile(measured[:, 1] / measured[:, 0], (0.25, 0.5, 0.75))
        cells = f"{was:.4g}", f"{now:.4g}", f"{ratio:.3f}", f"{low:.3f} to {high:.3f}"
        rows.append([name, *cells, "" if off is None else f"{off:.0e}"])
    head = ["", "before", "now", "now / before", "middle half", "logits differ by"]
    explained = (
        f"{setup()} Seconds before and now are medians of {rounds} interleaved rounds. now / "
        "before is the median of the ratios of the rounds; the middle half of these ratios lies "
        "between the next two numbers. The last column is the largest difference of the logits, "
        "as a share of the largest logit."
    )
    return "\n".join([explained, "", *table(head, rows), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--output", type=Path, help="write .md and .png under this name")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="compare with this checkout")
    parser.add_argument("--avx2", action="store_true", help="without AVX-512; OUTPUT_avx2.md")
    args = parser.parse_args()
    choose(args.avx2)
    if args.output and args.avx2:
        args.output = args.output.with_name(f"{args.output.name}_avx2")
    if args.before:
        if not (args.before / "clipseg_np").is_dir():
            parser.error(f"{args.before} is no checkout: it has no folder clipseg_np")
        text = before_and_now(args.before.resolve(), args.rounds)
        print(text)
        if args.output:
            file = args.output.with_name(f"{args.output.name}_before.md")
            file.write_text(text, encoding="utf-8")
        return
    if not find_spec("transformers"):
        parser.error("transformers is missing; only --before goes without it")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        image = save_inputs(folder)
        processes = in_a_small_process(folder, image, max(1, args.rounds // 2))
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
            f"{setup()} Medians of up to {args.rounds} interleaved rounds, in seconds, and as a "
            "share of transformers' time."
        ),
        "",
        *([IMITATED, ""] if args.avx2 else []),
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
            f"One image and one prompt need {product_work(1) / 1e9:.0f} GFLOP of matrix products. "
            f"NumPy's alone, in turn with the pass, take {floor:.3f} s "
            f"({product_work(1) / floor / 1e9:.0f} GFLOP/s): {floor / passed:.2f} of its time. "
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
        if not args.avx2:
            draw(found, growth, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
