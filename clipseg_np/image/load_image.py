"""An image, however it is given, as a (height, width, 3) uint8 array of red, green and blue.

Where transformers' processor gives a defined answer, this gives the same; it also takes what
transformers refuses (two-dimensional arrays, 16-bit images). Deviations, each on purpose:

- Transparent pixels show white, as in transformers with do_convert_rgb=True. For a path,
  transformers drops the alpha and shows whatever color lies beneath; here a path and the image
  opened from it give the same.
- 16-bit grey (mode I;16, uint16 arrays) is scaled from 0..65535 to 0..255; Pillow would clip it at
  255.
- A bool array means black and white; transformers takes True as grey level 1.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError
from ..nn.ops import in_main_memory
from .row_blocks import map_row_blocks

# The axis of the channels.
LAYOUTS = {"channels_first": 0, "channels_last": 2}
# Pixels on a side of a file's image, as in JPEG. A row of 80 million compresses to nothing, and
# resizing it takes hundreds of gigabytes.
MAX_SIDE = 65_535

# What is wrong with an image on which Pillow raises an error; the first kind that fits counts.
# Decoders raise OSError, SyntaxError, struct.error, EOFError and more.
PILLOW_ERRORS = {
    Image.DecompressionBombError: "is too large; shrink it or raise PIL.Image.MAX_IMAGE_PIXELS",
    UnidentifiedImageError: "is not an image that Pillow can read; expected PNG, JPEG or the like",
    MemoryError: "needs more memory than there is; shrink it",
    Exception: "cannot be read as an image; it may be damaged, so fetch or export it again",
}


def load_image(image, input_data_format: str | None = None, name: str | None = None) -> np.ndarray:
    """Read one image: (height, width, 3), uint8.

    image:
    - a path (str or PathLike): turned upright by its EXIF orientation, as viewers show it;
    - a PIL image of any mode: its pixels as they lie, not turned, so that the mask fits the image;
    - an array (H,W), (H,W,C) or (C,H,W), C = 1 grey, 3 RGB, 4 RGBA, of NumPy, CuPy or anything
      that numpy.asarray takes: bool (black and white), uint8, uint16 (0..65535), floats in 0..1
      (levels are cut, not rounded, as in transformers), and other numbers if all are whole and in
      0..255, or in 0..65535 for integers.

    input_data_format: "channels_first" or "channels_last" for arrays that could be either, such as
    (3,5,3); without it, those are channels_first, as in transformers. name: the image's name in
    error messages.
    Raises FileNotFoundError for a missing file, InputError for everything else that cannot be used.
    """
    if isinstance(image, (str, os.PathLike)):
        return _from_file(os.fspath(image))
    if isinstance(image, Image.Image):
        name = name or getattr(image, "filename", "") or "the image"
        with _pillow_errors(name):
            return _from_pil(image, name)
    name = name or "the image"
    if hasattr(image, "__array__"):
        return _from_array(as_array(image, name), input_data_format, name)
    raise InputError(
        f"{name} is a {type(image).__name__}; expected a path, a PIL image or an array."
    )


def is_unit_float(image) -> bool:
    """Whether this is a float array in 0..1, rescaled already; floats up to 255 are not."""
    if not hasattr(image, "__array__"):
        return False
    array = as_array(image, "the image")
    return array.dtype.kind == "f" and array.size > 0 and array.min() >= 0 and array.max() <= 1


def as_array(values, name: str) -> np.ndarray:
    """An array of any library as a NumPy array. Raises InputError where it cannot be read."""
    try:
        return in_main_memory(values)
    except Exception as error:
        raise InputError(
            f"{name} is a {type(values).__name__} that NumPy cannot read ({error}); "
            f"expected an array in main memory, or a CuPy array."
        ) from error


def _from_file(path: str) -> np.ndarray:
    if not os.path.exists(path):
        raise FileNotFoundError(f"There is no image {path}. Check the path.")
    # Reading a pipe would wait, and reading a device might not end.
    if not os.path.isfile(path):
        kind = "folder" if os.path.isdir(path) else "device or a pipe"
        raise InputError(f"{path} is a {kind}; expected one image's file, or - for a pipe.")
    if os.path.getsize(path) == 0:
        raise InputError(f"{path} is empty (0 bytes). Fetch or export the image again.")
    with _pillow_errors(path), Image.open(path) as image:
        if max(image.size) > MAX_SIDE:
            size = f"{image.width} x {image.height} pixels"
            raise InputError(f"{path} is {size}; expected at most {MAX_SIDE:,} on a side.")
        ImageOps.exif_transpose(image, in_place=True)
        return _from_pil(image, path)


@contextmanager
def _pillow_errors(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises on a bad file into an InputError that names the file."""
    with warnings.catch_warnings():
        # Pillow warns from 89 megapixels on, and refuses twice as many, which take 0.5 GB.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            problem = next(text for kind, text in PILLOW_ERRORS.items() if isinstance(error, kind))
            raise InputError(f"{name} {problem} ({str(error) or type(error).__name__}).") from error


def _from_pil(image: Image.Image, name: str) -> np.ndarray:
    if 0 in image.size:
        raise InputError(f"{name} has no pixels: {image.width} x {image.height}.")
    if image.mode.startswith("I"):
        return _from_array(np.asarray(image), None, name)
    if image.mode == "F":
        levels = np.asarray(image)
        low, high = levels.min(), levels.max()
        # False for NaN, too.
        if not 0 <= low <= high <= 255:
            raise InputError(f"{name} of mode F holds {low:g} to {high:g}; expected 0..255.")
    if image.mode == "La":
        image = image.convert("LA")
    if {"A", "a"} & set(image.getbands()) or image.info.get("transparency") is not None:
        return map_row_blocks(_over_white, np.asarray(image.convert("RGBA")))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _from_array(array: np.ndarray, layout: str | None, name: str) -> np.ndarray:
    pixels = _to_bytes(_channels_last(array, layout, name), name)
    if pixels.shape[2] == 4:
        return map_row_blocks(_over_white, pixels)
    return np.array(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


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
            stacklevel=2,
        )
    return np.moveaxis(array, axes[0], 2)


def _to_bytes(array: np.ndarray, name: str) -> np.ndarray:
    """Any numbers that have a meaning as grey levels -> uint8 in 0..255."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind not in "iuf":
        raise InputError(f"{name} is an array of {array.dtype}; expected bool, integers or floats.")
    low, high = array.min(), array.max()
    is_float = array.dtype.kind == "f"
    if is_float and 0 <= low and high <= 1:
        return map_row_blocks(
            lambda rows: (rows.astype(np.float64) * 255).astype(np.float32).astype(np.uint8), array
        )
    in_bytes = 0 <= low and high <= 255 and array.dtype != np.uint16
    if in_bytes and not (is_float and (array != np.floor(array)).any()):
        return array.astype(np.uint8)
    if not is_float and 0 <= low and high <= 65535:
        return map_row_blocks(
            lambda rows: ((rows.astype(np.int64) + 128) // 257).astype(np.uint8), array
        )
    raise InputError(
        f"{name} is an array of {array.dtype} from {low} to {high}; expected floats in 0..1, "
        f"whole numbers in 0..255, or integers in 0..65535."
    )


def _over_white(rgba: np.ndarray) -> np.ndarray:
    """Blend with white in the shares of alpha, rounded: (H,W,4) uint8 -> (H,W,3) uint8."""
    color, alpha = rgba[..., :3].astype(np.int32), rgba[..., 3:].astype(np.int32)
    return ((alpha * color + (255 - alpha) * 255 + 127) // 255).astype(np.uint8)
