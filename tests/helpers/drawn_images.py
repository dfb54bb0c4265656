"""Image files whose pixels are known: drawn numbers, stored by writers that share nothing with
their readers.

PNG, TIFF and PNM are written here, byte by byte; Pillow writes the other formats. Each file may
carry metadata, some of it damaged.
"""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .mutations import generator, pick

# What `transpose(orientation)` does to the stored pixels (H,W,C), by EXIF's definition: where row
# 0 and column 0 of the stored pixels are seen.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, 3),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@dataclass(repr=False)
class Drawn:
    """A file, and the pixels (H,W,3), 0 to 255, that it shows, as stored and upright.

    fate: "right", "warned" where the numbers leave open what is white, "refused" where they have no
    meaning. Those that some version of Pillow cannot read may also be refused.
    """

    kind: str
    data: bytes
    stored: np.ndarray
    orientation: int = 1
    tolerance: float = 0.51
    fate: str = "right"
    by_all_pillows: bool = True

    @property
    def upright(self) -> np.ndarray:
        return UPRIGHT[self.orientation](self.stored)


def draw(kind: str, seed: int) -> Drawn:
    return DRAWERS[kind](generator(kind, seed))


# Numbers


def numbers(rng: np.random.Generator, top: int, channels: int) -> np.ndarray:
    """(H,W,channels), whole numbers of 0 to top, both among them."""
    height, width = rng.integers(2, 20, 2)
    drawn = rng.integers(0, top + 1, (height, width, channels))
    drawn.flat[0], drawn.flat[-1] = 0, top
    drawn[0, -1] = top  # bright in all channels, and opaque
    return drawn


def shown(drawn: np.ndarray, top: float) -> np.ndarray:
    """Grey (C=1), grey and alpha (2), colors (3), colors and alpha (4), seen on white."""
    levels = drawn * (255 / top)
    if levels.shape[2] in (2, 4):
        share = levels[..., -1:] / 255
        levels = levels[..., :-1] * share + 255 * (1 - share)
    return np.broadcast_to(levels, (*levels.shape[:2], 3))


def used_range(rng: np.random.Generator, bits: int) -> tuple[int, str]:
    """The largest number drawn for a file of so many bits, and the fate."""
    top = 2**bits - 1
    if bits == 16 and rng.random() < 0.3:
        return int(pick(rng, (255, 1023, 4095, 16383))), "warned"
    return top, "right"


def packed(drawn: np.ndarray, bits: int, order: str) -> bytes:
    """(H,W,C) as rows of bits, each row filled up to a byte."""
    height = drawn.shape[0]
    if bits in (8, 16):
        return drawn.astype(f"{order}u{bits // 8}").tobytes()
    each = (drawn.reshape(height, -1, 1) >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(each.reshape(height, -1).astype(np.uint8), axis=1).tobytes()


# Metadata


def ifd(tags: list[tuple[int, int, int, bytes]], start: int, order: str) -> bytes:
    """TIFF's directory of (tag, type, count, value), which lies at `start`, and its values."""
    entries, values = b"", b""
    after = start + 6 + 12 * len(tags)
    for tag, kind, count, value in sorted(tags):
        if len(value) > 4:
            place = struct.pack(f"{order}I", after + len(values))
            values += value
            value = place
        entries += struct.pack(f"{order}HHI", tag, kind, count) + value.ljust(4, b"\0")
    return struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + values


def odd_tags(order: str) -> list[tuple[int, int, int, bytes]]:
    """What cameras and programs are known to write."""
    pair = f"{order}ii"
    return [
        (0x010F, 5, 1, struct.pack(pair, 1, 3)),  # Make, a rational
        (0x0110, 11, 1, struct.pack(f"{order}f", 1e30)),  # Model, a float
        (0x011A, 2, 4, b"abc\0"),  # XResolution, a text
        (0x011A, 5, 1, struct.pack(pair, 1, 0)),
        (0x9204, 10, 1, struct.pack(pair, -1, 0)),  # the exposure's bias
        (0x8769, 4, 1, struct.pack(f"{order}I", 999_999)),  # a directory beyond the end
        (0x8825, 4, 1, struct.pack(f"{order}I", 8)),  # a directory within itself
        (0x9286, 7, 20, b"x" * 20),
        (0x010E, 2, 9, b"\xff\xfe\x80abc\0\0\0"),  # a description that is no text
    ]


def exif(rng: np.random.Generator) -> tuple[bytes | None, int]:
    """EXIF data, or none, and the orientation that they tell."""
    if rng.random() < 0.3:
        return None, 1
    if rng.random() < 0.15:
        return pick(rng, (b"II*\0", b"\xff" * 40, b"", b"II*\0\xff\xff\xff\xff")), 1
    order, orientation = pick(rng, "<>"), int(rng.integers(0, 10))
    tags = [(0x0112, 3, 1, struct.pack(f"{order}H", orientation))]
    tags += [tag for tag in odd_tags(order) if rng.random() < 0.25]
    tags = list({tag[0]: tag for tag in tags}.values())
    return exif_block(tags, order), orientation if orientation in UPRIGHT else 1


def exif_block(tags: list[tuple[int, int, int, bytes]], order: str = "<") -> bytes:
    """EXIF data: a TIFF's start and one directory."""
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return start + ifd(tags, 8, order)


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a/></x:xmpmeta>'


# PNG


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_texts(rng: np.random.Generator) -> bytes:
    """Texts, profiles and hints, whole and damaged."""
    large = zlib.compress(bytes(1_500_000))
    choices = (
        chunk(b"tEXt", b"Title\0" + bytes(range(128, 256))), chunk(b"tEXt", b""),
        chunk(b"zTXt", b"a\0\0" + large), chunk(b"zTXt", b"a\0\0xyz"), chunk(b"zTXt", b"a\0\5xyz"),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        chunk(b"iTXt", b"a\0\1\0\0\0" + large),
        chunk(b"iCCP", b"a\0\0" + large), chunk(b"iCCP", b"abc"), chunk(b"iCCP", b""),
        chunk(b"gAMA", struct.pack(">I", 45455)), chunk(b"gAMA", b"x"), chunk(b"cHRM", b"x"),
        chunk(b"sRGB", b""), chunk(b"pHYs", bytes(9)), chunk(b"pHYs", b"abc"),
        chunk(b"tIME", b"x"), chunk(b"sBIT", b"\5"), chunk(b"bKGD", b""), chunk(b"abCd", b"123"),
    )  # fmt: skip
    return b"".join(part for part in choices if rng.random() < 0.08)


# The first pixel and the step of each pass, across and down.
ADAM7 = (
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
    (0, 1, 1, 2),
)  # fmt: skip


def png_file(
    drawn: np.ndarray, bits: int, color: int, before=b"", after=b"", interlaced=False
) -> bytes:
    """A PNG of numbers (H,W,C), with chunks before and after its pixels."""
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    rows = [
        b"\0" + packed(row[None], bits, ">")
        for x, y, across, down in passes
        for row in drawn[y::down, x::across]
        if row.size
    ]
    height, width = drawn.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlaced)
    pixels = chunk(b"IDAT", zlib.compress(b"".join(rows)))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + before + pixels + after + chunk(b"IEND", b"")


def png(rng: np.random.Generator) -> Drawn:
    color, depths = pick(
        rng,
        [(0, (1, 2, 4, 8, 16, 16)), (2, (8, 16)), (3, (1, 2, 4, 8)), (4, (8, 16)), (6, (8, 16))],
    )
    bits = pick(rng, depths)
    top, fate = used_range(rng, bits)
    drawn = numbers(rng, top, {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color])
    before = b""
    if color == 3:
        palette = rng.integers(0, 256, (2**bits, 4))
        before = chunk(b"PLTE", palette[:, :3].astype(np.uint8).tobytes())
        clear = pick(rng, (0, 1, 2**bits))  # entries that have an alpha
        palette[clear:, 3] = 255
        if clear:
            before += chunk(b"tRNS", palette[:clear, 3].astype(np.uint8).tobytes())
        seen = shown(palette[drawn[..., 0]], 255)
    elif color in (0, 2) and rng.random() < 0.4:
        key = drawn[tuple(rng.integers(drawn.shape[:2]))]
        before = chunk(b"tRNS", key.astype(">u2").tobytes())
        opaque = (drawn != key).any(axis=2, keepdims=True) * (2**bits - 1)
        seen = shown(np.concatenate([drawn, opaque], axis=2), 2**bits - 1)
    else:
        seen = shown(drawn, 2**bits - 1)
    block, orientation = exif(rng)
    if block is not None:
        before += chunk(b"eXIf", block)
    before, after = png_texts(rng) + before, png_texts(rng)
    data = png_file(drawn, bits, color, before, after, interlaced=bool(rng.integers(2)))
    tolerance = 1.51 if bits == 16 and color > 3 else 0.51  # color and alpha are rounded first
    return Drawn("png", data, seen, orientation, tolerance, fate)


# TIFF


def short(order: str, *values: int) -> tuple[int, int, bytes]:
    return 3, len(values), struct.pack(f"{order}{len(values)}H", *values)


def long(order: str, *values: int) -> tuple[int, int, bytes]:
    return 4, len(values), struct.pack(f"{order}{len(values)}I", *values)


def tiff_file(
    strips: list[bytes],
    shape: tuple[int, ...],
    bits: int,
    photometric: int,
    tags: dict[int, tuple[int, int, bytes]],
    *,
    planes: int = 1,
    compressed: bool = False,
    order: str = "<",
) -> bytes:
    """A TIFF of numbers (H,W,C), in one strip, or in one for each channel; with more tags."""
    height, width, channels = shape
    strips = [zlib.compress(strip) if compressed else strip for strip in strips]
    tags = tags | {
        256: long(order, width), 257: long(order, height), 258: short(order, *[bits] * channels),
        259: short(order, 8 if compressed else 1), 262: short(order, photometric),
        273: long(order, *[0] * len(strips)), 277: short(order, channels),
        278: long(order, height), 279: long(order, *map(len, strips)), 284: short(order, planes),
    }  # fmt: skip
    offset = len(exif_block([(tag, *value) for tag, value in tags.items()], order))
    places = (offset + sum(map(len, strips[:number])) for number in range(len(strips)))
    tags[273] = long(order, *places)
    return exif_block([(tag, *value) for tag, value in tags.items()], order) + b"".join(strips)


def tiff(rng: np.random.Generator) -> Drawn:
    """Photometric interpretation, bits, channels, and the kind of numbers."""
    white, black, rgb, palette, cmyk = 0, 1, 2, 3, 5
    unsigned, signed, floating = 1, 2, 3
    photometric, bits, channels, sample = pick(
        rng,
        [(black, bits, 1, unsigned) for bits in (1, 2, 4, 8, 12, 16, 16, 32)]
        + [(white, bits, 1, unsigned) for bits in (1, 2, 4, 8, 16)]
        + [(rgb, bits, n, unsigned) for bits in (8, 16) for n in (3, 4)]
        + [(palette, 4, 1, unsigned), (palette, 8, 1, unsigned), (cmyk, 8, 4, unsigned)]
        + [(black, 8, 2, unsigned), (black, 8, 1, signed), (black, 16, 1, signed)]
        + [(black, 32, 1, signed), (black, 32, 1, floating), (black, 32, 1, floating)],
    )
    order = pick(rng, "<>")
    tolerance, top = 0.51, 2**bits - 1
    if sample == unsigned and bits < 32:
        used, fate = used_range(rng, bits)
        drawn = numbers(rng, used, channels)
        if photometric == cmyk:
            seen = (255 - drawn[..., :3]) * (255 - drawn[..., 3:]) / 255
            tolerance = 1
        elif photometric == palette:
            colors = rng.integers(0, 256, (3, 2**bits))
            seen = colors.T[drawn[..., 0]].astype(float)
        elif photometric == white:
            seen, fate = shown(top - drawn, top), "refused" if bits > 8 else "right"
        else:
            seen = shown(drawn, top)
        tolerance = 1.51 if channels == 4 and bits == 16 else tolerance
        stored = packed(drawn, bits, order)
    elif sample == floating:
        drawn = numbers(rng, 1000, 1) / 1000
        scale, fate = pick(rng, ((1, "right"), (1, "right"), (0.3, "warned"), (2.5, "refused")))
        stored, seen = (drawn * scale).astype(f"{order}f4").tobytes(), shown(drawn * scale, 1)
        tolerance = 1  # floats are cut
    else:
        used = int(pick(rng, (127,) if bits == 8 else (255, 4095, 32767)))
        drawn = numbers(rng, used, 1)
        top = 255 if used <= 255 else 65535
        fate = "right" if used == 255 else "warned"
        if rng.random() < 0.2 and sample == signed:
            drawn.flat[0], fate = -1, "refused"
        stored = drawn.astype(f"{order}{'i' if sample == signed else 'u'}{bits // 8}").tobytes()
        seen = shown(drawn, top)
    planar = channels > 1 and photometric in (rgb, black) and rng.random() < 0.3
    fate = "refused" if planar and photometric == black else fate  # Pillow misreads it
    if planar:
        strips = [packed(drawn[..., i : i + 1], bits, order) for i in range(channels)]
    else:
        strips = [stored]
    compressed = rng.random() < 0.4
    alone = channels == 1 and rng.random() < 0.2  # a plane that has no others beside it
    if alone and not compressed and (bits not in (1, 8) or photometric == white):
        fate = "refused"
    if planar and compressed and bits == 16:
        tolerance = 3  # only the upper bytes can be had
    orientation = int(rng.integers(1, 9)) if rng.random() < 0.5 else 1
    tags = {274: short(order, orientation), 339: short(order, *[sample] * channels)}
    if photometric == palette:
        tags[320] = short(order, *(colors * 257).ravel().tolist())
    if channels in (2, 4) and photometric != cmyk:
        tags[338] = short(order, 2)  # the last channel is an alpha that is not multiplied in
    if rng.random() < 0.5:
        odd = [tag for tag in odd_tags(order) if rng.random() < 0.25]
        tags |= {tag: (kind, count, value) for tag, kind, count, value in odd}
        tags |= pick(rng, ({}, {34675: (7, 3, b"abc")}, {700: (1, len(XMP), XMP)}))
    form = {"planes": 2 if planar or alone else 1, "compressed": compressed, "order": order}
    data = tiff_file(strips, drawn.shape, bits, photometric, tags, **form)
    rare = bits == 12 or (bits == 32 and (compressed or sample == unsigned))
    return Drawn("tiff", data, seen, orientation, tolerance, fate, not rare or order == "<")


# PNM


def pnm(rng: np.random.Generator) -> Drawn:
    kind = int(rng.integers(1, 7))
    plain, channels = kind <= 3, 3 if kind in (3, 6) else 1
    top = 1 if kind in (1, 4) else int(pick(rng, (1, 15, 100, 255, 256, 1023, 4095, 65535, 65535)))
    used, fate = top, "right"
    if top == 65535 and rng.random() < 0.4:
        used, fate = 4095, "warned"
    drawn = numbers(rng, used, channels)
    height, width = drawn.shape[:2]
    comment = pick(rng, (b"", b"# a comment\n"))
    header = b"P%d\n%s%d %d\n" % (kind, comment, width, height)
    header += b"" if kind in (1, 4) else b"%d\n" % top
    if plain:
        data = b"\n".join(b" ".join(b"%d" % n for n in row.ravel()) for row in drawn) + b"\n"
    else:
        data = packed(drawn, 1 if kind == 4 else 16 if top > 255 else 8, ">")
    seen = shown(1 - drawn if kind in (1, 4) else drawn, top)  # 1 is black in a bitmap
    return Drawn("pnm", header + data, seen, fate=fate, tolerance=1)


# Formats that Pillow writes


def saved(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def jpeg(rng: np.random.Generator) -> Drawn:
    """Blocks of one color each, which JPEG keeps nearly."""
    channels = int(pick(rng, (1, 3, 3, 4)))
    small = rng.integers(0, 256, (*rng.integers(1, 4, 2), channels)).astype(np.uint8)
    drawn = small.repeat(16, axis=0).repeat(16, axis=1)
    image = Image.fromarray(drawn.squeeze(2) if channels == 1 else drawn[..., :3])
    seen = shown(drawn[..., :3], 255)
    if channels == 4:
        image = Image.frombytes("CMYK", image.size, drawn.tobytes())
        seen = (255.0 - drawn[..., :3]) * (255 - drawn[..., 3:]) / 255
    block, orientation = exif(rng)
    data = saved(image, "JPEG", quality=100, subsampling=0, progressive=bool(rng.integers(2)))
    segments = b"" if block is None else segment(0xE1, b"Exif\0\0" + block)
    odd = (
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP), segment(0xFE, b"\xff\xfe comment"),
        segment(0xE2, b"ICC_PROFILE\0"), segment(0xE2, b"ICC_PROFILE\0\1\3abc"),
        segment(0xED, b"Photoshop 3.0\0" + b"8BIM"), segment(0xE2, b"MPF\0abcdefgh"),
        segment(0xEE, b"Adobe"),
    )  # fmt: skip
    segments += b"".join(part for part in odd if rng.random() < 0.15)
    return Drawn("jpeg", data[:2] + segments + data[2:], seen, orientation, tolerance=4)


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def webp(rng: np.random.Generator) -> Drawn:
    drawn = numbers(rng, 255, int(pick(rng, (3, 4)))).astype(np.uint8)
    block, orientation = exif(rng)
    options = {} if block is None else {"exif": block}
    options |= pick(rng, ({}, {"icc_profile": b"abc"}, {"xmp": XMP}))
    return animated(rng, "webp", drawn, shown(drawn, 255), orientation, lossless=True, **options)


def gif(rng: np.random.Generator) -> Drawn:
    palette = rng.integers(0, 256, (256, 3)).astype(np.uint8)
    drawn = numbers(rng, 255, 1)[..., 0].astype(np.uint8)
    image = Image.fromarray(drawn)
    seen = shown(drawn[..., None], 255)
    if rng.random() < 0.7:
        image = Image.frombytes("P", image.size, drawn.tobytes())
        image.putpalette(palette.tobytes())
        seen = palette[drawn].astype(float)
    options = pick(rng, ({}, {"comment": b"\xff" * 300}))
    if rng.random() < 0.4:
        options |= {"transparency": int(drawn[0, 0])}
        seen = np.where((drawn == drawn[0, 0])[..., None], 255.0, seen)
    return animated(rng, "gif", image, seen, 1, **options)


def animated(rng, form: str, drawn, seen: np.ndarray, orientation: int, **options) -> Drawn:
    """The file, in one case of five with a second frame."""
    image = drawn if isinstance(drawn, Image.Image) else Image.fromarray(drawn)
    fate = "right"
    if rng.random() < 0.2:
        fate = "warned"
        other = image.transpose(Image.Transpose.ROTATE_180)
        options |= {"save_all": True, "append_images": [other]}
    return Drawn(form, saved(image, form, **options), seen, orientation, fate=fate)


OTHERS = {
    "BMP": ("1", "L", "P", "RGB"),
    "TGA": ("L", "RGB", "RGBA"),
    "PCX": ("1", "L", "P", "RGB"),
    "SGI": ("L", "RGB", "RGBA"),
    "TIFF": ("P", "PA", "LA", "CMYK", "YCbCr"),
}
CHANNELS = {"LA": 2, "PA": 2, "RGB": 3, "YCbCr": 3, "RGBA": 4, "CMYK": 4}


def other(rng: np.random.Generator) -> Drawn:
    form = pick(rng, tuple(OTHERS))
    mode = pick(rng, OTHERS[form])
    drawn = numbers(rng, 1 if mode == "1" else 255, CHANNELS.get(mode, 1))
    size = drawn.shape[1::-1]
    if mode == "1":
        image = Image.frombytes("1", size, packed(drawn, 1, ">"))
    else:
        image = Image.frombytes(mode, size, drawn.astype(np.uint8).tobytes())
    seen, tolerance = shown(drawn, 1 if mode == "1" else 255), 0.51
    if mode in ("P", "PA"):
        palette = rng.integers(0, 256, (256, 3)).astype(np.uint8)
        image.putpalette(palette.tobytes())
        seen = shown(np.concatenate([palette[drawn[..., 0]], drawn[..., 1:]], axis=2), 255)
    elif mode == "CMYK":
        seen, tolerance = (255 - drawn[..., :3]) * (255 - drawn[..., 3:]) / 255, 1
    elif mode == "YCbCr":
        y, blue, red = drawn[..., 0], drawn[..., 1] - 128, drawn[..., 2] - 128
        green = y - 0.344136 * blue - 0.714136 * red
        seen = np.stack([y + 1.402 * red, green, y + 1.772 * blue], axis=2).clip(0, 255)
        tolerance = 2
    options = {"compression": pick(rng, ("raw", "tiff_lzw"))} if form == "TIFF" else {}
    data = saved(image, form, **options)
    return Drawn(f"{form} {mode}", data, seen, 1, tolerance, by_all_pillows=mode != "YCbCr")


DRAWERS = {
    "png": png,
    "tiff": tiff,
    "pnm": pnm,
    "jpeg": jpeg,
    "webp": webp,
    "gif": gif,
    "other": other,
}
NUMBER = {"png": 150, "tiff": 150, "pnm": 60, "jpeg": 50, "webp": 30, "gif": 30, "other": 30}
