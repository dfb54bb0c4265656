"""Masks cleaned up and put to use: grown, shrunk, feathered, freed of crumbs, cut out, and many of them in one label map.

A mask is (height,width), bool; lengths are in pixels of the image.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from ..errors import InputError
from ..image.row_blocks import map_row_blocks, row_blocks


def dilate(mask: np.ndarray, pixels: float) -> np.ndarray:
    """The mask with all that lies within `pixels` of it, as the crow flies; a negative number shrinks it.

    Beyond the image's border lies nothing: shrinking takes nothing off there.
    """
    if pixels < 0:
        return ~dilate(~mask, -pixels)
    if pixels >= np.hypot(*mask.shape):  # the image's diagonal: from anywhere to anywhere
        return np.full_like(mask, mask.any())
    grown = mask.copy()
    height, width = mask.shape
    margin = int(min(pixels, max(height, width)))
    for rows in row_blocks(height, width):  # a band, and what of the mask can reach it
        reach = slice(max(0, rows.start - margin), rows.stop + margin)
        columns = np.flatnonzero(mask[reach].any(axis=0))
        if not len(columns) or mask[rows].all():
            continue
        part = slice(max(0, columns[0] - margin), columns[-1] + margin + 1)
        near = _dilate_window(mask[reach, part], pixels)
        grown[rows, part] = near[rows.start - reach.start :][: rows.stop - rows.start]
    return grown


def _dilate_window(mask: np.ndarray, pixels: float) -> np.ndarray:
    """`dilate`, of a mask that is not large: for each row downwards, what lies near enough to its left and right."""
    height, width = mask.shape
    counts = np.zeros((height, width + 1), np.int32)  # of True to the left
    np.cumsum(mask, axis=1, out=counts[:, 1:])
    place = np.arange(width)
    grown = np.zeros_like(mask)
    for down in range(int(min(pixels, height - 1)) + 1):
        across = int(min((pixels**2 - down**2) ** 0.5, width))
        first, end = np.maximum(place - across, 0), np.minimum(place + across + 1, width)
        row = counts[:, end] > counts[:, first]
        grown[down:] |= row[: height - down]
        grown[: height - down] |= row[down:]
    return grown


def feather(mask: np.ndarray, pixels: float) -> np.ndarray:
    """The mask with a soft edge, by a Gaussian of this deviation.  -> (height,width), float32, 0 to 1"""
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(pixels)), np.float32) / 255


@dataclass(frozen=True)
class Component:
    """A connected part of a mask: its `area` in pixels, and its `box` (left, top, right, bottom), the ends excluded."""

    area: int
    box: tuple[int, int, int, int]


def connected_components(mask: np.ndarray) -> list[Component]:
    """The connected parts, also those that touch by a corner, as they begin from the top."""
    rows, starts, ends = runs(mask)
    numbers = component_numbers(mask.shape[0], rows, starts, ends)
    count = numbers.max(initial=-1) + 1
    area = np.bincount(numbers, ends - starts, count).astype(int)
    left, top = np.full(count, mask.shape[1]), np.full(count, mask.shape[0])
    right, bottom = np.zeros((2, count), int)
    np.minimum.at(left, numbers, starts)
    np.minimum.at(top, numbers, rows)
    np.maximum.at(right, numbers, ends)
    np.maximum.at(bottom, numbers, rows + 1)
    boxes = np.stack([left, top, right, bottom], 1).tolist()
    return [Component(int(size), tuple(box)) for size, box in zip(area, boxes)]


def component_numbers(
    height: int, rows: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """For each of a mask's `runs`, the number of the region that it belongs to, from 0."""
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    # A run meets those of the row above that begin before it has ended and end after it has begun.
    first_of_row = np.searchsorted(rows, np.arange(height + 1))
    for row in range(1, height):
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
    return np.unique(roots, return_inverse=True)[1]


def runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows, first columns and end columns (excluded) of all runs of True along the rows, in reading order."""
    found = []
    for band in row_blocks(*mask.shape):
        padded = np.zeros((band.stop - band.start, mask.shape[1] + 2), np.int8)
        padded[:, 1:-1] = mask[band]
        step = np.diff(padded, axis=1)
        rows, starts = np.nonzero(step == 1)
        found.append((rows + band.start, starts, np.nonzero(step == -1)[1]))
    return tuple(np.concatenate(parts) for parts in zip(*found))


def remove_small_components(mask: np.ndarray, smallest: int) -> np.ndarray:
    """The mask without its connected parts of fewer than `smallest` pixels."""
    rows, starts, ends = runs(mask)
    numbers = component_numbers(mask.shape[0], rows, starts, ends)
    large = np.bincount(numbers, ends - starts) >= smallest
    kept = np.zeros_like(mask)
    kept[mask] = np.repeat(large[numbers], ends - starts)
    return kept


def cut_out(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image where the mask is, transparent elsewhere; a soft mask (float, 0 to 1) is transparent in part.

    (height,width,3), uint8 -> (height,width,4), uint8
    """
    if mask.shape != image.shape[:2]:
        raise InputError(
            f"the mask is {mask.shape} and the image {image.shape[:2]}; expected one size"
        )
    opaque = map_row_blocks(lambda rows: np.rint(255 * rows).astype(np.uint8), mask)
    return np.dstack([image, opaque])


def contour(mask: np.ndarray, pixels: int = 1) -> np.ndarray:
    """The mask's rim, so many pixels wide, inside of it. Where the mask runs over the image's border, there is none."""
    return mask & ~dilate(mask, -pixels)


def label_map(probabilities: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """(P,height,width) -> (height,width), uint8: the prompt that is likeliest at each pixel, from 1.

    0, the background, where none is above `threshold`; of equal ones, the first. Raises InputError for over 255 prompts.
    """
    labels = Labels(probabilities.shape[1:], len(probabilities), threshold)
    for one in probabilities:
        labels.add(one)
    return labels.map


class Labels:
    """A label map that grows prompt by prompt: `map`, (height,width), uint8, as `label_map` makes it."""

    def __init__(self, size: tuple[int, int], prompts: int, threshold: float = 0.5):
        if prompts > 255:
            raise InputError(f"got {prompts} prompts; a label map holds at most 255")
        self.map = np.zeros(size, np.uint8)
        self.highest = np.full(size, threshold, np.float32)
        self.number = 0

    def add(self, probabilities: np.ndarray, mask: np.ndarray | bool = True) -> None:
        """The next prompt's map, (height,width), where `mask` is."""
        self.number += 1
        likelier = mask & (probabilities > self.highest)
        self.map[likelier] = self.number
        np.copyto(self.highest, probabilities, where=likelier)


def run_length_encoding(mask: np.ndarray) -> dict:
    """The mask in COCO's form: the lengths of runs of 0 and 1 in turn, beginning with 0, down the columns."""
    values = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(values)) + 1
    ends = np.concatenate([[0], changes, [values.size]])
    counts = np.diff(ends).tolist()
    if values.size and values[0]:
        counts.insert(0, 0)
    return {"size": list(mask.shape), "counts": counts}
