"""How well the checkpoint learns a shape that it has never seen: scenes to learn from, and scores.

    python training/few_shot.py draw FOLDER [--shape heart] [--instead-of star] [--images 64]
    clipseg-np learn-prompt FOLDER/new --prompt "a heart" --output heart.safetensors
    clipseg-np fine-tune FOLDER/new --prompt "a heart" --keep FOLDER/old.jsonl --output own
    python training/few_shot.py score FOLDER --prompt-file heart.safetensors
    python training/few_shot.py score FOLDER --model own

`draw` writes new/ and test/, folders with images/ and masks/, and old.jsonl: examples of old
prompts, whose files lie in old/. The new shape stands in place of an old one in the scenes of
scenes.py, and is in each image of new/ and test/. The other shapes are those that training saw.

`score` prints the mean IoU of the new shape on the images of test/, and of old texts on scenes of
their own, as evaluate.py measures it. The files' seeds are used nowhere else.
"""

from __future__ import annotations

import argparse
import json
from itertools import count
from pathlib import Path

import numpy as np
from evaluate import text_answers
from phrases import SHAPES, phrase_of
from PIL import Image
from scenes import NEW_SHAPES, draw_scene

from clipseg_np import LearnedPrompt, Segmenter
from clipseg_np.masks.metrics import image_iou

FEW_SHOT = 1913  # first word of the seeds
NEW, TEST, OLD, OLD_TEST = range(4)  # second word


def name(shape: str) -> str:
    return f"an {shape}" if shape[0] in "aeiou" else f"a {shape}"


def write(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def draw_new(folder: Path, images: int, shape: str, instead_of: str, seed: tuple) -> None:
    """Scenes that hold the new shape, and its masks."""
    shapes = [shape if old == instead_of else old for old in SHAPES]
    drawn = (draw_scene(np.random.default_rng([*seed, n]), shapes=shapes) for n in count())
    for number in range(images):
        scene = next(scene for scene in drawn if shape in {thing.shape for thing in scene.things})
        write(scene.image, folder / f"images/{number:03}.png")
        mask = np.any([thing.mask for thing in scene.things if thing.shape == shape], axis=0)
        write(mask, folder / f"masks/{number:03}.png")


def draw_old(folder: Path, images: int, seed: tuple) -> None:
    """Ordinary scenes, each with up to three phrases that fit."""
    lines = []
    for number in range(images):
        rng = np.random.default_rng([*seed, number])
        scene = draw_scene(rng)
        image = f"old/images/{number:03}.png"
        write(scene.image, folder / image)
        phrases = [phrase_of(scene.things[rng.integers(len(scene.things))], rng) for _ in range(3)]
        texts = {phrase.words(rng): phrase for phrase in phrases}
        for part, (text, phrase) in enumerate(texts.items()):
            mask = f"old/masks/{number:03}_{part}.png"
            write(scene.mask(phrase), folder / mask)
            lines.append(json.dumps({"image": image, "mask": mask, "prompt": text}))
    (folder / "old.jsonl").write_text("\n".join(lines) + "\n")


def new_iou(segmenter: Segmenter, folder: Path, prompt: str | LearnedPrompt) -> float:
    """The mean over the images of a folder."""
    scores = []
    for path in sorted((folder / "images").iterdir()):
        true = np.asarray(Image.open(folder / "masks" / path.name)) > 0
        scores.append(image_iou(segmenter(path, prompt).masks()[0], true))
    return float(np.mean(scores))


def old_iou(segmenter: Segmenter, scenes: int) -> float:
    """The mean over texts that fit something."""
    seeds = ((FEW_SHOT, OLD_TEST, number) for number in range(scenes))
    found = (a for seed in seeds for a in text_answers(segmenter, np.random.default_rng(seed)))
    return float(np.mean([answer.score for answer in found if answer.true.any()]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("draw", "score"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=NEW_SHAPES, default="heart")
    parser.add_argument("--instead-of", choices=SHAPES, default="star")
    parser.add_argument("--images", type=int, default=64, help="to learn from")
    parser.add_argument("--test-images", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="folder of a checkpoint (default: the shipped one)")
    parser.add_argument("--decoder", help="file of a decoder to put on top")
    parser.add_argument("--prompt-file", help="a learned prompt, in place of the shape's name")
    args = parser.parse_args()

    if args.action == "draw":
        parts = (NEW, "new", args.images), (TEST, "test", args.test_images)
        for part, place, images in parts:
            seed = FEW_SHOT, part, NEW_SHAPES.index(args.shape), args.seed
            draw_new(args.folder / place, images, args.shape, args.instead_of, seed)
        draw_old(args.folder, 64, (FEW_SHOT, OLD, args.seed))
        return
    segmenter = Segmenter.from_pretrained(args.model, decoder=args.decoder)
    prompt = LearnedPrompt.load(args.prompt_file) if args.prompt_file else name(args.shape)
    print(f"new {new_iou(segmenter, args.folder / 'test', prompt):.3f}")
    print(f"old {old_iou(segmenter, 250):.3f}")


if __name__ == "__main__":
    main()
