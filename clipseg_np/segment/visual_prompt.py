"""Visual prompt engineering: an image and the mask of an object in it, made into one image prompt.

Source: Lüddecke and Ecker (CVPR 2022), section 3.2 and table 2, and the authors'
evaluation_utils.py. Their best variant crops to the object and fades its blurred background to a
tenth; it is the default here. `crop_blur_highlight` is their `crop_blur_highlight352` to the last
step. As theirs, "darken" scales normalized pixels towards 0: it fades to the mean color, not to
black. The blur's sigma is in pixels of the image, whatever its size.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..image.load_image import image_name, load_image
from ..masks import dilate
from ..masks.load_mask import load_mask

KERNEL_SIZE = 15  # of the blur, pixels
RED = (255, 0, 0)
OUTLINE = 2  # pixels on each side of the mask's edge

# name: keyword arguments of `engineer`
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
    """An image prompt with the mask of the object that is meant, for `Segmenter`.

    image: as for image.load_image. mask: an array, a PIL image or a path, of the upright image's
    size; see `load_mask`. variant: a name in VARIANTS.
    """

    image: Any
    mask: Any
    variant: str = DEFAULT

    def prepared(self, mean: tuple[float, ...], white_level: float | None = None) -> np.ndarray:
        """The engineered image, for the checkpoint's image_mean.  -> (height',width',3), uint8

        white_level: see image.load_image. Raises InputError for an unknown variant, a mask of
        another size or an empty one.
        """
        if self.variant not in VARIANTS:
            expected = f"expected one of {', '.join(VARIANTS)}"
            raise InputError(f"unknown variant {self.variant!r} of a visual prompt; {expected}")
        name = image_name(self.image, "an image prompt")
        image = load_image(self.image, None, name, white_level)
        mask = load_mask(self.mask, white_level)
        neutral = 255 * np.broadcast_to(np.array(mean, np.float32), 3)
        options = {**VARIANTS[self.variant], "ink": RED - neutral}
        pixels = engineer(image.astype(np.float32) - neutral, mask, **options)
        return np.clip(np.rint(pixels + neutral), 0, 255).astype(np.uint8)

    picture = prepared  # its name in 0.1


def image_prompts(pairs: Iterable[tuple[str, str | None]]) -> list[Path | VisualPrompt]:
    """Prompts for `Segmenter` from pairs of an image's path and its mask's, or None."""
    return [VisualPrompt(Path(image), Path(mask)) if mask else Path(image) for image, mask in pairs]


def crop_blur_highlight(pixel_values: np.ndarray, mask: np.ndarray, size: int = 352) -> np.ndarray:
    """The authors' best recipe.  (3,H,W) normalized floats, (H,W) of 0 and 1 -> (3,size,size)

    The authors used it on square images of 352 pixels. For others, their code counts rows where it
    should count columns; that is fixed here.
    """
    square = engineer(np.moveaxis(pixel_values, 0, 2), load_mask(mask), **VARIANTS[DEFAULT])
    # torch's interpolate multiplies in float32, which rounds up to some whole numbers.
    places = np.arange(size, dtype=np.float32) * np.float32(square.shape[0] / size)
    nearest = np.minimum(places.astype(int), square.shape[0] - 1)
    return np.moveaxis(square[nearest][:, nearest], 2, 0)


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
    """Change the background.  (H,W,3) floats in which 0 is neutral, (H,W) bool -> (H',W',3)

    background: a factor for the background's pixels. blur: sigma of the background's Gaussian blur,
    in pixels. context: crop to the mask's box, extended by this share of its sides, and pad it to a
    square with 0. outline: draw the edge in the color `ink`. Raises InputError as `prepared` does.
    """
    if mask.shape != pixels.shape[:2]:
        sizes = " and its image ".join(f"{w} x {h}" for h, w in (mask.shape, pixels.shape[:2]))
        raise InputError(f"the prompt's mask is {sizes} pixels; expected the same width and height")
    if not mask.any():
        raise InputError("the prompt's mask is empty: mark the object in white on black")
    blurred = gaussian_blur(pixels, blur) if blur else pixels
    changed = np.where(mask[:, :, None], pixels, background * blurred).astype(pixels.dtype)
    if outline:
        changed[dilate(mask, OUTLINE) & dilate(~mask, OUTLINE)] = ink
    return changed if context is None else to_square(crop(changed, mask, context))


def gaussian_blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Blur (H,W,C) with a Gaussian of 15 x 15 pixels; the image is mirrored at its border."""
    reach = KERNEL_SIZE // 2
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).astype(pixels.dtype)
    for axis, length in enumerate(pixels.shape[:2]):
        mirrored = np.pad(pixels, [(reach * (i == axis),) * 2 for i in range(3)], "reflect")
        windows = (mirrored.take(range(i, i + length), axis) for i in range(KERNEL_SIZE))
        pixels = sum(weight * window for weight, window in zip(weights, windows))
    return pixels


def crop(pixels: np.ndarray, mask: np.ndarray, context: float) -> np.ndarray:
    """The mask's box, extended by `context` times its sides as far as the image goes."""
    box = []
    for axis, length in enumerate(mask.shape):
        inside = np.flatnonzero(mask.any(axis=1 - axis))
        start, end = inside[0], inside[-1] + 1
        extra = context * (end - start)
        box.append(slice(int(max(0, start - extra)), int(min(length, end + extra))))
    return pixels[tuple(box)]


def to_square(pixels: np.ndarray) -> np.ndarray:
    """Pad the shorter side with 0, as evenly as possible.  (h,w,C) -> (side,side,C)"""
    missing = [max(pixels.shape[:2]) - length for length in pixels.shape[:2]]
    return np.pad(pixels, [*((n // 2, n - n // 2) for n in missing), (0, 0)])
