"""Score a checkpoint on fresh generated scenes, through clipseg_np itself.

    python training/evaluate.py [--model FOLDER] [--scenes 1000] [--seed 0] [--json FILE]

Every mask is judged at the picture's own size, at threshold 0.5: the IoU of one phrase on one picture, then the mean over
all of them. A phrase that fits nothing has no IoU; its mask counts as empty if it covers less than 0.2 % of the picture.
The scenes are drawn from seeds that no training run uses.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from phrases import HELD_OUT, Phrase, absent_phrase, phrase_of
from PIL import Image
from scenes import draw_scene

from clipseg_np import Segmenter, VisualPrompt

EVALUATION = 977  # first word of the seeds
EMPTY = 0.002


def iou(mask, true) -> float:
    """Intersection over union of two bool masks."""
    return float((mask & true).sum() / max(1, (mask | true).sum()))


def kind(phrase: Phrase) -> str:
    """The row of the table that the phrase belongs to."""
    return f"{phrase.named[0]} alone" if len(phrase.named) == 1 else "combination"


def text_scores(segment, rng, scores) -> None:
    """One scene, three phrases that fit and one that does not."""
    scene = draw_scene(rng)
    there = [phrase_of(scene.things[rng.integers(len(scene.things))], rng) for _ in range(3)]
    there = [phrase if phrase.named else Phrase() for phrase in there]
    absent = absent_phrase(scene.things, rng)
    masks = segment(scene.image, [phrase.words(rng) for phrase in (*there, absent)])
    for phrase, mask in zip(there, masks, strict=False):
        score = iou(mask, scene.mask(phrase))
        scores.setdefault("text prompts", []).append(score)
        row = kind(phrase) if phrase.named else "any shape"
        scores.setdefault(f"- {row}", []).append(score)
    scores.setdefault("absent: empty masks", []).append(float(masks[-1].mean() < EMPTY))


def held_out_scores(segment, rng, scores) -> None:
    """One scene with a colour-shape pair that training never saw, asked for by both."""
    scene = draw_scene(rng, held_out="only")
    things = [thing for thing in scene.things if (thing.colour, thing.shape) in HELD_OUT]
    thing = things[rng.integers(len(things))]
    phrase = Phrase(colour=thing.colour, shape=thing.shape)
    (mask,) = segment(scene.image, [phrase.words(rng)])
    scores.setdefault("text prompts, pairs kept out of training", []).append(
        iou(mask, scene.mask(phrase))
    )


def picture_scores(segment, rng, scores) -> None:
    """One scene, a thing of it asked for by a cut-out of its like from another scene."""
    scene = draw_scene(rng)
    thing = scene.things[rng.integers(len(scene.things))]
    other = draw_scene(rng, require=(thing.colour, thing.shape))
    prompt = VisualPrompt(other.image, other.things[0].mask)
    (mask,) = segment(scene.image, [prompt])
    true = scene.mask(Phrase(colour=thing.colour, shape=thing.shape))
    scores.setdefault("picture prompts", []).append(iou(mask, true))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder of a checkpoint (default: the shipped one)")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the scores to this file too")
    args = parser.parse_args()
    segmenter = Segmenter.from_pretrained(*filter(None, [args.model]))

    def segment(image, prompts):
        return segmenter(Image.fromarray(image), prompts).probabilities > 0.5

    scores: dict[str, list[float]] = {}
    start = time.time()
    for i in range(args.scenes):
        for part, score in enumerate((text_scores, held_out_scores, picture_scores)):
            if part == 0 or i % 2 == 0:
                score(segment, np.random.default_rng([EVALUATION, args.seed, part, i]), scores)
    print(f"{args.scenes} scenes, seed {args.seed}, {time.time() - start:.0f} s")
    print("| prompts | number | mean IoU, or share |")
    print("|---|---:|---:|")
    rows = sorted(scores, key=lambda row: row.replace("-", "text prompts "))
    for row in rows:
        print(f"| {row} | {len(scores[row])} | {np.mean(scores[row]):.3f} |")
    if args.json:
        table = {
            row: {"number": len(scores[row]), "mean": float(np.mean(scores[row]))} for row in rows
        }
        args.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
