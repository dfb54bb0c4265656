"""An image file or a PIL image to the numbers that it holds; load_image.py says what they mean.

Pillow reads the files. Where it would lose or misread something, this file steps in:

- Of colors of 16 bits, Pillow keeps the upper 8; here all are read.
- Pillow compares PNG's transparent level with levels that it has scaled or cut.
- Damaged EXIF data, color profiles, texts or XMP data make Pillow give up; here the pixels are read
  without them.
- Numbers whose scale Pillow does not hand on, as in FITS, are refused.
"""

import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from ..errors import InputError
from .plugins import open_image

# Pixels on a side of a file's image, as in JPEG. A row of 80 million compresses to nothing, and
# resizing it takes hundreds of gigabytes.
MAX_SIDE = 65_535

# The first that fits an error's type and words says what is wrong. Decoders raise OSError,
# SyntaxError, struct.error, EOFError and more.
PILLOW_ERRORS = (
    (Image.DecompressionBombError, "", "is too large; shrink it or raise Image.MAX_IMAGE_PIXELS"),
    (MemoryError, "", "needs more memory than there is; shrink it"),
    (PermissionError, "", "may not be read by this user; change its permissions"),
    (ValueError, "closed", "is closed; load it while it is open"),
    (OSError, "Ghostscript|loader|cannot load|not available",
     "needs a program or library that is not installed; save it as PNG elsewhere"),
    (OSError, r"^\[Errno", "cannot be read from its disk; try again or copy it"),
    (UnidentifiedImageError, "",
     "is not an image that Pillow can read; expected PNG, JPEG or the like"),
    (Exception, "", "cannot be read as an image; it may be damaged, so fetch or export it again"),
)  # fmt: skip

ORIENTATION = 0x0112  # in EXIF data
# What turns pixels (H,W,C) upright.
TURNS = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}

# The end of an image and the start of another, as they meet in `cat a.png b.png`.
ENDS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9", "GIF": b"\0;"}
STARTS = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"RIFF")
# Formats in which further frames belong to one image: a JPEG's depth map, a drawing's layers.
FRAMES_OF_ONE = {"MPO", "PSD"}

# The metadata that pixels need, of PNG (and all that begin with a capital) and of JPEG.
PNG_CHUNKS = {b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT"}
JPEG_SEGMENTS = re.compile(rb"JFIF\0.{9}|Adobe.{7}|Exif\0\0", re.DOTALL)

# Pillow unpacks numbers of 16 bits by one of these, and keeps their upper bytes. By the other, it
# keeps their lower bytes. N is the machine's own order.
OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
# Modes without their pixels' alpha multiplied in, and of bytes. All others become RGB.
PLAIN_MODES = {"1": "L", "La": "LA", "PA": "RGBA", "RGBa": "RGBA"}
TILE = getattr(ImageFile, "_Tile", lambda *parts: parts)  # a tuple until Pillow 11
# Pillow scales grey levels of less than 8 bits by these.
FACTORS = {"L;2": 85, "L;4": 17}


def read_file(path: str, name: str) -> np.ndarray:
    """The numbers of a file's first image, upright, as `read_pil` returns them.

    Raises FileNotFoundError for a missing file, InputError for one that cannot be used.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"There is no image {name}. Check the path.")
    # Reading a pipe would wait, and reading a device might not end.
    if not os.path.isfile(path):
        kind = "folder" if os.path.isdir(path) else "device or a pipe"
        raise InputError(f"{name} is a {kind}; expected one image's file, or - for a pipe.")
    if os.path.getsize(path) == 0:
        raise InputError(f"{name} is empty (0 bytes). Fetch or export the image again.")
    with pillow_errors(name), open(path, "rb") as file:
        try:
            return _read_upright(file, name)
        except (InputError, MemoryError):
            raise
        except Exception:
            file.seek(0)
            pixels = without_metadata(file.read())
            if pixels is None:
                raise
            return _read_upright(io.BytesIO(pixels), name)


@contextmanager
def pillow_errors(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises into an InputError that names the image; silence its warnings."""
    with warnings.catch_warnings():
        # They are of damaged metadata, and of more than 89 megapixels; Pillow refuses twice as
        # many, which take 0.5 GB. Other modules' warnings stay, also where threads read images.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            words = str(error)
            fitting = (
                problem
                for kind, pattern, problem in PILLOW_ERRORS
                if isinstance(error, kind) and re.search(pattern, words)
            )
            raise InputError(
                f"{name} {next(fitting)} ({words or type(error).__name__})."
            ) from error


def _read_upright(file, name: str) -> np.ndarray:
    with open_image(file, name) as image:
        if max(image.size) > MAX_SIDE:
            size = f"{image.width} x {image.height} pixels"
            raise InputError(f"{name} is {size}; expected at most {MAX_SIDE:,} on a side.")
        numbers, orientation = read_pil(image, name), None
        # A TIFF has none now: Pillow has turned it already.
        with contextlib.suppress(Exception):
            orientation = image.getexif().get(ORIENTATION)
        if image.format in (*ENDS, "PPM"):
            file.seek(0)
            if _is_followed(image.format, file.read()):
                warnings.warn(f"{name} holds several images; the first is used.", stacklevel=5)
    return TURNS[orientation](numbers) if orientation in TURNS else numbers


def _is_followed(form: str, data: bytes) -> bool:
    """Whether another image follows that in a file of this format."""
    if form == "PPM":
        return data.find(data[:7], 7) > 0  # its kind and width, or the start of a comment
    end, place = ENDS[form], 0
    while (place := data.find(end, place) + len(end)) >= len(end):
        if data.startswith(STARTS, place):
            return True
    return False


def without_metadata(data: bytes) -> bytes | None:
    """A PNG or JPEG file without what its pixels do not need, None for other files."""
    if data.startswith(b"\x89PNG"):
        kept, start = [data[:8]], 8
        while start < len(data):
            end = start + 12 + int.from_bytes(data[start : start + 4], "big")
            kind = data[start + 4 : start + 8]
            if kind[:1].isupper() or kind in PNG_CHUNKS:
                kept.append(data[start:end])
            start = end
        return b"".join(kept)
    if not data.startswith(b"\xff\xd8"):
        return None
    kept, start = [data[:2]], 2
    # Up to the start of scan, FFDA. FFE0 to FFEF are application segments, FFFE a comment.
    while data[start : start + 1] == b"\xff" and data[start + 1 : start + 2] != b"\xda":
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        optional = data[start + 1] in (*range(0xE0, 0xF0), 0xFE)
        if not optional or JPEG_SEGMENTS.match(data, start + 4, end):
            kept.append(data[start:end])
        start = end
    return b"".join([*kept, data[start:]])


def read_pil(image: Image.Image, name: str) -> np.ndarray:
    """The numbers of a PIL image as they lie: (H,W,C), integers or float32.

    C is 1 for grey, 2 for grey and alpha, 3 for colors, 4 for colors and alpha. Warns of an image
    that stands at the first of several frames. Raises InputError for numbers of unknown meaning,
    and whatever Pillow raises.
    """
    if 0 in image.size:
        raise InputError(f"{name} has no pixels: {image.width} x {image.height}.")
    tile = getattr(image, "tile", None)
    if tile and image.fp is None:
        raise ValueError("Operation on closed image")
    codec, _, offset, options = tile[0] if tile else ("", (), 0, "")
    raw, *options = options if isinstance(options, (tuple, list)) else [options]
    numbers = _numbers(image, name, codec, str(raw), offset, options)
    key, channels = image.info.get("transparency"), numbers.shape[2]
    if isinstance(key, (int, tuple)) and np.size(key) == channels and numbers.dtype.kind == "u":
        level = 255 * bool(key) if image.mode == "1" else np.multiply(key, FACTORS.get(raw, 1))
        opaque = (numbers != level).any(axis=2, keepdims=True)
        alpha = opaque.astype(numbers.dtype) * np.iinfo(numbers.dtype).max
        numbers = np.concatenate([numbers, alpha], axis=2)
    frames = 1
    with contextlib.suppress(Exception):
        frames = image.n_frames if image.tell() == 0 and image.format not in FRAMES_OF_ONE else 1
    if frames > 1:
        warnings.warn(f"{name} has {frames} frames; the first is used.", stacklevel=4)
    return numbers


def _numbers(image, name: str, codec: str, raw: str, offset: int, options: list) -> np.ndarray:
    """All numbers of an image, (H,W,C), by its file's codec, raw mode, offset and more options.

    They are "", "", 0 and [] of an image that is loaded, of which nothing but its mode is known.
    """
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    in_planes = image.mode[:3] == "RGB" and tags.get(284) == 2 and tags[258][0] == 16
    if image.format == "TIFF" and codec:
        image.filename = ""  # with it, Pillow 13 maps pixels that are to be turned by a wrong width
    if codec.startswith("ppm") and raw == "RGB" and options == [65535]:
        return _deep_ppm(image, offset, plain=codec == "ppm_plain")
    if raw == "LA;16B":
        return _decode_again(image, lambda raw: "RGBA").view(">u2")  # four bytes a pixel
    if in_planes and codec == "raw":  # Pillow takes them for bytes
        order = "L" if tags.prefix == b"II" else "B"
        lower, upper = (
            _decode_again(image, lambda raw, order=order: f"{raw};16{order}")
            for order in (OTHER_ORDER[order], order)
        )
        image.load()  # and take its orientation off, as it is off here
        return upper.astype(np.uint16) << 8 | lower
    if re.fullmatch("RGB[AX]?;16[BLN]", raw) and not in_planes:
        lower = _decode_again(image, lambda raw: raw[:-1] + OTHER_ORDER[raw[-1]])
        return (np.asarray(image).astype(np.uint16) << 8 | lower)[..., : 4 - ("X" in raw)]
    numbers = _levels(image, name)
    if codec.startswith("ppm") and raw == "L" and image.mode == "I" and options != [65535]:
        return (numbers / 257 + 0.5).astype(np.uint8)  # scaled by the file's own white
    if codec == "libtiff" and re.fullmatch("[IF];.*B.*", raw) and sys.byteorder == "little":
        # libtiff has put the bytes into the machine's order, and Pillow has swapped them again.
        return (numbers.astype(np.int16) if "16" in raw else numbers).byteswap()
    if codec == "SGI16" or raw.startswith("RGBa;16") or (in_planes and codec == "libtiff"):
        return numbers.astype(np.uint16) * 257 | 1  # the lower bytes are out of reach
    return numbers


def _levels(image: Image.Image, name: str) -> np.ndarray:
    """Numbers that Pillow reads in full. Raises InputError where they are not plain levels."""
    tags = getattr(image, "tag_v2", {})
    black, bits, sign, compression, planes, channels = (
        np.ravel(tags.get(tag, 1))[0] for tag in (262, 258, 339, 259, 284, 277)
    )
    deep = image.mode[0] in "IF"
    cut = compression == channels == 1 and (black == 0 or bits not in (1, 8))
    problems = {
        "Pillow does not apply BZERO and BSCALE": deep and image.format == "FITS",
        "0 is white, of more than 8 bits": deep and black == 0,
        "channels lie in planes, which Pillow misreads": planes == 2 and (cut or channels == 2),
    }
    for problem in (problem for problem, is_there in problems.items() if is_there):
        raise InputError(
            f"{name} is a {image.format} in which {problem}; give its numbers as an array, 0 for "
            f"black."
        )
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif not re.fullmatch("L|LA|RGB|RGBA|F|I.*", image.mode):
        image = image.convert(PLAIN_MODES.get(image.mode, "RGB"))
    numbers = np.atleast_3d(np.asarray(image))
    if image.format in ("PNG", "PPM") and image.mode == "I":
        return numbers.astype(np.uint16)  # by Pillow's version and the format, it is this or I;16
    if bits == 12 and image.mode == "I;16":
        return (numbers / 4095 * 255 + 0.5).astype(np.uint8)
    return numbers.view(np.int8) if image.mode == "L" and sign == 2 else numbers


def _deep_ppm(image: Image.Image, offset: int, plain: bool) -> np.ndarray:
    """The numbers of a PPM of 16 bits, which Pillow scales to 8: (H,W,3), uint16."""
    image.fp.seek(offset)
    data, shape = image.fp.read(), (image.height, image.width, 3)
    numbers = data.split() if plain else np.frombuffer(data, ">u2", np.prod(shape))
    return np.array(numbers[: np.prod(shape)]).astype(np.uint16).reshape(shape)


def _decode_again(image: Image.Image, change: Callable[[str], str]) -> np.ndarray:
    """Decode the frame of a file that is open and not loaded once more, by changed raw modes."""
    position = image.fp.tell()
    again = Image.open(image.fp)
    again.seek(image.tell())
    again.tile = [
        TILE(*place, change(o) if isinstance(o, str) else (change(o[0]), *o[1:]))
        for *place, o in again.tile
    ]
    pixels = np.asarray(again)
    image.fp.seek(position)
    return pixels
