"""The files that `clipseg-np segment` writes: images of each prompt, an overview, a label map."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ..atomic_files import write_json, written_whole
from ..image.load_image import load_image
from ..image.row_blocks import map_row_blocks
from ..masks import connected_components, cut_out, draw, run_length_encoding
from ..masks.morphology import Labels
from .job import CleanUp, Job
from .segmentation import Segmentation, checked_threshold


def prompt_maps(result: Segmentation, number: int, job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Prompt `number`'s cleaned mask and its probabilities, (height,width) each."""
    probabilities = result.probability(number)
    return job.clean_up(probabilities > checked_threshold(job.threshold)), probabilities


def to_gray(values: np.ndarray) -> np.ndarray:
    return map_row_blocks(lambda rows: np.rint(255 * rows).astype(np.uint8), values)


# The images to write, (height,width) or (height,width,channels), bytes.
KINDS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, CleanUp], np.ndarray]] = {
    "mask": lambda image, mask, probabilities, clean_up: to_gray(clean_up.soften(mask)),
    "soft": lambda image, mask, probabilities, clean_up: to_gray(probabilities),
    "heat": lambda image, mask, probabilities, clean_up: draw.heat(image, probabilities, 1),
    "cutout": lambda image, mask, probabilities, clean_up: cut_out(image, clean_up.soften(mask)),
    "contour": lambda image, mask, probabilities, clean_up: draw.draw_contour(image, mask),
    "highlight": lambda image, mask, probabilities, clean_up: draw.highlight(image, mask),
}


def write_results(
    folder: Path, stem: str, image: np.ndarray, result: Segmentation, job: Job
) -> list[dict]:
    """Write the images of each prompt, the overview and, for `job.labels`, the label map.

    image: (height,width,3), or 4 with alpha, which only the cutout keeps; uint8.
    Returns a record of each prompt: `prompt`, `area` in pixels, `share` of the image, the mask's
    `box` (None where it is empty), `presence` (the highest probability), and the names of its
    `files`. Raises InputError for a threshold outside 0 to 1.
    """
    shown = image if image.shape[2] == 3 else load_image(image, "channels_last")
    label_map = Labels(result.size, len(result), 0) if job.labels else None

    def write_prompt(number: int, caption: str) -> tuple[dict, tuple[str, np.ndarray]]:
        """A prompt's record and panel. Returning frees its maps: 400 MB for 100 megapixels."""
        mask, probabilities = prompt_maps(result, number, job)
        name = f"{stem}_{number + 1}_{slug(caption)}"
        files = {k: f"{name}.png" if k == "mask" else f"{name}_{k}.png" for k in job.kinds}
        for kind, file in files.items():
            drawn = image if kind == "cutout" else shown
            pixels = KINDS[kind](drawn, mask, probabilities, job.clean_up)
            save_image(folder / file, Image.fromarray(pixels))
        if label_map:
            label_map.add(probabilities, mask)
        record = {"prompt": caption, **mask_statistics(mask)}
        record["presence"] = round(float(probabilities.max()), 4)
        record["files"] = list(files.values())
        return record, (caption, draw.panel(shown, mask))

    records, panels = zip(*(write_prompt(*numbered) for numbered in enumerate(job.captions)))
    panels = [("the image", draw.subsample(shown)), *panels]
    save_image(folder / f"{stem}_overlay.png", draw.sheet(panels))
    if label_map:
        write_labels(folder, stem, shown, label_map.map, job.captions)
    return list(records)


def mask_statistics(mask: np.ndarray) -> dict:
    """A mask's area, share of the image, and box (left, top, right, bottom; the ends excluded)."""
    box = Image.fromarray(mask.view(np.uint8)).getbbox()
    share = round(float(mask.mean()), 6)
    return {"area": int(mask.sum()), "share": share, "box": box and list(box)}


def write_labels(
    folder: Path, stem: str, image: np.ndarray, labels: np.ndarray, captions: list[str]
) -> None:
    """Write a label map (height,width), 0 for the background and n for prompt n, counted from 1.

    STEM_labels.png is the map, STEM_legend.png shows it over the image. STEM_labels.json describes
    each label: "segmentation" is its mask as COCO's RLE, "regions" its connected components.
    """
    entries = []
    for number, caption in enumerate(captions, start=1):
        mask = labels == number
        parts = [{"area": r.area, "box": list(r.box)} for r in connected_components(mask)]
        entry = {"number": number, "name": caption, **mask_statistics(mask), "regions": parts}
        entries.append({**entry, "segmentation": run_length_encoding(mask)})
    save_image(folder / f"{stem}_labels.png", draw.palette_image(labels))
    save_image(folder / f"{stem}_legend.png", draw.legend(image, labels, captions))
    height, width = labels.shape
    about = {"height": height, "width": width, "background": 0, "labels": entries}
    write_json(folder / f"{stem}_labels.json", about)


def slug(text: str) -> str:
    """A text as part of a file name: letters, digits and hyphens, at most 40."""
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
