"""A mask, however it is given, as a (height,width) array."""

from typing import Any

import numpy as np

from ..errors import InputError
from ..image.load_image import image_name, read_numbers, split_alpha, to_levels

MAX_TINT = 50  # of 255: between the channels of a grey that JPEG has stored


def load_mask(mask: Any, white_level: float | None = None) -> np.ndarray:
    """A mask as (height,width) bool: the brighter half of `mask_levels`."""
    return mask_levels(mask, white_level) >= 128


def mask_levels(mask: Any, white_level: float | None = None) -> np.ndarray:
    """A mask's levels, (height,width), 0 to 255, from an array, a PIL image or a path.

    Transparency that varies is the mask, opaque where the object is. Otherwise, the brighter of two
    values is, whatever they are: 255, and the other 0. Of more values, which soft edges have, the
    levels are those of grey.
    Raises InputError for several colors, and where both transparency and black and white may be
    meant.
    """
    name = image_name(mask, "the prompt's mask")
    colors, alpha = split_alpha(read_numbers(mask, None, name))
    levels = brightness(colors)
    if alpha is not None and alpha.min() < alpha.max():
        visible = levels[2.0 * alpha[..., 0] > alpha.max()]
        white = brightness(np.full(colors.shape[2], 255))
        if visible.min() == 0 and visible.max() == white and is_two_valued(visible):
            raise InputError(
                f"{name} is black and white, and transparent in part; expected one of them: save "
                f"it without transparency, or in one color"
            )
        colors, levels = alpha, alpha[..., 0]
    if is_two_valued(levels):
        low = levels.min()
        return np.where(levels > (low if low < levels.max() else 0), np.uint8(255), np.uint8(0))
    colors = to_levels(colors, white_level, name)
    if (np.ptp(colors, axis=2) > MAX_TINT).any():
        raise InputError(
            f"{name} holds more than two colors; expected white where the object is, else black"
        )
    return colors.mean(axis=2)


def brightness(colors: np.ndarray) -> np.ndarray:
    """(...,C) -> (...); the weights of red, green and blue differ, so that most colors do."""
    if colors.shape[-1] == 1:
        return colors[..., 0]
    return sum(weight * colors[..., i] for i, weight in enumerate((0.299, 0.587, 0.114)))


def is_two_valued(levels: np.ndarray) -> bool:
    """Whether there are at most two values; NaN is none."""
    return bool(((levels == levels.min()) | (levels == levels.max())).all())
