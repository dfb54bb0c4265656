"""Data to learn from: each format is read, and bad data are refused, all faults in one message."""

import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipseg_np.errors import InputError
from clipseg_np.learn.data import COCO_FILE, IGNORED, MAX_FAULTS, read_data
from clipseg_np.masks import run_length_encoding

SIZE = HEIGHT, WIDTH = 40, 60
NAMES = ("a", "b", "c")
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]


def disc(x: float, y: float = 20, radius: float = 9) -> np.ndarray:
    return np.hypot(ROWS - y, COLUMNS - x) < radius


HEARTS = {name: disc(15 + 3 * number) for number, name in enumerate(NAMES)}
ARROWS = {"a": disc(45), "b": disc(48)}


def save(path: Path, pixels: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def save_images(folder: Path, suffix: str = ".jpg") -> None:
    rng = np.random.default_rng(0)
    for name in NAMES:
        pixels = rng.integers(0, 256, (*SIZE, 3), np.uint8)
        save(folder / f"{name}{suffix}", pixels)


@pytest.fixture
def masks_folder(tmp_path):
    folder = tmp_path / "masks_folder"
    save_images(folder / "images")
    for name, mask in HEARTS.items():
        save(folder / "masks" / f"{name}.png", mask)
    return folder


@pytest.fixture
def table(tmp_path):
    """A .csv file, with two things in an image."""
    folder = tmp_path / "table"
    save_images(folder / "photos")
    lines = ["image,mask,prompt"]
    for kind, masks in (("heart", HEARTS), ("arrow", ARROWS)):
        for name, mask in masks.items():
            save(folder / kind / f"{name}.png", mask)
            wordings = "a heart | a love heart" if kind == "heart" else "an arrow"
            lines.append(f"photos/{name}.jpg,{kind}/{name}.png,{wordings}")
    (folder / "data.csv").write_text("\n".join(lines))
    return folder / "data.csv"


@pytest.fixture
def json_lines(table):
    path = table.with_suffix(".jsonl")
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    records = [{"image": i, "mask": m, "prompts": p.split(" | ")} for i, m, p in rows]
    path.write_text("\n".join(map(json.dumps, records)) + "\n\n")
    return path


def compressed(mask: np.ndarray) -> str:
    """COCO's compressed counts, from its definition: 5 bits a character, differences to the last
    but one."""
    counts, text = run_length_encoding(mask)["counts"], ""
    for place, count in enumerate(counts):
        number = count - counts[place - 2] if place > 2 else count
        while True:
            bits, number = number & 31, number >> 5
            is_last = number == (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * (not is_last))
            if is_last:
                break
    return text


def coco_content() -> dict:
    """Hearts as RLE of both kinds and as polygons, arrows in two annotations of an image."""
    images = [
        {"id": 10 + number, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH}
        for number, name in enumerate(NAMES)
    ]
    categories = [
        {"id": 0, "name": "things", "supercategory": "none"},
        {"id": 1, "name": "a heart", "supercategory": "things"},
        {"id": 2, "name": "an arrow", "supercategory": "things"},
    ]
    size = list(SIZE)
    segmentations = [
        (10, 1, run_length_encoding(HEARTS["a"]), 1),
        (11, 1, {"size": size, "counts": compressed(HEARTS["b"])}, 0),
        (10, 2, [[40, 10, 50, 10, 50, 20]], 0),
        (10, 2, [[40, 30, 50, 30, 50, 35, 40, 35], [2, 2, 6, 2, 6, 6, 2, 6]], 0),
    ]
    annotations = [
        {"id": n, "image_id": i, "category_id": c, "segmentation": s, "iscrowd": crowd}
        for n, (i, c, s, crowd) in enumerate(segmentations, 1)
    ]
    return {"images": images, "categories": categories, "annotations": annotations}


@pytest.fixture
def coco(tmp_path):
    """As Roboflow exports it."""
    folder = tmp_path / "coco"
    save_images(folder)
    (folder / COCO_FILE).write_text(json.dumps(coco_content()))
    return folder


def label_map(name: str) -> np.ndarray:
    labels = np.where(HEARTS[name], 3, 0) + np.where(ARROWS.get(name, False), 7, 0)
    labels[:2] = IGNORED
    return labels.astype(np.uint8)


@pytest.fixture
def label_maps(tmp_path):
    folder = tmp_path / "label_maps"
    save_images(folder / "images")
    for name in NAMES:
        save(folder / "labels" / f"{name}.png", label_map(name))
    (folder / "labels.csv").write_text(
        "id,prompt\n0,background\n3,a heart|a love heart\n7,an arrow"
    )
    return folder


def marks(example) -> np.ndarray:
    """(H,W), uint8: 1 on the thing, IGNORED where that is unknown, 0 elsewhere."""
    mask = example.read()
    return np.where(mask == IGNORED, np.uint8(IGNORED), mask == example.number)


def contents(examples) -> dict[tuple[str, tuple], np.ndarray]:
    """The marks of examples by their images' stems and prompts."""
    return {(example.image.stem, example.prompts): marks(example) for example in examples}


def assert_masks(examples, expected: dict) -> None:
    found = contents(examples)
    assert found.keys() == expected.keys() and expected
    for key, mask in expected.items():
        assert found[key].dtype == np.uint8
        np.testing.assert_array_equal(found[key], mask, str(key))


HEART, ARROW = ("a heart", "a love heart"), ("an arrow",)
BOTH = {(name, HEART): mask for name, mask in HEARTS.items()} | {
    (name, ARROW): mask for name, mask in ARROWS.items()
}


def test_a_folder_of_masks(masks_folder):
    data = read_data(masks_folder, ["a heart", "a love heart"])
    assert_masks(data.examples, {(name, HEART): mask for name, mask in HEARTS.items()})
    assert data.absent == []
    images = [masks_folder / "images" / f"{name}.jpg" for name in NAMES]
    assert [example.image for example in data.examples] == images
    again = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(again.examples[1].read(), HEARTS["b"])


def test_names_may_lie_in_subfolders_and_hidden_files_do_not_count(masks_folder):
    for place, suffix in (("images", ".jpg"), ("masks", ".png")):
        folder = masks_folder / place
        (folder / "more").mkdir()
        (folder / f"a{suffix}").rename(folder / "more" / f"b{suffix}")
        (folder / ".DS_Store").write_text("")
        (folder / f"._b{suffix}").write_text("")
        (folder / "notes.txt").write_text("")
    assert len(read_data(masks_folder, "a heart").examples) == 3


def test_a_table_in_csv_and_in_json_lines(table, json_lines):
    for path in (table, json_lines):
        data = read_data(path)
        assert_masks(data.examples, BOTH)
        assert data.absent == []
        images = [path.parent / "photos" / f"{name}.jpg" for name in (*NAMES, *"ab")]
        assert [example.image for example in data.examples] == images


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_table_as_spreadsheets_write_it(table, delimiter):
    text = table.read_text().replace(",", delimiter).replace("image", "Image ", 1)
    table.write_text(text.replace("\n", "\r\n") + "\r\n\r\n", "utf-8-sig", newline="")
    assert_masks(read_data(table).examples, BOTH)


def test_a_table_without_prompts(table):
    lines = table.read_text().splitlines()[:4]
    table.write_text("\n".join(line.rpartition(",")[0] for line in lines))
    data = read_data(table, "a heart|a love heart")
    assert_masks(data.examples, {(name, HEART): mask for name, mask in HEARTS.items()})


def test_coco(coco):
    arrows = np.zeros(SIZE, bool)
    arrows[30:35, 40:50] = arrows[2:6, 2:6] = True
    arrows |= (ROWS >= 10) & (ROWS < 20) & (COLUMNS >= 40) & (COLUMNS - 40 >= ROWS - 10)
    arrows &= COLUMNS < 50
    expected = {("a", ("a heart",)): HEARTS["a"], ("b", ("a heart",)): HEARTS["b"]}
    for path in (coco, coco / COCO_FILE):
        data = read_data(path)
        assert_masks(data.examples, {**expected, ("a", ARROW): arrows})
        nothing = np.zeros(SIZE, bool)
        absent = {("b", ARROW): nothing, ("c", ARROW): nothing, ("c", ("a heart",)): nothing}
        assert_masks(data.absent, absent)


def test_coco_with_its_images_elsewhere(coco):
    (coco / "images").mkdir()
    for name in NAMES[:2]:
        (coco / f"{name}.jpg").rename(coco / "images" / f"{name}.jpg")
    assert len(read_data(coco).examples) == 3
    (coco / "annotations").mkdir()
    (coco / COCO_FILE).rename(coco / "annotations" / "instances.json")
    assert len(read_data(coco / "annotations" / "instances.json").examples) == 3
    for name in NAMES[:2]:
        (coco / "images" / f"{name}.jpg").rename(coco / f"{name}.jpg")
    assert len(read_data(coco / "annotations" / "instances.json").examples) == 3


def test_one_of_two_annotations_may_lie_beside_the_image(coco):
    content = coco_content()
    content["annotations"][3]["segmentation"] = [[-9, 0, -1, 0, -1, 9]]
    (coco / COCO_FILE).write_text(json.dumps(content))
    assert read_data(coco).examples[1].read().any()


@pytest.mark.parametrize("kind", ["uint8", "palette", "uint16"])
def test_label_maps(label_maps, kind):
    for name in NAMES:
        image = Image.fromarray(label_map(name))
        if kind == "palette":
            image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
        if kind == "uint16":
            image = Image.fromarray(label_map(name).astype(np.uint16))
        image.save(label_maps / "labels" / f"{name}.png")
    data = read_data(label_maps)

    def with_ignored(mask):
        marks = mask.astype(np.uint8)
        marks[:2] = IGNORED
        return marks

    assert_masks(data.examples, {key: with_ignored(mask) for key, mask in BOTH.items()})
    assert_masks(data.absent, {("c", ARROW): with_ignored(np.zeros(SIZE, bool))})


def test_prompts_choose_of_those_that_data_names(table, coco, label_maps):
    for path, words in ((table, HEART), (coco, ("a heart",)), (label_maps, HEART)):
        data = read_data(path, "a heart")
        assert {example.prompts for example in (*data.examples, *data.absent)} == {words}
    assert len(read_data(table, "a love heart").examples) == 3
    assert len(read_data(table, ["an arrow", "a heart"]).examples) == 5


def test_masks_of_any_two_values_and_any_size(masks_folder):
    big = HEARTS["a"].repeat(3, axis=0).repeat(3, axis=1)
    masks = masks_folder / "masks"
    save(masks / "a.png", big.astype(np.uint8) + 5)
    save(
        masks / "b.png", np.where(HEARTS["b"][..., None], (200, 0, 0), (0, 30, 0)).astype(np.uint8)
    )
    (masks / "c.png").unlink()
    save(masks / "c.bmp", HEARTS["c"][::2, ::2])
    expected = HEARTS | {"c": HEARTS["c"][::2, ::2].repeat(2, axis=0).repeat(2, axis=1)}
    for example in read_data(masks_folder, "a heart").examples:
        np.testing.assert_array_equal(example.target(SIZE), expected[example.image.stem])


def test_a_size_may_be_rounded(masks_folder):
    half = Image.fromarray(HEARTS["a"]).resize((31, 20))
    half.save(masks_folder / "masks" / "a.png")
    assert read_data(masks_folder, "a heart").examples[0].read().shape == (20, 31)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".jpg.png"])
def test_soft_edges_are_no_values(masks_folder, suffix):
    """Of masks that were shrunk, or doubled, and perhaps stored with a loss, or were once."""
    for (name, mask), size in zip(HEARTS.items(), ((15, 10), (30, 20), (120, 80))):
        (masks_folder / "masks" / f"{name}.png").unlink()
        image = Image.fromarray(mask.astype(np.uint8) * 255)
        image = image.resize(size, Image.Resampling.LANCZOS)
        if suffix == ".jpg.png":
            image.save(masks_folder / "once.jpg", quality=50)
            image = Image.open(masks_folder / "once.jpg")
        image.save(masks_folder / "masks" / f"{name}.{suffix.rpartition('.')[2]}", quality=70)
    for example in read_data(masks_folder, "a heart").examples:
        mask = example.target(SIZE) > 0.5
        assert (mask != HEARTS[example.image.stem]).sum() < 60


def test_a_mask_fits_the_image_as_it_is_shown(masks_folder):
    """The camera lay on its side: the file is 60 x 40, and the image is shown as 40 x 60."""
    exif = Image.Exif()
    exif[0x0112] = 6
    save(masks_folder / "images" / "a.jpg", np.zeros((*SIZE, 3), np.uint8), exif=exif)
    with pytest.raises(InputError, match=r"masks/a.png is 60 x 40 and its image 40 x 60 pixels"):
        read_data(masks_folder, "a heart")
    save(masks_folder / "masks" / "a.png", HEARTS["a"].T)
    example = read_data(masks_folder, "a heart").examples[0]
    np.testing.assert_array_equal(example.read(), HEARTS["a"].T)


def test_the_target_is_the_share_of_each_pixel(masks_folder, label_maps):
    example = read_data(masks_folder, "a heart").examples[0]
    target = example.target(SIZE)
    assert target.dtype == np.float32
    np.testing.assert_array_equal(target, HEARTS["a"])
    small = example.target((16, 16))
    assert small.shape == (16, 16) and 0 <= small.min() < 0.1 and 0.9 < small.max() <= 1
    assert abs(small.mean() - HEARTS["a"].mean()) < 0.01
    quarters = HEARTS["a"].reshape(20, 2, 30, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(example.target((20, 30)), quarters, atol=1 / 255)
    large = example.target((80, 120))
    np.testing.assert_array_equal(large, HEARTS["a"].repeat(2, axis=0).repeat(2, axis=1))
    target = read_data(label_maps).examples[0].target((20, 30))
    assert np.isnan(target[0]).all() and np.nanmax(target) == 1
    assert target.dtype == np.float32 and not np.isnan(target[1:]).any()
    target = read_data(label_maps).examples[0].target((8, 12))
    assert np.isnan(target[0]).all() and not np.isnan(target[1:]).any()


def test_masks_are_read_when_they_are_asked_for(masks_folder):
    example = read_data(masks_folder, "a heart").examples[0]
    save(masks_folder / "masks" / "a.png", HEARTS["b"])
    np.testing.assert_array_equal(example.read(), HEARTS["b"])


def test_boxes_are_warned_of_once(masks_folder, coco):
    box = np.zeros(SIZE, bool)
    box[5:20, 5:30] = True
    for name in "ab":
        save(masks_folder / "masks" / f"{name}.png", box)
    with pytest.warns(UserWarning) as caught:
        read_data(masks_folder, "a heart")
    name = masks_folder / "masks" / "a.png"
    assert [str(w.message).partition(": ")[0] for w in caught] == [
        f"2 of 3 masks are boxes, such as {name}"
    ]
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_data(coco)


# Bad data: a fixture, what is done to it, and parts of the message. Each function takes the path
# of DATA, and may return the keywords of `read_data`.


def write(name: str, pixels: np.ndarray):
    return lambda path: save(path / name, pixels)


def text(name: str, content: str | bytes):
    content = content.encode() if isinstance(content, str) else content
    return lambda path: Path(path, name).write_bytes(content)


def without(name: str):
    return lambda path: (path / name).unlink()


def change(old: str, new: str):
    """In a table's file."""
    return lambda path: path.write_text(path.read_text().replace(old, new))


def coco_with(*keys, **fields):
    """COCO's file with other fields in one of its entries; None takes a field off."""

    def edit(path: Path) -> None:
        content = coco_content()
        entry = content
        for key in keys:
            entry = entry[key]
        entry.update(fields)
        (path / COCO_FILE).write_text(json.dumps(content))

    return edit


def annotation(**fields):
    return coco_with("annotations", 1, **fields)


def rle(counts, size=SIZE):
    return annotation(segmentation={"size": list(size), "counts": counts})


def folders(path: Path) -> None:
    (path / "labels").mkdir()


def emptied(path: Path) -> None:
    for file in (*path.glob("*/*.jpg"), *path.glob("*/*.png")):
        file.unlink()


NOISE = np.random.default_rng(1).integers(0, 256, SIZE, np.uint8)
STRIPES = np.repeat(np.uint8([0, 1, 2]), 20)[None].repeat(40, axis=0)
TRIMAP = np.repeat(np.uint8([0, 128, 255]), 20)[None].repeat(40, axis=0)
MARKED = np.repeat(np.uint8([0, 15, 255]), 20)[None].repeat(40, axis=0)
COLORS = np.uint8([[200, 0, 0], [0, 200, 0], [0, 0, 200]])[STRIPES]

BAD = {
    "masks_folder": {
        "a mask of another aspect": (
            write("masks/b.png", np.eye(40, dtype=bool)),
            "masks/b.png is 40 x 40 and its image 60 x 40 pixels",
        ),
        "an empty mask": (write("masks/b.png", np.zeros(SIZE, bool)), "masks/b.png is empty"),
        "a label map for a mask": (write("masks/b.png", STRIPES), "masks/b.png has more than two"),
        "a trimap for a mask": (write("masks/b.png", TRIMAP), "masks/b.png has more than two"),
        "an id and 255": (write("masks/b.png", MARKED), "masks/b.png has more than two"),
        "noise for a mask": (write("masks/b.png", NOISE), "masks/b.png has more than two"),
        "colors for a mask": (
            write("masks/b.png", COLORS),
            "masks/b.png holds more than two colors",
        ),
        "an image without a mask": (
            without("masks/b.png"),
            "images/b.jpg: expected one b.* in images/, one in masks/",
        ),
        "a mask without an image": (
            without("images/b.jpg"),
            "masks/b.png: expected one b.* in images/, one in masks/",
        ),
        "two images of a name": (
            write("images/b.png", COLORS),
            "images/b.jpg and images/b.png and masks/b.png: expected one",
        ),
        "two masks of a name": (
            write("masks/b.bmp", HEARTS["b"]),
            "images/b.jpg and masks/b.bmp and masks/b.png: expected one",
        ),
        "an image that is none": (text("images/b.jpg", "no image"), "images/b.jpg is not an image"),
        "an empty file": (text("images/b.jpg", ""), "images/b.jpg is empty (0 bytes)"),
        "a mask that is none": (text("masks/b.png", "no image"), "masks/b.png is not an image"),
        "no prompt": (lambda path: {"prompts": ()}, "names no prompt", "--prompt"),
        "a blank prompt": (lambda path: {"prompts": [" | "]}, "names no prompt"),
        "empty folders": (emptied, "images and its subfolders hold no image", "masks and its"),
        "an empty folder": (
            lambda path: (path / "x").mkdir() or {"path": path / "x"},
            "it holds nothing; expected",
        ),
        "masks and labels": (folders, "it holds labels and masks; keep one, or give a table"),
        "no folder of images": (
            lambda path: (path / "images").rename(path / "photos"),
            "images is not a folder",
        ),
    },
    "table": {
        "another folder": (
            lambda path: {"path": path.parent},
            "arrow, data.csv, heart, photos",
            "expected",
        ),
        "nothing there": (
            lambda path: {"path": path.parent / "x"},
            "x has",
            "it is not there; expected",
        ),
        "another kind of file": (
            lambda path: {"path": path.parent / "photos" / "a.jpg"},
            ".jpg; expected",
        ),
        "a missing image": (change("photos/b.jpg", "photos/x.jpg"), "no image photos/x.jpg"),
        "a missing mask": (change("heart/b.png", "heart/x.png"), "no image heart/x.png"),
        "a folder for a mask": (change("heart/b.png", "heart"), "heart is a folder"),
        "other columns": (
            change("image,mask", "file,label"),
            "data.csv has the columns ['file', 'label', 'prompt']",
        ),
        "no table": (lambda path: path.write_text(""), "data.csv has the columns []"),
        "a table without rows": (
            lambda path: path.write_text("image,mask,prompt\n"),
            "it holds no mask",
        ),
        "a comma in a prompt": (
            change("an arrow", "an arrow, red"),
            "data.csv, line 5, is no row",
            "data.csv, line 6",
            "quote commas",
        ),
        "too few fields": (
            change(",heart/b.png,a heart | a love heart", ""),
            "data.csv, line 3, is no row",
        ),
        "no name of an image": (
            change("photos/b.jpg,heart", " ,heart"),
            "data.csv, line 3, is no row",
        ),
        "a row without a prompt": (
            change("an arrow", " "),
            "data.csv, line 5 names no prompt",
            "line 6",
        ),
        "no column of prompts": (change("prompt", "words"), "(1) it names no prompt", "1 in all"),
        "one mask twice": (
            change("photos/c.jpg", "photos/b.jpg"),
            "photos/b.jpg has several masks of 'a heart'; expected one",
        ),
        "a prompt with no image": (
            lambda path: {"prompts": ["a heart", "a cup"]},
            "no mask marks the prompt 'a cup'; of ['a heart', 'an arrow'], give those to learn",
        ),
        "a prompt in other letters": (
            lambda path: {"prompts": ["a Heart"]},
            "prompt 'a Heart'; of ['a heart', 'an arrow'], give those to learn as --prompt",
        ),
        "a table of UTF-16": (
            lambda path: path.write_text(path.read_text(), "utf-16"),
            "data.csv is not UTF-8",
        ),
        "a quote that stays open": (
            lambda path: path.write_text(path.read_text() + '\n"' + "a" * 140_000),
            "field larger",
        ),
    },
    "json_lines": {
        "a line that is no JSON": (
            change('{"image": "photos/b.jpg"', "{"),
            "data.jsonl, line 2, is no row with image and mask, in JSON",
        ),
        "a line that is no object": (
            change('{"image": "photos/b.jpg"', "5 #"),
            "data.jsonl, line 2",
        ),
        "a number for a mask": (change('"heart/b.png"', "5"), "data.jsonl, line 2, is no row"),
        "prompts that are none": (
            change('["an arrow"]', "[5]"),
            "data.jsonl, line 4 names no prompt",
        ),
    },
    "coco": {
        "COCO's file cut off": (text(COCO_FILE, "{"), "is not valid JSON"),
        "another JSON file": (text(COCO_FILE, '{"images": []}'), "has no list of categories"),
        "no list": (text(COCO_FILE, '{"images": {}}'), "has no list of images, as COCO has"),
        "COCO without anything": (
            coco_with(images=[], categories=[], annotations=[]),
            "it holds no mask",
        ),
        "an unknown image": (
            annotation(image_id=5),
            "annotation 2: image and category ('5', '1') are not both listed",
        ),
        "an unknown category": (
            annotation(category_id=[]),
            "annotation 2: image and category ('11', '[]') are not both",
        ),
        "an RLE of another size": (
            rle([2400], (60, 40)),
            "annotation 2: the RLE's size is [60, 40]; expected (40, 60)",
        ),
        "an RLE of too few pixels": (
            rle([5, 5]),
            "annotation 2: the RLE is damaged (10 pixels, and its size is 40 x 60)",
        ),
        "an RLE below 0": (rle([2410, -10]), "annotation 2: the RLE is damaged"),
        "a text that is no RLE": (rle("äö"), "annotation 2: the RLE is damaged"),
        "an RLE cut off": (rle("Q"), "annotation 2: the RLE is damaged"),
        "an RLE without counts": (rle(None), "annotation 2: the RLE is damaged"),
        "a polygon of odd numbers": (
            annotation(segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
            "annotation 2: [1, 2, 3, 4, 5, 6, 7] is no polygon",
        ),
        "a polygon of two points": (
            annotation(segmentation=[[1, 2, 3, 4]]),
            "annotation 2: [1, 2, 3, 4] is no polygon",
        ),
        "a polygon of texts": (annotation(segmentation=[["x"] * 6]), "annotation 2: ['x', 'x'"),
        "an endless polygon": (
            annotation(segmentation=[[1, 2, 3, 4, 5, float("inf")]]),
            "is no polygon",
        ),
        "a box alone": (
            annotation(segmentation=[], bbox=[1, 2, 3, 4]),
            "annotation 2: [] is no polygon",
        ),
        "no segmentation": (annotation(segmentation=None), "annotation 2: None is no polygon"),
        "a polygon beside the image": (
            annotation(segmentation=[[-9, 0, -1, 0, -1, 9]]),
            "the mask of ('a heart',) in b.jpg is empty",
        ),
        "COCO's image is missing": (without("b.jpg"), "no image b.jpg"),
        "COCO's size of an image": (
            coco_with("images", 1, height=60, width=40),
            "b.jpg is (40, 60), and in _annotations.coco.json (60, 40) (height, width)",
        ),
        "no size of an image": (
            coco_with("images", 1, height=None),
            "b.jpg is (40, 60), and in _annotations.coco.json (None, 60) (height",
        ),
        "two images of an id": (
            coco_with("images", 1, id=10),
            f"{COCO_FILE}: several images have one id; expected an id for each",
        ),
        "an image twice": (
            coco_with("images", 1, file_name="a.jpg"),
            "a.jpg has several masks of 'a heart'; expected one",
        ),
        "two categories of a name": (
            coco_with("categories", 1, name="an arrow"),
            "a.jpg has several masks of 'an arrow'; expected one",
        ),
        "a category without a name": (
            coco_with("categories", 1, name=" "),
            f"{COCO_FILE}: category 1 names no prompt",
        ),
        "a category with no mask": (
            coco_with("categories", 0, name="a cup"),
            "no mask marks the prompt 'a cup'; of ['a heart', 'an arrow'], give those to learn as",
        ),
    },
    "label_maps": {
        "ids without a prompt": (
            write("labels/b.png", STRIPES),
            "labels/b.png holds ids that have no prompt: [1, 2]",
        ),
        "no table of ids": (without("labels.csv"), "labels.csv"),
        "a wrong table of ids": (
            text("labels.csv", "3,a heart"),
            "labels.csv has the columns ['3', 'a heart']",
        ),
        "an id that is no number": (
            text("labels.csv", "id,prompt\n-3,a\n3,b\n7,c"),
            "labels.csv, line 2: expected an id",
        ),
        "an endless id": (
            text("labels.csv", "id,prompt\n3,b\n7,c\n" + "9" * 5000 + ",d"),
            "labels.csv, line 4: expected an id",
        ),
        "an id twice": (
            text("labels.csv", "id,prompt\n3,b\n7,c\n3,d"),
            "labels.csv, line 4: expected an id",
        ),
        "a prompt of two ids": (
            text("labels.csv", "id,prompt\n3,b\n7,c\n9,c"),
            "images/a.jpg has several masks of 'c'; expected one",
        ),
        "255 for a prompt": (
            text("labels.csv", "id,prompt\n3,b\n7,c\n255,d"),
            "labels.csv, line 4: expected an id",
        ),
        "an id without a prompt": (
            text("labels.csv", "id,prompt\n3,b\n7, | \n"),
            "labels.csv names no prompt",
        ),
        "a prompt with no pixel": (
            text("labels.csv", "id,prompt\n3,b\n7,c\n9,d"),
            "no mask marks the prompt 'd'",
        ),
        "a label map of colors": (write("labels/b.png", COLORS), "labels/b.png holds colors (RGB)"),
        "a label map of another size": (
            write("labels/b.png", STRIPES[:, 20:] * 0 + 3),
            "labels/b.png is 40 x 40 and its",
        ),
        "a label map too few": (
            without("labels/b.png"),
            "images/b.jpg: expected one b.* in images/, one in labels/",
        ),
    },
}


def message_of(request, fixture: str, *damages) -> str:
    """What `read_data` says of the fixture's data, damaged; files' names are within its folder."""
    path = request.getfixturevalue(fixture)
    options = {"path": path, "prompts": "a heart" if fixture == "masks_folder" else ()}
    for damage in damages:
        changed = damage(path)
        options |= changed if isinstance(changed, dict) else {}
    with pytest.raises(InputError) as caught:
        read_data(**options)
    folder = path if path.is_dir() else path.parent
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize(
    "fixture, case", [(fixture, case) for fixture, cases in BAD.items() for case in cases]
)
def test_bad_data_are_refused_in_one_message(request, fixture, case):
    damage, *expected = BAD[fixture][case]
    message = message_of(request, fixture, damage)
    assert "\n" not in message and len(message) < 700
    for part in expected:
        assert part in message, message
    count = message.partition(" in all: ")[0].rpartition(" ")[2]
    assert f"({count}) " in message and f"({int(count) + 1}) " not in message


TWO_FAULTS = {
    "masks_folder": (write("masks/b.png", STRIPES), without("images/a.jpg"), "masks/a.png"),
    "table": (change("photos/b.jpg", "photos/x.jpg"), change("heart/c.png", "y.png"), "y.png"),
    "coco": (annotation(category_id=9, segmentation=[[1]]), without("c.jpg"), "no image c.jpg"),
    "label_maps": (write("labels/b.png", STRIPES), without("images/c.jpg"), "labels/c.png"),
}


@pytest.mark.parametrize("fixture", TWO_FAULTS)
def test_all_faults_are_listed_at_once(request, fixture):
    first, second, part = TWO_FAULTS[fixture]
    other = {"table": "x.jpg", "coco": "'9'"}.get(fixture, "s/b.png")
    message = message_of(request, fixture, first, second)
    assert "faults, 2 in all" in message and part in message and other in message


def test_two_faults_of_one_mask_are_both_listed(coco):
    content = coco_content()
    content["annotations"][2]["segmentation"] = [[1, 2, 3]]
    content["annotations"][3]["segmentation"] = [[4, 5, 6]]
    (coco / COCO_FILE).write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"annotation 3: \[1, 2, 3\].*annotation 4: \[4, 5, 6\]"):
        read_data(coco)


def test_a_long_list_of_faults_is_cut(masks_folder):
    for number in range(30):
        save(masks_folder / "images" / f"{number}.png", np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(InputError) as caught:
        read_data(masks_folder, "a heart")
    message = str(caught.value).replace(f"{masks_folder}/", "")
    assert "has faults, 30 in all: (1) images/0.png" in message
    assert f"({MAX_FAULTS}) " in message and f"({MAX_FAULTS + 1}) " not in message
    assert message.endswith("; and 10 more") and len(message) < 2000


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_twelve_bits_are_read_by_their_white_level(masks_folder, suffix):
    """Of images and of soft masks; without it, there is a warning for each image."""
    for place, shade in (("images", None), ("masks", HEARTS)):
        for name in NAMES:
            soft = (
                4095
                if shade is None
                else np.clip(4095 * (10 - np.hypot(ROWS - 20, COLUMNS - 20)), 0, 4095)
            )
            for old in (masks_folder / place).glob(f"{name}.*"):
                old.unlink()
            save(masks_folder / place / f"{name}{suffix}", (soft * np.ones(SIZE)).astype(np.uint16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = read_data(masks_folder, "a heart", white_level=4095)
    assert data.white_level == 4095
    assert data.examples[0].read().sum() == (np.hypot(ROWS - 20, COLUMNS - 20) < 9.5).sum()
    with pytest.warns(UserWarning, match="give it as white_level"), pytest.raises(InputError):
        read_data(masks_folder, "a heart")


@pytest.mark.parametrize("prompts", [None, 3, ["a heart", 3], [""], " "])
def test_prompts_are_texts(masks_folder, prompts):
    with pytest.raises(
        InputError, match=r"prompts \(--prompt\) are .*; expected a list of texts that are not"
    ):
        read_data(masks_folder, prompts)


def test_data_that_are_not_there_have_one_fault(tmp_path):
    with pytest.raises(InputError, match="1 in all"):
        read_data(tmp_path / "hearts", "a heart")
