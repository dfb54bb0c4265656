"""Files and PIL images whose numbers, frames or metadata Pillow alone would lose or misread."""

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from clipseg_np.errors import InputError
from clipseg_np.image import decode
from clipseg_np.image.load_image import load_image

from ..helpers.drawn_images import chunk, exif_block, png_file, saved, segment, short, tiff_file

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RGB[..., :1]
DEEP = np.random.default_rng(1).integers(0, 65536, (5, 7, 3)).astype(np.uint16)
DEEP[0, 0] = 65535


@pytest.fixture(autouse=True)
def no_warning():
    """A warning fails a test that does not expect it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def write(tmp_path):
    """Write a file, and return its path."""

    def written(data: bytes, name: str = "image"):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return written


def three(grey):
    return np.broadcast_to(grey, (*grey.shape[:2], 3))


def rounded(deep):
    return np.round(deep / 257).astype(np.uint8)


# 16 bits


def pgm(numbers: np.ndarray, top: int = 65535) -> bytes:
    height, width, channels = numbers.shape
    kind = 5 if channels == 1 else 6
    return b"P%d %d %d %d\n" % (kind, width, height, top) + numbers.astype(">u2").tobytes()


def plain_pgm(numbers: np.ndarray) -> bytes:
    height, width, channels = numbers.shape
    text = " ".join(map(str, numbers.ravel().tolist()))
    return f"P{2 if channels == 1 else 3}\n{width} {height}\n65535\n{text}\n".encode()


def deep_png(numbers: np.ndarray) -> bytes:
    return png_file(numbers, 16, {1: 0, 2: 4, 3: 2, 4: 6}[numbers.shape[2]])


def tiff(numbers: np.ndarray, **options) -> bytes:
    return saved(Image.fromarray(numbers[..., 0]), "TIFF", **options)


GREY_WRITERS = (pgm, plain_pgm, deep_png, tiff)


@pytest.mark.parametrize("writer", GREY_WRITERS)
def test_dark_grey_of_16_bits_is_dark_whatever_the_format(write, writer):
    """Its largest number is 255 of 65535, or 256: no step between the two."""
    for top in (255, 256):
        dark = np.arange(35, dtype=np.uint16).reshape(5, 7, 1) * (top / 34)
        dark = dark.astype(np.uint16)
        path = write(writer(dark))
        with Image.open(path) as opened:
            for image in (path, opened, dark, dark.astype(">u2")):
                with pytest.warns(UserWarning, match=f"brightest number is {top}, and 65535"):
                    assert np.array_equal(load_image(image), three(rounded(dark)))


@pytest.mark.parametrize("writer", [pgm, plain_pgm, deep_png])
def test_colors_of_16_bits_are_read_in_full(write, writer):
    path = write(writer(DEEP))
    with Image.open(path) as opened:
        for image in (path, opened, DEEP):
            assert np.array_equal(load_image(image), rounded(DEEP))
    low = DEEP >> 4
    path = write(writer(low))
    with pytest.warns(UserWarning, match="brightest number is 4095, and 65535 counts as white"):
        load_image(path)
    expected = np.floor(low * (255 / 4095) + 0.5)
    assert np.array_equal(load_image(path, white_level=4095), expected)
    assert np.array_equal(load_image(low, white_level=4095), expected)


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_of_16_bits(write, channels):
    numbers = DEEP[..., [0, 1, 2, 0]][..., -channels:]
    color, alpha = np.split(rounded(numbers), [channels - 1], axis=2)
    loaded = load_image(write(deep_png(numbers)), keep_alpha=True)
    assert np.array_equal(loaded, np.dstack([three(color), alpha]))


@pytest.mark.parametrize("bits", [10, 12])
def test_a_pgm_says_itself_what_is_white(write, bits):
    numbers = np.arange(35, dtype=np.uint16).reshape(5, 7, 1) * 25
    loaded = load_image(write(pgm(numbers, top=2**bits - 1)))
    assert np.abs(loaded - numbers * (255 / (2**bits - 1))).max() <= 0.51


# Transparent levels


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_transparent_level_of_a_png_shows_white(write, bits, channels):
    if channels == 3 and bits < 8:
        return
    top = 2**bits - 1
    numbers = np.random.default_rng(bits).integers(0, top + 1, (5, 7, channels))
    numbers[0] = top
    key = numbers[2, 3] = np.minimum(numbers[2, 3], top - 1)
    data = png_file(numbers, bits, channels - 1, before=chunk(b"tRNS", key.astype(">u2").tobytes()))
    expected = np.round(numbers * (255 / top)).astype(np.uint8)
    hidden = (numbers == key).all(axis=2)
    expected = np.where(hidden[..., None], 255, three(expected))
    path = write(data)
    with Image.open(path) as opened:
        for image in (path, opened):
            assert np.array_equal(load_image(image), expected)
    alpha = load_image(path, keep_alpha=True)[..., 3]
    assert np.array_equal(alpha, np.where(hidden, 0, 255))


# Frames


FRAMES = [np.full((16, 16, 3), level, np.uint8) for level in (200, 90, 10)]


def animation(form: str) -> bytes:
    options = {"lossless": True} if form == "WEBP" else {}
    first, *others = map(Image.fromarray, FRAMES)
    return saved(first, form, save_all=True, append_images=others, **options)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_used_with_a_warning(write, form):
    path = write(animation(form), f"moving.{form.lower()}")
    with Image.open(path) as opened:
        for image in (path, opened):
            with pytest.warns(UserWarning, match=r"moving.* has 3 frames; the first is used"):
                assert np.array_equal(load_image(image), FRAMES[0])
        opened.seek(1)  # a choice
        assert np.array_equal(load_image(opened), FRAMES[1])


@pytest.mark.parametrize("first", ["PNG", "JPEG", "GIF", "PPM"])
def test_images_in_a_row_are_told_from_one(write, first):
    data = saved(Image.fromarray(FRAMES[0]), first)
    assert np.array_equal(load_image(write(data)), FRAMES[0])
    others = ["PPM"] if first == "PPM" else ["PNG", "JPEG", "GIF"]
    for other in others:
        path = write(data + saved(Image.fromarray(FRAMES[0]), other))
        with pytest.warns(UserWarning, match="holds several images; the first is used"):
            assert np.array_equal(load_image(path), FRAMES[0])


def test_a_photo_s_side_images_are_no_frames(write):
    """Cameras store a JPEG's preview or depth map as further frames of an MPO."""
    first, second, _ = map(Image.fromarray, FRAMES)
    data = saved(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert np.array_equal(load_image(write(data)), FRAMES[0])


def test_a_cut_off_second_page_does_not_cost_the_first(write):
    data = animation("TIFF")
    loaded = load_image(write(data[: len(data) * 2 // 3]))
    assert np.array_equal(loaded, FRAMES[0])


# Metadata

ON_ITS_SIDE = (0x0112, 3, 1, struct.pack("<H", 6))
ODD_TAGS = {
    "a rational maker": (0x010F, 5, 1, struct.pack("<II", 1, 3)),
    "a float model": (0x0110, 11, 1, struct.pack("<f", 1e30)),
    "a text as resolution": (0x011A, 2, 4, b"abc\0"),
    "a signed rational of -1/0": (0x9204, 10, 1, struct.pack("<ii", -1, 0)),
    "a directory that is a text": (0x8769, 2, 4, b"abcd"),
}


@pytest.mark.parametrize("tag", ODD_TAGS)
@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_odd_exif_data_leave_the_image_upright(write, form, tag):
    block = exif_block([ODD_TAGS[tag], ON_ITS_SIDE])
    flat = np.full((16, 24, 3), 90, np.uint8)
    flat[:, 16:] = 200
    options = {"lossless": True} if form == "WEBP" else {}
    exif = b"Exif\0\0" + block
    loaded = load_image(write(saved(Image.fromarray(flat), form, exif=exif, **options)))
    assert np.abs(loaded.astype(int) - np.rot90(flat, -1)).max() <= 1


@pytest.mark.parametrize("block", [b"II*\0", b"\xff" * 40, b"abc", b"II*\0\xff\xff\xff\xff"])
def test_exif_data_that_cannot_be_read_leave_the_image_as_it_lies(write, block):
    data = png_file(RGB, 8, 2, before=chunk(b"eXIf", block))
    assert np.array_equal(load_image(write(data)), RGB)


LARGE = zlib.compress(bytes(1_500_000))
ODD_CHUNKS = {
    "a color profile of 1.5 MB": chunk(b"iCCP", b"a\0\0" + LARGE),
    "a color profile without a name": chunk(b"iCCP", b"abc"),
    "a text of 1.5 MB": chunk(b"zTXt", b"a\0\0" + LARGE),
    "a text of an unknown compression": chunk(b"zTXt", b"a\0\5x"),
    "an international text of 1.5 MB": chunk(b"iTXt", b"a\0\1\0\0\0" + LARGE),
    "a short resolution": chunk(b"pHYs", b"abc"),
    "a short gamma": chunk(b"gAMA", b"a"),
    "a wrong checksum": chunk(b"tEXt", b"a\0b")[:-1] + b"?",
}


@pytest.mark.parametrize("odd", ODD_CHUNKS)
@pytest.mark.parametrize("where", ["before", "after"])
def test_odd_chunks_do_not_cost_a_png_its_pixels(write, odd, where):
    sides = {"before": b"", "after": b"", where: ODD_CHUNKS[odd]}
    sides["before"] += chunk(b"eXIf", exif_block([ON_ITS_SIDE]))
    loaded = load_image(write(png_file(RGB, 8, 2, **sides)))
    assert np.array_equal(loaded, np.rot90(RGB, -1))


@pytest.mark.parametrize("odd", [segment(0xE2, b"ICC_PROFILE\0"), segment(0xEE, b"Adobe")])
def test_odd_segments_do_not_cost_a_jpeg_its_pixels(write, odd):
    exif = b"Exif\0\0" + exif_block([ON_ITS_SIDE])
    data = saved(Image.fromarray(FRAMES[0][:8]), "JPEG", exif=exif)
    assert np.array_equal(load_image(write(data[:2] + odd + data[2:])), np.rot90(FRAMES[0][:8]))


def test_a_file_without_metadata_holds_the_same_pixels():
    png = saved(Image.fromarray(RGB), "PNG", icc_profile=bytes(99), exif=b"Exif\0\0II*\0")
    without = decode.without_metadata(png)
    assert b"iCCP" not in without and np.array_equal(
        np.asarray(Image.open(io.BytesIO(without))), RGB
    )
    jpeg = saved(Image.fromarray(RGB), "JPEG", icc_profile=bytes(99), comment=b"a" * 99)
    without = decode.without_metadata(jpeg)
    assert len(without) < len(jpeg) - 198
    assert np.array_equal(*(np.asarray(Image.open(io.BytesIO(data))) for data in (jpeg, without)))
    assert decode.without_metadata(b"GIF89a") is None


def test_pillow_s_own_warnings_do_not_reach_the_user(write):
    """Here "Corrupt EXIF data"; Pillow warns of it by the module warnings."""
    cut = exif_block([ODD_TAGS["a rational maker"], ON_ITS_SIDE])[:30]
    data = saved(Image.fromarray(RGB), "JPEG", exif=b"Exif\0\0" + cut)
    path = write(data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Image.open(path).getexif().get(0x0112)
        assert len(caught) > 0
    load_image(path)


# TIFF


def test_a_tiff_that_lies_on_its_side_is_read_alike_as_path_and_image(write):
    data = saved(Image.fromarray(GREY[..., 0]), "TIFF", tiffinfo={0x0112: 6})
    path = write(data)
    with Image.open(path) as opened:
        for image in (path, opened, Image.open(io.BytesIO(data))):
            assert np.array_equal(load_image(image), three(np.rot90(GREY, -1)))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("compressed", [False, True])
def test_colors_of_16_bits_in_planes(write, order, orientation, compressed):
    """Pillow takes them for bytes; of compressed ones, only their upper bytes can be had."""
    strips = [DEEP[..., i].astype(f"{order}u2").tobytes() for i in range(3)]
    options = {"planes": 2, "compressed": compressed, "order": order}
    tags = {274: short(order, orientation)}
    data = tiff_file(strips, DEEP.shape, 16, 2, tags, **options)
    expected = rounded(DEEP) if orientation == 1 else np.rot90(rounded(DEEP), -1)
    path = write(data)
    with Image.open(path) as opened:
        for image in (path, opened):
            loaded = load_image(image).astype(int)
            assert np.abs(loaded - expected).max() <= compressed
    strips = [(DEEP[..., i] >> 8).astype(f"{order}u2").tobytes() for i in range(3)]
    path = write(tiff_file(strips, DEEP.shape, 16, 2, tags, **options))
    with pytest.warns(UserWarning, match="and 65535 counts as white"):
        load_image(path)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("kind", "sample"), [("f4", 3), ("i4", 2), ("i2", 2)])
def test_numbers_of_a_tiff_in_each_byte_order(write, order, compressed, kind, sample):
    """Pillow swaps the bytes of big-endian ones twice where they are compressed."""
    numbers = GREY / np.float32(255) if kind == "f4" else GREY.astype(kind) | 128
    strips = [numbers.astype(f"{order}{kind}").tobytes()]
    tags = {339: short(order, sample)}
    options = {"compressed": compressed, "order": order}
    data = tiff_file(strips, GREY.shape, 8 * int(kind[1]), 1, tags, **options)
    assert np.array_equal(load_image(write(data)), load_image(numbers))


def tagged(numbers: np.ndarray, tag: int, value: int) -> bytes:
    """A TIFF of grey numbers, one of its short tags changed."""
    data = saved(Image.fromarray(numbers[..., 0]), "TIFF", tiffinfo={339: 1})
    place = data.index(struct.pack("<HH", tag, 3), data[4]) + 8
    return data[:place] + struct.pack("<H", value) + data[place + 2 :]


def test_numbers_of_unknown_meaning_are_refused(write):
    for numbers in (DEEP[..., :1], (GREY / 255).astype(np.float32)):
        path = write(tagged(numbers, 262, 0))
        with pytest.raises(InputError, match="in which 0 is white, of more than 8 bits"):
            load_image(path)
    with pytest.raises(InputError, match="int8 from -"):
        load_image(write(tagged(GREY | 128, 339, 2)))
    loaded = load_image(write(tagged(GREY, 262, 0)))
    assert np.array_equal(loaded, three(255 - GREY))
    cards = "SIMPLE  = T", "BITPIX  = 16", "NAXIS   = 2", "NAXIS1  = 7", "NAXIS2  = 5", "END"
    header = "".join(card.ljust(80) for card in cards).ljust(2880).encode()
    with pytest.raises(InputError, match="FITS in which Pillow does not apply BZERO"):
        load_image(write(header + DEEP[..., 0].tobytes().ljust(2880)))


# Causes


def test_a_closed_image_is_named_as_closed(write):
    path = write(saved(Image.fromarray(RGB), "PNG"), "closed.png")
    with Image.open(path) as unread:
        pass
    with Image.open(path) as read:
        read.load()
    assert np.array_equal(load_image(read), RGB)
    read.close()
    in_memory = Image.fromarray(RGB)
    in_memory.close()
    with open(path, "rb") as file:
        of_closed_file = Image.open(file)
    for image in (unread, read, in_memory, of_closed_file):
        with pytest.raises(InputError, match="is closed; load it while it is open"):
            load_image(image)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "Ghostscript"),
        (b"\xd7\xcd\xc6\x9a" + struct.pack("<6h6x2h", 0, 0, 0, 9, 9, 96, 1, 9) + bytes(9), "WMF"),
    ],
)
def test_a_format_that_needs_another_program_is_named_so(write, monkeypatch, data, message):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    with pytest.raises(InputError, match=f"is not installed; save it as PNG.*{message}"):
        load_image(write(data))


def test_a_file_that_may_not_be_read_or_cannot_be(write, monkeypatch):
    path = write(saved(Image.fromarray(RGB), "PNG"), "locked.png")
    for error, message in (
        (PermissionError(13, "Permission denied"), "may not be read by this user"),
        (OSError(5, "Input/output error"), "cannot be read from its disk"),
    ):

        def refuse(*_, error=error, **__):
            raise error

        monkeypatch.setattr("builtins.open", refuse)
        with pytest.raises(InputError, match=rf"locked\.png {message}"):
            load_image(path)
        monkeypatch.undo()
    if os.getuid():
        path.chmod(0)
        with pytest.raises(InputError, match=r"locked\.png may not be read by this user"):
            load_image(path)
