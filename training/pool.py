"""Generated scenes as arrays in files, drawn once in worker processes and read many times.

To draw a scene takes as long as half a training step on it; a flipped or turned scene with other
phrases is as good as a new one. Scene number `i` depends on the seed and on `i` alone.
"""

from __future__ import annotations

import functools
import multiprocessing
from pathlib import Path

import numpy as np
from phrases import ATTRIBUTES
from PIL import Image
from scenes import draw_scene
from tqdm import tqdm

from clipseg_np import VisualPrompt

MAX_THINGS = 4  # in a scene
CROPS = 3  # one scene in so many gives an image prompt
# ImageNet's mean and deviation normalize the images; an image prompt's background fades to the
# mean.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NAMES = tuple(ATTRIBUTES)


def classes(thing) -> list[int]:
    """The four attributes as numbers, in the order of ATTRIBUTES; 0 is none, or the background."""
    return [1 + ATTRIBUTES[n].index(v) if (v := getattr(thing, n)) else 0 for n in NAMES]


def pixels(image, side: int) -> np.ndarray:
    """(3, side, side) uint8: resized as at inference (Pillow's bilinear), not yet normalized."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.BILINEAR)).transpose(
        2, 0, 1
    )


def soft_mask(mask, side: int) -> np.ndarray:
    """(side, side) uint8: the share of each pixel that belongs to the mask, times 255."""
    shrinking = min(mask.shape) > side
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.resize((side, side), Image.BOX if shrinking else Image.BILINEAR))


def draw(number: int, seed, side: int, held_out) -> tuple:
    """A scene's arrays: image, masks, kinds; for every third, an image prompt and its kind."""
    rng = np.random.default_rng([seed, number])
    scene = draw_scene(rng, held_out=held_out)
    masks = np.zeros((MAX_THINGS, side, side), np.uint8)
    kinds = np.zeros((MAX_THINGS, len(NAMES)), np.uint8)
    for k, thing in enumerate(scene.things):
        masks[k] = soft_mask(thing.mask, side)
        kinds[k] = classes(thing)
    crop = ()
    if number % CROPS == 0:
        thing = scene.things[rng.integers(len(scene.things))]
        prompt = VisualPrompt(scene.image, thing.mask)
        crop = pixels(prompt.prepared(MEAN), side), classes(thing)
    return pixels(scene.image, side), masks, kinds, *crop


def fill(folder: Path, seed, scenes: int, side: int, held_out=False, workers: int = 1) -> None:
    """Draw the scenes into `folder`, one .npy file for each array of `draw`."""
    folder.mkdir(parents=True, exist_ok=True)
    crops = -(-scenes // CROPS)
    shapes = {
        "images": (scenes, 3, side, side),
        "masks": (scenes, MAX_THINGS, side, side),
        "kinds": (scenes, MAX_THINGS, len(NAMES)),
        "crops": (crops, 3, side, side),
        "crop_kinds": (crops, len(NAMES)),
    }
    files = [
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.uint8, shape)
        for name, shape in shapes.items()
    ]
    one = functools.partial(draw, seed=seed, side=side, held_out=held_out)
    with multiprocessing.Pool(workers) as processes:
        drawn = processes.imap(one, range(scenes), chunksize=64)
        for number, arrays in enumerate(tqdm(drawn, "drawing scenes", scenes)):
            for i, array in enumerate(arrays):
                files[i][number if i < 3 else number // CROPS] = array


@functools.cache
def load(folder: Path) -> dict[str, np.ndarray]:
    """The arrays by name, mapped into memory."""
    return {file.stem: np.load(file, mmap_mode="r") for file in folder.glob("*.npy")}
