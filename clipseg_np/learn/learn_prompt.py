"""A prompt learned from masks: the conditional embedding that best marks what they mark.

The embedding is all that learns. It starts as the text that marks the thing best, and moves by Adam
at a rate relative to its own size. Few images are soon learned by heart. Therefore four embeddings
learn, each from three quarters of the images, and running means of them are tried on the quarter
that each has not seen. The result is the mean of all four, at the last step that is as good as the
best one: not worse by more than one standard error, which is wide for few images.
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
FOLDS, MIN_IMAGES = 4, 4
STEPS, STEPS_BETWEEN, WARM_UP, PATIENCE = 240, 20, 20, 80
BATCH = 4  # of each embedding
RATE = 0.2  # a step changes a number by about so much of the start's root mean square
MEAN_STEPS = 20  # that a running mean looks back
ABSENT = 0.25  # examples of images without the thing, for each example with it
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
    names = sorted({example.prompts[0] for example in data.examples})
    if len(names) > 1:
        some = ", ".join(map(repr, names[:9]))
        raise InputError(f"the masks mark {len(names)} things, {some}: choose one with --prompt")
    model, rng = segmenter.model, np.random.default_rng(seed % 2**32)
    lessons = Lessons(segmenter, data, rng, cache, progress)
    wordings = [text for example in data.examples for text in example.prompts]
    texts = list(dict.fromkeys(starts or (*wordings, *PLAIN_TEXTS)))
    candidates = segmenter.embed(texts)
    tries = [lessons.ious(candidates[i : i + 1].repeat(FOLDS, axis=0)) for i in range(len(texts))]
    number = int(np.argmax([ious.mean() for ious in tries]))
    embeddings = candidates[number : number + 1].repeat(FOLDS, axis=0)
    optimizer, means = AdamW({"": embeddings}, weight_decay=0), embeddings.copy()
    size = float((embeddings * embeddings).mean()) ** 0.5
    best = ious = tries[number]
    last, vector = 0, means.mean(axis=0)
    for step in progress(range(1, steps + 1), "learning"):
        optimizer.step({"": lessons.gradient(embeddings)}, rate * size * min(1, step / WARM_UP))
        means += (embeddings - means) / min(step, MEAN_STEPS)
        if step % STEPS_BETWEEN == 0:
            new = lessons.ious(means)
            best = max(best, new, key=np.mean)
            if is_as_good(new, best):
                ious, last, vector = new, step, means.mean(axis=0)
            elif step - last >= PATIENCE:
                break
    made = {
        "prompt": names[0],
        "images": len(lessons.images),
        "start": texts[number],
        "start_iou": float(tries[number].mean()),
        "held_out_iou": float(ious.mean()),
        "steps": last,
        "rate": rate,
        "seed": seed,
        "version": __version__,
    }
    vector = model.ops.to_numpy(vector).astype(np.float32)
    return LearnedPrompt(vector, fingerprint(model), names[0], made)


def is_as_good(ious: np.ndarray, best: np.ndarray) -> bool:
    """Whether the mean is below that of the best by at most one standard error.  (n) and (n)"""
    losses = best - ious
    return losses.mean() <= losses.std(ddof=1) / len(losses) ** 0.5


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
        self.model, self.rng = segmenter.model, rng
        absent = rng.permutation(len(data.absent))[: int(len(data.examples) * ABSENT)]
        self.examples = [*data.examples, *(data.absent[number] for number in absent)]
        images = [example.image for example in self.examples]
        self.images = list(dict.fromkeys(images))
        if len(self.images) < MIN_IMAGES:
            raise InputError(f"got {len(self.images)} images; expected {MIN_IMAGES} or more")
        options = {"folder": cache, "progress": progress}
        processor = segmenter.processor.image_processor
        self.features = CachedFeatures(self.model, processor, images, **options)
        folds = dict(zip(self.images, rng.permutation(len(self.images)) % FOLDS))
        # The embedding that does not learn from each example
        self.fold = np.array([folds[image] for image in images])
        self.drawn = [self._drawn(np.flatnonzero(self.fold != fold)) for fold in range(FOLDS)]
        any_prompt = self.model.floats(np.zeros((1, self.model.config.projection_dim)))
        logits = self.model.decoder(self.features.load([(0, 0)]), any_prompt, self.features.grid)
        self.size = logits.logits.shape[1:]
        self.scored = rng.permutation(len(self.examples))[:MAX_SCORED]
        self.label = lru_cache(MAX_MASKS)(self._label)

    def ious(self, embeddings: Array) -> np.ndarray:
        """IoU of examples, each marked by the embedding that did not learn it.  (FOLDS,D) -> (n)"""
        ops, decoder, grid = self.model.ops, self.model.decoder, self.features.grid

        def logits(part: slice) -> list[Array]:
            tokens = self.features.load([(number, 0) for number in self.scored[part]])
            rows = embeddings[ops.asarray(self.fold[self.scored[part]])]
            return [decoder(tokens, rows, grid).logits]

        found = joined_slices(ops, logits, len(self.scored), ops.prompts_per_slice)
        marked = ops.to_numpy(found[0]) > 0
        labels = np.stack([self.label(number) for number in self.scored])
        return np.array([*map(image_iou, marked & ~np.isnan(labels), labels > 0.5)])

    def gradient(self, embeddings: Array) -> Array:
        """The derivative of the loss of each embedding's next batch.  -> (FOLDS,D)"""
        entries = [next(drawn) for drawn in self.drawn for _ in range(BATCH)]
        labels = np.stack([turned(self.label(number), turn) for number, turn in entries])
        tokens, rows = self.features.load(entries), embeddings.repeat(BATCH, axis=0)
        given = tokens, rows, self.model.floats(labels), self.features.grid
        frozen = {"is_reduced": True, "learns": lambda name: False}
        d_rows = one_pass(self.model.decoder, *given, **frozen).d_embeddings
        return d_rows.reshape(FOLDS, BATCH, -1).sum(axis=1)

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
