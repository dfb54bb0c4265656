"""One COCO file for a run: of `segment`, of a batch, of Python; read by pycocotools where it is."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipseg_np import Job, run_batch
from clipseg_np.cli.parser import main
from clipseg_np.segment.coco import coco_dataset, write_coco

MASKS = np.zeros((2, 3, 30, 40), bool)
MASKS[0, 0, 3:12, 4:20] = True
MASKS[0, 1, 8:20, 10:30] = True
MASKS[0, 1, 25, 35] = True
MASKS[1, 2] = True
CAPTIONS = ["a cat", "a dog", "café"]
BOXES = {(1, 1): [4, 3, 16, 9], (1, 2): [10, 8, 26, 18], (2, 3): [0, 0, 40, 30]}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number, name in enumerate(["a.png", "b.jpg", "inner/a.png"]):
        path = Path("photos", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 60 + number, 3), np.uint8)).save(path)
    return tmp_path


def decoded(annotation: dict) -> np.ndarray:
    """The mask of an annotation, by COCO's own definition."""
    counts, size = annotation["segmentation"]["counts"], annotation["segmentation"]["size"]
    values = np.repeat(np.arange(len(counts)) % 2, counts)
    return values.reshape(size, order="F").astype(bool)


def masks_in(dataset: dict) -> dict[tuple[str, str], np.ndarray]:
    """Each annotation's mask by its image's and its category's name, after a look at all fields."""
    assert {"info", "licenses", "images", "annotations", "categories"} == dataset.keys()
    names = []
    for kind, name in (("images", "file_name"), ("categories", "name"), ("annotations", "id")):
        assert [entry["id"] for entry in dataset[kind]] == [*range(1, len(dataset[kind]) + 1)]
        names.append({entry["id"]: entry[name] for entry in dataset[kind]})
    sizes = {entry["id"]: [entry["height"], entry["width"]] for entry in dataset["images"]}
    found = {}
    for one in dataset["annotations"]:
        mask = decoded(one)
        assert one["segmentation"]["size"] == sizes[one["image_id"]] and one["iscrowd"] == 0
        left, top, width, height = one["bbox"]
        assert mask.sum() == one["area"] == mask[top : top + height, left : left + width].sum() > 0
        assert mask[top].any() and mask[:, left].any()
        assert mask[top + height - 1].any() and mask[:, left + width - 1].any()
        found[names[0][one["image_id"]], names[1][one["category_id"]]] = mask
    return found


def written_masks(folder: str, names: dict[str, str]) -> dict[tuple[str, str], np.ndarray]:
    """The masks in PNG files that are not empty, as `masks_in` returns them."""
    found = {}
    for image, start in names.items():
        for number, prompt in enumerate(["red", "a blue x"], 1):
            file = Path(folder, f"{start}_{number}_{prompt.replace(' ', '-')}.png")
            mask = np.asarray(Image.open(file)) > 127
            if mask.any():
                found[image, prompt] = mask
    return found


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys() and expected
    assert all(np.array_equal(found[key], expected[key]) for key in found)


def test_each_mask_is_an_annotation_unless_it_is_empty():
    dataset = coco_dataset(CAPTIONS, [("a.png", MASKS[0]), ("b.png", MASKS[1])])
    found = masks_in(json.loads(json.dumps(dataset)))
    expected = {
        (name, caption): mask
        for name, masks in zip(("a.png", "b.png"), MASKS)
        for caption, mask in zip(CAPTIONS, masks)
        if mask.any()
    }
    assert_same(found, expected)
    boxes = {(a["image_id"], a["category_id"]): a["bbox"] for a in dataset["annotations"]}
    assert boxes == BOXES


def test_pycocotools_reads_it(tmp_path):
    coco = pytest.importorskip("pycocotools.coco", reason="needs pycocotools (extra 'oracle')")
    file = tmp_path / "masks.json"
    dataset = coco_dataset(CAPTIONS, [("a.png", MASKS[0]), ("empty.png", MASKS[0, 2:])])
    file.write_text(json.dumps(dataset))
    read = coco.COCO(str(file))
    assert read.getImgIds() == [1, 2] and read.getCatIds(catNms=["a dog"]) == [2]
    for annotation in read.loadAnns(read.getAnnIds(imgIds=[1])):
        mask = MASKS[0, annotation["category_id"] - 1]
        np.testing.assert_array_equal(read.annToMask(annotation), mask)
        assert coco.maskUtils.area(read.annToRLE(annotation)) == annotation["area"] == mask.sum()
        assert coco.maskUtils.toBbox(read.annToRLE(annotation)).tolist() == annotation["bbox"]
    assert read.getAnnIds(imgIds=[2]) == []
    scores = [{**a, "score": 0.9} for a in dataset["annotations"]]
    assert len(read.loadRes(scores).anns) == 2


@pytest.mark.parametrize("options", [[], ["--write", "soft"], ["--feather", "2", "--grow", "1"]])
def test_segment_writes_one_file_for_all_images(photos, checkpoint, options, capsys):
    names = ["photos/a.png", "photos/b.jpg"]
    command = ["segment", *names, "red", "a blue x", "--model", str(checkpoint), *options]
    assert main([*command, "--threshold", "0.47", "--coco", "new/coco.json"]) == 0
    dataset = json.loads(Path("new/coco.json").read_text())
    assert [entry["file_name"] for entry in dataset["images"]] == names
    expected = written_masks("masks", dict(zip(names, "ab")))
    assert_same(masks_in(dataset), expected)
    again = [*command, "--threshold", "0.47", "--coco", "new/coco.json"]
    assert main(again) == 0
    capsys.readouterr()
    assert main([*again[:-4], "--threshold", "0.4", "-o", "other", *again[-2:]]) == 2
    assert "new/coco.json is there already, and the new one is not" in capsys.readouterr().err
    assert json.loads(Path("new/coco.json").read_text()) == dataset


@pytest.mark.parametrize("layout", [[], ["--flat"]])
def test_a_batch_writes_one_file_and_a_resumed_one_completes_it(photos, checkpoint, layout, capsys):
    Path("photos/c.png").write_text("no image")
    command = ["batch", "photos", "red", "a blue x", "--model", str(checkpoint), "--workers", "1"]
    command += ["--threshold", "0.47", "--coco", "coco.json", *layout]
    stems = dict(zip(["a.png", "b.jpg", "inner/a.png"], ["a.png", "b", "inner_a.png"]))
    if not layout:
        stems = {name: f"{name}/{Path(name).stem}" for name in stems}
    assert main(command) == 1
    first = json.loads(Path("coco.json").read_text())
    assert [entry["file_name"] for entry in first["images"]] == list(stems)
    assert_same(masks_in(first), written_masks("masks", stems))
    Image.new("RGB", (50, 30), "red").save("photos/c.png")
    assert main(command) == 0
    assert "replaced coco.json" in capsys.readouterr().err
    names = [entry["file_name"] for entry in json.loads(Path("coco.json").read_text())["images"]]
    assert names == ["a.png", "b.jpg", "c.png", "inner/a.png"]
    # Another batch's file, and a file of another kind, stay.
    before = Path("coco.json").read_bytes()
    other = [*command[:-1], "--threshold", "0.4"] if layout else [*command, "--threshold", "0.4"]
    assert main([*other, "-o", "other"]) == 2 and Path("coco.json").read_bytes() == before
    assert main([*other, "-o", "other", "--overwrite"]) == 0
    assert Path("coco.json").read_bytes() != before
    with pytest.raises(SystemExit):
        main([*command, "--coco"])


def test_in_python_a_run_is_written_by_its_report(photos, checkpoint):
    job = Job(("red", "a blue x"), "out", str(checkpoint), threshold=0.47)
    report = run_batch(job, "photos")
    write_coco("coco.json", job, report, is_batch=True)
    names = {name: f"{name}/{Path(name).stem}" for name in ("a.png", "b.jpg", "inner/a.png")}
    dataset = json.loads(Path("coco.json").read_text())
    assert_same(masks_in(dataset), written_masks("out", names))
    write_coco("coco.json", replace(job), report, is_batch=True)
    assert json.loads(Path("coco.json").read_text()) == dataset


@pytest.mark.parametrize("name", ["coco.txt", "photos", "photos/a.png", "folder.json", ""])
def test_a_name_that_is_none_is_refused_before_the_work(photos, checkpoint, name, capsys):
    Path("folder.json").mkdir()
    for command in (["segment", "photos/a.png"], ["batch", "photos"]):
        assert main([*command, "red", "--model", str(checkpoint), "--coco", name]) == 2
        assert "expected the name of a .json file" in capsys.readouterr().err
        assert not Path("masks").exists()


def test_standard_output_takes_no_coco(photos, checkpoint, capsys):
    command = ["segment", "photos/a.png", "red", "--model", str(checkpoint), "-o", "-"]
    assert main([*command, "--coco", "coco.json"]) == 2
    assert "no --coco" in capsys.readouterr().err and not Path("coco.json").exists()
