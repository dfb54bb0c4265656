"""500 image files whose pixels are known: none is misread in silence.

A failure names its kind and seed; `draw(kind, seed)` makes the file again.
"""

import warnings
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from clipseg_np.errors import InputError
from clipseg_np.image.load_image import load_image

from ..helpers.command import FIGURES, failing_as
from ..helpers.drawn_images import NUMBER, draw

COUNTED_AS = {"right": "answers", "warned": "answers with a warning", "refused": "clear errors"}


def read(image) -> tuple[str, np.ndarray | None]:
    """The fate of an image, and its pixels unless it was refused."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            pixels = load_image(image)
        except InputError:
            return "refused", None
    messages = [str(warning.message) for warning in caught]
    assert all("is dark" in text or "first is used" in text for text in messages), messages
    return "warned" if caught else "right", pixels


def assert_shows(pixels: np.ndarray | None, expected: np.ndarray, tolerance: float) -> None:
    if pixels is not None:
        assert pixels.shape == expected.shape
        assert np.abs(pixels - expected).max() <= tolerance


@pytest.mark.parametrize("kind", NUMBER)
def test_no_drawn_image_is_misread_in_silence(kind, tmp_path):
    """Each file is read right, or with a warning of what it leaves open, or is refused."""
    file = tmp_path / "drawn"
    counts = FIGURES.setdefault("drawn images", Counter())
    for seed in range(NUMBER[kind]):
        with failing_as(kind, seed):
            drawn = draw(kind, seed)
            file.write_bytes(drawn.data)
            fate, pixels = read(file)
            assert fate == drawn.fate or (fate == "refused" and not drawn.by_all_pillows)
            assert_shows(pixels, drawn.upright, drawn.tolerance)
            counts[COUNTED_AS[fate]] += 1


@pytest.mark.parametrize("kind", NUMBER)
def test_an_open_image_is_read_as_its_file_is(kind, tmp_path):
    """Not turned, but for a TIFF, which Pillow turns; damaged metadata may make Pillow give up."""
    file = tmp_path / "drawn"
    for seed in range(0, NUMBER[kind], 3):
        with failing_as(kind, seed):
            drawn = draw(kind, seed)
            file.write_bytes(drawn.data)
            try:
                image = Image.open(file)
            except Exception:  # noqa: BLE001, S112  (each decoder raises its own)
                continue
            with image:
                fate, pixels = read(image)
                expected = drawn.upright if image.format == "TIFF" else drawn.stored
            assert fate in (drawn.fate, "refused")
            assert_shows(pixels, expected, drawn.tolerance)


def test_the_drawn_images_are_500():
    assert sum(NUMBER.values()) == 500
