"""Images of discs to learn from."""

from dataclasses import replace

import pytest

from clipseg_np import Segmenter
from clipseg_np.learn.batches import Batches
from clipseg_np.learn.data import Data, read_data
from clipseg_np.learn.progress import unseen

from ..helpers.discs import discs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return discs(tmp_path_factory.mktemp("discs"), 12)


@pytest.fixture
def data(folder):
    return read_data(folder, "a disc|the disc")


@pytest.fixture
def keep(folder):
    """The same images, where all but the disc is marked."""
    examples = read_data(folder, "a background").examples
    others = [replace(e, read=lambda e=e: 1 - e.read()) for e in examples]
    return Data(others, [])


@pytest.fixture
def options(tmp_path_factory):
    """Few steps of a high rate, and a cache that all tests share."""
    cache = tmp_path_factory.getbasetemp() / "features"
    return {"steps": 3, "batch_size": 4, "rate": 1e-2, "cache": cache}


@pytest.fixture
def batches(checkpoint, data, options):
    """A function that makes the batches of a run with 20 prompts a batch."""
    segmenter = Segmenter.from_pretrained(checkpoint, threads=1)

    def batches(data=data, keep=None):
        given = {"seed": 0, "folder": options["cache"], "progress": unseen}
        return Batches(segmenter, data, keep, 20, **given)

    return batches
