"""Looking closer: an image cut into overlapping windows, and the maps of the windows joined to one.

At scale s a window is the s-th part of the image's height and width, and windows lie half a window apart: 9 of them at
scale 2, 49 at scale 4. What is small in the image is large in a window, for the model sees every window at its own side.
"""

from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import InputError
from ..image.resize import resize_bilinear
from ..nn.ops import Array, Ops

LARGEST_SCALE = 16


def checked_scales(scales: Sequence[int], size: tuple[int, int]) -> tuple[int, ...]:
    """The scales, each once. Raises InputError where there is none, or one does not fit an image of this height, width."""
    highest = min(LARGEST_SCALE, *size)
    if not scales or not all(
        isinstance(s, (int, np.integer)) and 1 <= s <= highest for s in scales
    ):
        raise InputError(
            f"scales are {scales!r}; expected whole numbers from 1, the whole image, to {highest} for this one"
        )
    return tuple(dict.fromkeys(int(s) for s in scales))


def windows(size: tuple[int, int], scale: int) -> Iterator[tuple[int, int, tuple[slice, slice]]]:
    """Each window's place, in half windows from the top and from the left, and its part of an image of `size`."""

    def sides(length: int) -> list[slice]:
        ends = [round(half * length / (2 * scale)) for half in range(2 * scale + 1)]
        return [slice(ends[k], max(ends[k + 2], ends[k] + 1)) for k in range(2 * scale - 1)]

    for down, rows in enumerate(sides(size[0])):
        for right, columns in enumerate(sides(size[1])):
            yield down, right, (rows, columns)


def join(parts: Iterable[tuple[int, int, Array]], scale: int, ops: Ops) -> Array:
    """The logits of a scale's windows, each with its place, (P,h,w), to those of the image, (P,scale*h,scale*w).

    Where windows overlap, each counts the more the nearer its own middle is.
    """
    xp, whole = ops.xp, None
    for down, right, logits in parts:
        prompts, height, width = logits.shape
        if whole is None:
            tent = _tent(height, logits.dtype, xp)[:, None] * _tent(width, logits.dtype, xp)
            whole = xp.zeros((prompts, scale * height, scale * width), logits.dtype)
            weight = xp.zeros(whole.shape[1:], logits.dtype)
        top, left = down * height // 2, right * width // 2
        place = np.s_[..., top : top + height, left : left + width]
        whole[place] += tent * logits
        weight[place] += tent
    return whole / weight


def _tent(length: int, dtype: Any, xp: ModuleType) -> Array:
    """From nearly 0 at both ends to nearly 1 in the middle."""
    off = np.abs(np.arange(length) + 0.5 - length / 2)
    return xp.asarray(1 - off / (length / 2), dtype=dtype)


def mean_of_scales(maps: list[Array], ops: Ops) -> Array:
    """Logits of several scales, (P,h,w) each, brought to the size of the largest, and their mean."""
    size = max(logits.shape[1:] for logits in maps)
    return sum(resize_bilinear(logits, size, ops.xp) for logits in maps) / len(maps)
