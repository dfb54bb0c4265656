"""Scenes and phrases turned into the arrays that a training step takes, in worker processes of torch's DataLoader.

Batch number `i` depends on the seed and on `i` alone: a resumed run goes on with the scenes it would have had.
"""

from __future__ import annotations

import numpy as np
import torch
from phrases import ATTRIBUTES, HELD_OUT, Phrase, absent_phrase, phrase_of
from PIL import Image
from scenes import draw_scene

from clipseg_np import VisualPrompt

MOST = 4  # things in a scene
# Of ImageNet's colours: pictures are normalised by them, and a picture prompt's surroundings fade to the mean.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NAMES = tuple(ATTRIBUTES)


def classes(thing) -> list[int]:
    """The four attributes as numbers, in the order of ATTRIBUTES; 0 is none (or, of a patch, background)."""
    return [1 + ATTRIBUTES[n].index(v) if (v := getattr(thing, n)) else 0 for n in NAMES]


def pixels(image, side: int) -> np.ndarray:
    """(3, side, side) uint8: resized as at inference (Pillow's bilinear), not yet normalised."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.BILINEAR)).transpose(
        2, 0, 1
    )


def soft_mask(mask, side: int) -> np.ndarray:
    """(side, side) uint8: the share of each pixel that belongs to the mask, times 255."""
    shrinking = min(mask.shape) > side
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(picture.resize((side, side), Image.BOX if shrinking else Image.BILINEAR))


class Batches(torch.utils.data.Dataset):
    """Batch `i`: `scenes` scenes with `prompts` phrases each, of which `absent` (a share) fit nothing in the scene.

    The first `crops` scenes have a picture prompt too, cut from another scene, which stands for their first phrase.
    """

    def __init__(self, seed, scenes, prompts, side, tokenize, crops=0, absent=0.25, held_out=False):
        self.seed, self.scenes, self.prompts, self.side = seed, scenes, prompts, side
        self.tokenize, self.crops, self.absent, self.held_out = tokenize, crops, absent, held_out

    def __getitem__(self, i: int) -> dict:
        rng = np.random.default_rng([self.seed, i])
        images = np.zeros((self.scenes, 3, self.side, self.side), np.uint8)
        masks = np.zeros((self.scenes, MOST, self.side, self.side), np.uint8)
        kinds = np.zeros((self.scenes, MOST, len(NAMES)), np.int64)
        fits = np.zeros((self.scenes, self.prompts, MOST), np.float32)
        asked = np.zeros((self.scenes, self.prompts, len(NAMES)), np.int64)
        texts, crops = [], np.zeros((self.crops, 3, self.side, self.side), np.uint8)
        for b in range(self.scenes):
            scene = draw_scene(rng, held_out=self.held_out)
            images[b] = pixels(scene.image, self.side)
            for k, thing in enumerate(scene.things):
                masks[b, k] = soft_mask(thing.mask, self.side)
                kinds[b, k] = classes(thing)
            for p in range(self.prompts):
                if b < self.crops and p == 0:
                    thing = scene.things[rng.integers(len(scene.things))]
                    phrase = Phrase(colour=thing.colour, shape=thing.shape)
                    other = draw_scene(rng, require=(thing.colour, thing.shape))
                    prompt = VisualPrompt(other.image, other.things[0].mask)
                    crops[b] = pixels(prompt.picture(MEAN), self.side)
                elif rng.random() < self.absent:
                    phrase = absent_phrase(scene.things, rng)
                else:
                    phrase = self.present(scene, rng)
                texts.append(phrase.words(rng))
                asked[b, p] = classes(phrase)
                fits[b, p, : len(scene.things)] = [phrase.fits(t) for t in scene.things]
        arrays = {
            "images": images,
            "masks": masks,
            "kinds": kinds,
            "fits": fits,
            "asked": asked,
            "crops": crops,
        }
        ids = self.tokenize(texts, padding=True, return_tensors="np").input_ids
        return {name: torch.from_numpy(a) for name, a in arrays.items()} | {
            "ids": torch.from_numpy(np.asarray(ids))
        }

    def present(self, scene, rng) -> Phrase:
        """A phrase that fits; where held-out pairs are the matter ("only"), one that names such a pair."""
        things = scene.things
        if self.held_out == "only":
            things = [t for t in things if (t.colour, t.shape) in HELD_OUT]
            thing = things[rng.integers(len(things))]
            return Phrase(colour=thing.colour, shape=thing.shape)
        return phrase_of(things[rng.integers(len(things))], rng)
