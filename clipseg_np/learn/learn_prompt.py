"""A prompt learned from masks: the conditional embedding that best marks what they mark.

The embedding is all that learns. It starts as the text that marks the thing best, and moves by Adam
at a rate relative to its own size. Few images are soon learned by heart. Therefore four embeddings
learn, each from three quarters of the images, and running means of them are tried on the quarter
that each has not seen. The result is the mean of all four, at the last step that is as good as the
best one: not worse by more than one standard error, which is wide for few images.
"""

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..model.input_checks import require
from ..model.learned_prompt import LearnedPrompt, fingerprint
from ..nn.ops import Array
from ..version import __version__
from .data import Data, check_texts
from .lessons import FOLDS, Lessons, checked
from .optimizer import AdamW
from .progress import Progress, unseen
from .step import one_pass

# Tried as a start, beside the thing's own name.
PLAIN_TEXTS = "a shape", "a thing", "an object", "something"
STEPS, STEPS_BETWEEN, WARM_UP, PATIENCE = 240, 20, 20, 80
BATCH = 4  # of each embedding
RATE = 0.2  # a step changes a number by about so much of the start's root mean square
MEAN_STEPS = 20  # that a running mean looks back
MAX_SCORED = 16  # entries of each fold


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
    InputError for several things, unfit options, fewer than FOLDS images, and as CachedFeatures.
    """
    steps, rate, seed = checked([data], steps=steps, rate=rate, seed=seed)
    check_texts("starts (--start)", starts)
    names = sorted({example.prompts[0] for example in data.examples})
    fault = f"the masks mark {len(names)} things, {', '.join(map(repr, names[:9]))}"
    require(len(names) < 2, f"{fault}: choose one with --prompt")
    lessons = PromptLessons(segmenter, data, seed=seed, folder=cache, progress=progress)
    wordings = [text for example in data.examples for text in example.prompts]
    texts = list(dict.fromkeys(starts or (*wordings, *PLAIN_TEXTS)))
    candidates = segmenter.embed(texts)
    tries = [lessons.score(row[None].repeat(FOLDS, axis=0)) for row in candidates]
    number = int(np.argmax([ious.mean() for ious in tries]))
    embeddings = candidates[number][None].repeat(FOLDS, axis=0)
    optimizer, means = AdamW({"": embeddings}, weight_decay=0), embeddings.copy()
    size = float((embeddings * embeddings).mean()) ** 0.5
    best = ious = tries[number]
    last, vector = 0, means.mean(axis=0)
    for step in progress(range(1, steps + 1), "learning"):
        gradient = lessons.gradient(embeddings, step)
        optimizer.step({"": gradient}, rate * size * min(1, step / WARM_UP))
        means += (embeddings - means) / min(step, MEAN_STEPS)
        if step % STEPS_BETWEEN == 0:
            new = lessons.score(means)
            best = max(best, new, key=np.mean)
            if is_as_good(new, best):
                ious, last, vector = new, step, means.mean(axis=0)
            elif step - last >= PATIENCE:
                break
    if ious.mean() <= tries[number].mean():
        warnings.warn("nothing was learned: held-out images say so", stacklevel=2)
    made = {"prompt": names[0], "images": len(lessons.number), "start": texts[number]}
    made |= {"start_iou": float(tries[number].mean()), "held_out_iou": float(ious.mean())}
    made |= {"steps": last, "rate": rate, "seed": seed, "version": __version__}
    vector = lessons.model.ops.to_numpy(vector).astype(np.float32)
    return LearnedPrompt(vector, fingerprint(lessons.model), names[0], made)


def is_as_good(ious: np.ndarray, best: np.ndarray) -> bool:
    """Whether the mean is below that of the best by at most one standard error.  (n) and (n)"""
    losses = best - ious
    return losses.mean() <= losses.std(ddof=1) / len(losses) ** 0.5


class PromptLessons(Lessons):
    """Lessons for FOLDS embeddings (FOLDS,projection_dim) and a decoder that stays as it is."""

    def __init__(self, segmenter: Any, data: Data, **options: Any):
        super().__init__(segmenter, [data], is_reduced=True, **options)
        self.data = data
        tests = [self.held_out(self.data, fold, MAX_SCORED) for fold in range(FOLDS)]
        self.scored = [entry for entries in tests for entry in entries]
        folds = np.repeat(np.arange(FOLDS), [len(entries) for entries in tests])
        self.scored_folds = self.model.ops.asarray(folds)

    def score(self, embeddings: Array) -> np.ndarray:
        """IoU of examples, each marked by the embedding that did not learn it."""
        logits = self.logits(self.model.decoder, self.scored, embeddings[self.scored_folds])
        return self.ious(logits, self.labels(self.scored))

    def gradient(self, embeddings: Array, step: int) -> Array:
        """The derivative of the loss of each embedding's batch.  -> (FOLDS,projection_dim)"""
        rng = np.random.default_rng((self.seed, step))
        batches = [self.entries(self.data, BATCH, fold, step, rng) for fold in range(FOLDS)]
        entries = [entry for batch in batches for entry in batch]
        labels, rows = self.model.floats(self.labels(entries)), embeddings.repeat(BATCH, axis=0)
        given = self.tokens(entries), rows, labels, self.features.grid
        one = one_pass(self.model.decoder, *given, is_reduced=True, learns=lambda name: False)
        return one.d_embeddings.reshape(FOLDS, BATCH, -1).sum(axis=1)
