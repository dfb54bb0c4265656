"""A long batch that is killed ten times writes the same bytes as an undisturbed one."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests.segment.test_batch import content, finished

pytestmark = pytest.mark.slow

IMAGES, KILLS = 500, 10
FORMATS = ("png", "jpg", "webp", "gif", "bmp", "tiff")
MODES = ("RGB", "L", "RGBA", "P", "CMYK")


def mixed_images(folder) -> None:
    """Six formats, five modes, 1 to 200 pixels, folders three deep; every 50th is damaged."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(IMAGES):
        kind, mode = FORMATS[number % len(FORMATS)], MODES[number % len(MODES)]
        path = folder.joinpath(*f"{number % 8:03b}"[: number % 4], f"{number}.{kind}")
        path.parent.mkdir(parents=True, exist_ok=True)
        size = rng.integers(1, 200, 2) if number % 9 else (1, 150)
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
        held = {"png": "RGB L RGBA P", "jpg": "RGB L CMYK", "webp": "RGB RGBA"}.get(kind, "RGB L P")
        image.convert(mode if mode in held.split() else "RGB").save(path)
        if number % 50 == 7:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_ten_kills(checkpoint, tmp_path):
    mixed_images(tmp_path / "images")
    command = [sys.executable, "-m", "clipseg_np", "batch", tmp_path / "images", "red", "red - a"]
    command += ["--model", checkpoint, "--labels", "--workers", "2", "--output"]

    chance, killed = random.Random(0), 0
    while killed < KILLS:
        # Few enough that ten runs do not finish all images, however slowly a run starts.
        until = finished(tmp_path / "killed") + chance.randrange(1, IMAGES // (KILLS + 2))
        process = subprocess.Popen([*command, tmp_path / "killed"], start_new_session=True)
        while process.poll() is None and finished(tmp_path / "killed") < until:
            time.sleep(0.005)
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(chance.uniform(0, 0.05))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1
    assert 0 < finished(tmp_path / "killed") < IMAGES
    for output in ("killed", "undisturbed"):
        done = subprocess.run([*command, tmp_path / output], check=False)
        assert done.returncode == 1  # some cannot be read
    expected = content(tmp_path / "undisturbed")
    assert content(tmp_path / "killed") == expected
    assert len(expected) > 4 * IMAGES
