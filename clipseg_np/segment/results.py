"""What `clipseg-np segment` leaves in a folder: images of several kinds for each prompt, a sheet, and a map of labels."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..atomic_files import write_json, written_whole
from ..image.row_blocks import map_row_blocks
from ..masks.draw import (
    draw_contour,
    heat,
    highlight,
    legend,
    palette_image,
    panel,
    sheet,
    subsample,
)
from ..masks.morphology import (
    Labels,
    connected_components,
    cut_out,
    dilate,
    feather,
    remove_small_components,
    run_length_encoding,
)
from .segmentation import Segmentation, checked_threshold


@dataclass(frozen=True)
class CleanUp:
    """What is done to a mask, in this order: `smallest` region kept, then `grow` (or shrink) and `feather`, in pixels."""

    smallest: int = 0
    grow: float = 0.0
    feather: float = 0.0

    def __call__(self, mask: np.ndarray) -> np.ndarray:
        if self.smallest:
            mask = remove_small_components(mask, self.smallest)
        if self.grow:
            mask = dilate(mask, self.grow)
        return mask


@dataclass(frozen=True)
class Found:
    """One prompt's answer: the image, the mask, cleaned up, and the map of probabilities."""

    image: np.ndarray
    mask: np.ndarray
    probabilities: np.ndarray
    feather: float = 0.0

    @property
    def soft(self) -> np.ndarray:
        """The mask, 0 to 1, with its edge feathered where that was asked for."""
        return feather(self.mask, self.feather) if self.feather else self.mask


def grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(
        map_row_blocks(lambda rows: np.rint(255 * rows).astype(np.uint8), values)
    )


# The kinds of image, by name: the mask, white on black; how likely each pixel is; that as a heat map over the
# image; the image without its surroundings; the image with the mask's rim; and with the rest in dark grey.
KINDS: dict[str, Callable[[Found], Image.Image]] = {
    "mask": lambda found: grey(found.soft),
    "soft": lambda found: grey(found.probabilities),
    "heat": lambda found: Image.fromarray(heat(found.image, found.probabilities, 1)),
    "cutout": lambda found: Image.fromarray(cut_out(found.image, found.soft)),
    "contour": lambda found: Image.fromarray(draw_contour(found.image, found.mask)),
    "highlight": lambda found: Image.fromarray(highlight(found.image, found.mask)),
}


def write_results(
    folder: Path,
    stem: str,
    image: np.ndarray,
    result: Segmentation,
    captions: list[str],
    kinds: list[str],
    threshold: float = 0.5,
    clean_up: CleanUp = CleanUp(),
    labels: bool = False,
) -> list[dict]:
    """Write all that is asked for. Returns, for each prompt, what to say of it.

    That is its `prompt`, `area` in pixels, `share` of the image, `presence` (the highest probability), the mask's `box`
    (None where it is empty), and its `files`.
    """
    checked_threshold(threshold)
    labels_of_all = Labels(result.size, len(result), 0) if labels else None

    def write_one(number: int, caption: str) -> tuple[dict, tuple[str, np.ndarray]]:
        """What is said of a prompt, and its panel. Its map is let go of before the next: a large one takes 400 MB."""
        probabilities = result.probability(number)
        mask = clean_up(probabilities > threshold)
        found = Found(image, mask, probabilities, clean_up.feather)
        name = f"{stem}_{number + 1}_{slug(caption)}"
        files = {k: folder / (f"{name}.png" if k == "mask" else f"{name}_{k}.png") for k in kinds}
        for kind, file in files.items():
            save_image(file, KINDS[kind](found))
        if labels_of_all:
            labels_of_all.add(probabilities, mask)
        presence = round(float(probabilities.max()), 4)
        said = {"prompt": caption, **facts(mask), "presence": presence}
        said["files"] = [str(file) for file in files.values()]
        return said, (caption, panel(image, mask))

    said, panels = zip(*(write_one(number, caption) for number, caption in enumerate(captions)))
    save_image(folder / f"{stem}_overlay.png", sheet([("the image", subsample(image)), *panels]))
    if labels_of_all:
        write_labels(folder, stem, image, labels_of_all.map, captions)
    return list(said)


def facts(mask: np.ndarray) -> dict:
    """A mask's area, share of the image, and box (left, top, right, bottom; the ends excluded)."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    ends = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if len(rows) else ()
    return {
        "area": int(mask.sum()),
        "share": round(float(mask.mean()), 6),
        "box": [int(end) for end in ends] or None,
    }


def write_labels(
    folder: Path, stem: str, image: np.ndarray, labels: np.ndarray, captions: list[str]
) -> None:
    """STEM_labels.png, each pixel the number of its likeliest prompt, and STEM_labels.json, which tells what is where.

    And to look at, STEM_legend.png: the labels in their colours over the image, with their names. A label's mask is
    in COCO's form; "regions" are its connected parts.
    """
    entries = []
    for number, caption in enumerate(captions, start=1):
        mask = labels == number
        parts = [{"area": r.area, "box": list(r.box)} for r in connected_components(mask)]
        entry = {"number": number, "name": caption, **facts(mask), "regions": parts}
        entries.append({**entry, "segmentation": run_length_encoding(mask)})
    save_image(folder / f"{stem}_labels.png", palette_image(labels))
    save_image(folder / f"{stem}_legend.png", legend(image, labels, captions))
    height, width = labels.shape
    about = {"height": height, "width": width, "background": 0, "labels": entries}
    write_json(folder / f"{stem}_labels.json", about)


def slug(text: str) -> str:
    """A text as part of a file's name: letters and digits of any script, joined by hyphens, at most 40."""
    return re.sub(r"[\W_]+", "-", text).strip("-").lower()[:40] or "prompt"


def save_image(path: Path, image: Image.Image) -> None:
    with written_whole(path) as temporary:
        image.save(temporary, format="PNG")


def as_lines(said: list[dict]) -> str:
    """For reading, one line a prompt."""
    width = max(len(one["prompt"]) for one in said)
    return "\n".join(
        f"{one['prompt']:<{width}}  area {100 * one['share']:5.1f} %  highest probability {one['presence']:.2f}  "
        f"{' '.join(one['files'])}"
        for one in said
    )


def as_json_lines(said: list[dict]) -> str:
    """For scripts, one JSON object a prompt."""
    return "\n".join(json.dumps(one, ensure_ascii=False) for one in said)
