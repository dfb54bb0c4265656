"""The files that `clipseg-np segment` writes: images of each prompt, an overview, a label map."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..atomic_files import write_json, written_whole
from ..image.row_blocks import map_row_blocks
from ..masks import connected_components, cut_out, feather, run_length_encoding
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
from ..masks.morphology import Labels
from .job import Job
from .segmentation import Segmentation, checked_threshold


@dataclass(frozen=True)
class PromptResult:
    """One prompt's result: image (height,width,3), cleaned mask and probabilities (height,width)."""

    image: np.ndarray
    mask: np.ndarray
    probabilities: np.ndarray
    feather: float = 0.0

    @property
    def soft_mask(self) -> np.ndarray:
        """The mask, 0 to 1, with its edge feathered."""
        return feather(self.mask, self.feather) if self.feather else self.mask


def prompt_result(image: np.ndarray, result: Segmentation, number: int, job: Job) -> PromptResult:
    """Prompt `number`, from 0, of an image. Raises InputError for a threshold outside 0 to 1."""
    probabilities = result.probability(number)
    mask = job.clean_up(probabilities > checked_threshold(job.threshold))
    return PromptResult(image, mask, probabilities, job.clean_up.feather)


def to_gray(values: np.ndarray) -> Image.Image:
    return Image.fromarray(
        map_row_blocks(lambda rows: np.rint(255 * rows).astype(np.uint8), values)
    )


KINDS: dict[str, Callable[[PromptResult], Image.Image]] = {
    "mask": lambda result: to_gray(result.soft_mask),
    "soft": lambda result: to_gray(result.probabilities),
    "heat": lambda result: Image.fromarray(heat(result.image, result.probabilities, 1)),
    "cutout": lambda result: Image.fromarray(cut_out(result.image, result.soft_mask)),
    "contour": lambda result: Image.fromarray(draw_contour(result.image, result.mask)),
    "highlight": lambda result: Image.fromarray(highlight(result.image, result.mask)),
}


def write_results(
    folder: Path, stem: str, image: np.ndarray, result: Segmentation, job: Job
) -> list[dict]:
    """Write the images of each prompt, the overview and, for `job.labels`, the label map.

    Returns a record of each prompt: `prompt`, `area` in pixels, `share` of the image, `presence`
    (the highest probability), the mask's `box` (None where it is empty), and its `files`' names.
    """
    label_map = Labels(result.size, len(result), 0) if job.labels else None

    def write_prompt(number: int, caption: str) -> tuple[dict, tuple[str, np.ndarray]]:
        """A prompt's record and panel. Returning frees its maps: 400 MB for 100 megapixels."""
        prompt = prompt_result(image, result, number, job)
        name = f"{stem}_{number + 1}_{slug(caption)}"
        files = {k: f"{name}.png" if k == "mask" else f"{name}_{k}.png" for k in job.kinds}
        for kind, file in files.items():
            save_image(folder / file, KINDS[kind](prompt))
        if label_map:
            label_map.add(prompt.probabilities, prompt.mask)
        presence = round(float(prompt.probabilities.max()), 4)
        record = {"prompt": caption, **mask_statistics(prompt.mask), "presence": presence}
        return {**record, "files": [*files.values()]}, (caption, panel(image, prompt.mask))

    records, panels = zip(*(write_prompt(*numbered) for numbered in enumerate(job.captions)))
    save_image(folder / f"{stem}_overlay.png", sheet([("the image", subsample(image)), *panels]))
    if label_map:
        write_labels(folder, stem, image, label_map.map, job.captions)
    return list(records)


def mask_statistics(mask: np.ndarray) -> dict:
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
    """Write a label map (height,width): 0 is background, n the n-th prompt, the likeliest one.

    STEM_labels.png is the map, STEM_legend.png shows it over the image with the names, and
    STEM_labels.json describes each label: its mask as COCO's RLE, "regions" its connected components.
    """
    entries = []
    for number, caption in enumerate(captions, start=1):
        mask = labels == number
        parts = [{"area": r.area, "box": list(r.box)} for r in connected_components(mask)]
        entry = {"number": number, "name": caption, **mask_statistics(mask), "regions": parts}
        entries.append({**entry, "segmentation": run_length_encoding(mask)})
    save_image(folder / f"{stem}_labels.png", palette_image(labels))
    save_image(folder / f"{stem}_legend.png", legend(image, labels, captions))
    height, width = labels.shape
    about = {"height": height, "width": width, "background": 0, "labels": entries}
    write_json(folder / f"{stem}_labels.json", about)


def slug(text: str) -> str:
    """A text as part of a file name: letters and digits, joined by hyphens, at most 40 characters."""
    return re.sub(r"[\W_]+", "-", text).strip("-").lower()[:40] or "prompt"


def save_image(path: Path, image: Image.Image) -> None:
    with written_whole(path) as temporary:
        image.save(temporary, format="PNG")


def text_lines(records: list[dict]) -> str:
    """One line of text a prompt."""
    width = max(len(record["prompt"]) for record in records)
    return "\n".join(
        f"{record['prompt']:<{width}}  area {100 * record['share']:5.1f} %  "
        f"highest probability {record['presence']:.2f}  {' '.join(record['files'])}"
        for record in records
    )


def json_lines(records: list[dict]) -> str:
    """One JSON object a record and line."""
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
