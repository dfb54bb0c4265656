"""Data to learn from, as people have it: images, masks of things in them, prompts for the things.

| DATA | masks | prompts |
|---|---|---|
| a folder with images/ and masks/ | files with the images' names | those that are given |
| a .csv or .jsonl file | column mask; paths are relative to the file | column prompt or prompts |
| COCO's .json, or a folder with _annotations.coco.json | polygons, RLE | categories |
| a folder with images/ and labels/ | label maps of the images' names | labels.csv |

Several wordings of a prompt are separated by "|" or, in JSON, listed.
"""

import csv
import json
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..checkpoints.locate import read_json
from ..errors import InputError, naming
from ..image.decode import pillow_errors
from ..image.folder import images_in
from ..image.load_image import load_image
from ..masks.load_mask import mask_levels
from ..masks.morphology import dilate, polygon_mask, run_length_decoding
from ..model.input_checks import require

COCO_FILE = "_annotations.coco.json"
IGNORED = 255
LOSSY = {".jpg", ".jpeg", ".webp", ".avif", ".heic", ".jp2"}
MAX_FAULTS = 20  # in a message
EXPECTED = f"expected masks/, labels/ or {COCO_FILE} in it, or a .csv, .jsonl or COCO .json file"


@dataclass(frozen=True, eq=False)
class Example:
    """A thing marked in an image.

    image: the image's path. prompts: wordings for the thing; the first is its name. read: reads the
    mask, (H,W), from its file: `number` on the thing, IGNORED where that is unknown.
    """

    image: Path
    prompts: tuple[str, ...]
    read: Callable[[], np.ndarray]
    number: int = 1

    def target(self, size: tuple[int, int]) -> np.ndarray:
        """The share of each pixel of the resized image that is the thing; NaN where it is unknown.

        size: (h,w), the model's resolution.  -> (h,w), float32
        """
        mask = self.read()
        parts = ((mask == number) * np.uint8(255) for number in (self.number, IGNORED))
        images = (Image.fromarray(part).resize(size[::-1], Image.BOX) for part in parts)
        share, ignored = (np.asarray(image, np.float32) for image in images)
        return np.where(ignored > 0, np.float32(np.nan), share / 255)


@dataclass(frozen=True, eq=False)
class Data:
    """Examples of things that are in images, and `absent` ones, whose masks are empty.

    Things that COCO's files and label maps do not mark are absent. white_level: see load_image.
    """

    examples: list[Example]
    absent: list[Example]
    white_level: float | None = None


def read_data(
    path: str | os.PathLike, prompts: str | Sequence[str] = (), white_level: float | None = None
) -> Data:
    """Read and check DATA; see the top of this file for its formats.

    prompts: where DATA names none, the wordings for the thing that all its masks mark; else, the
    prompts of DATA to learn, without the others. white_level: see load_image.
    Raises InputError that lists all faults, each with the name of its file. Warns of masks that are
    boxes.
    """
    texts = [prompts] if isinstance(prompts, str) else prompts
    check_texts("prompts (--prompt)", texts)
    wanted = wordings("|".join(texts))
    reader = _Reader(Path(path), wanted, white_level)
    reader.attempt(reader.read)
    examples, absent, faults = reader.data.examples, reader.data.absent, reader.faults
    if examples or not faults:
        marked = {text for example in examples for text in example.prompts}
        lost = {*(wanted or (example.prompts[0] for example in absent))} - marked
        advice = f"of {sorted(reader.names - lost)[:9]}, give those to learn as --prompt"
        faults += [f"no mask marks the prompt {text!r}; {advice}" for text in sorted(lost)]
    pairs = Counter((example.image, example.prompts[0]) for example in (*examples, *absent))
    twice = (pair for pair, count in pairs.items() if count > 1)
    faults += [f"{image} has several masks of {text!r}; expected one" for image, text in twice]
    faults = list(dict.fromkeys(faults or ["it holds no mask"] * (not examples)))
    if faults:
        listed = "; ".join(f"({n}) {fault}" for n, fault in enumerate(faults[:MAX_FAULTS], 1))
        more = f"; and {len(faults) - MAX_FAULTS} more" if len(faults) > MAX_FAULTS else ""
        raise InputError(f"{path} has faults, {len(faults)} in all: {listed}{more}")
    if boxes := reader.boxes:
        problem = f"{len(boxes)} of {len(examples)} masks are boxes, such as {boxes[0]}"
        warnings.warn(f"{problem}: a model learns boxes from boxes. Draw outlines", stacklevel=2)
    return reader.data


def check_texts(name: str, texts: Any) -> None:
    """Raise InputError unless they are a list of texts, none of them empty."""
    is_list = isinstance(texts, (list, tuple))
    if not is_list or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError(f"{name} are {texts!r}; expected a list of texts that are not empty")


def wordings(prompt: Any) -> tuple[str, ...]:
    """ "a cat|a kitten" or ["a cat", "a kitten"] -> ("a cat", "a kitten"); () for none."""
    texts = prompt.split("|") if isinstance(prompt, str) else prompt
    is_list = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
    return tuple(text.strip() for text in texts if text.strip()) if is_list else ()


class _Reader:
    """The examples and faults of DATA, in progress."""

    def __init__(self, path: Path, prompts: tuple[str, ...], white_level: float | None):
        self.path, self.prompts, self.data = path, prompts, Data([], [], white_level)
        self.faults, self.boxes, self.names, self.white_level = [], [], set(), white_level
        self.size = cache(lambda image: load_image(image, white_level=white_level).shape[:2])

    def attempt(self, read: Callable, *arguments: Any) -> Any:
        """Return the result of `read`; or list the fault that it raises, and return None."""
        try:
            return read(*arguments)
        except (InputError, OSError, csv.Error) as error:
            self.faults.append(str(error).rstrip("."))

    def read(self) -> None:
        readers = {"masks": self.read_masks, "labels": self.read_label_maps}
        readers |= dict.fromkeys((".csv", ".jsonl"), self.read_table)
        readers |= dict.fromkeys((".json", COCO_FILE), self.read_coco)
        parts = self.path.iterdir() if self.path.is_dir() else ()
        names = sorted(part.name for part in parts) or [self.path.suffix.lower()]
        fitting = [name for name in names if name in readers]
        require(len(fitting) < 2, f"it holds {' and '.join(fitting)}; keep one, or give a table")
        if not fitting:
            holds = f"holds {', '.join(names[:9]) or 'nothing'}"
            raise InputError(f"it {holds if self.path.exists() else 'is not there'}; {EXPECTED}")
        readers[fitting[0]]()

    def add(
        self,
        image: Path,
        name: Any,
        read: Callable[[], np.ndarray],
        table: dict[int, tuple[str, ...]],
        place: str = "it",
        is_absent: bool | None = False,
    ) -> None:
        """Add the examples of an image's mask, or their faults.

        name and place: of the mask, and of what names the prompts, in messages. read: see Example.
        table: the prompts of its numbers. is_absent: None where a number that is not there says so.
        """
        if () in table.values():
            self.faults.append(f"{place} names no prompt: give --prompt, or a table with prompts")
            return
        self.names |= {p[0] for p in table.values()}
        table = {n: p for n, p in table.items() if not self.prompts or {*self.prompts} & {*p}}
        size, mask = self.attempt(self.size, image), self.attempt(read)
        if size is None or mask is None:
            self.data.examples.extend(Example(image, prompts, read) for prompts in table.values())
            return
        height, width = mask.shape
        # A mask may be larger or smaller, to a pixel of rounding.
        if abs(size[0] * width - size[1] * height) > max(size):
            sizes = f"{width} x {height} and its image {size[1]} x {size[0]} pixels"
            self.faults.append(f"{name} is {sizes}; expected one aspect ratio")
        for number, prompts in table.items():
            thing, example = mask == number, Example(image, prompts, read, number)
            if is_absent or (is_absent is None and not thing.any()):
                self.data.absent.append(example)
                continue
            self.data.examples.append(example)
            if not thing.any():
                self.faults.append(f"{name} is empty: mark the thing, or leave the mask out")
            elif thing.sum() == thing.any(axis=0).sum() * thing.any(axis=1).sum():
                self.boxes.append(name)

    def read_masks(self) -> None:
        for image, mask in self.pairs("masks"):
            self.add(image, mask, partial(read_mask, mask, self.white_level), {1: self.prompts})

    def read_table(self) -> None:
        for place, row in self.rows(self.path, "image", "mask"):
            image, mask = (self.path.parent / row[name] for name in ("image", "mask"))
            text = row.get("prompts", row.get("prompt"))
            prompts, place = (self.prompts, "it") if text is None else (wordings(text), place)
            self.add(image, mask, partial(read_mask, mask, self.white_level), {1: prompts}, place)

    def read_label_maps(self) -> None:
        table = {}
        for place, row in self.rows(self.path / "labels.csv", "id", "prompt"):
            # int refuses thousands of digits.
            text = row["id"].strip()
            number = int(text) if text.isdecimal() and len(text) < 10 else IGNORED
            if number in (IGNORED, *table):
                self.faults.append(f"{place}: expected an id, a whole number but 255, once")
            else:
                table[number] = wordings(row["prompt"])
        things = {number: texts for number, texts in table.items() if texts != ("background",)}
        for image, labels in self.pairs("labels"):
            read = partial(read_ids, labels, frozenset(table))
            self.add(image, labels, read, things, "labels.csv", is_absent=None)

    def pairs(self, folder: str) -> Iterator[tuple[Path, Path]]:
        """The images in images/, and the files in `folder` that have their names."""
        files = defaultdict(lambda: ([], []))
        for side, place in enumerate((self.path / "images", self.path / folder)):
            for path in self.attempt(images_in, place) or ():
                files[path.relative_to(place).with_suffix("")][side].append(path)
        for stem, (images, masks) in sorted(files.items()):
            if len(images) == len(masks) == 1:
                yield images[0], masks[0]
            else:
                names = " and ".join(map(str, (*images, *masks)))
                self.faults.append(f"{names}: expected one {stem}.* in images/, one in {folder}/")

    def rows(self, path: Path, *needed: str) -> Iterator[tuple[str, dict]]:
        """The rows of a table that have the needed fields, and their places in messages."""
        lines = path.read_text("utf-8-sig", "replace").split("\n")
        require(not any("\ufffd" in line for line in lines), f"{path} is not UTF-8; save it so")
        if is_csv := path.suffix.lower() == ".csv":
            lines = list(csv.reader(lines, delimiter=max(",;\t", key=lines[0].count)))
            columns, lines[0] = [name.strip().lower() for name in lines[0]], []
            if not {*needed} <= {*columns}:
                raise InputError(f"{path} has the columns {columns}; expected {needed}")
        for number, line in enumerate(lines, 1):
            place, row = f"{path}, line {number}", None
            with suppress(ValueError, RecursionError):
                row = dict(zip(columns, line, strict=True)) if is_csv else json.loads(line)
            fields = [row.get(name) for name in needed] if isinstance(row, dict) else [None]
            if all(isinstance(field, str) and field.strip() for field in fields):
                yield place, row
            elif "".join(line).strip():
                advice = "; quote commas" if is_csv else ", in JSON"
                self.faults.append(f"{place}, is no row with {' and '.join(needed)}{advice}")

    def read_coco(self) -> None:
        path = self.path / COCO_FILE if self.path.is_dir() else self.path
        content, tables = read_json(path), []
        for kind in ("images", "categories", "annotations"):
            entries = content.get(kind)
            is_list = isinstance(entries, list) and all(isinstance(e, dict) for e in entries)
            require(is_list, f"{path} has no list of {kind}, as COCO has")
            tables.append({str(e.get("id")): e for e in entries})
            is_unique = len(tables[-1]) == len(entries)
            require(is_unique, f"{path}: several {kind} have one id; expected an id for each")
        images, categories, annotations = tables
        parts = defaultdict(list)
        for id_, entry in annotations.items():
            name = f"{path}: annotation {id_}"
            ids = str(entry.get("image_id")), str(entry.get("category_id"))
            parts[ids].append((name, entry.get("segmentation")))
            if ids[0] not in images or ids[1] not in categories:
                self.faults.append(f"{name}: image and category {ids} are not both listed")
        # Roboflow's first category is the parent of the others, and marks nothing.
        parents = [entry.get("supercategory") for entry in categories.values()]
        used = {category_id for _, category_id in parts}
        for image_id, entry in images.items():
            places = ("", "images", "..", "../images")
            paths = [path.parent / place / str(entry.get("file_name")) for place in places]
            image = next(filter(Path.is_file, paths), paths[0])
            size, other = self.attempt(self.size, image), (entry.get("height"), entry.get("width"))
            if size and size != other:
                self.faults.append(f"{image} is {size}, and in {path} {other} (height, width)")
            for id_, category in categories.items() if size == other else ():
                if id_ in used or category.get("name") not in parents:
                    own, prompts = parts[image_id, id_], wordings(category.get("name"))
                    for part in own:
                        self.attempt(read_coco_mask, [part], size)
                    mask, place = f"the mask of {prompts[:1]} in {image}", f"{path}: category {id_}"
                    read = partial(read_coco_mask, own, size)
                    self.add(image, mask, read, {1: prompts}, place, is_absent=not own)


def read_mask(path: Path, white_level: float | None) -> np.ndarray:
    """A mask's file, (H,W), bool. Raises InputError for more than two values.

    Values of narrow strips, as of soft edges, and the noise of lossy formats do not count.
    """
    levels = mask_levels(path, white_level)
    is_noisy = path.suffix.lower() in LOSSY or len(np.unique(levels)) > 32
    low, high = (32, 223) if is_noisy else (0, 255)
    between = (levels > low) & (levels < high)
    if between.mean() > 0.5 or dilate(between, -3).any():
        raise InputError(f"{path} has more than two values; label maps belong into labels/")
    return levels >= 128


def read_ids(path: Path, known: frozenset[int]) -> np.ndarray:
    """The numbers of a label map, (H,W), also those of a palette. Raises InputError for others."""
    with pillow_errors(str(path)), Image.open(path) as image:
        if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
            raise InputError(f"{path} holds colors ({image.mode}); expected one id for each pixel")
        ids = np.asarray(image)
    unknown = sorted({*np.unique(ids).tolist()} - {0, IGNORED, *known})
    require(not unknown, f"{path} holds ids that have no prompt: {unknown[:9]}")
    return ids


def read_coco_mask(parts: list[tuple[str, Any]], size: tuple[int, int]) -> np.ndarray:
    """The mask of annotations together, (H,W), bool: of names in messages, and segmentations."""
    mask = np.zeros(size, bool)
    for name, segmentation in parts:
        with naming(name):
            # A list of polygons, or an RLE, as of a crowd.
            is_list = isinstance(segmentation, list) and segmentation
            for shape in segmentation if is_list else [segmentation]:
                is_rle = isinstance(shape, dict)
                if is_rle and shape.get("size") != list(size):
                    raise InputError(f"the RLE's size is {shape.get('size')}; expected {size}")
                mask |= run_length_decoding(shape) if is_rle else polygon_mask(shape, size)
    return mask
