"""Masks cleaned up and put to use: grown, shrunk, feathered, freed of crumbs, cut out, and many of them in one label map.

A mask is (height,width), bool; lengths are in pixels of the picture.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from .errors import InputError


def grow(mask: np.ndarray, pixels: float) -> np.ndarray:
    """The mask with all that lies within `pixels` of it, as the crow flies; a negative number shrinks it.

    Beyond the picture's border lies nothing: shrinking takes nothing off there.
    """
    if pixels < 0:
        return ~grow(~mask, -pixels)
    if pixels >= np.hypot(*mask.shape):  # the picture's diagonal: from anywhere to anywhere
        return np.full_like(mask, mask.any())
    height = mask.shape[0]
    grown = mask.copy()
    for down in range(1, int(min(pixels, height - 1)) + 1):
        row = wider(mask, int((pixels**2 - down**2) ** 0.5))
        grown[down:] |= row[:-down]
        grown[:-down] |= row[down:]
    return grown | wider(mask, int(pixels))


def wider(mask: np.ndarray, pixels: int) -> np.ndarray:
    """What lies within so many pixels to the left or right of the mask."""
    counts = np.zeros((mask.shape[0], mask.shape[1] + 1), np.int32)
    np.cumsum(mask, axis=1, out=counts[:, 1:])
    place = np.arange(mask.shape[1])
    first, end = np.maximum(place - pixels, 0), np.minimum(place + pixels + 1, mask.shape[1])
    return counts[:, end] > counts[:, first]


def feather(mask: np.ndarray, pixels: float) -> np.ndarray:
    """The mask with a soft edge, by a Gaussian of this deviation.  -> (height,width), float32, 0 to 1"""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(pixels)), np.float32) / 255


@dataclass(frozen=True)
class Region:
    """A connected part of a mask: its `area` in pixels, and its `box` (left, top, right, bottom), the ends excluded."""

    area: int
    box: tuple[int, int, int, int]


def regions(mask: np.ndarray) -> tuple[np.ndarray, list[Region]]:
    """Number the connected parts, also those that touch by a corner.

    -> (height,width), 0 where there is no mask and else the region's number, from 1, as they begin from the top; and
    the regions in this order.
    """
    rows, starts, ends = runs(mask)
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    # A run meets those of the row above that begin before it has ended and end after it has begun.
    first_of_row = np.searchsorted(rows, np.arange(mask.shape[0] + 1))
    for row in range(1, mask.shape[0]):
        above, end_above = first_of_row[row - 1], first_of_row[row]
        for run in range(end_above, first_of_row[row + 1]):
            while above < end_above and ends[above] < starts[run]:
                above += 1
            other = above
            while other < end_above and starts[other] <= ends[run]:
                low, high = sorted((root(run), root(other)))
                parent[high] = low
                other += 1
    roots = np.array([root(run) for run in range(len(rows))], int)
    _, numbers = np.unique(roots, return_inverse=True)
    count = numbers.max(initial=-1) + 1
    area = np.bincount(numbers, ends - starts, count).astype(int)
    left, top = np.full(count, mask.shape[1]), np.full(count, mask.shape[0])
    right, bottom = np.zeros((2, count), int)
    np.minimum.at(left, numbers, starts)
    np.minimum.at(top, numbers, rows)
    np.maximum.at(right, numbers, ends)
    np.maximum.at(bottom, numbers, rows + 1)
    boxes = np.stack([left, top, right, bottom], 1).tolist()
    found = [Region(int(size), tuple(box)) for size, box in zip(area, boxes)]
    labels = np.zeros(mask.shape, np.int32)
    labels[mask] = np.repeat(numbers + 1, ends - starts)
    return labels, found


def runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows, first columns and end columns (excluded) of all runs of True along the rows, in reading order."""
    padded = np.zeros((mask.shape[0], mask.shape[1] + 2), np.int8)
    padded[:, 1:-1] = mask
    step = np.diff(padded, axis=1)
    rows, starts = np.nonzero(step == 1)
    _, ends = np.nonzero(step == -1)
    return rows, starts, ends


def without_crumbs(mask: np.ndarray, smallest: int) -> np.ndarray:
    """The mask without its connected parts of fewer than `smallest` pixels."""
    labels, found = regions(mask)
    keep = np.array([False, *(region.area >= smallest for region in found)])
    return keep[labels]


def cut_out(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture where the mask is, transparent elsewhere; a soft mask (float, 0 to 1) is transparent in part.

    (height,width,3), uint8 -> (height,width,4), uint8
    """
    if mask.shape != picture.shape[:2]:
        raise InputError(
            f"the mask is {mask.shape} and the picture {picture.shape[:2]}; expected one size"
        )
    opaque = np.rint(255 * mask.astype(np.float32)).astype(np.uint8)
    return np.dstack([picture, opaque])


def contour(mask: np.ndarray, pixels: int = 1) -> np.ndarray:
    """The mask's rim, so many pixels wide, inside of it. Where the mask runs over the picture's border, there is none."""
    return mask & ~grow(mask, -pixels)


def label_map(probabilities: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """(P,height,width) -> (height,width), uint8: the prompt that is likeliest at each pixel, from 1.

    0, the background, where none is above `threshold`; of equal ones, the first. Raises InputError for over 255 prompts.
    """
    if len(probabilities) > 255:
        raise InputError(f"got {len(probabilities)} prompts; a label map holds at most 255")
    likeliest = probabilities.argmax(axis=0)
    there = probabilities.max(axis=0) > threshold
    return np.where(there, likeliest + 1, 0).astype(np.uint8)


def run_lengths(mask: np.ndarray) -> dict:
    """The mask in COCO's form: the lengths of runs of 0 and 1 in turn, beginning with 0, down the columns."""
    values = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(values)) + 1
    ends = np.concatenate([[0], changes, [values.size]])
    counts = np.diff(ends).tolist()
    if values.size and values[0]:
        counts.insert(0, 0)
    return {"size": list(mask.shape), "counts": counts}
