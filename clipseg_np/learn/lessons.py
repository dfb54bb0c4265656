"""Lessons: examples of images with cached features. Each fold of the images is held out from one of
FOLDS learners, which start alike and whose mean is the result.

A learner's batch depends on the seed and the step's number alone.
"""

from collections.abc import Sequence
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..masks.metrics import image_iou
from ..model.batched import joined_slices
from ..model.clipseg import Decoder
from ..model.input_checks import require
from ..nn.ops import Array
from .data import Data, Example
from .features import CachedFeatures, turned

FOLDS = 4
ABSENT = 0.2  # of the prompts, where that is known
MAX_MASKS = 512  # that are kept in memory
FRACTIONS = "rate", "pos_weight"  # are no whole numbers


class Entry(NamedTuple):
    """An example in one turn of its image, by one of its wordings."""

    example: Example
    turn: int
    text: str


def checked(parts: Sequence[Data], **options: Any) -> list[int | float]:
    """The options as Python's numbers. Raises InputError for unfit options or parts."""
    for part in parts:
        require(isinstance(part, Data), f"the data are {part!r}; expected those of read_data(...)")
    for name, number in options.items():
        kind, noun = (Real, "number") if name in FRACTIONS else (Integral, "whole number")
        limit = "" if name == "seed" else " above 0"
        fits = isinstance(number, kind) and (name == "seed" or 0 < number < np.inf)
        require(fits, f"{name} is {number!r}; expected a {noun}{limit}")
        options[name] = float(number) if name in FRACTIONS else int(number)
    return [*options.values()]


class Lessons:
    """The examples of all `parts` together; `options` are those of CachedFeatures.

    Raises InputError for fewer than FOLDS images.
    """

    def __init__(self, segmenter: Any, parts: Sequence[Data], seed: int, **options: Any):
        self.model, self.seed = segmenter.model, seed % 2**32
        self.rng = np.random.default_rng(self.seed)
        self.folds: dict[Path, int] = {}
        for data in parts:
            images = list(dict.fromkeys(example.image for example in data.examples))
            if len(images) < FOLDS:
                raise InputError(f"there are {len(images)} images; expected {FOLDS} or more")
            self.folds = dict(zip(images, self.rng.permutation(len(images)) % FOLDS)) | self.folds
        levels = {e.image: d.white_level for d in parts for e in (*d.examples, *d.absent)}
        self.number = {image: number for number, image in enumerate(levels)}
        processor = segmenter.processor.image_processor
        self.features = CachedFeatures(self.model, processor, levels, **options)
        self.label = lru_cache(MAX_MASKS)(lambda example: example.target(self.size))
        no_prompt = self.model.floats(np.zeros((1, self.model.config.projection_dim)))
        entry = Entry(parts[0].examples[0], 0, "")
        self.size = self.logits(self.model.decoder, [entry], no_prompt).shape[1:]

    def entries(
        self, data: Data, count: int, fold: int, step: int, rng: np.random.Generator
    ) -> list[Entry]:
        """`count` examples that are not held out, each as often as any other in all steps."""
        entries = []
        for number in range(step * count, (step + 1) * count):
            is_absent, turn = rng.random() < ABSENT, int(rng.integers(self.features.turns))
            parts = (data.absent, data.examples) if is_absent else (data.examples, data.absent)
            learned = ([e for e in part if self.folds.get(e.image) != fold] for part in parts)
            examples = next(filter(None, learned), ())
            require(len(examples) > 0, "all images to keep are in one fold; expected more of them")
            lap, place = divmod(number, len(examples))
            order = np.random.default_rng((self.seed, fold, lap)).permutation(len(examples))
            example = examples[order[place]]
            text = example.prompts[rng.integers(len(example.prompts))]
            entries.append(Entry(example, turn, text))
        return entries

    def held_out(self, data: Data, fold: int, count: int) -> list[Entry]:
        """At most `count` entries: each example once and, while they are few, in other turns."""
        examples = [e for e in data.examples if self.folds[e.image] == fold]
        np.random.default_rng(fold).shuffle(examples)
        pairs = [(e, turn) for turn in range(self.features.turns) for e in examples]
        return [Entry(e, turn, e.prompts[0]) for e, turn in pairs[:count]]

    def tokens(self, entries: Sequence[Entry]) -> list[Array]:
        """(P,1+hw,D) of each layer"""
        return self.features.load([(self.number[e.example.image], e.turn) for e in entries])

    def labels(self, entries: Sequence[Entry]) -> np.ndarray:
        """(P,H,W), 0 to 1, or NaN where that is unknown"""
        return np.stack([turned(self.label(entry.example), entry.turn) for entry in entries])

    def logits(self, decoder: Decoder, entries: Sequence[Entry], embeddings: Array) -> Array:
        """(P,projection_dim) -> (P,H,W)"""
        ops = self.model.ops

        def slice_logits(part: slice) -> list[Array]:
            tokens = self.tokens(entries[part])
            tokens = tokens if self.features.is_reduced else decoder.reduce(tokens)
            return [decoder(tokens, embeddings[part], self.features.grid).logits]

        return joined_slices(ops, slice_logits, len(entries), ops.prompts_per_slice)[0]

    def ious(self, logits: Array, labels: np.ndarray) -> np.ndarray:
        """(P,H,W), (P,H,W) -> (P)"""
        marked = self.model.ops.to_numpy(logits > 0) & ~np.isnan(labels)
        return np.array([*map(image_iou, marked, labels > 0.5)])
