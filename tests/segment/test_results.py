"""The files of `segment`: kinds of images, clean masks, label maps, JSON lines."""

import json

import numpy as np
import pytest
from PIL import Image

from clipseg_np import InputError, Segmenter
from clipseg_np.cli.parser import main
from clipseg_np.masks.morphology import dilate, label_map, remove_small_components
from clipseg_np.segment.job import CleanUp, Job
from clipseg_np.segment.prompt_algebra import Expression
from clipseg_np.segment.results import KINDS, write_results
from clipseg_np.segment.segmentation import Segmentation

rng = np.random.default_rng(0)
IMAGE = rng.integers(0, 256, (30, 40, 3), np.uint8)
MAPS = np.zeros((3, 30, 40), np.float32)
MAPS[0, 3:12, 4:20] = 0.9
MAPS[1, 8:20, 10:30] = 0.8
MAPS[1, 25, 35] = 0.6  # a crumb
CAPTIONS = ["a cat", "a dog", "nothing"]


@pytest.fixture
def write(tmp_path):
    def write(kinds=("mask",), **options):
        logits = np.log(np.maximum(MAPS, 1e-20) / (1 - MAPS))
        expressions = tuple(Expression("", number) for number in range(3))
        maps = logits, MAPS.shape[1:], (0, 1, 2), expressions
        result = Segmentation(tuple(CAPTIONS), *maps, IMAGE)
        job = Job(tuple(CAPTIONS), str(tmp_path), kinds=tuple(kinds), **options)
        return write_results(tmp_path, "scene", IMAGE, result, job)

    return write


def opened(folder, name):
    return np.asarray(Image.open(folder / name))


def test_every_kind_of_image(write, tmp_path):
    records = write(kinds=KINDS)
    mask = MAPS[0] > 0.5
    np.testing.assert_array_equal(opened(tmp_path, "scene_1_a-cat.png"), mask * 255)
    soft = opened(tmp_path, "scene_1_a-cat_soft.png")
    np.testing.assert_array_equal(soft, np.rint(MAPS[0] * 255))
    cut = opened(tmp_path, "scene_1_a-cat_cutout.png")
    np.testing.assert_array_equal(cut[..., :3], IMAGE)
    np.testing.assert_array_equal(cut[..., 3], mask * 255)
    contour = opened(tmp_path, "scene_1_a-cat_contour.png")
    changed = (contour != IMAGE).any(-1)
    assert changed.any() and not (changed & ~mask).any() and not changed[6:9, 8:16].any()
    for kind in ("heat", "highlight"):
        shown = opened(tmp_path, f"scene_1_a-cat_{kind}.png")
        assert shown.shape == IMAGE.shape and shown[mask].mean() > shown[~mask].mean() + 20
    assert len(records) == 3 and [len(record["files"]) for record in records] == [len(KINDS)] * 3


def test_the_record_of_each_prompt(write):
    cat, dog, nothing = write()
    assert cat["prompt"] == "a cat" and cat["area"] == 9 * 16 and cat["presence"] == 0.9
    assert cat["box"] == [4, 3, 20, 12] and cat["share"] == pytest.approx(9 * 16 / 1200)
    assert dog["box"] == [10, 8, 36, 26]
    assert nothing["area"] == 0 and nothing["box"] is None and nothing["presence"] == 0


def test_masks_are_cleaned_in_order(write, tmp_path):
    write(clean_up=CleanUp(smallest=5, grow=3))
    expected = dilate(remove_small_components(MAPS[1] > 0.5, 5), 3)
    np.testing.assert_array_equal(opened(tmp_path, "scene_2_a-dog.png") > 0, expected)
    write(clean_up=CleanUp(grow=-2))
    shrunk = opened(tmp_path, "scene_2_a-dog.png") > 0
    np.testing.assert_array_equal(shrunk, dilate(MAPS[1] > 0.5, -2))


def test_feathered_edges_are_soft_in_mask_and_cut_out(write, tmp_path):
    write(kinds=("mask", "cutout"), clean_up=CleanUp(feather=2))
    mask = opened(tmp_path, "scene_1_a-cat.png")
    assert len(np.unique(mask)) > 5 and mask[7, 12] > 200 and mask[28, 38] == 0
    np.testing.assert_array_equal(opened(tmp_path, "scene_1_a-cat_cutout.png")[..., 3], mask)


def test_a_map_of_labels_as_an_image_and_as_json(write, tmp_path):
    write(labels=True)
    image = Image.open(tmp_path / "scene_labels.png")
    labels = np.asarray(image)
    assert image.mode == "P"
    np.testing.assert_array_equal(labels, label_map(MAPS))
    assert labels[9, 15] == 1  # both are there; the cat is likelier
    palette = np.array(image.getpalette()).reshape(-1, 3)
    assert len({tuple(colour) for colour in palette[:10]}) == 10
    about = json.loads((tmp_path / "scene_labels.json").read_text())
    assert (about["height"], about["width"], about["background"]) == (30, 40, 0)
    for entry, name in zip(about["labels"], CAPTIONS, strict=True):
        mask = labels == entry["number"]
        assert entry["name"] == name and entry["area"] == mask.sum()
        assert sum(region["area"] for region in entry["regions"]) == mask.sum()
        assert sum(entry["segmentation"]["counts"]) == mask.size
    assert about["labels"][2]["box"] is None and about["labels"][2]["regions"] == []


def test_the_labels_masks_are_read_by_pycocotools(write, tmp_path):
    coco = pytest.importorskip("pycocotools.mask", reason="needs pycocotools (extra 'oracle')")
    write(labels=True)
    labels = opened(tmp_path, "scene_labels.png")
    for entry in json.loads((tmp_path / "scene_labels.json").read_text())["labels"]:
        packed = coco.frPyObjects(entry["segmentation"], *entry["segmentation"]["size"])
        np.testing.assert_array_equal(coco.decode(packed), labels == entry["number"])
        assert coco.area(packed) == entry["area"]
        if entry["box"]:
            left, top, right, bottom = entry["box"]
            assert coco.toBbox(packed).tolist() == [left, top, right - left, bottom - top]


def test_a_segmenter_combines_prompts_and_looks_for_each_once(segmenter, image):
    prompts = ["red - a blue x", image[::-1], "a blue x", "!red"]
    result = segmenter.combine(image, prompts)
    red, x, image_prompt = segmenter(image, ["red", "a blue x", image[::-1]]).probabilities
    expected = [np.minimum(red, 1 - x), image_prompt, x, 1 - red]
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-6)
    assert all(kept is prompt for kept, prompt in zip(result.prompts, prompts, strict=True))
    with pytest.raises(InputError, match="cannot be read"):
        segmenter.combine(image, "red - ")


def test_from_the_command_line(checkpoint, image, image_file, tmp_path, capsys):
    command = ["segment", str(image_file), "red - a blue x", "--model", str(checkpoint)]
    command += [
        "--output",
        str(tmp_path / "out"),
        "--write",
        "cutout",
        "soft",
        "--labels",
        "--json",
    ]
    assert main(command) == 0
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert record["prompt"] == "red - a blue x" and len(record["files"]) == 2
    expected = Segmenter.from_pretrained(checkpoint).combine(image, "red - a blue x")
    assert record["area"] == expected.masks().sum()
    names = {path.name.removeprefix("scene_") for path in (tmp_path / "out").iterdir()}
    first = "1_red-a-blue-x"
    assert names == {
        f"{first}_cutout.png",
        f"{first}_soft.png",
        "legend.png",
        "labels.png",
        "labels.json",
    }
    for wrong in (["--smallest", "-1"], ["--feather", "-1"]):
        assert main([*command, *wrong]) == 2
    assert main(["segment", str(image_file), "red -", "--model", str(checkpoint)]) == 2
