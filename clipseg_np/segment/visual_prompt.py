"""Visual prompt engineering: an image and the mask of the thing that is meant, made into one image prompt.

Source: Lüddecke and Ecker (CVPR 2022), section 3.2 and table 2, and the authors' evaluation_utils.py. Of all that
they tried, cropping to the thing and fading its blurred surroundings to a tenth worked best; it is the default
here. Their recipe `crop_blur_highlight352` is `crop_blur_highlight`, to their last step.

Two things are not as their words suggest, and are kept. "Dark" is not black: they fade normalised numbers towards
0, which is the colour that an average image has. And blur is in pixels of the image, whatever its size.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..image.load_image import as_array, load_image
from ..masks.morphology import dilate

KERNEL = 15  # side of the blur's window, pixels
RED = (255, 0, 0)
OUTLINE = 2  # pixels to each side of the mask's edge

# name: background's strength, blur's sigma in pixels, context around the crop in sides of the box, outline
VARIANTS: dict[str, dict[str, Any]] = {
    "crop_blur_darken": {"background": 0.1, "blur": 3, "context": 0.1},
    "crop_darken": {"background": 0.1, "context": 0.1},
    "crop_blur": {"blur": 3, "context": 0.1},
    "crop": {"context": 0.1},
    "crop_large_context": {"context": 0.5},
    "blur_darken": {"background": 0.1, "blur": 3},
    "darken": {"background": 0.1},
    "blur": {"blur": 3},
    "outline": {"outline": True},
}
DEFAULT = "crop_blur_darken"


@dataclass(frozen=True, eq=False)
class VisualPrompt:
    """An image prompt with a mask of what is meant in it, for `Segmenter`.

    image: as for image.load_image. mask: (height,width) of the upright image, bool or 0 and 1; or an
    image or path that is white where the thing is. variant: a name in VARIANTS.
    """

    image: Any
    mask: Any
    variant: str = DEFAULT

    def prepared(self, mean: tuple[float, ...]) -> np.ndarray:
        """The engineered image; `mean` is the checkpoint's image_mean.  -> (height',width',3), uint8

        Raises InputError for an unknown variant, a mask of another size, or one with nothing in it.
        """
        if self.variant not in VARIANTS:
            raise InputError(
                f"unknown variant {self.variant!r} of a visual prompt; expected one of {', '.join(VARIANTS)}"
            )
        image = load_image(self.image)
        neutral = 255 * np.broadcast_to(np.array(mean, np.float32), 3)
        pixels = image.astype(np.float32) - neutral
        made = engineer(pixels, load_mask(self.mask), **VARIANTS[self.variant], ink=RED - neutral)
        return np.clip(np.rint(made + neutral), 0, 255).astype(np.uint8)

    picture = prepared  # its name in 0.1


def load_mask(mask: Any) -> np.ndarray:
    """A mask as (height,width) bool: an array of 0 and 1, or an image whose brighter half is the mask."""
    if hasattr(mask, "__array__"):
        mask = as_array(mask, "the prompt's mask")
        if mask.ndim == 2 and np.isin(mask, (0, 1)).all():
            return mask.astype(bool)
    return load_image(mask).mean(axis=2) >= 128


def crop_blur_highlight(pixel_values: np.ndarray, mask: np.ndarray, size: int = 352) -> np.ndarray:
    """The authors' best recipe, exactly.  (3,H,W) normalised floats, (H,W) of 0 and 1 -> (3,size,size)

    The authors used it on square images of 352 pixels; their code counts the rows where it should count the
    columns of others, which is mended here.
    """
    made = engineer(np.moveaxis(pixel_values, 0, 2), load_mask(mask), **VARIANTS[DEFAULT])
    nearest = np.arange(size) * made.shape[0] // size
    return np.moveaxis(made[nearest][:, nearest], 2, 0)


def engineer(
    pixels: np.ndarray,
    mask: np.ndarray,
    *,
    background: float = 1.0,
    blur: float = 0.0,
    context: float | None = None,
    outline: bool = False,
    ink: Any = None,
) -> np.ndarray:
    """Change what is not the thing.  (H,W,3) floats in which 0 is neutral, (H,W) bool -> (H',W',3)

    background: what the surroundings are multiplied by. blur: the surroundings' Gaussian sigma, pixels.
    context: crop to the mask's box, larger by this share of its sides, and pad it to a square with 0.
    outline: draw the mask's edge in the colour `ink`. Raises InputError for a mask of another size or an empty one.
    """
    if mask.shape != pixels.shape[:2]:
        raise InputError(
            f"the prompt's mask is {mask.shape[0]} by {mask.shape[1]} pixels and its image "
            f"{pixels.shape[0]} by {pixels.shape[1]}; expected the same height and width"
        )
    if not mask.any():
        raise InputError("the prompt's mask is empty: mark what is meant, white on black")
    around = gaussian_blur(pixels, blur) if blur else pixels
    made = np.where(mask[:, :, None], pixels, background * around).astype(pixels.dtype)
    if outline:
        made[edge(mask)] = ink
    return made if context is None else to_square(crop(made, mask, context))


def gaussian_blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Blur (H,W,C) with a Gaussian cut off at 15 x 15 pixels; beyond the border the image is mirrored."""
    reach = KERNEL // 2
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).astype(pixels.dtype)
    for axis in (0, 1):
        mirrored = np.take(pixels, mirror(pixels.shape[axis], reach), axis)
        length = pixels.shape[axis]
        windows = (mirrored.take(range(i, i + length), axis) for i in range(KERNEL))
        pixels = sum(weight * window for weight, window in zip(weights, windows))
    return pixels


def mirror(length: int, reach: int) -> np.ndarray:
    """The indices -reach to length + reach, mirrored at the first and the last pixel, which are not repeated."""
    period = max(1, 2 * (length - 1))
    place = np.arange(-reach, length + reach) % period
    return np.minimum(place, period - place)


def crop(pixels: np.ndarray, mask: np.ndarray, context: float) -> np.ndarray:
    """The mask's box and `context` times its sides around it, as far as the image goes."""
    box = []
    for axis, length in enumerate(mask.shape):
        inside = np.flatnonzero(mask.any(axis=1 - axis))
        first, end = inside[0], inside[-1] + 1
        extra = context * (end - first)
        box.append(slice(int(max(0, first - extra)), int(min(length, end + extra))))
    return pixels[tuple(box)]


def to_square(pixels: np.ndarray) -> np.ndarray:
    """Pad the shorter side with 0, as evenly as it goes.  (h,w,C) -> (side,side,C)"""
    h, w, C = pixels.shape
    side = max(h, w)
    square = np.zeros((side, side, C), pixels.dtype)
    top, left = (side - h) // 2, (side - w) // 2
    square[top : top + h, left : left + w] = pixels
    return square


def edge(mask: np.ndarray) -> np.ndarray:
    """The pixels within OUTLINE of where mask and surroundings meet.  (H,W) -> (H,W), bool"""
    return dilate(mask, OUTLINE) & dilate(~mask, OUTLINE)
