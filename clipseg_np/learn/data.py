"""Data to learn from, as people have it: images, masks of things in them, prompts for the things.

| DATA | masks | prompts |
|---|---|---|
| a folder with images/ and masks/ | files with the images' names | those that are given |
| a .csv or .jsonl file | column mask; paths are relative to the file | column prompt or prompts |
| COCO's .json, or a folder with _annotations.coco.json | polygons, RLE | categories |
| a folder with images/ and labels/ | label maps of the images' names | labels.csv or labels.json |

`read_data` returns `Data`: a list of small examples, one for each thing marked in an image. Masks
are read again when they are asked for, so that data larger than the memory can be learned.

    data = read_data("hearts", ["a heart"])
    for example in data.examples:
        target, ignored = example.target((352, 352))

Several wordings of a prompt are separated by "|" or, in JSON, listed. In COCO's files and label
maps, a thing that is not marked is not there: `Data.absent` has these examples, whose masks are
empty. Elsewhere that is unknown, and the list is empty.
"""

import csv
import io
import json
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.locate import read_json
from ..errors import InputError, naming
from ..image.decode import pillow_errors
from ..image.folder import images_in
from ..image.load_image import load_image
from ..image.plugins import open_image
from ..image.resize import BILINEAR, NEAREST, resize
from ..masks.load_mask import mask_levels
from ..masks.morphology import dilate, mask_statistics, polygon_mask, run_length_decoding

COCO_FILE = "_annotations.coco.json"
IGNORED = 255
MAX_FAULTS = 20  # in a message
MAX_COORDINATE = 1e6
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
            resize(np.where(marks == value, np.uint8(255), np.uint8(0)), size, BILINEAR)
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
    Raises InputError that lists all faults, each with the file's name; FileNotFoundError where
    there is no DATA. Warns of masks that are boxes.
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
        self.sizes = {}  # of images; None of those that cannot be read
        self.named, self.marked = [], set()  # prompts of tables; of masks, and their images
        self.faults, self.boxes = [], []

    def read(self) -> None:
        if self.path.is_dir():
            names = [name for name in ("masks", "labels") if (self.path / name).is_dir()]
            if (self.path / COCO_FILE).is_file():
                self.read_coco(self.path / COCO_FILE)
            elif len(names) == 1 and (self.path / "images").is_dir():
                self.read_masks() if names == ["masks"] else self.read_label_maps()
            else:
                inside = ", ".join(sorted(part.name for part in self.path.iterdir())[:9])
                raise InputError(f"the folder holds {inside or 'nothing'}; {EXPECTED}")
        elif not self.path.exists():
            raise FileNotFoundError(f"There is no {self.path}; {EXPECTED}.")
        elif self.path.suffix.lower() in (".csv", ".jsonl"):
            self.read_table()
        elif self.path.suffix.lower() == ".json":
            self.read_coco(self.path)
        else:
            raise InputError(f"the suffix is {self.path.suffix!r}; {EXPECTED}")

    def checked(self) -> Data:
        wanted = self.prompts or [words[0] for words in self.named]
        lost = [prompt for prompt in wanted if prompt not in self.marked]
        self.faults += [f"no mask marks the prompt {prompt!r}: leave it out" for prompt in lost]
        if faults := list(dict.fromkeys(self.faults or ["it holds no mask"] * (not self.examples))):
            some = "; ".join(f"({number}) {f}" for number, f in enumerate(faults[:MAX_FAULTS], 1))
            count = f"{len(faults)} fault{'s' * (len(faults) > 1)}"
            more = f"; and {len(faults) - MAX_FAULTS} more" if len(faults) > MAX_FAULTS else ""
            raise InputError(f"{self.path} has {count}: {some}{more}")
        if self.boxes:
            warnings.warn(
                f"{len(self.boxes)} of {len(self.examples)} masks are boxes, such as that of "
                f"{self.boxes[0]}; a model that learns them marks boxes, too. Draw outlines.",
                stacklevel=3,
            )
        return Data(self.examples, self.absent, self.absence_known)

    @contextmanager
    def listed(self) -> Iterator[None]:
        """List the fault that is raised."""
        try:
            yield
        except (InputError, OSError) as error:
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

    def add(self, image: Path, prompts: tuple, name: str, source, marks, is_present=True) -> None:
        """Add an example, whose mask is called `name` and now reads as `marks`, or its faults."""
        if self.prompts and not set(self.prompts) & set(prompts):
            return
        size, thing = self.size(image), marks == 1
        if size and not has_aspect(thing.shape, size):
            sizes = " and its image ".join(f"{w} x {h}" for h, w in (thing.shape, size))
            self.faults.append(f"{name} is {sizes} pixels; expected one aspect ratio")
        if not is_present:
            self.absent.append(Example(image, prompts, size, source))
            return
        if (image, prompts[:1]) in self.marked:
            self.faults.append(f"{self.name(image)} has two masks of {prompts[:1]}; expected one")
        self.marked |= {(image, prompts[:1]), *prompts}
        self.examples.append(Example(image, prompts, size, source))
        about = mask_statistics(thing)
        if not about["area"]:
            self.faults.append(f"{name} is empty; mark the thing, or leave the mask out")
        else:
            left, top, right, bottom = about["box"]
            self.boxes += [name] * (about["area"] == (right - left) * (bottom - top))

    def read_masks(self) -> None:
        if not self.prompts:
            self.faults.append("what do the masks mark? Say it with --prompt")
        for image, mask in self.pairs("masks"):
            self.add_file(image, mask, self.prompts)

    def add_file(self, image: Path, mask: Path, prompts: tuple[str, ...]) -> None:
        self.size(image)
        with self.listed():
            source = partial(file_marks, mask, self.name(mask))
            self.add(image, prompts, self.name(mask), source, source())

    def pairs(self, folder: str) -> Iterator[tuple[Path, Path]]:
        """The images in images/, and the files in `folder` that have their names."""
        files = {"images": {}, folder: {}}
        for place, by_name in files.items():
            with self.listed():
                for path in images_in(self.path / place):
                    stem = path.relative_to(self.path / place).with_suffix("")
                    if stem in by_name:
                        other = self.name(by_name[stem])
                        self.faults.append(f"{self.name(path)} has the name of {other}")
                    by_name[stem] = path
        for stem in sorted(files["images"].keys() | files[folder].keys()):
            found = [by_name[stem] for by_name in files.values() if stem in by_name]
            if len(found) == 2:
                yield found[0], found[1]
            else:
                lacking = next(place for place, by_name in files.items() if stem not in by_name)
                self.faults.append(f"{self.name(found[0])} has no file of its name in {lacking}/")

    def read_table(self) -> None:
        for name, row in self.rows(self.path, ("image", "mask")):
            text = next((row[key] for key in ("prompts", "prompt") if key in row), None)
            prompts = self.prompts if text is None else wordings(text)
            if not prompts:
                place = self.path.name if text is None else name
                self.faults.append(f"{place} names no prompt: add the column, or give --prompt")
            self.add_file(*(self.folder / row[key] for key in ("image", "mask")), prompts)

    def rows(self, path: Path, needed: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
        """The rows of a table that have the needed fields, and their names in messages."""
        try:
            text = path.read_text("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{self.name(path)} is not UTF-8 ({error}); save it so") from error
        rows = self.csv_rows if path.suffix.lower() == ".csv" else self.json_rows
        for line, row in rows(text, self.name(path), needed):
            name = f"{self.name(path)}, line {line}"
            texts = [row[key] for key in needed if key in row]
            if len(texts) == len(needed) and all(isinstance(t, str) and t.strip() for t in texts):
                yield name, row
            else:
                self.faults.append(f"{name}: expected texts as {' and '.join(needed)}")

    def csv_rows(self, text: str, name: str, needed: tuple[str, ...]) -> Iterator[tuple[int, dict]]:
        header = text.partition("\n")[0]
        delimiter = max(",;\t", key=header.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        columns = [column.strip().lower() for column in next(reader, [])]
        if not set(needed) <= set(columns):
            problem = f"has the columns {', '.join(columns)}" if text.strip() else "is empty"
            raise InputError(f"{name} {problem}; expected {', '.join(needed)} in its first line")
        for fields in filter(None, reader):
            if len(fields) == len(columns):
                yield reader.line_num, dict(zip(columns, fields))
            else:
                count = f"{len(fields)} fields for {len(columns)} columns"
                self.faults.append(f'{name}, line {reader.line_num}: {count}; quote texts: "a, b"')

    def json_rows(self, text: str, name: str, needed: tuple[str, ...]) -> Iterator:
        for number, line in enumerate(text.split("\n"), 1):
            try:
                row = json.loads(line or "{}")
            except (ValueError, RecursionError) as error:
                self.faults.append(f"{name}, line {number} is not JSON ({error})")
                continue
            if line.strip():
                yield number, row if isinstance(row, dict) else {}

    def read_label_maps(self) -> None:
        self.absence_known = True
        table = self.label_table()
        for image, labels in self.pairs("labels"):
            self.size(image)
            name = self.name(labels)
            with self.listed():
                ids = read_ids(labels, name)
                unknown = set(np.unique(ids).tolist()) - table.keys() - {0, IGNORED}
                if unknown:
                    self.faults.append(f"{name} holds ids without a prompt: {sorted(unknown)[:9]}")
                for number, prompts in table.items():
                    source = partial(label_marks, labels, name, number)
                    marks = label_marks(ids, name, number)
                    self.add(image, prompts, name, source, marks, bool((marks == 1).any()))

    def label_table(self) -> dict[int, tuple[str, ...]]:
        """The prompts of a label map's ids, without the background's."""
        tables = [self.path / name for name in ("labels.csv", "labels.json")]
        path = next((path for path in tables if path.is_file()), None)
        if path is None:
            raise InputError("labels.csv is missing; expected the columns id and prompt")
        if path.suffix == ".csv":
            rows = [(row["id"], row["prompt"]) for _, row in self.rows(path, ("id", "prompt"))]
        else:
            rows = read_json(path).items()
        table = {}
        for number, prompt in rows:
            words, id_ = wordings(prompt), number.strip()
            if not id_.isdecimal() or int(id_) == IGNORED or int(id_) in table or not words:
                expected = "expected another whole number than 255, once, and a prompt"
                self.faults.append(f"{path.name}: id {number!r}, prompt {prompt!r}; {expected}")
            elif words != ("background",):
                table[int(id_)] = words
        self.named = list(table.values())
        return table

    def read_coco(self, path: Path) -> None:
        self.absence_known = True
        with naming(path):
            content = read_json(path)
        name, lists = self.name(path), {}
        for kind, field in (("images", "file_name"), ("categories", "name"), ("annotations", "")):
            entries = content.get(kind)
            if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
                raise InputError(f"{name} has no list of {kind}; expected COCO's format")
            lists[kind] = self.by_id(entries, kind, field, name) if field else entries
        parts = defaultdict(list)
        for number, annotation in enumerate(lists["annotations"], 1):
            ids = str(annotation.get("image_id")), str(annotation.get("category_id"))
            label = f"{name}: annotation {annotation.get('id', number)}"
            for id_, kind in zip(ids, ("images", "categories")):
                if id_ not in lists[kind]:
                    self.faults.append(f"{label} is of id {id_}, which is none of the {kind}")
            parts[ids].append((annotation.get("segmentation"), label))
        parents = {entry.get("supercategory") for entry in lists["categories"].values()}
        prompts = {id_: wordings(entry["name"]) for id_, entry in lists["categories"].items()}
        prompts = {
            id_: words
            for id_, words in prompts.items()
            if any(c == id_ for _, c in parts) or words[0] not in parents
        }
        self.named = list(prompts.values())
        for image_id, entry in lists["images"].items():
            image = coco_image(path.parent, entry["file_name"])
            size, said = self.size(image), (entry.get("height"), entry.get("width"))
            if size and size != said:
                sizes = f"{said[1]} x {said[0]} in {name} and {size[1]} x {size[0]} in its file"
                self.faults.append(f"{self.name(image)} is {sizes}")
            if not size or size != said:
                continue
            for id_, words in prompts.items():
                marks = np.zeros(size, np.uint8)
                for segmentation, label in parts[image_id, id_]:
                    with self.listed():
                        marks |= coco_mask(segmentation, size, label)
                about = f"the mask of {words[0]!r} in {self.name(image)}"
                source = partial(coco_marks, parts[image_id, id_], size)
                self.add(image, words, about, source, marks, bool(parts[image_id, id_]))

    def by_id(self, entries: list[dict], kind: str, field: str, name: str) -> dict[str, dict]:
        """COCO's images or categories by their ids, as texts; both ids and names are unique."""
        by_id, texts = {}, set()
        for number, entry in enumerate(entries, 1):
            id_, text = str(entry.get("id")), entry.get(field)
            if "id" not in entry or not isinstance(text, str) or not wordings(text):
                self.faults.append(f"{name}: {kind} {number} has no id or no {field}")
            elif id_ in by_id or text in texts:
                self.faults.append(f"{name} has two {kind} of id {id_} or {field} {text!r}")
            else:
                by_id[id_] = entry
                texts.add(text)
        return by_id


def has_aspect(size: tuple[int, int], image: tuple[int, int]) -> bool:
    """Whether a mask's size is the image's, larger or smaller, to a pixel of rounding."""
    return abs(size[1] * image[0] - size[0] * image[1]) <= max(image)


def file_marks(path: Path, name: str) -> np.ndarray:
    """What `Example.marks` says of a mask's file. Raises InputError for more than two values.

    Soft edges and the noise of JPEG are no values of their own.
    """
    levels = mask_levels(path, name=name)
    noise = 32 if len(np.unique(levels)) > 32 else 0
    between = (levels > noise) & (levels < 255 - noise)
    if (levels.max() > 0 and levels.max() < 255 - noise) or dilate(between, -2).any():
        raise InputError(f"{name} has more than two values; label maps belong into labels/")
    return (levels >= 128).astype(np.uint8)


def label_marks(labels: Path | np.ndarray, name: str, number: int) -> np.ndarray:
    """What `Example.marks` says of one id of a label map."""
    ids = labels if isinstance(labels, np.ndarray) else read_ids(labels, name)
    return np.where(ids == IGNORED, np.uint8(IGNORED), ids == number)


def read_ids(path: Path, name: str) -> np.ndarray:
    """The numbers of a label map as they are stored, also those of a palette's colors: (H,W)."""
    with pillow_errors(name), path.open("rb") as file, open_image(file, name) as image:
        if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
            raise InputError(f"{name} holds colors ({image.mode}); expected one id for each pixel")
        return np.asarray(image).astype(int)


def coco_image(folder: Path, file_name: str) -> Path:
    """An image beside the file of annotations, or where other tools put it."""
    places = (folder, folder / "images", folder.parent / "images", folder.parent)
    paths = [place / file_name for place in places]
    return next((path for path in paths if path.is_file()), paths[0])


def coco_marks(parts: list[tuple[Any, str]], size: tuple[int, int]) -> np.ndarray:
    """What `Example.marks` says of the annotations of one category in an image."""
    marks = np.zeros(size, np.uint8)
    for segmentation, name in parts:
        marks |= coco_mask(segmentation, size, name)
    return marks


def coco_mask(segmentation: Any, size: tuple[int, int], name: str) -> np.ndarray:
    """The mask of one annotation, (height,width) bool: of polygons, or of RLE, also of a crowd."""
    if isinstance(segmentation, dict):
        if segmentation.get("size") != list(size):
            found = f"an RLE of size {segmentation.get('size')}; expected {list(size)}"
            raise InputError(f"{name} has {found}, its image's height and width")
        with naming(name):
            return run_length_decoding(segmentation)
    mask = np.zeros(size, bool)
    has_polygons = isinstance(segmentation, list) and segmentation
    for polygon in segmentation if has_polygons else [None]:
        try:
            points = np.asarray(polygon, np.float64).reshape(-1, 2)
        except (TypeError, ValueError):
            points = np.empty((0, 2))
        if len(points) < 3 or not (np.abs(points) < MAX_COORDINATE).all():
            found = "a polygon that is none" if has_polygons else "no polygons and no RLE"
            raise InputError(f"{name} has {found}; expected polygons as [x, y, x, y, x, y, ...]")
        mask |= polygon_mask(points, size)
    return mask
