"""The examples of data to learn from, in COOKBOOK, are read."""

import numpy as np
import PIL.Image
import pytest

from clipseg_np.learn.data import read_data

from ..helpers.documents import COOKBOOK, fenced
from .conftest import save_hearts

TABLE, IDS = fenced(COOKBOOK, "csv")
LINES, COCO = fenced(COOKBOOK, "json")
WORDINGS = ("a heart", "a love heart")


@pytest.fixture
def hearts(tmp_path):
    save_hearts(tmp_path)
    return tmp_path


def test_the_folder(hearts):
    listed = fenced(COOKBOOK, "text")[0].split()
    files = sorted(path.relative_to(hearts).as_posix() for path in hearts.rglob("*.*"))
    assert listed == [f"hearts/{name}" for name in files]
    data = read_data(hearts, WORDINGS)
    assert [example.prompts for example in data.examples] == [WORDINGS] * 2


@pytest.mark.parametrize("name, content", [("data.csv", TABLE), ("data.jsonl", LINES)])
def test_the_tables(hearts, name, content):
    (hearts / name).write_text(content)
    data = read_data(hearts / name)
    assert [example.image.stem for example in data.examples] == ["1", "2"]
    assert [example.prompts for example in data.examples] == [WORDINGS] * 2


def test_coco(hearts):
    (hearts / "images" / "_annotations.coco.json").write_text(COCO)
    first, second = read_data(hearts / "images").examples
    first, second = first.read(), second.read()
    assert first[20, 15] and first[12, 45] and not first[12, 32]
    assert second.sum() == 21 and second[10:19, 10].all()


def test_the_label_maps(hearts):
    (hearts / "masks").rename(hearts / "labels")
    labels = np.zeros((40, 60), np.uint8)
    labels[5:9, 5:9], labels[20, 5:30], labels[30, 40] = 1, 2, 255
    for path in hearts.glob("labels/*.png"):
        PIL.Image.fromarray(labels).save(path)
    (hearts / "labels.csv").write_text(IDS)
    with pytest.warns(UserWarning, match="4 of 4 masks are boxes"):
        data = read_data(hearts)
    assert [example.prompts for example in data.examples] == [WORDINGS, ("an arrow",)] * 2
    assert data.examples[0].read()[30, 40] == 255
