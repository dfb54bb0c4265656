"""An image, however it is given, as a (height, width, 3) uint8 array of red, green and blue.

decode.py reads files and PIL images; arrays come as they are. One rule makes levels of their
numbers, whatever the format, the content and Pillow's version:

| numbers | white |
|---|---|
| bool | True |
| bytes | 255 |
| uint16, and grey or colors of 16 bits in a file | 65535 |
| floats up to 1 | 1 |
| floats that are whole, other integers up to 255 | 255 |
| other integers up to 65535 | 65535 |

0 is black, and `white_level` says another white than the table's, but for bool and bytes. All other
numbers are refused. Where no number of the image reaches half of the table's white, as with 12 bits
stored in 16, a warning says so. Integers are rounded to levels; floats are cut, as in transformers.

Where transformers' processor gives a defined answer, this gives the same; deviations, each on
purpose:

- Transparent pixels show white, as in transformers with do_convert_rgb=True. For a path,
  transformers drops the alpha and shows whatever color lies beneath; here a path and the image
  opened from it give the same.
- Grey of 16 bits is scaled; Pillow would clip it at 255.
- A bool array means black and white; transformers takes True as grey level 1.
"""

import os
import warnings
from numbers import Real

import numpy as np
from PIL import Image

from ..errors import InputError
from ..nn.ops import in_main_memory
from .decode import pillow_errors, read_file, read_pil
from .row_blocks import map_row_blocks

# The axis of the channels.
LAYOUTS = {"channels_first": 0, "channels_last": 2}
MAX_ROUNDING = 1e-3  # of floats in 0..1; it is float16's


def load_image(
    image,
    input_data_format: str | None = None,
    name: str | None = None,
    white_level: float | None = None,
    keep_alpha: bool = False,
) -> np.ndarray:
    """Read one image: (height, width, 3), uint8.

    image:
    - a path (str or PathLike): turned upright by its EXIF orientation, as viewers show it;
    - a PIL image of any mode: its pixels as they lie, not turned, so that the mask fits the image;
    - an array (H,W), (H,W,C) or (C,H,W), C = 1 grey, 3 RGB, 4 RGBA, of NumPy, CuPy or anything
      that numpy.asarray takes.

    input_data_format: "channels_first" or "channels_last" for arrays that could be either, such as
    (3,5,3); without it, those are channels_first, as in transformers. name: the image's name in
    messages. white_level: the number that is white, such as 4095 for 12 bits; larger ones are
    white, too. It changes no bytes. keep_alpha: return (height, width, 4) of an image that has
    transparency, instead of showing it on white.
    Raises FileNotFoundError for a missing file, InputError for everything else that cannot be used.
    """
    name = name or image_name(image)
    numbers = read_numbers(image, input_data_format, name)
    return np.array(to_colors(numbers, white_level, name, keep_alpha))


def to_colors(
    numbers: np.ndarray, white_level: float | None, name: str, keep_alpha: bool = False
) -> np.ndarray:
    """An image's numbers (H,W,C) to what `load_image` returns; it may share their memory."""
    colors, alpha = split_alpha(to_levels(numbers, white_level, name))
    if alpha is not None and not keep_alpha:
        colors, alpha = map_row_blocks(_over_white, colors, alpha), None
    colors = np.broadcast_to(colors, (*colors.shape[:2], 3))
    return colors if alpha is None else np.concatenate([colors, alpha], axis=2)


def image_name(image, default: str = "the image") -> str:
    """The image's name in messages: its path, where it has one."""
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    return getattr(image, "filename", "") or default


def read_numbers(image, input_data_format: str | None, name: str) -> np.ndarray:
    """The image's numbers, not yet scaled: (H,W,C), C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA."""
    if isinstance(image, (str, os.PathLike)):
        return read_file(os.fspath(image), name)
    if isinstance(image, Image.Image):
        with pillow_errors(name):
            return read_pil(image, name)
    kind = type(image).__name__
    if not hasattr(image, "__array__"):
        raise InputError(f"{name} is a {kind}; expected a path, a PIL image or an array.")
    try:
        array = in_main_memory(image)
    except Exception as error:
        raise InputError(
            f"{name} is a {kind} that NumPy cannot read ({error}); expected an array in main "
            f"memory, or a CuPy array."
        ) from error
    return _channels_last(array, input_data_format, name)


def split_alpha(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """(H,W,C) -> its colors (H,W,1 or 3), and its alpha (H,W,1) or None."""
    if pixels.shape[2] % 2:
        return pixels, None
    return pixels[..., :-1], pixels[..., -1:]


def _channels_last(array: np.ndarray, layout: str | None, name: str) -> np.ndarray:
    """(H,W), (H,W,C) or (C,H,W) -> (H,W,C)"""
    if layout is not None and layout not in LAYOUTS:
        raise InputError(f"input_data_format must be one of {', '.join(LAYOUTS)}; got {layout!r}.")
    if array.size == 0:
        raise InputError(f"{name} has no pixels: its shape is {array.shape}.")
    if array.ndim == 2:
        return array[:, :, None]
    axes = [LAYOUTS[layout]] if layout else list(LAYOUTS.values())
    axes = [axis for axis in axes if array.ndim == 3 and array.shape[axis] in (1, 3, 4)]
    if not axes:
        raise InputError(
            f"{name} is an array of shape {array.shape} with input_data_format={layout}; "
            f"expected (H,W), (H,W,C) or (C,H,W) with C = 1, 3 or 4."
        )
    if len(axes) == 2:
        warnings.warn(
            f"{name} of shape {array.shape} could be (C,H,W) or (H,W,C); it is taken as (C,H,W). "
            f"Say which with input_data_format.",
            stacklevel=4,
        )
    return np.moveaxis(array, axes[0], 2)


def to_levels(numbers: np.ndarray, white_level: float | None, name: str) -> np.ndarray:
    """Numbers (H,W,C) to bytes, 0 for black, by the rule at the top of this file."""
    if not (white_level is None or (isinstance(white_level, Real) and 0 < white_level < np.inf)):
        raise InputError(f"white_level is {white_level}; expected a number above 0.")
    numbers = numbers.astype(numbers.dtype.newbyteorder("="), copy=False)
    if numbers.dtype == np.uint8:
        return numbers
    if numbers.dtype == bool:
        return numbers.astype(np.uint8) * np.uint8(255)
    if numbers.dtype.kind not in "iuf":
        raise InputError(f"{name} holds {numbers.dtype}; expected bool, integers or floats.")
    low, high = numbers.min(), numbers.max()
    is_float = numbers.dtype.kind == "f"
    white = white_level or usual_white(numbers)
    if white is None or not -MAX_ROUNDING * is_float <= low <= high < np.inf:
        whole = "" if (numbers == np.floor(numbers)).all() else "fractions of "
        raise InputError(
            f"{name} holds {whole}{numbers.dtype} from {low} to {high}; expected floats in 0..1, "
            f"whole numbers in 0..255 or integers in 0..65535; or 0 and more, with the number that "
            f"is white as white_level (--white-level)."
        )
    brightest = split_alpha(numbers)[0].max()
    if white_level is None and 0 < brightest < white / 2:
        warnings.warn(
            f"{name} is dark: its brightest number is {brightest}, and {white} counts as white. If "
            f"another number is white, give it as white_level (--white-level).",
            stacklevel=4,
        )

    def levels(rows: np.ndarray) -> np.ndarray:
        levels = np.clip(rows.astype(np.float64) * 255 / white, 0, 255) + (0 if is_float else 0.5)
        return levels.astype(np.float32).astype(np.uint8)

    return map_row_blocks(levels, numbers)


def usual_white(numbers: np.ndarray) -> int | None:
    """The white of numbers by the rule at the top of this file, None where there is none."""
    high = numbers.max()
    if numbers.dtype.kind == "f":
        if high <= 1 + MAX_ROUNDING:
            return 1
        return 255 if high <= 255 and (numbers == np.floor(numbers)).all() else None
    if high <= 255 and numbers.dtype != np.uint16:
        return 255
    return 65535 if high <= 65535 else None


def _over_white(colors: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Blend with white in the shares of alpha, rounded: (H,W,C), (H,W,1) -> (H,W,C), uint8."""
    colors, alpha = colors.astype(np.int32), alpha.astype(np.int32)
    return ((alpha * colors + (255 - alpha) * 255 + 127) // 255).astype(np.uint8)
