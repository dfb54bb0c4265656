"""Scenes of the pool and phrases about them, turned into the arrays that a training step takes.

Batch number `i` depends on the seed and on `i` alone, so that a resumed run goes on with the same
batches.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from phrases import ATTRIBUTES, HELD_OUT, Phrase, absent_phrase, phrase_of
from pool import MAX_THINGS, NAMES, classes, load


def thing_of(kind) -> Phrase | None:
    """The attributes of a thing from their numbers; None where there is no thing."""
    if kind[-1] == 0:
        return None
    return Phrase(**{n: ATTRIBUTES[n][k - 1] if k else None for n, k in zip(NAMES, kind)})


def undecided(phrase: Phrase, thing: Phrase) -> bool:
    """Whether only the shape excludes `thing`, and training never shows this shape in its color.

    Training holds no green triangle. A model that learns of each green thing that it is no triangle
    learns that green things never are. So the losses say nothing where this could be learned.
    """
    return (thing.color, phrase.shape) in HELD_OUT and replace(phrase, shape=None).fits(thing)


def turned(rng, *arrays):
    """Each array (..., side, side) with the same random flip and quarter turns."""
    quarters, flip = rng.integers(4), rng.random() < 0.5
    for array in arrays:
        array = np.rot90(array, quarters, (-2, -1))
        yield array[..., ::-1] if flip else array


class Batches(torch.utils.data.Dataset):
    """Batch `i`: `scenes` scenes with `prompts` phrases each; a share `absent` fits nothing.

    The first `crops` scenes have an image prompt too, cut from any scene, in place of the first
    phrase.
    """

    def __init__(self, folder: Path, seed, scenes, prompts, tokenize, crops=0, absent=0.3):
        self.folder = folder
        self.seed, self.scenes, self.prompts, self.crops = seed, scenes, prompts, crops
        self.tokenize, self.absent = tokenize, absent
        self.crops_of = {}  # (color, shape) -> the numbers of the image prompts that show one
        for i, kind in enumerate(self.pool["crop_kinds"]):
            self.crops_of.setdefault(tuple(kind[2:]), []).append(i)
        pairs = {tuple(kind) for kind in self.pool["kinds"][..., 2:].reshape(-1, 2)} - {(0, 0)}
        if crops and not pairs <= set(self.crops_of):
            raise ValueError(
                f"{folder} has no image prompt for some of its things: draw more scenes (--pool), "
                "or pass --crops 0"
            )

    @property
    def pool(self) -> dict[str, np.ndarray]:
        """The arrays, which each process maps for itself: sent to another, they would be copied."""
        return load(self.folder)

    def __getitem__(self, i: int) -> dict:
        rng = np.random.default_rng([*self.seed, i])
        count, side = len(self.pool["images"]), self.pool["images"].shape[-1]
        arrays = {
            "images": np.zeros((self.scenes, 3, side, side), np.uint8),
            "masks": np.zeros((self.scenes, MAX_THINGS, side, side), np.uint8),
            "kinds": np.zeros((self.scenes, MAX_THINGS, len(NAMES)), np.int64),
            "crops": np.zeros((self.crops, 3, side, side), np.uint8),
            "fits": np.zeros((self.scenes, self.prompts, MAX_THINGS), np.float32),
            "undecided": np.zeros((self.scenes, self.prompts, MAX_THINGS), np.float32),
            "asked": np.zeros((self.scenes, self.prompts, len(NAMES)), np.int64),
        }
        texts = []
        for b, number in enumerate(rng.integers(count, size=self.scenes)):
            image, masks = (self.pool[name][number] for name in ("images", "masks"))
            arrays["images"][b], arrays["masks"][b] = turned(rng, image, masks)
            arrays["kinds"][b] = kinds = self.pool["kinds"][number]
            things = [thing for kind in kinds if (thing := thing_of(kind))]
            for p in range(self.prompts):
                if b < self.crops and p == 0:
                    thing = things[rng.integers(len(things))]
                    phrase = Phrase(color=thing.color, shape=thing.shape)
                    crops = self.crops_of[tuple(classes(phrase)[2:])]
                    crop = self.pool["crops"][crops[rng.integers(len(crops))]]
                    (arrays["crops"][b],) = turned(rng, crop)
                else:
                    phrase = self.phrase(things, rng)
                texts.append(phrase.words(rng))
                arrays["asked"][b, p] = classes(phrase)
                for k, thing in enumerate(things):
                    arrays["fits"][b, p, k] = phrase.fits(thing)
                    arrays["undecided"][b, p, k] = undecided(phrase, thing)
        batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        ids = self.tokenize(texts, padding=True, return_tensors="np").input_ids
        return batch | {"ids": torch.from_numpy(np.asarray(ids))}

    def phrase(self, things, rng) -> Phrase:
        if rng.random() < self.absent:
            return absent_phrase(things, rng)
        return phrase_of(things[rng.integers(len(things))], rng)


class HeldOutBatches(Batches):
    """Batches in which every phrase names a pair in the scene that is kept out of training."""

    def phrase(self, things, rng) -> Phrase:
        pairs = [(t.color, t.shape) for t in things if (t.color, t.shape) in HELD_OUT]
        color, shape = pairs[rng.integers(len(pairs))]
        return Phrase(color=color, shape=shape)
