"""An image file or a PIL image to the numbers that it holds; load_image.py says what they mean.

Pillow reads the files. Where it would lose or misread something, this file steps in:

- Of colors of 16 bits, Pillow keeps the upper 8; here all are read.
- Pillow compares PNG's transparent level with levels that it has scaled or cut.
- Damaged EXIF data, color profiles, texts or XMP data make Pillow give up; here the pixels are read
  without them.
- Numbers whose scale Pillow does not hand on, as in FITS, are refused.
"""

import io
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from ..errors import InputError
from .plugins import open_image
from .row_blocks import join_row_blocks

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
# How another image follows, by format, as in `cat a.png b.png`: the end of one, the start of the
# next. PPM files have no end; they begin alike.
START = rb"(\x89PNG\r\n|\xff\xd8\xff|GIF8|RIFF)"
NEXT_IMAGES = {"PNG": rb"IEND\xaeB`\x82" + START, "JPEG": rb"\xff\xd9" + START}
NEXT_IMAGES |= {"GIF": rb"\0;" + START, "PPM": None}
# Formats in which further frames belong to one image: a JPEG's depth map, a drawing's layers.
FRAMES_OF_ONE = {"MPO", "PSD"}
# The first bytes of a PNG and of a JPEG file. Of each part that follows: the place of its length,
# how much longer it is, the pattern of parts that pixels do not need, and that of the last part.
PARTS = (
    (b"\x89PNG\r\n\x1a\n", slice(0, 4), 12,
     rb".{4}(?![A-Z]|tRNS|eXIf|acTL|fcTL|fdAT)", rb"\xff"),
    (b"\xff\xd8", slice(2, 4), 2,
     rb"\xff[\xe0-\xef\xfe]..(?!JFIF\0.{9}|Adobe.{7}|Exif\0\0)", rb"\xff\xda|[^\xff]"),
)  # fmt: skip

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
            if (pixels := without_metadata(file.read())) is None:
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
            words = re.sub(r" <_io[^>]*>", "", str(error))  # an address in memory
            for kind, pattern, problem in PILLOW_ERRORS:
                if isinstance(error, kind) and re.search(pattern, words):
                    message = f"{name} {problem} ({words or type(error).__name__})."
                    raise InputError(message) from error


def _read_upright(file, name: str) -> np.ndarray:
    with open_image(file, name) as image:
        if max(image.size) > MAX_SIDE:
            size = f"{image.width} x {image.height} pixels"
            raise InputError(f"{name} is {size}; expected at most {MAX_SIDE:,} on a side.")
        numbers, orientation = read_pil(image, name), None
        # A TIFF has none now: Pillow has turned it already.
        with suppress(Exception):
            orientation = image.getexif().get(ORIENTATION)
        if image.format in NEXT_IMAGES:
            file.seek(0)
            data = file.read()
            pattern = NEXT_IMAGES[image.format] or re.escape(data[:7])
            if re.compile(pattern).search(data, 7):
                warnings.warn(f"{name} holds several images; the first is used.", stacklevel=5)
    numbers = numbers.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else numbers
    down, across = (-1 if orientation in flips else 1 for flips in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return numbers[::down, ::across]


def without_metadata(data: bytes) -> bytes | None:
    """A PNG or JPEG file without what its pixels do not need, None for other files."""
    for first, length, others, needless, last in PARTS:
        if data.startswith(first):
            kept, start = [first], len(first)
            while start < len(data):
                head = data[start : start + 4]
                end = start + others + int.from_bytes(head[length], "big")
                part = data[start : None if re.match(last, head) else end]
                if not re.match(needless, part, re.DOTALL):
                    kept.append(part)
                start += len(part)
            return b"".join(kept)
    return None


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
    key, kind = image.info.get("transparency"), numbers.dtype
    if isinstance(key, (int, tuple)) and np.size(key) == numbers.shape[2] and kind.kind == "u":
        level = 255 * bool(key) if image.mode == "1" else np.multiply(key, FACTORS.get(raw, 1))
        alpha = (numbers != level).any(axis=2, keepdims=True).astype(kind) * np.iinfo(kind).max
        numbers = np.concatenate([numbers, alpha], axis=2)
    frames = 1
    with suppress(Exception):
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
    if tags and codec:
        image.filename = ""  # with it, Pillow 13 maps pixels that are to be turned by a wrong width
    if codec.startswith("ppm") and raw == "RGB" and options == [65535]:  # Pillow scales them to 8
        image.fp.seek(offset)
        data, count = image.fp.read(), image.height * image.width * 3
        plain = codec == "ppm_plain"
        numbers = data.split()[:count] if plain else np.frombuffer(data, ">u2", count)
        return np.array(numbers).astype(np.uint16).reshape(image.height, image.width, 3)
    if raw == "LA;16B":
        return _decode_again(image, "RGBA").view(">u2")  # four bytes a pixel
    # Pillow takes those in planes for bytes.
    if codec == "raw" if in_planes else re.fullmatch("RGB[AX]?;16[BLN]", raw):
        order = raw[-1] if not in_planes else "L" if tags.prefix == b"II" else "B"
        lower, upper = (_decode_again(image, f"{{}};16{o}") for o in (OTHER_ORDER[order], order))
        image.load()  # and take its orientation off, as it is off here
        return (upper.astype(np.uint16) << 8 | lower)[..., : 4 - ("X" in raw)]
    numbers = _levels(image, name)
    if codec.startswith("ppm") and raw == "L" and image.mode == "I" and options != [65535]:
        return (numbers / 257 + 0.5).astype(np.uint8)  # scaled by the file's own white
    if codec == "libtiff" and re.fullmatch("[IF];.*B.*", raw) and sys.byteorder == "little":
        # libtiff has put the bytes into the machine's order, and Pillow has swapped them again.
        return (numbers.astype(np.int16) if "16" in raw else numbers).byteswap()
    if codec == "SGI16" or raw.startswith("RGBa;16") or in_planes:
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
    for problem, is_there in (
        ("Pillow does not apply BZERO and BSCALE", deep and image.format == "FITS"),
        ("0 is white, of more than 8 bits", deep and black == 0),
        ("channels lie in planes, which Pillow misreads", planes == 2 and (cut or channels == 2)),
    ):
        if is_there:
            message = f"{name} is a {image.format} in which {problem}; give its numbers as an array"
            raise InputError(f"{message}, 0 for black.")
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif not re.fullmatch("L|LA|RGB|RGBA|F|I.*", image.mode):
        image = image.convert(PLAIN_MODES.get(image.mode, "RGB"))
    image.load()
    # np.asarray(image) would hold all bytes twice, beside Pillow's own memory.
    numbers = join_row_blocks(
        lambda rows: np.asarray(image.crop((0, rows.start, image.width, rows.stop))),
        (image.height, image.width),
    )
    numbers = np.atleast_3d(numbers)
    if image.format in ("PNG", "PPM") and image.mode == "I":
        return numbers.astype(np.uint16)  # by Pillow's version and the format, it is this or I;16
    if bits == 12 and image.mode == "I;16":
        return (numbers / 4095 * 255 + 0.5).astype(np.uint8)
    return numbers.view(np.int8) if image.mode == "L" and sign == 2 else numbers


def _decode_again(image: Image.Image, form: str) -> np.ndarray:
    """Decode the frame of a file that is open and not loaded once more, by another raw mode.

    form: such as "{};16B", where {} is the raw mode without its bits.
    """
    position = image.fp.tell()
    again = Image.open(image.fp)
    again.seek(image.tell())
    again.tile = [
        TILE(*place, (form.format(raw.partition(";")[0]), *others))
        for *place, options in again.tile
        for raw, *others in [options if isinstance(options, tuple) else [options]]
    ]
    pixels = np.asarray(again)
    image.fp.seek(position)
    return pixels
