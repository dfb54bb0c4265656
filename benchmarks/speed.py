"""Time this package against transformers, side by side in one run, on the rd64-refined architecture at 352 x 352.

    python benchmarks/speed.py [--rounds 7] [--output benchmarks/FILE.md]

Needs the extra `oracle`. The weights are random: time does not depend on their values. In every round each system
answers once, in turn, so that a slow moment of the machine hits all; the medians and their ratios are what counts.
All get the same token ids and pixel values, in memory; logits are checked to agree before anything is timed.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers

import clipseg_np

PROMPTS = (1, 5, 20)
TOLERANCE = 1e-4  # of the largest logit
REFERENCE = "transformers"


def processor_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def inputs(prompts: int) -> dict[str, np.ndarray]:
    """One picture and `prompts` texts of 8 tokens."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 49406, (prompts, 8))
    ids[:, 0], ids[:, -1] = 49406, 49407
    return {
        "input_ids": ids,
        "pixel_values": rng.normal(size=(1, 3, 352, 352)).astype(np.float32),
    }


def systems(folder: str) -> dict[str, Callable[[dict], np.ndarray]]:
    """Each system as a function from inputs to logits (prompts,352,352)."""
    reference = transformers.CLIPSegForImageSegmentation.from_pretrained(folder).eval()

    def run_transformers(given: dict) -> np.ndarray:
        ids = torch.from_numpy(given["input_ids"])
        pixels = torch.from_numpy(given["pixel_values"]).expand(len(ids), -1, -1, -1)
        with torch.inference_mode():
            return reference(input_ids=ids, pixel_values=pixels).logits.numpy()

    def ours(backend: str) -> Callable[[dict], np.ndarray]:
        model = clipseg_np.CLIPSegForImageSegmentation.from_pretrained(folder, backend=backend)

        def run(given: dict) -> np.ndarray:
            embeddings = model.get_conditional_embeddings(input_ids=given["input_ids"])
            return model.decode(model.encode_image(given["pixel_values"]), embeddings)

        return run

    return {
        REFERENCE: run_transformers,
        "clipseg_np, numpy": ours("numpy"),
        "clipseg_np, numpy-reference": ours("numpy-reference"),
    }


def measure(contenders: dict, given: dict, rounds: int) -> dict[str, float]:
    """The median seconds of each, after one round that is not counted, in which their logits are compared."""
    expected = contenders[REFERENCE](given)
    for name, run in contenders.items():
        off = np.abs(run(given) - expected).max() / np.abs(expected).max()
        if not off <= TOLERANCE:
            raise SystemExit(f"{name} deviates by {off:.1e}; allowed {TOLERANCE:.0e}")
    seconds = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run(given)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="write the table to this file too")
    args = parser.parse_args()
    config = transformers.CLIPSegConfig(
        text_config={"eos_token_id": 2},
        vision_config={"patch_size": 16},
        use_complex_transposed_convolution=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        transformers.CLIPSegForImageSegmentation(config).save_pretrained(folder)
        contenders = systems(folder)
        found = {p: measure(contenders, inputs(p), args.rounds) for p in PROMPTS}
    heads = [f"{p} prompt{'s' * (p > 1)}" for p in PROMPTS]
    lines = [
        (
            f"One picture, float32, {processor_name()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
            f"NumPy {np.__version__}, torch {torch.__version__}, transformers {transformers.__version__}, "
            f"clipseg_np {clipseg_np.__version__}. Medians of {args.rounds} rounds, in seconds, and as a share of "
            f"transformers' time."
        ),
        "",
        f"| | {' | '.join(heads)} |",
        f"|---|{'---:|' * len(heads)}",
    ]
    for name in contenders:
        cells = [
            f"{found[p][name]:.2f} ({found[p][name] / found[p][REFERENCE]:.2f})" for p in PROMPTS
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
