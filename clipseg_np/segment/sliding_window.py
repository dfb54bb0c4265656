"""Sliding windows: an image cut into overlapping windows, and the windows' logits joined.

At scale s a window has an s-th of the image's height and width, and windows lie half a window
apart: 9 of them at scale 2, 49 at scale 4. A small object is larger in a window, as the model
resizes each window to its own input size.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..errors import InputError
from ..image.resize import resize_bilinear
from ..nn.ops import Array, Ops

MAX_SCALE = 16


def checked_scales(scales: Sequence[int], size: tuple[int, int]) -> tuple[int, ...]:
    """The scales, each once. Raises InputError for none, or one that does not fit `size`."""
    highest = min(MAX_SCALE, *size)
    given = list(scales) if isinstance(scales, Iterable) else []
    whole = all(isinstance(scale, (int, np.integer)) for scale in given)
    if not given or not whole or min(given) < 1 or max(given) > highest:
        expected = f"whole numbers from 1, the whole image, to {highest} for this one"
        raise InputError(f"scales are {scales!r}; expected {expected}")
    return tuple(dict.fromkeys(int(scale) for scale in given))


def windows(size: tuple[int, int], scale: int) -> Iterator[tuple[int, int, tuple[slice, slice]]]:
    """Each window's row and column, in half windows, and its slices of an image of `size`."""

    def sides(length: int) -> list[slice]:
        ends = [round(half * length / (2 * scale)) for half in range(2 * scale + 1)]
        return [slice(ends[k], max(ends[k + 2], ends[k] + 1)) for k in range(2 * scale - 1)]

    for row, rows in enumerate(sides(size[0])):
        for column, columns in enumerate(sides(size[1])):
            yield row, column, (rows, columns)


def join(parts: Iterable[tuple[int, int, Array]], scale: int, ops: Ops) -> Array:
    """Windows' rows, columns and logits (P,h,w) to the image's logits (P,scale*h,scale*w).

    Where windows overlap, a pixel's weight grows towards the middle of its window.
    """
    xp, total = ops.xp, None
    for row, column, logits in parts:
        prompts, height, width = logits.shape
        if total is None:
            # Weights from nearly 0 at both ends to nearly 1 in the middle.
            ends = (1 - abs(2 * np.arange(n) + 1 - n) / n for n in (height, width))
            tall, wide = (xp.asarray(tent, dtype=logits.dtype) for tent in ends)
            tent = tall[:, None] * wide
            total = xp.zeros((prompts, scale * height, scale * width), logits.dtype)
            weight = xp.zeros(total.shape[1:], logits.dtype)
        top, left = row * height // 2, column * width // 2
        window = np.s_[..., top : top + height, left : left + width]
        total[window] += tent * logits
        weight[window] += tent
    return total / weight


def mean_of_scales(maps: list[Array], ops: Ops) -> Array:
    """The mean of several scales' logits (P,h,w), resized to the largest."""
    size = max(logits.shape[1:] for logits in maps)
    return sum(resize_bilinear(logits, size, ops.xp) for logits in maps) / len(maps)
