"""Masks cleaned up and used: dilated, feathered, cut out, split into components, labeled, encoded.

A mask is (height,width), bool, or holds 0 and 1 or 255, as image files do; InputError is raised for
another. Lengths are in pixels of the image.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from ..errors import InputError
from ..image.row_blocks import map_row_blocks, row_blocks

MAX_COORDINATE = 1e6  # of polygons, pixels


def as_mask(mask: np.ndarray) -> np.ndarray:
    """The mask, (height,width), bool. Raises InputError for what is none."""
    mask = np.asarray(mask)
    if mask.dtype != bool and mask.dtype.kind in "iu":
        highest = 255 if mask.max(initial=0) > 1 else 1
        mask = mask > 0 if ((mask == 0) | (mask == highest)).all() else mask
    if mask.dtype != bool or mask.ndim != 2:
        raise InputError(
            f"got {mask.dtype}, {mask.shape}; expected one mask (height,width), bool or of 0 and 1 "
            f"or 255, such as probabilities > 0.5"
        )
    return mask


def dilate(mask: np.ndarray, radius: float) -> np.ndarray:
    """Dilate by a disc of this radius; a negative radius erodes.

    Erosion takes nothing off at the image's border.
    """
    mask = as_mask(mask)
    if radius < 0:
        return ~dilate(~mask, -radius)
    # Beyond the image's diagonal, a disc around any pixel covers the whole image.
    if radius >= np.hypot(*mask.shape):
        return np.full_like(mask, mask.any())
    dilated = mask.copy()
    height, width = mask.shape
    margin = int(min(radius, max(height, width)))
    for rows in row_blocks(height, width):
        # The part of the mask from which a disc can reach the block.
        reach = slice(max(0, rows.start - margin), rows.stop + margin)
        columns = np.flatnonzero(mask[reach].any(axis=0))
        if not len(columns) or mask[rows].all():
            continue
        window = slice(max(0, columns[0] - margin), columns[-1] + margin + 1)
        block = _dilate_window(mask[reach, window], radius)
        dilated[rows, window] = block[rows.start - reach.start :][: rows.stop - rows.start]
    return dilated


def _dilate_window(mask: np.ndarray, radius: float) -> np.ndarray:
    """Dilate a small mask by one vertical chord of the disc at a time, to the right and left."""
    (height, width), far = mask.shape, int(radius) + 1
    row = np.arange(height)[:, None]
    last = np.maximum.accumulate(np.where(mask, row, -far))
    following = np.minimum.accumulate(np.where(mask, row, height + far)[::-1])[::-1]
    # To the nearest True in the same column.
    distance = np.minimum(row - last, following - row)
    distance = np.minimum(distance, far).astype(np.min_scalar_type(far))
    dilated = np.zeros_like(mask)
    for across in range(int(min(radius, width - 1)) + 1):
        chord = distance <= int((radius**2 - across**2) ** 0.5)
        dilated[:, across:] |= chord[:, : width - across]
        dilated[:, : width - across] |= chord[:, across:]
    return dilated


def feather(mask: np.ndarray, pixels: float) -> np.ndarray:
    """Soften the edge by a Gaussian of this standard deviation: (height,width), float32, 0..1."""
    image = Image.fromarray(as_mask(mask).astype(np.uint8) * 255)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(pixels)), np.float32) / 255


class Component(NamedTuple):
    """A component's area in pixels, and its box (left, top, right, bottom), ends excluded."""

    area: int
    box: tuple[int, int, int, int]


def connected_components(mask: np.ndarray) -> list[Component]:
    """The connected components, 8-connected (corners touch), in the order of their first pixels."""
    mask = as_mask(mask)
    rows, starts, ends, numbers = labeled_runs(mask)
    count = numbers.max(initial=-1) + 1
    area = np.bincount(numbers, ends - starts, count)
    low, high = np.full((count, 2), max(mask.shape)), np.zeros((count, 2), int)
    np.minimum.at(low, numbers, np.stack([starts, rows], axis=1))
    np.maximum.at(high, numbers, np.stack([ends, rows + 1], axis=1))
    boxes = np.hstack([low, high]).tolist()
    return [Component(int(size), tuple(box)) for size, box in zip(area, boxes)]


def remove_small_components(mask: np.ndarray, min_area: int) -> np.ndarray:
    """The mask without its connected components of fewer than `min_area` pixels."""
    mask = as_mask(mask)
    _, starts, ends, numbers = labeled_runs(mask)
    large = np.bincount(numbers, ends - starts) >= min_area
    kept = np.zeros_like(mask)
    kept[mask] = np.repeat(large[numbers], ends - starts)
    return kept


def labeled_runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The runs of True along the rows, in reading order, (R,) integers each.

    Returns their rows, first columns, end columns (excluded), and the number of each run's
    connected component, from 0.
    """
    runs, zero = [], np.int8(0)
    for block in row_blocks(*mask.shape):
        step = np.diff(mask[block].astype(np.int8), axis=1, prepend=zero, append=zero)
        rows, starts = np.nonzero(step == 1)
        runs.append((rows + block.start, starts, np.nonzero(step == -1)[1]))
    rows, starts, ends = (np.concatenate(parts) for parts in zip(*runs))
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    # Positions in reading order, in rows of one column more, so that runs of two rows never meet.
    # A run touches those of the row above that end at its start or later, and start by its end.
    row_length = mask.shape[1] + 1
    offsets = rows * row_length
    first = np.searchsorted(offsets + ends, offsets - row_length + starts)
    end = np.searchsorted(offsets + starts, offsets - row_length + ends, side="right")
    for run, others in enumerate(map(range, first.tolist(), end.tolist())):
        for other in others:
            low, high = sorted((root(run), root(other)))
            parent[high] = low
    roots = np.array([root(run) for run in range(len(rows))], int)
    return rows, starts, ends, np.unique(roots, return_inverse=True)[1]


def cut_out(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image with the mask as alpha: (height,width,3 or 4), uint8 -> (height,width,4), uint8.

    An alpha that the image has is multiplied with the mask. mask: bool, or floats in 0..1 for a
    soft edge. Raises InputError for a mask of another size.
    """
    mask = mask if np.asarray(mask).dtype.kind == "f" else as_mask(mask)
    if mask.shape != image.shape[:2]:
        raise InputError(
            f"the mask is {mask.shape} and the image {image.shape[:2]}; expected one size"
        )
    own = image[..., 3] if image.shape[2] == 4 else np.broadcast_to(np.uint8(255), mask.shape)
    alpha = map_row_blocks(lambda own, mask: np.rint(own * mask).astype(np.uint8), own, mask)
    return np.dstack([image[..., :3], alpha])


def contour(mask: np.ndarray, pixels: int = 1) -> np.ndarray:
    """The mask's rim, of this width, inside the mask. There is none at the image's border."""
    return as_mask(mask) & ~dilate(mask, -pixels)


def label_map(probabilities: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """The likeliest prompt of each pixel: (P,height,width) -> (height,width), uint8, 1 to P.

    0 is the background, where no probability is above `threshold`; the first of equals wins.
    Raises InputError for more than 255 prompts.
    """
    labels = Labels(probabilities.shape[1:], len(probabilities), threshold)
    for probability in probabilities:
        labels.add(probability)
    return labels.map


class Labels:
    """A label map in progress: `map`, (height,width), uint8, as `label_map` returns it."""

    def __init__(self, size: tuple[int, int], prompts: int, threshold: float = 0.5):
        if prompts > 255:
            raise InputError(f"got {prompts} prompts; a label map holds at most 255")
        self.map = np.zeros(size, np.uint8)
        self.highest = np.full(size, threshold, np.float32)
        self.number = 0

    def add(self, probabilities: np.ndarray, mask: np.ndarray | bool = True) -> None:
        """Add the next prompt's probabilities, (height,width), inside its mask."""
        self.number += 1
        likelier = mask & (probabilities > self.highest)
        self.map[likelier] = self.number
        np.copyto(self.highest, probabilities, where=likelier)


def mask_statistics(mask: np.ndarray) -> dict:
    """A mask's area, share of the image, and box (left, top, right, bottom; the ends excluded)."""
    box = Image.fromarray(mask.view(np.uint8)).getbbox()
    share = round(float(mask.mean()), 6)
    return {"area": int(mask.sum()), "share": share, "box": box and list(box)}


def run_length_encoding(mask: np.ndarray) -> dict:
    """COCO's uncompressed RLE: lengths of runs down the columns, of 0 and 1 in turn, 0 first."""
    values = as_mask(mask).ravel(order="F")
    changes = np.flatnonzero(np.diff(values)) + 1
    counts = np.diff(changes, prepend=0, append=values.size).tolist()
    if values.size and values[0]:
        counts.insert(0, 0)
    return {"size": list(mask.shape), "counts": counts}


def run_length_decoding(rle: dict) -> np.ndarray:
    """The mask of COCO's RLE: {"size": [height,width], "counts": a list or a compressed text}.

    Raises InputError where the counts are none, or do not fill the size.
    """
    try:
        (height, width), counts = rle.get("size"), rle.get("counts")
        counts = counts if isinstance(counts, list) else uncompressed_counts(counts)
        if sum(counts) != height * width:
            raise ValueError(f"{sum(counts)} pixels, and its size is {height} x {width}")
        values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        return values.reshape(height, width, order="F")
    except (TypeError, ValueError) as error:
        raise InputError(f"the RLE is damaged ({error}); expected counts to fill it") from error


def uncompressed_counts(text: str | bytes) -> list[int]:
    """The counts of a compressed RLE. Raises ValueError or TypeError for another text.

    A character holds 5 bits of a number, the lowest first, 32 where more follow, and 48 is added.
    The last one's 16 is the sign. From the fourth on, numbers are differences to the last but one.
    """
    counts, number, shift = [], 0, 0
    for bits in map(range(48, 112).index, text.encode() if isinstance(text, str) else text):
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            number -= bool(bits & 16) << shift
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = shift = 0
    return counts


def polygon_mask(polygon: list[float], size: tuple[int, int]) -> np.ndarray:
    """The mask of the pixels whose centers lie inside a polygon, by the even-odd rule.

    polygon: [x, y, x, y, x, y, ...]; pixel (row,column) covers x from column to column + 1. size:
    (height,width). pycocotools rounds, and differs where an edge is within 0.3 pixels of a center.
    Raises InputError for another polygon.
    """
    numbers = polygon if isinstance(polygon, list) and len(polygon) % 2 == 0 else []
    are_points = all(isinstance(n, (int, float)) and abs(n) < MAX_COORDINATE for n in numbers)
    if len(numbers) < 6 or not are_points:
        raise InputError(f"{str(polygon)[:60]} is no polygon; expected [x, y, x, y, x, y, ...]")
    points, (height, width) = np.reshape(numbers, (-1, 2)), size
    crossings = np.zeros((height, width + 1), bool)
    for (x, y), (next_x, next_y) in zip(points, np.roll(points, -1, axis=0)):
        top, bottom = (int(np.clip(np.ceil(end - 0.5), 0, height)) for end in sorted((y, next_y)))
        rows = np.arange(top, bottom)
        across = x + (rows + 0.5 - y) * ((next_x - x) / ((next_y - y) or 1.0))
        crossings[rows, np.clip(np.ceil(across - 0.5), 0, width).astype(int)] ^= True
    return np.logical_xor.accumulate(crossings, axis=1)[:, :-1]
