"""A prompt learned from masks: the conditional embedding that best marks what they mark.

The embedding is all that learns. It starts as the text that marks the thing best, and moves by Adam
at a rate relative to its own size. Few images are soon learned by heart. Therefore each of several
embeddings learns from a part of the images, and running means of them are tried on the images that
each has not seen, to find the best step. The result is the mean of all at this step.
"""

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import InputError
from ..masks.metrics import image_iou
from ..model.batched import joined_slices
from ..model.learned_prompt import LearnedPrompt, fingerprint
from ..nn.ops import Array
from ..version import __version__
from .data import Data
from .features import CachedFeatures, Progress, turned, unseen
from .optimizer import AdamW
from .step import one_pass

# Tried as a start, beside the thing's own name.
PLAIN_TEXTS = "a shape", "a thing", "an object", "something"
FOLDS = 4  # embeddings; a quarter of the images is held out from each
MIN_IMAGES = FOLDS
STEPS, BATCH, STEPS_BETWEEN, PATIENCE, WARM_UP = 400, 4, 20, 100, 20
RATE = 0.2  # a step changes a number by about so much of the start's root mean square
MEAN_STEPS = 20  # that a running mean looks back
MAX_SCORED = 64  # examples
MAX_MASKS = 512  # that are kept in memory


def learn_prompt(
    segmenter: Any,
    data: Data,
    *,
    starts: Sequence[str] = (),
    steps: int = STEPS,
    rate: float = RATE,
    seed: int = 0,
    cache: str | os.PathLike | None = None,
    progress: Progress = unseen,
) -> LearnedPrompt:
    """Learn a prompt from masks of one thing, for the model of a segment.Segmenter.

    starts: texts to start from, in place of the thing's name and PLAIN_TEXTS. cache: see
    CachedFeatures. With one thread and one seed, the result is the same bit for bit. Raises
    InputError for masks of several things, fewer than MIN_IMAGES images, and as CachedFeatures.
    """
    names = sorted({example.prompts for example in data.examples})
    if len(names) > 1:
        some = ", ".join(repr(prompts[0]) for prompts in names[:9])
        raise InputError(f"the masks mark {len(names)} things, {some}: choose one with --prompt")
    model, ops, rng = segmenter.model, segmenter.model.ops, np.random.default_rng(seed % 2**32)
    lessons = Lessons(segmenter, data, rng, cache, progress)
    texts = list(dict.fromkeys(starts or (*names[0], *PLAIN_TEXTS)))
    candidates = segmenter.embed(texts)
    scores = [lessons.iou(candidates[i : i + 1].repeat(FOLDS, axis=0)) for i in range(len(texts))]
    best = int(np.argmax(scores))
    embeddings = candidates[best : best + 1].repeat(FOLDS, axis=0)
    size = float((embeddings * embeddings).mean()) ** 0.5
    optimizer, mean = AdamW({"": embeddings}, weight_decay=0), embeddings.copy()
    iou, last, vector = scores[best], 0, mean.mean(axis=0)
    for step in progress(range(1, steps + 1), "learning"):
        optimizer.step({"": lessons.gradient(embeddings)}, rate * size * min(1, step / WARM_UP))
        mean += (embeddings - mean) / min(step, MEAN_STEPS)
        if step % STEPS_BETWEEN == 0:
            score = lessons.iou(mean)
            if score > iou:
                iou, last, vector = score, step, mean.mean(axis=0)
            elif step - last >= PATIENCE:
                break
    made = {
        "prompts": names[0],
        "images": len(data.images),
        "start": texts[best],
        "start_iou": scores[best],
        "held_out_iou": iou,
        "steps": last,
        "rate": rate,
        "seed": seed,
        "version": __version__,
    }
    vector = ops.to_numpy(vector).astype(np.float32)
    return LearnedPrompt(vector, fingerprint(model), names[0][0], made)


class Lessons:
    """Examples with cached features, some held out from each of FOLDS embeddings."""

    def __init__(
        self,
        segmenter: Any,
        data: Data,
        rng: np.random.Generator,
        cache: str | os.PathLike | None,
        progress: Progress,
    ):
        self.model, self.examples, self.rng = segmenter.model, data.examples, rng
        images = list(dict.fromkeys(example.image for example in self.examples))
        if len(images) < MIN_IMAGES:
            raise InputError(f"there are {len(images)} images; expected {MIN_IMAGES} or more")
        self.features = CachedFeatures(
            self.model,
            segmenter.processor.image_processor,
            [example.image for example in self.examples],
            folder=cache,
            progress=progress,
        )
        folds = dict(zip(images, rng.permutation(len(images)) % FOLDS))
        # The embedding that does not learn from each example
        self.fold = np.array([folds[example.image] for example in self.examples])
        self.drawn = [self._drawn(np.flatnonzero(self.fold != fold)) for fold in range(FOLDS)]
        any_prompt = self.model.floats(np.zeros((1, self.model.config.projection_dim)))
        logits = self.model.decoder(self.features.load([(0, 0)]), any_prompt, self.features.grid)
        self.size = logits.logits.shape[1:]
        self.scored = rng.permutation(len(self.examples))[:MAX_SCORED]
        self.label = lru_cache(MAX_MASKS)(self._label)

    def iou(self, embeddings: Array) -> float:
        """The mean IoU of examples, each marked by the embedding of its fold.  (FOLDS,D) -> ()"""
        ops, decoder, grid = self.model.ops, self.model.decoder, self.features.grid

        def logits(part: slice) -> list[Array]:
            tokens = self.features.load([(number, 0) for number in self.scored[part]])
            rows = embeddings[ops.asarray(self.fold[self.scored[part]])]
            return [decoder(tokens, rows, grid).logits]

        found = joined_slices(ops, logits, len(self.scored), ops.prompts_per_slice)
        marked = ops.to_numpy(found[0]) > 0
        labels = np.stack([self.label(number) for number in self.scored])
        known = ~np.isnan(labels)
        return float(np.mean([*map(image_iou, marked & known, (labels > 0.5) & known)]))

    def gradient(self, embeddings: Array) -> Array:
        """The derivative of the loss of each embedding's next batch.  -> (FOLDS,D)"""
        entries = [next(drawn) for drawn in self.drawn for _ in range(BATCH)]
        labels = np.stack([turned(self.label(number), turn) for number, turn in entries])
        found = one_pass(
            self.model.decoder,
            self.features.load(entries),
            embeddings.repeat(BATCH, axis=0),
            self.model.floats(labels),
            self.features.grid,
            is_reduced=True,
            learns=lambda name: False,
        )
        return found.d_embeddings.reshape(FOLDS, BATCH, -1).sum(axis=1)

    def _drawn(self, numbers: np.ndarray) -> Iterator[tuple[int, int]]:
        """Pairs of an example's number and a turn, each as often as any other."""
        turns = self.features.turns
        while True:
            for pair in self.rng.permutation(len(numbers) * turns):
                yield numbers[pair // turns], pair % turns

    def _label(self, number: int) -> np.ndarray:
        """The share of each pixel that is the thing, NaN where that is unknown.  (H,W)"""
        share, ignored = self.examples[number].target(self.size)
        return share if ignored is None else np.where(ignored, np.nan, share)
