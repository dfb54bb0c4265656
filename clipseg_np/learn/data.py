"""Data to learn from, as people have it: images, masks of things in them, prompts for the things.

| DATA | masks | prompts |
|---|---|---|
| a folder with images/ and masks/ | files with the images' names | those that are given |
| a .csv or .jsonl file | column mask; paths are relative to the file | column prompt or prompts |
| COCO's .json, or a folder with _annotations.coco.json | polygons, RLE | categories |
| a folder with images/ and labels/ | label maps of the images' names | labels.csv or labels.json |

`read_data` returns `Data`: a list of small examples, one for each thing marked in an image. Masks
are read again when they are asked for, so that data larger than the memory can be learned.

Several wordings of a prompt are separated by "|" or, in JSON, listed. In COCO's files and label
maps, a thing that is not marked is not there: `Data.absent` has these examples, whose masks are
empty. Elsewhere that is unknown, and the list is empty. `Example.target` is a mask to train on.
"""

import csv
import io
import json
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..checkpoints.locate import read_json
from ..errors import InputError, naming
from ..image.decode import pillow_errors
from ..image.folder import images_in
from ..image.load_image import load_image
from ..image.plugins import open_image
from ..image.resize import NEAREST, resize
from ..masks.load_mask import mask_levels
from ..masks.morphology import dilate, polygon_mask, run_length_decoding

COCO_FILE = "_annotations.coco.json"
IGNORED = 255
LOSSY = {".jpg", ".jpeg", ".webp", ".avif", ".heic", ".jp2"}
MAX_FAULTS = 20  # in a message
EXPECTED = (
    f"expected a folder with images/ and masks/, or images/, labels/ and labels.csv, or "
    f"{COCO_FILE} (of Roboflow's folders, train/ holds it); or a .csv, .jsonl or COCO .json file"
)


@dataclass(frozen=True, eq=False)
class Example:
    """A thing marked in an image.

    image: the image's path. prompts: wordings for the thing; the first is its name. size: the
    (height,width) of the image, turned upright. source: reads what `marks` returns, in the mask's
    own size.
    """

    image: Path
    prompts: tuple[str, ...]
    size: tuple[int, int]
    source: Callable[[], np.ndarray]

    def marks(self) -> np.ndarray:
        """(height,width), uint8: 1 on the thing, IGNORED where that is unknown, 0 elsewhere."""
        return resize(self.source(), self.size, NEAREST)

    def target(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
        """The mask in the model's resolution, whose geometry is that of the resized image.

        size: (h,w). Returns the share of each pixel that lies on the thing, (h,w) float32 in 0..1;
        and the pixels to leave out of the loss, (h,w) bool, or None for none.
        """
        marks = self.marks()
        mask, ignored = (
            np.asarray(
                Image.fromarray((marks == value) * np.uint8(255)).resize(size[::-1], Image.BOX)
            )
            for value in (1, IGNORED)
        )
        return mask.astype(np.float32) / 255, ignored > 0 if ignored.any() else None


@dataclass(frozen=True, eq=False)
class Data:
    """Examples of things that are in images; and, where that is known, that are not in them."""

    examples: list[Example]
    absent: list[Example]
    absence_known: bool

    @property
    def images(self) -> list[Path]:
        """Each image once, in the order of the examples; the last are those in which nothing is."""
        return list(dict.fromkeys(e.image for e in (*self.examples, *self.absent)))


def read_data(path: str | os.PathLike, prompts: str | Sequence[str] = ()) -> Data:
    """Read and check DATA; see the top of this file for its formats.

    prompts: where DATA names none, the wordings for the thing that all its masks mark; else, the
    prompts of DATA to learn, without the others. Every image and mask is read once.
    Raises InputError that lists all faults, each with the name of its file. Warns of masks that are
    boxes.
    """
    path = Path(path)
    given = [prompts] if isinstance(prompts, str) else prompts
    reader = _Reader(path, tuple(word for text in given for word in wordings(text)))
    with reader.listed():
        reader.read()
    return reader.checked()


def wordings(prompt: Any) -> tuple[str, ...]:
    """ "a cat|a kitten" or ["a cat", "a kitten"] -> ("a cat", "a kitten"); () for none."""
    texts = prompt.split("|") if isinstance(prompt, str) else prompt
    is_list = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
    return tuple(text.strip() for text in texts if text.strip()) if is_list else ()


class _Reader:
    """The examples and faults of DATA, in progress."""

    def __init__(self, path: Path, prompts: tuple[str, ...]):
        self.path, self.prompts = path, prompts
        self.folder = path if path.is_dir() else path.parent
        self.examples, self.absent, self.absence_known = [], [], False
        self.sizes = {}  # of images; None where they cannot be read
        # Prompts that DATA lists; those that a mask has, and pairs of an image and its prompt.
        self.named, self.marked = [], set()
        self.faults, self.boxes = [], []

    def read(self) -> None:
        readers = {"masks": self.read_masks, "labels": self.read_label_maps}
        readers |= dict.fromkeys((".csv", ".jsonl"), self.read_rows)
        readers |= dict.fromkeys((".json", COCO_FILE), self.read_coco)
        if not self.path.exists():
            raise FileNotFoundError(f"it is not there; {EXPECTED}")
        parts = self.path.iterdir() if self.path.is_dir() else ()
        inside = [part.name for part in parts] or [self.path.suffix.lower()]
        fitting = [read for name, read in readers.items() if name in inside]
        if len(fitting) != 1:
            raise InputError(f"it holds {', '.join(sorted(inside)[:9]) or 'nothing'}; {EXPECTED}")
        fitting[0]()

    def checked(self) -> Data:
        """The data. Raises InputError for all faults together."""
        wanted = self.prompts or [words[0] for words in self.named]
        is_read = self.marked or not self.faults
        lost = [prompt for prompt in wanted if prompt not in self.marked] if is_read else []
        self.faults += [f"no mask marks the prompt {prompt!r}: leave it out" for prompt in lost]
        faults = list(dict.fromkeys(self.faults)) or ["it holds no mask"] * (not self.examples)
        if faults:
            listed = "; ".join(f"({n}) {fault}" for n, fault in enumerate(faults[:MAX_FAULTS], 1))
            more = f"; and {len(faults) - MAX_FAULTS} more" if len(faults) > MAX_FAULTS else ""
            raise InputError(f"{self.path} has faults, {len(faults)} in all: {listed}{more}")
        if self.boxes:
            count = f"{len(self.boxes)} of {len(self.examples)} masks are boxes"
            problem = "a model that learns boxes marks boxes. Draw the things' outlines"
            warnings.warn(f"{count}, such as {self.boxes[0]}: {problem}.", stacklevel=3)
        return Data(self.examples, self.absent, self.absence_known)

    @contextmanager
    def listed(self) -> Iterator[None]:
        """List the fault that is raised."""
        try:
            yield
        except (InputError, OSError, csv.Error) as error:
            self.faults.append(str(error).rstrip("."))

    def name(self, path: Path) -> str:
        """A file's name in messages: within DATA's folder, where it is there."""
        is_inside = path.is_relative_to(self.folder)
        return path.relative_to(self.folder).as_posix() if is_inside else os.fspath(path)

    def size(self, image: Path) -> tuple[int, int] | None:
        if image not in self.sizes:
            self.sizes[image] = None
            with self.listed():
                self.sizes[image] = load_image(image, name=self.name(image)).shape[:2]
        return self.sizes[image]

    def add(self, example: Example, name: str, marks: np.ndarray, is_present: bool = True) -> None:
        """Add an example, whose mask is called `name` and now reads as `marks`, or its faults."""
        image, prompts, size = example.image, example.prompts, example.size
        if self.prompts and not set(self.prompts) & set(prompts):
            return
        (self.examples if is_present else self.absent).append(example)
        # A mask may be larger or smaller, to a pixel of rounding.
        height, width = marks.shape
        if size and abs(size[0] * width - size[1] * height) > max(size):
            sizes = f"{width} x {height} and its image {size[1]} x {size[0]} pixels"
            self.faults.append(f"{name} is {sizes}; expected one aspect ratio")
        if not is_present:
            return
        if prompts and (image, prompts[:1]) in self.marked:
            self.faults.append(f"{name} is the second of {prompts[0]!r} in {self.name(image)}")
        self.marked |= {(image, prompts[:1]), *prompts}
        thing = marks == 1
        if not thing.any():
            self.faults.append(f"{name} is empty: mark the thing, or leave the mask out")
        elif thing.sum() == thing.any(axis=0).sum() * thing.any(axis=1).sum():
            self.boxes.append(name)

    def add_file(self, image: Path, mask: Path, prompts: tuple[str, ...], place: str) -> None:
        if not prompts:
            self.faults.append(f"{place} names no prompt: give --prompt, or a table with prompts")
        name, size = self.name(mask), self.size(image)
        example = Example(image, prompts, size, partial(file_marks, mask, name))
        with self.listed():
            self.add(example, name, example.source())

    def read_masks(self) -> None:
        for image, mask in self.pairs("masks"):
            self.add_file(image, mask, self.prompts, "it")

    def read_rows(self) -> None:
        for name, row in self.rows(self.path, ("image", "mask")):
            text = row.get("prompts", row.get("prompt"))
            prompts, place = (self.prompts, "it") if text is None else (wordings(text), name)
            self.add_file(self.folder / row["image"], self.folder / row["mask"], prompts, place)

    def pairs(self, folder: str) -> Iterator[tuple[Path, Path]]:
        """The images in images/, and the files in `folder` that have their names."""
        files = {"images": defaultdict(list), folder: defaultdict(list)}
        for place, by_name in files.items():
            with self.listed():
                for path in images_in(self.path / place):
                    by_name[path.relative_to(self.path / place).with_suffix("")].append(path)
        for name in sorted({name for by_name in files.values() for name in by_name}):
            images, masks = (by_name[name] for by_name in files.values())
            if len(images) == len(masks) == 1:
                yield images[0], masks[0]
            else:
                names = " and ".join(map(self.name, (*images, *masks)))
                self.faults.append(f"{names}: expected one file in images/, one in {folder}/")

    def rows(self, path: Path, needed: tuple[str, str]) -> Iterator[tuple[str, dict]]:
        """The rows of a table that have the needed fields, and their names in messages."""
        file = self.name(path)
        try:
            text = path.read_text("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{file} is not UTF-8 ({error}); save it so") from error
        rows = json_lines(text)
        if path.suffix.lower() == ".csv":
            delimiter = max(",;\t", key=text.partition("\n")[0].count)
            reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
            reader.fieldnames = columns = [c.strip().lower() for c in reader.fieldnames or ()]
            if not set(needed) <= set(columns):
                raise InputError(f"{file} has the columns {columns}; expected {needed}")
            rows = ((reader.line_num, row) for row in reader)
        for number, row in rows:
            # A DictReader keeps fields without a column under None, and gives lacking ones None.
            texts = [row.get(key) for key in needed] if isinstance(row, dict) else []
            if texts and None not in row and all(isinstance(t, str) and t.strip() for t in texts):
                yield f"{file}, line {number}", row
            else:
                fault = f"{file}, line {number}, is no row with {' and '.join(needed)}"
                self.faults.append(f"{fault}; in CSV, texts that hold commas need quotes")

    def read_label_maps(self) -> None:
        table, self.absence_known = self.label_table(), True
        for image, labels in self.pairs("labels"):
            name, size = self.name(labels), self.size(image)
            with self.listed():
                ids = read_ids(labels, name)
                unknown = sorted({*np.unique(ids).tolist()} - {0, IGNORED, *table})
                if unknown:
                    self.faults.append(f"{name} holds ids that have no prompt: {unknown[:9]}")
                for id_, prompts in table.items():
                    example = Example(image, prompts, size, partial(label_marks, labels, name, id_))
                    self.add(example, name, ids == id_, bool((ids == id_).any()))

    def label_table(self) -> dict[int, tuple[str, ...]]:
        """The prompts of a label map's ids, without the background's."""
        table, path = {}, self.path / "labels.json"
        if path.exists():
            rows = read_json(path).items()
        else:
            path = self.path / "labels.csv"
            rows = [(row["id"], row["prompt"]) for _, row in self.rows(path, ("id", "prompt"))]
        for text, prompt in rows:
            # int refuses thousands of digits.
            is_number = text.strip().isdecimal() and len(text) < 10
            prompts, id_ = wordings(prompt), int(text) if is_number else IGNORED
            if id_ in (IGNORED, *table) or prompts in ((), *table.values()):
                expected = "expected a whole number but 255 and a prompt, both once"
                self.faults.append(f"{path.name}: {text[:30]!r}, {prompt!r}; {expected}")
            elif prompts != ("background",):
                table[id_] = prompts
        self.named = [*table.values()]
        return table

    def read_coco(self) -> None:
        path = self.path / COCO_FILE if self.path.is_dir() else self.path
        content, name, tables = read_json(path), self.name(path), []
        self.absence_known = True
        for kind, field in (("images", "file_name"), ("categories", "name"), ("annotations", "")):
            entries = content.get(kind)
            if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
                raise InputError(f"{name} has no list of {kind}; expected COCO's format")
            for key in ("id", field) if field else ():
                texts = Counter(str(entry.get(key, "")).strip() for entry in entries)
                wrong = [text for text, count in texts.items() if count > 1 or not text]
                self.faults += [f"{name}: {kind} of {key} {t!r}; expected each once" for t in wrong]
            tables.append({str(entry.get("id")): entry for entry in entries})
        images, categories = tables[:2]
        parts = defaultdict(list)
        for number, annotation in enumerate(content["annotations"], 1):
            label = f"{name}: annotation {annotation.get('id', number)}"
            ids = str(annotation.get("image_id")), str(annotation.get("category_id"))
            parts[ids].append((annotation.get("segmentation"), label))
            if ids[0] not in images or ids[1] not in categories:
                found = f"{label} is of image {ids[0]} and category {ids[1]}"
                self.faults.append(f"{found}; expected ids that are listed")
        # Roboflow's first category is the parent of the others, and marks nothing.
        parents = [entry.get("supercategory") for entry in categories.values()]
        used = {category_id for _, category_id in parts}
        prompts = {
            id_: wordings(str(entry.get("name")))
            for id_, entry in categories.items()
            if id_ in used or entry.get("name") not in parents
        }
        self.named = [*filter(None, prompts.values())]
        for image_id, entry in images.items():
            places = ("", "images", "..", "../images")
            paths = [path.parent / place / str(entry.get("file_name")) for place in places]
            image = next((path for path in paths if path.is_file()), paths[0])
            size, other = self.size(image), (entry.get("height"), entry.get("width"))
            if size and size != other:
                sizes = f"{other[1]} x {other[0]} in {name}, but {size[1]} x {size[0]}"
                self.faults.append(f"{self.name(image)} is {sizes}")
            for id_, words in prompts.items() if size == other else ():
                own, marks = parts[image_id, id_], np.zeros(size, np.uint8)
                for part in own:
                    with self.listed():
                        marks |= coco_marks([part], size)
                example = Example(image, words, size, partial(coco_marks, own, size))
                about = f"the mask of {words[:1]} in {self.name(image)}"
                self.add(example, about, marks, bool(own))


def json_lines(text: str) -> Iterator[tuple[int, Any]]:
    """The values in lines of JSON, and the lines' numbers; None for what is no JSON."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            value = None
            with suppress(ValueError, RecursionError):
                value = json.loads(line)
            yield number, value


def file_marks(path: Path, name: str) -> np.ndarray:
    """`Example.marks` of a mask's file. Raises InputError for more than two values.

    Values of narrow strips, as of soft edges, and the noise of lossy formats do not count.
    """
    levels = mask_levels(path, name=name)
    is_noisy = path.suffix.lower() in LOSSY or len(np.unique(levels)) > 32
    low, high = (32, 223) if is_noisy else (0, 255)
    between = (levels > low) & (levels < high)
    if between.mean() > 0.5 or dilate(between, -3).any():
        raise InputError(f"{name} has more than two values; label maps belong into labels/")
    return (levels >= 128).astype(np.uint8)


def label_marks(path: Path, name: str, number: int) -> np.ndarray:
    """`Example.marks` of an id in a label map."""
    ids = read_ids(path, name)
    return np.where(ids == IGNORED, np.uint8(IGNORED), ids == number)


def read_ids(path: Path, name: str) -> np.ndarray:
    """The numbers of a label map, (H,W), as they are stored, also those of a palette."""
    with pillow_errors(name), path.open("rb") as file, open_image(file, name) as image:
        if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
            raise InputError(f"{name} holds colors ({image.mode}); expected one id for each pixel")
        return np.asarray(image).astype(np.int32)


def coco_marks(parts: list[tuple[Any, str]], size: tuple[int, int]) -> np.ndarray:
    """`Example.marks` of annotations together: each one's segmentation, and its name in messages.

    A segmentation is a list of polygons, or an RLE, as of a crowd.
    """
    mask = np.zeros(size, np.uint8)
    for segmentation, name in parts:
        with naming(name):
            if not isinstance(segmentation, dict):
                is_list = isinstance(segmentation, list) and segmentation
                for polygon in segmentation if is_list else [segmentation]:
                    mask |= polygon_mask(polygon, size)
                continue
            if segmentation.get("size") != list(size):
                raise InputError(f"the RLE's size is {segmentation.get('size')}; expected {size}")
            mask |= run_length_decoding(segmentation)
    return mask
