"""An image, however it is given, as a (height, width, 3) uint8 array of red, green and blue.

Where transformers' processor gives a defined answer, this gives the same; it also takes what
transformers refuses (two-dimensional arrays, 16-bit images). Deviations, each on purpose:

- Transparent pixels show white, as transformers does it with do_convert_rgb=True. For a path,
  transformers drops the alpha and shows whatever colour lies beneath; here a path and the image
  opened from it give the same.
- 16-bit grey (mode I;16, uint16 arrays) is scaled from 0..65535 to 0..255; Pillow would clip it at
  255.
- A bool array means black and white; transformers takes True as grey level 1.
"""

import os
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError
from ..nn.ops import in_main_memory
from .row_blocks import map_row_blocks

LAYOUTS = ("channels_first", "channels_last")
# Pixels on a side of a file's image, as in JPEG. A line of 80 million zips to nothing, and to
# resize it takes hundreds of gigabytes.
LONGEST = 65_535


def load_image(image, input_data_format: str | None = None, name: str | None = None) -> np.ndarray:
    """Read one image: (height, width, 3), uint8.

    image:
    - a path (str or PathLike): turned upright by its EXIF orientation, as viewers show it;
    - a PIL image of any mode: taken as its pixels lie, not turned, so that the mask fits the
      image in hand;
    - an array (H,W), (H,W,C) or (C,H,W), C = 1 grey, 3 RGB, 4 RGBA, or anything that numpy.asarray
      understands, a GPU's array of CuPy too: bool (black and white), uint8, uint16 (0..65535), floats in 0..1 (levels are cut,
      not rounded, as in transformers), and other numbers if all are whole and in 0..255, or in
      0..65535 for integers.

    input_data_format: "channels_first" or "channels_last" for arrays that could be either, such as
    (3,5,3); without it, those are channels_first, as in transformers. name: what error messages
    call the image.
    Raises FileNotFoundError for a missing file, InputError for everything else that cannot be used.
    """
    if isinstance(image, (str, os.PathLike)):
        return _from_file(os.fspath(image))
    if isinstance(image, Image.Image):
        name = name or getattr(image, "filename", "") or "the image"
        return _reading(name, lambda: _from_pil(image, name))
    if isinstance(image, (np.ndarray, np.generic)) or hasattr(image, "__array__"):
        name = name or "the image"
        return _from_array(as_array(image, name), input_data_format, name)
    raise InputError(
        f"{name or 'the image'} is a {type(image).__name__}; "
        f"expected a path, a PIL image or an array."
    )


def is_unit_float(image) -> bool:
    """Whether this is a float array in 0..1, that is, rescaled already; 0..255 in floats is not."""
    if isinstance(image, (str, os.PathLike, Image.Image)) or not hasattr(image, "__array__"):
        return False
    array = as_array(image, "the image")
    return array.dtype.kind == "f" and array.size > 0 and array.min() >= 0 and array.max() <= 1


def as_array(values, name: str) -> np.ndarray:
    """An array of any library as NumPy's, a GPU's copied. Raises InputError where there is no way."""
    try:
        return in_main_memory(values)
    except Exception as error:
        raise InputError(
            f"{name} is a {type(values).__name__} that NumPy cannot read ({error}); expected an array in main memory, or "
            f"CuPy's."
        ) from error


def _from_file(path: str) -> np.ndarray:
    if not os.path.exists(path):
        raise FileNotFoundError(f"There is no image {path}. Check the path.")
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder; expected one image's file.")
    if not os.path.isfile(path):  # a pipe would be waited for, a device read for ever
        raise InputError(
            f"{path} is a device or a pipe; expected one image's file. "
            f"The command reads a pipe from standard input, as the image -."
        )
    if os.path.getsize(path) == 0:
        raise InputError(f"{path} is empty (0 bytes). Fetch or export the image again.")

    def read():
        with Image.open(path) as image:
            if max(image.size) > LONGEST:
                raise InputError(
                    f"{path} is {image.width} x {image.height} pixels; expected at most "
                    f"{LONGEST:,} on a side. Cut it into parts."
                )
            ImageOps.exif_transpose(image, in_place=True)
            return _from_pil(image, path)

    return _reading(path, read)


def _reading(name: str, read) -> np.ndarray:
    """Run `read`, turning whatever Pillow raises on a bad file into an InputError that names it."""
    with warnings.catch_warnings():
        # Pillow warns from 89 megapixels on, and refuses twice as many: one image takes 0.5 GB then.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            return read()
        except InputError:
            raise
        except Image.DecompressionBombError as error:
            raise InputError(
                f"{name} unpacks to too many pixels to be safe ({error}). If you trust it, "
                f"make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS."
            ) from error
        except UnidentifiedImageError as error:
            raise InputError(
                f"{name} is not an image that Pillow can read; "
                f"expected PNG, JPEG, WebP, TIFF or the like."
            ) from error
        except MemoryError as error:
            raise InputError(f"{name} needs more memory than there is. Make it smaller.") from error
        except Exception as error:
            # Decoders raise OSError, SyntaxError, struct.error, EOFError and more.
            raise InputError(
                f"{name} cannot be read as an image: {str(error) or type(error).__name__}. "
                f"The file may be cut off or damaged; fetch or export it again."
            ) from error


def _from_pil(image: Image.Image, name: str) -> np.ndarray:
    if 0 in image.size:
        raise InputError(f"{name} has no pixels: {image.width} x {image.height}.")
    if image.mode.startswith("I"):
        return _from_array(np.asarray(image), None, name)
    if image.mode == "F":
        levels = np.asarray(image)
        low, high = levels.min(), levels.max()
        if not 0 <= low <= high <= 255:  # NaN, too, is not
            raise InputError(
                f"{name} (mode F) holds {low:g} to {high:g}; expected Pillow's scale, 0..255."
            )
    if image.mode == "La":
        image = image.convert("LA")
    see_through = {"A", "a"} & set(image.getbands()) or image.info.get("transparency") is not None
    if see_through:
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
    counts = (1, 3, 4)
    first = array.ndim == 3 and array.shape[0] in counts and layout != "channels_last"
    last = array.ndim == 3 and array.shape[2] in counts and layout != "channels_first"
    if first and last:
        warnings.warn(
            f"{name} of shape {array.shape} could be (C,H,W) or (H,W,C); it is taken as (C,H,W). "
            f"Say which with input_data_format.",
            stacklevel=2,
        )
    if first:
        return np.moveaxis(array, 0, 2)
    if last:
        return array
    given = f" with input_data_format={layout}" if layout else ""
    raise InputError(
        f"{name} is an array of shape {array.shape}{given}; "
        f"expected (H,W), (H,W,C) or (C,H,W) with C = 1, 3 or 4."
    )


def _to_bytes(array: np.ndarray, name: str) -> np.ndarray:
    """Any numbers that have a meaning as grey levels -> uint8 in 0..255."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind not in "iuf":
        raise InputError(f"{name} is an array of {array.dtype}; expected bool, integers or floats.")
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"{name} holds NaN or infinity; expected floats in 0..1.")
    if array.dtype.kind == "f":
        if low >= 0 and high <= 1:
            return map_row_blocks(
                lambda rows: (rows.astype(np.float64) * 255).astype(np.float32).astype(np.uint8),
                array,
            )
        if low >= 0 and high <= 255 and (array == np.floor(array)).all():
            return array.astype(np.uint8)
        raise InputError(
            f"{name} holds floats from {low:g} to {high:g}; "
            f"expected 0..1, or whole numbers in 0..255."
        )
    if low >= 0 and high <= 255 and array.dtype != np.uint16:
        return array.astype(np.uint8)
    if low >= 0 and high <= 65535:
        return map_row_blocks(
            lambda rows: ((rows.astype(np.int64) + 128) // 257).astype(np.uint8), array
        )
    raise InputError(
        f"{name} holds integers from {low} to {high}; expected 0..255, or 0..65535 for 16 bits."
    )


def _over_white(rgba: np.ndarray) -> np.ndarray:
    """Lay (H,W,4) bytes over white: colour and white in the shares of alpha, rounded. -> (H,W,3)
    bytes
    """
    colour, alpha = rgba[..., :3].astype(np.int32), rgba[..., 3:].astype(np.int32)
    return ((alpha * colour + (255 - alpha) * 255 + 127) // 255).astype(np.uint8)
