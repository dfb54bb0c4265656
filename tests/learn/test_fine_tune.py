"""A decoder learns a thing from masks, keeps what it knew, and a killed run goes on."""

import json

import numpy as np
import pytest
from PIL import Image

from clipseg_np import Segmenter
from clipseg_np.learn.data import read_data
from clipseg_np.learn.fine_tune import STATE_NAME, fine_tune


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve images of a bright disc, and their masks."""
    folder, rng = tmp_path_factory.mktemp("discs"), np.random.default_rng(0)
    rows, columns = np.mgrid[:32, :32]
    for number in range(12):
        row, column = rng.integers(8, 24, 2)
        mask = (rows - row) ** 2 + (columns - column) ** 2 < 40
        image = rng.integers(0, 60, (32, 32, 3)) + 190 * mask[..., None]
        for name, values in {"images": image, "masks": mask * 255}.items():
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(folder / name / f"{number:02}.png")
    return folder


@pytest.fixture
def data(folder):
    return read_data(folder, "a disc")


@pytest.fixture
def tune(checkpoint, data, tmp_path):
    """A function that fine-tunes for a few steps."""

    def tune(name="out", data=data, steps=40, **options):
        segmenter = Segmenter.from_pretrained(checkpoint, threads=1)
        options = {"cache": tmp_path / "cache", "steps": steps, **options}
        return fine_tune(segmenter, data, tmp_path / name, **options)

    return tune


def test_it_learns(tune):
    result = tune(steps=300, rate=float(__import__("os").environ["R"]))
    print(result)
    print((result.path / "learning.jsonl").read_text())
