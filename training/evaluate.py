"""Score a checkpoint on fresh generated scenes, through clipseg_np itself.

    python training/evaluate.py [--model FOLDER] [--scenes 1000] [--seed 0] [--json FILE]
                                [--page FILE]

Prints a table, and with --page draws a page of examples: the first ones, then the worst.

Every mask is judged at the image's own size, at threshold 0.5: the IoU of one prompt on one image,
then the mean over all of them. A phrase that fits nothing has no IoU; its mask counts as empty if
it covers less than 0.2 % of the image. Below the table stand the paper's measures of the text
prompts (clipseg_np/masks/metrics.py); the class is the shape that a phrase names. The scenes are
drawn from seeds that no training run uses.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from phrases import HELD_OUT, Phrase, absent_phrase, phrase_of
from scenes import draw_scene

from clipseg_np import Segmenter, VisualPrompt
from clipseg_np.masks.draw import highlight, sheet
from clipseg_np.masks.metrics import Metrics, image_iou
from clipseg_np.masks.morphology import dilate

EVALUATION = 977  # first word of the seeds
EMPTY = 0.002
TEXT, HELD_OUT_TEXT, IMAGE = "text", "text, pairs kept out of training", "image"
TRUE_EDGE = (0, 255, 120)
FIRST, WORST = 16, 8  # examples on the page


@dataclass
class Answer:
    """One prompt on one image: the true mask and the predicted probabilities."""

    group: str
    phrase: Phrase
    words: str
    image: np.ndarray  # (height,width,3), uint8
    true: np.ndarray  # (height,width), bool
    probabilities: np.ndarray  # (height,width), float32

    @property
    def predicted(self) -> np.ndarray:
        return self.probabilities > 0.5

    @property
    def score(self) -> float:
        """The IoU; of a phrase that fits nothing, 1 where the mask is empty and 0 elsewhere."""
        if self.true.any():
            return image_iou(self.predicted, self.true)
        return float(self.predicted.mean() < EMPTY)

    def panel(self) -> tuple[str, np.ndarray]:
        """The image with the true mask's edge in green, and beside it the predicted mask."""
        image = self.image.copy()
        thickness = max(1, round(max(self.true.shape) / 160))
        image[dilate(self.true, thickness) & ~self.true] = TRUE_EDGE
        beside = np.concatenate([image, highlight(self.image, self.predicted)], axis=1)
        return f"{self.score:.2f}  {self.words}", beside


def text_answers(segmenter: Segmenter, rng: np.random.Generator) -> Iterator[Answer]:
    """One scene, three phrases that fit and one that does not."""
    scene = draw_scene(rng)
    phrases = [phrase_of(scene.things[rng.integers(len(scene.things))], rng) for _ in range(3)]
    phrases.append(absent_phrase(scene.things, rng))
    words = [phrase.words(rng) for phrase in phrases]
    for phrase, text, found in zip(phrases, words, segmenter(scene.image, words).probabilities):
        yield Answer(TEXT, phrase, text, scene.image, scene.mask(phrase), found)


def held_out_answers(segmenter: Segmenter, rng: np.random.Generator) -> Iterator[Answer]:
    """One scene with a color-shape pair that training never saw, and a phrase that names both."""
    scene = draw_scene(rng, held_out="only")
    things = [thing for thing in scene.things if (thing.color, thing.shape) in HELD_OUT]
    thing = things[rng.integers(len(things))]
    phrase = Phrase(color=thing.color, shape=thing.shape)
    words = phrase.words(rng)
    found = segmenter(scene.image, words).probabilities[0]
    yield Answer(HELD_OUT_TEXT, phrase, words, scene.image, scene.mask(phrase), found)


def image_answers(segmenter: Segmenter, rng: np.random.Generator) -> Iterator[Answer]:
    """One scene, and an image prompt: a thing of the same color and shape in another scene."""
    scene = draw_scene(rng)
    thing = scene.things[rng.integers(len(scene.things))]
    other = draw_scene(rng, require=(thing.color, thing.shape))
    found = segmenter(scene.image, VisualPrompt(other.image, other.things[0].mask)).probabilities[0]
    phrase = Phrase(color=thing.color, shape=thing.shape)
    words = f"(an image: {thing.color} {thing.shape})"
    yield Answer(IMAGE, phrase, words, scene.image, scene.mask(phrase), found)


def answers(segmenter: Segmenter, scenes: int, seed: int) -> Iterator[Answer]:
    """The answers to all kinds of prompt, each on as many scenes of its own."""
    for number in range(scenes):
        for part, ask in enumerate((text_answers, held_out_answers, image_answers)):
            yield from ask(segmenter, np.random.default_rng([EVALUATION, seed, part, number]))


def row_names(answer: Answer) -> list[str]:
    """The rows of the table in which an answer counts."""
    if not answer.true.any():
        return ["text, nothing fits: share of empty masks"]
    if answer.group != TEXT:
        return [answer.group]
    named = answer.phrase.named
    kind = "any shape" if not named else f"{named[0]} alone" if len(named) == 1 else "several words"
    return [TEXT, f"{TEXT}, {kind}"]


def page(first: list[Answer], worst: list[Answer]):
    """A page of the first examples and of the worst, each with its score."""
    return sheet([answer.panel() for answer in [*first, *worst]], side=340, columns=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder of a checkpoint (default: the shipped one)")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the scores to this file too")
    parser.add_argument("--page", type=Path, help="draw a page of examples into this file")
    args = parser.parse_args()

    scores: dict[str, list[float]] = {}
    metrics = Metrics()
    first, worst, order = [], [], itertools.count()
    start = time.time()
    for answer in answers(Segmenter.from_pretrained(args.model), args.scenes, args.seed):
        for row in row_names(answer):
            scores.setdefault(row, []).append(answer.score)
        if answer.group == TEXT:
            metrics.add(answer.probabilities, answer.true, answer.phrase.shape or "thing")
        if args.page:
            if len(first) < FIRST:
                first.append(answer)
            heapq.heappush(worst, (-answer.score, next(order), answer))
            if len(worst) > WORST:
                heapq.heappop(worst)

    print(f"{args.scenes} scenes of each kind, seed {args.seed}, {time.time() - start:.0f} s\n")
    print("| prompts | number | mean IoU |")
    print("|---|---:|---:|")
    for row in sorted(scores):
        print(f"| {row} | {len(scores[row])} | {np.mean(scores[row]):.3f} |")
    paper = metrics.scores().at_threshold(0.5)
    print("\nThe paper's measures of the text prompts, absent ones included, at threshold 0.5:")
    print(", ".join(f"{name} {value:.3f}" for name, value in paper.items()))
    if args.json:
        table = {row: {"number": len(s), "mean": float(np.mean(s))} for row, s in scores.items()}
        args.json.write_text(json.dumps(table | {"paper": paper}, indent=2, sort_keys=True) + "\n")
    if args.page:
        ranked = [answer for _, _, answer in sorted(worst, reverse=True)]
        page(first, ranked).quantize(256).save(args.page, optimize=True)


if __name__ == "__main__":
    main()
