"""Time learning: transformers as it is used, torch with the same cache, this package.

    python -m pip install '.[benchmark]'
    python benchmarks/learning.py --output benchmarks/learning.md

A step is forward, binary cross-entropy and dice, backward, AdamW, with as many images as prompts.
In every round each system answers once, in turn, in a process of its own; the medians and their
ratios count. All get the same weights, images and labels; their losses must agree. Only CPUs are
measured.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from learning_process import PROMPT, REDUCED, USUAL, WHOLE
from PIL import Image
from speed import setup, table
from systems import example, save_checkpoint

import clipseg_np
from clipseg_np.checkpoints.locate import demo_folder
from clipseg_np.learn.fine_tune import BATCH, STEPS
from clipseg_np.learn.lessons import FOLDS

PROMPTS = (1, 4, 8)
IMAGES = 64
TOLERANCE = 1e-4  # of the loss: a cache is in float16
CONTENDERS = [("torch", USUAL)]
CONTENDERS += [(system, k) for k in (WHOLE, REDUCED, PROMPT) for system in ("torch", "clipseg_np")]


def save_batch(checkpoint: Path, file: Path) -> None:
    """Save a batch for a checkpoint, with the features of its images in float16."""
    model = clipseg_np.CLIPSegForImageSegmentation.from_pretrained(checkpoint)
    processor = clipseg_np.CLIPSegProcessor.from_pretrained(checkpoint)
    side = processor.image_processor.size["height"]
    ids, pixels = example(max(PROMPTS), images=max(PROMPTS), side=side)
    ids %= model.config.text_config.vocab_size
    ids[:, -1] = model.config.text_config.eos_token_id
    features = model.encode_image(pixels)
    labels = np.zeros((len(ids), side, side), np.float32)
    labels[:, side // 4 : side // 2, side // 4 :] = 1
    caches = {WHOLE: features.activations, REDUCED: model.decoder.reduce(features.activations)}
    embeddings = model.get_conditional_embeddings(input_ids=ids)
    batch = {"ids": ids, "pixels": pixels, "labels": labels, "embeddings": embeddings}
    np.savez(file, **batch, **{k: np.stack(c).astype(np.float16) for k, c in caches.items()})


def save_images(folder: Path) -> None:
    """IMAGES of the demonstration's scenes, and masks of the circles in them."""
    sys.path.append(str(Path(__file__).parents[1] / "training"))
    from scenes import draw_scene

    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        scene = draw_scene(rng, require=("red", "circle"))
        mask = scene.mask("a circle").astype(np.uint8) * 255
        Image.fromarray(scene.image).save(folder / "images" / f"{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")


def answer(*arguments: str | Path) -> dict:
    """The answer of learning_process.py, in a new process."""
    program = Path(__file__).with_name("learning_process.py")
    command = [sys.executable, program, *map(str, arguments)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def steps_in_turn(checkpoint: Path, folder: Path, rounds: int) -> dict[tuple[str, str], dict]:
    """Medians of each contender's seconds by the number of prompts, and its highest peak in MB."""
    save_batch(checkpoint, batch := folder / "batch.npz")
    answers = {contender: [] for contender in CONTENDERS}
    for number in range(rounds):
        for contender in CONTENDERS[:: -1 if number % 2 else 1]:
            answers[contender].append(answer(checkpoint, batch, *contender, *PROMPTS))
            print(*contender, answers[contender][-1], flush=True)
    found = {}
    for (system, kind), given in answers.items():
        losses = given[0]["losses"]
        # All are the same before the first step; after it, where the same arrays learn.
        usual, other = (answers[key][0]["losses"] for key in (CONTENDERS[0], ("torch", kind)))
        expected = [usual[0], *other[1:]]
        if not np.allclose(losses, expected, rtol=TOLERANCE, atol=0):
            raise SystemExit(f"{system}, {kind}: losses {losses}; expected {expected}")
        seconds = {n: statistics.median(one["seconds"][str(n)] for one in given) for n in PROMPTS}
        found[system, kind] = {"seconds": seconds, "peak": max(one["peak"] for one in given)}
    return found


def rows_of_steps(found: dict[tuple[str, str], dict]) -> list[list[str]]:
    rows, usual = [], found["torch", USUAL]
    for (system, kind), one in found.items():
        row = [f"{system}, {kind}"]
        for n, seconds in one["seconds"].items():
            row.append(f"{1000 * seconds:.0f} ({seconds / usual['seconds'][n]:.3f})")
        rows.append([*row, f"{one['peak']:.0f} ({one['peak'] / usual['peak']:.2f})"])
    return rows


def rows_of_runs(name: str, checkpoint: Path, data: Path, folder: Path, usual: dict) -> list:
    """From a folder of images to a finished decoder, and as many steps of the usual way."""
    options = "--prompt", "a circle", "--output", folder / "own", "--cache", folder / "cache"
    own = answer("fine-tune", data, "--model", checkpoint, *options)
    print(name, own, flush=True)
    step = {int(number): seconds for number, seconds in usual["seconds"].items()}[BATCH]
    return [
        [f"{name}: clipseg-np fine-tune", f"{own['seconds']:.0f}", f"{own['peak']:.0f}"],
        [f"{name}: the usual steps alone", f"{FOLDS * STEPS * step:.0f}", f"{usual['peak']:.0f}"],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the tables to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        save_checkpoint(checkpoint := folder / "checkpoint")
        found = steps_in_turn(checkpoint, folder, args.rounds)
        save_images(data := folder / "data")
        save_batch(demo_folder(), batch := folder / "demo.npz")
        usual = answer(demo_folder(), batch, *CONTENDERS[0], BATCH)
        rows = rows_of_runs("demonstration", demo_folder(), data, folder / "demo", usual)
        usual = found[CONTENDERS[0]]
        rows += rows_of_runs("official size", checkpoint, data, folder / "official", usual)
    head = ["ms a step", *(f"{n} prompt{'s' * (n > 1)}" for n in PROMPTS), "peak memory, MB"]
    lines = [
        (
            f"{setup()} Steps of learning, medians of {args.rounds} interleaved rounds, and as a "
            "share of the usual way: transformers, whose towers run in each step."
        ),
        "",
        *table(head, rows_of_steps(found)),
        "",
    ]
    shares = (
        f"{found['clipseg_np', k]['seconds'][n] / found['torch', k]['seconds'][n]:.2f} ({k}, {n})"
        for k in (WHOLE, REDUCED, PROMPT)
        for n in PROMPTS
    )
    lines += [f"Of torch's time with the same cache, clipseg_np takes {'; '.join(shares)}.", ""]
    task = f"{IMAGES} images to a finished decoder, {FOLDS} x {STEPS} steps"
    head = [task, "seconds", "peak memory, MB"]
    lines += [*table(head, rows), ""]
    text = "\n".join(lines)
    print(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
