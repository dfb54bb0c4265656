"""A result in Python: by prompt, in a notebook, saved, as boxes, labels and COCO, pickled."""

import copy
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipseg_np import InputError, Segmenter, VisualPrompt
from clipseg_np.masks import label_map
from clipseg_np.nn.ops import Ops

TEXTS = ["red", "a blue x"]


@pytest.fixture
def result(segmenter, image_file):
    return segmenter(image_file, TEXTS)


def test_a_prompt_is_the_key_of_its_probabilities(segmenter, image, image_file):
    prompts = ["red", image_file, VisualPrompt(image_file, image[..., 0] > 99), image, "red - red"]
    result = segmenter.combine(image_file, prompts)
    maps = result.probabilities
    keys = ["red", image_file, np.int64(2), -2, "red - red"]
    for number, key in enumerate(keys):
        np.testing.assert_array_equal(result[key], maps[number])
        assert key in result
    np.testing.assert_array_equal(list(result), maps)
    assert len(result) == 5
    assert result.captions == ["red", "scene.png", "scene.png", "image", "red - red"]
    for wrong in ("blue", 5, -6, None, 1.5, image, slice(1), Path("other.png")):
        with pytest.raises(InputError, match="there is no such prompt; expected one of .'red', "):
            result[wrong]
        assert wrong not in result


def test_it_is_shown_in_one_line_and_compared_by_identity(result):
    name = result.image_name
    assert repr(result) == f"Segmentation({TEXTS} in {name}, height and width (40, 60))"
    assert {result: 1}[result] and result != copy.copy(result)


@pytest.mark.parametrize("size", [(40, 60), (1500, 700), (4, 1300)])
def test_a_notebook_shows_the_image_and_the_masks(segmenter, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    result = segmenter(image, TEXTS, input_data_format="channels_last")
    assert max(result.preview.shape) <= 640 and result.preview.base is None
    np.testing.assert_array_equal(result.preview[0, 0], image[0, 0])
    sheet = Image.open(io.BytesIO(result._repr_png_()))
    one = Image.open(
        io.BytesIO(segmenter(image, "red", input_data_format="channels_last")._repr_png_())
    )
    assert sheet.format == "PNG" and sheet.height == one.height and sheet.width > one.width > 100


def test_boxes_and_labels_are_of_the_masks(result):
    assert result.masks(0.4).any() and not result.masks(1).any()
    for mask, box in zip(result.masks(0.45), result.boxes(0.45), strict=True):
        if box is None:
            assert not mask.any()
            continue
        left, top, right, bottom = box
        rows, columns = np.nonzero(mask)
        assert (left, right) == (columns.min(), columns.max() + 1)
        assert (top, bottom) == (rows.min(), rows.max() + 1)
    assert result.boxes(1) == [None, None]
    np.testing.assert_array_equal(result.labels(0.45), label_map(result.probabilities, 0.45))
    for method in (result.masks, result.boxes, result.labels, result.coco):
        for wrong in (2, "0.5", None, [0.5], np.nan):
            with pytest.raises(InputError, match=r"threshold is .*; expected a probability"):
                method(wrong)


def test_it_is_saved_as_the_command_does(segmenter, result, image, tmp_path):
    records = result.save(tmp_path / "masks", threshold=0.45)
    names = ["scene_1_red.png", "scene_2_a-blue-x.png"]
    assert [record["files"] for record in records] == [[str(tmp_path / "masks" / n)] for n in names]
    for name, mask, record in zip(names, result.masks(0.45), records):
        np.testing.assert_array_equal(Image.open(tmp_path / "masks" / name), mask * np.uint8(255))
        assert record["area"] == mask.sum()
    one = segmenter(image, "red")
    (record,) = one.save(str(tmp_path / "red.png"))
    assert record["files"] == [str(tmp_path / "red.png")]
    one.save(tmp_path)
    np.testing.assert_array_equal(
        Image.open(tmp_path / "image_1_red.png"), Image.open(tmp_path / "red.png")
    )


def test_saving_replaces_nothing_unasked(result, tmp_path):
    result.save(tmp_path, 0.1)
    result.save(tmp_path, 0.1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="is there already, and the new one is not the same"):
        result.save(tmp_path, 0.9)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.warns(UserWarning, match="replaced"):
        result.save(tmp_path, 0.9, overwrite=True)
    for path in (None, 3, b"masks"):
        with pytest.raises(InputError, match="path is .*; expected a folder's name, or NAME.png"):
            result.save(path)
    for path in (tmp_path / "two.png", tmp_path / "one.jpg"):
        with pytest.raises(InputError, match="has an image's suffix"):
            result.save(path)


def test_the_image_itself_is_never_replaced(segmenter, image_file, tmp_path):
    before = image_file.read_bytes()
    for overwrite in (False, True):
        with pytest.raises(InputError, match="scene.png is there already, and is no result"):
            segmenter(image_file, "red").save(image_file, overwrite=overwrite)
    assert image_file.read_bytes() == before and [*tmp_path.iterdir()] == [image_file]


def test_pickled_it_is_the_same(result, image):
    expected = result.probabilities
    for again in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        np.testing.assert_array_equal(again.probabilities, expected)
        np.testing.assert_array_equal(again["red"], expected[0])
        assert again.prompts == result.prompts and again.image_name == result.image_name
        assert again._repr_png_() == result._repr_png_() and type(again.ops) is Ops
    assert len(pickle.dumps(result)) < 100_000 < expected.nbytes * 10  # small maps, not large ones


@pytest.mark.parametrize("backend", ["numpy", "numpy-reference"])
def test_a_model_that_is_pickled_says_why_not(checkpoint, backend):
    segmenter = Segmenter.from_pretrained(checkpoint, backend=backend)
    for whole in (segmenter, segmenter.model, segmenter.model.clip, segmenter.model.ops):
        for take in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match="not pickled: call from_pretrained"):
                take(whole)
    assert copy.copy(segmenter).model is segmenter.model
    assert pickle.loads(pickle.dumps(segmenter.processor)).tokenizer.encode("red")


def test_coco_of_one_image_is_json(result, image_file):
    dataset = json.loads(json.dumps(result.coco(0.45)))
    (entry,) = dataset["images"]
    assert entry == {"id": 1, "file_name": str(image_file), "height": 40, "width": 60}
    assert [category["name"] for category in dataset["categories"]] == TEXTS
    areas = {a["category_id"]: a["area"] for a in dataset["annotations"]}
    for number, mask in enumerate(result.masks(0.45), 1):
        assert areas.get(number, 0) == mask.sum()
