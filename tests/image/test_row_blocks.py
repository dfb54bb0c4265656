"""Large images in blocks of rows: the same results as in one, in memory that stays small."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from clipseg_np import Segmenter
from clipseg_np.image import row_blocks
from clipseg_np.image.load_image import load_image
from clipseg_np.image.resize import resize_bilinear
from clipseg_np.masks.draw import heat, highlight
from clipseg_np.masks.morphology import connected_components, dilate

rng = np.random.default_rng(0)
IMAGE = rng.integers(0, 256, (41, 30, 3), np.uint8)
MASK = rng.random((41, 30)) > 0.9


def test_the_blocks_are_all_rows_once():
    for height, width in (
        (1, 1),
        (7, row_blocks.MAX_PIXELS_PER_BLOCK),
        (2000, 3000),
        (3, 2 * row_blocks.MAX_PIXELS_PER_BLOCK),
    ):
        rows = np.concatenate(
            [np.arange(height)[band] for band in row_blocks.row_blocks(height, width)]
        )
        assert (rows == np.arange(height)).all()
        for band in row_blocks.row_blocks(height, width):
            assert (
                band.stop - band.start == 1
                or (band.stop - band.start) * width <= row_blocks.MAX_PIXELS_PER_BLOCK
            )


def results(checkpoint) -> dict[str, np.ndarray]:
    """Everything that is computed block by block."""
    result = Segmenter.from_pretrained(checkpoint).combine(IMAGE, ["red", "red - !(a blue x)"])
    wide = rng.integers(0, 2**16, (41, 30), np.uint16)
    wide[:] = np.arange(41 * 30).reshape(41, 30) * 53
    return {
        "maps": result.probabilities,
        "highlight": highlight(IMAGE, MASK),
        "heat": heat(IMAGE, result.probability(0)),
        "components": np.array([[r.area, *r.box] for r in connected_components(MASK)]),
        "dilated": np.stack([dilate(MASK, pixels) for pixels in (0, 1, 2.5, 7, 100, -1, -3)]),
        "over white": load_image(np.dstack([IMAGE, IMAGE[..., 0]])),
        "16 bits": load_image(wide),
        "floats": load_image(IMAGE / 255),
    }


@pytest.mark.parametrize("pixels", [1, 100, 700])
def test_blocks_of_any_height_give_the_same(pixels, checkpoint, monkeypatch):
    whole = results(checkpoint)
    monkeypatch.setattr(row_blocks, "MAX_PIXELS_PER_BLOCK", pixels)
    for name, array in results(checkpoint).items():
        np.testing.assert_array_equal(array, whole[name], name)


def test_some_rows_of_an_interpolated_map():
    logits = rng.normal(size=(2, 6, 5)).astype(np.float32)
    whole = resize_bilinear(logits, (40, 31))
    for rows in (slice(0, 1), slice(3, 17), slice(39, 40), slice(None)):
        np.testing.assert_array_equal(resize_bilinear(logits, (40, 31), rows=rows), whole[:, rows])


# A small process starts the command: on Linux, a process's peak counts its parent's memory at the
# start.
LAUNCHER = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss, os.waitstatus_to_exitcode(status))
"""


def peak_memory(*arguments) -> int:
    """The most bytes that the command `clipseg-np` with these arguments holds at a time."""
    command = [sys.executable, "-m", "clipseg_np", *arguments]
    launched = [sys.executable, "-c", LAUNCHER, *command]
    done = subprocess.run(launched, capture_output=True, text=True, check=True)
    peak, code = map(int, done.stdout.splitlines()[-1].split())
    assert code == 0, done.stderr
    return peak * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.parametrize(("kind", "most"), [("mask", 8.5), ("soft", 8.5), ("heat", 14)])
def test_memory_for_a_large_photo(kind, most, checkpoint, tmp_path):
    """Bytes a pixel: 4 of Pillow's own and 3 of the image's, then 3 and the mask's or the map's."""
    peaks, sizes = [], [(100, 100), (6000, 4000)]
    for width, height in sizes:
        folder = tmp_path / str(width)
        folder.mkdir()
        Image.new("RGB", (width, height), (200, 30, 30)).save(folder / "a.jpg")
        options = ["--write", kind, "--workers", "1", "--model", checkpoint]
        peaks.append(peak_memory("batch", folder, "red", *options, "--output", folder / "masks"))
    assert peaks[1] - peaks[0] < most * 6000 * 4000


@pytest.mark.slow
def test_a_hundred_megapixels_in_bounded_memory(checkpoint, tmp_path):
    """Maps of six prompts would take 2.4 GB. This holds 16 bytes a pixel."""
    file = tmp_path / "large.png"
    Image.new("RGB", (10000, 10000), (200, 30, 30)).save(file, compress_level=1)
    output = tmp_path / "masks"
    prompts = ["red", "a blue x", "red - a", "!red", "x", "a & red"]
    options = ["--labels", "--model", checkpoint, "--output", output]
    assert peak_memory("segment", file, *prompts, *options) < 1.8e9
    assert len(list(output.iterdir())) == len(prompts) + 4
