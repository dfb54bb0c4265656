"""The files of one image's result: images of each prompt, an overview, a label map."""

import json
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import regex
from PIL import Image, PngImagePlugin

from ..atomic_files import digest, is_other_file, write_json, written_together, written_whole
from ..errors import InputError
from ..image.load_image import load_image
from ..image.plugins import has_image_suffix
from ..image.row_blocks import join_row_blocks, map_row_blocks
from ..masks import connected_components, cut_out, draw, run_length_encoding
from ..masks.morphology import Labels, mask_statistics
from .job import CleanUp, Job
from .segmentation import Segmentation, checked_threshold

MAX_NAME = 255  # bytes of a file's name
# The metadata of each image that is written.
SOFTWARE = PngImagePlugin.PngInfo()
SOFTWARE.add_text("Software", "clipseg_np")


def result_stems(images: Iterable[str], job: Job) -> list[str]:
    """The beginning of the names of each image's results, each unlike the others.

    It is the image's name without suffix; where several would be equal, with its suffix, then with
    its folder, then with a hash. It is cut where the results' names would be too long.
    """
    paths = [Path(image) for image in images]
    stems = [path.stem for path in paths]
    for form in (
        lambda path: path.name,
        lambda path: f"{path.parent.name}_{path.name}".lstrip("_."),
        lambda path: f"{path.stem}-{digest(str(path))}",
    ):
        same = [unicodedata.normalize("NFC", stem).casefold() for stem in stems]
        counts = Counter(same)
        stems = [form(path) if counts[s] > 1 else stem for path, stem, s in zip(paths, stems, same)]
    tail = max((len(f"_{n}_{slug(c)}".encode()) for n, c in enumerate(job.captions, 1)), default=0)
    return [fit(stem, MAX_NAME - tail - len("_highlight.png")) for stem in stems]


def fit(name: str, room: int) -> str:
    """The name, cut to at most `room` bytes; a hash keeps it unlike others."""
    data = os.fsencode(name)
    return (
        name if len(data) <= room else f"{data[: room - 12].decode(errors='ignore')}-{digest(name)}"
    )


def to_gray(values: np.ndarray) -> np.ndarray:
    return map_row_blocks(lambda rows: np.rint(255 * rows).astype(np.uint8), values)


# The images to write, (height,width) or (height,width,channels), bytes. `probabilities` returns
# those of a slice of the rows: all of 12 megapixels would take 48 MB.
Kind = Callable[[np.ndarray, np.ndarray, Callable[[slice], np.ndarray], CleanUp], np.ndarray]
KINDS: dict[str, Kind] = {
    "mask": lambda image, mask, probabilities, clean_up: to_gray(clean_up.soften(mask)),
    "soft": lambda image, mask, probabilities, clean_up: join_row_blocks(
        lambda rows: to_gray(probabilities(rows)), mask.shape
    ),
    "heat": lambda image, mask, probabilities, clean_up: join_row_blocks(
        lambda rows: draw.heat(image[rows], probabilities(rows), 1), mask.shape
    ),
    "cutout": lambda image, mask, probabilities, clean_up: cut_out(image, clean_up.soften(mask)),
    "contour": lambda image, mask, probabilities, clean_up: draw.draw_contour(image, mask),
    "highlight": lambda image, mask, probabilities, clean_up: draw.highlight(image, mask),
}


def write_results(
    folder: Path, stem: str, image: np.ndarray, result: Segmentation, job: Job
) -> list[dict]:
    """Write the images of each prompt and, if the job says so, an overlay and a label map.

    image: (height,width,3), or 4 with alpha, which only the cutout keeps; uint8.
    Returns a record of each prompt: `prompt`, `area` in pixels, `share` of the image, the mask's
    `box` (None where it is empty), `presence` (the highest probability), and the names of its
    `files`. Raises InputError for a threshold outside 0 to 1.
    """
    shown = image if image.shape[2] == 3 else load_image(image, "channels_last")
    label_map = Labels(result.size, len(result), 0) if job.labels else None
    threshold = checked_threshold(job.threshold)

    def write_prompt(number: int, caption: str) -> dict:
        """Returns a prompt's record, adds its panel, and frees its mask."""
        highest, probabilities = [], partial(result.probability_of_rows, number)

        def above_threshold(rows: slice) -> np.ndarray:
            block = probabilities(rows)
            highest.append(block.max())
            return block > threshold

        mask = job.clean_up(join_row_blocks(above_threshold, result.size))
        name = f"{stem}_{number + 1}_{slug(caption)}"
        files = {k: f"{name}.png" if k == "mask" else f"{name}_{k}.png" for k in job.kinds}
        for kind, file in files.items():
            drawn = image if kind == "cutout" else shown
            # Without a name, the pixels are freed before the file is written.
            written = Image.fromarray(KINDS[kind](drawn, mask, probabilities, job.clean_up))
            save_image(folder / file, written)
        if label_map:
            label_map.add(result.probability(number), mask)
        record = {"prompt": caption, **mask_statistics(mask)}
        record["presence"] = round(float(np.max(highest)), 4)
        if job.overlay:
            panels.append((caption, draw.panel(shown, mask)))
        return {**record, "files": list(files.values())}

    panels = [("the image", draw.subsample(shown))]
    records = [write_prompt(*numbered) for numbered in enumerate(job.captions)]
    if job.overlay:
        save_image(folder / f"{stem}_overlay.png", draw.sheet(panels))
    if label_map:
        write_labels(folder, stem, shown, label_map.map, job.captions)
    return records


def write_unlike_others(
    stem: str, image: np.ndarray, result: Segmentation, job: Job, file: str | None
) -> tuple[list[dict], Path]:
    """Write an image's results into the job's folder, the only one by the name `file` if given.

    Returns the prompts' records and the overlay's path. An overlay of other prompts keeps its name.
    """
    folder = Path(job.output)
    with written_together(folder) as part:
        records = write_results(part, stem, image, result, job)
        sheet = part / f"{stem}_overlay.png"
        if job.overlay and not job.overwrite:
            sheet = free_name(sheet, folder)
        if file:
            (part / records[0]["files"][0]).rename(part / file)
            records[0]["files"] = [file]
        check_replaced(part, folder, job.overwrite)
    for record in records:
        record["files"] = [str(folder / name) for name in record["files"]]
    return records, folder / sheet.name


def check_replaced(part: Path, folder: Path, overwrite: bool, option: str = "--output") -> None:
    """Raise InputError where `folder` has other files of the same names; warn if they may go.

    Images that are no results may never go: one may be the input.
    """
    replaced = [str(folder / f.name) for f in part.iterdir() if is_other_file(f, folder / f.name)]
    images = [name for name in replaced if name.endswith(".png") and not is_result(name)]
    if images:
        raise InputError(f"{min(images)} is there already, and is no result: name another {option}")
    if replaced and not overwrite:
        raise InputError(
            f"{min(replaced)} is there already, and the new one is not the same; name another "
            f"{option}, or replace it with --overwrite"
        )
    if replaced:
        warnings.warn(f"replaced {', '.join(sorted(replaced))}", stacklevel=2)


def free_name(file: Path, folder: Path) -> Path:
    """Rename a file, a.png to a_2.png and so on, until no other file in `folder` has its name."""
    stem, number = file.stem, 1
    while is_other_file(file, folder / file.name):
        number += 1
        file = file.rename(file.with_stem(f"{stem}_{number}"))
    return file


def output_place(name: str, single: bool = False) -> tuple[Path, str | None]:
    """The folder of results, which need not be there yet, and the file's name if it is one."""
    path = Path(name)
    if not name:
        raise InputError("--output is empty; expected a folder")
    if has_image_suffix(path.name) and not path.is_dir():
        if single and name.lower().endswith(".png"):
            return path.parent, path.name
        raise InputError(
            f"--output {name} has an image's suffix; expected a folder, or NAME.png for one image, "
            f"one prompt and one kind of image"
        )
    if path.exists() and not path.is_dir():
        raise InputError(f"--output {name} is a file; expected a folder")
    return path, None


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
    """A text as part of a file name: letters, marks on them, digits and hyphens, at most 40."""
    text = unicodedata.normalize("NFC", text).lower()
    return regex.sub(r"[^\p{L}\p{M}\p{N}]+", "-", text).strip("-")[:40] or "prompt"


def save_image(path: Path, image: Image.Image) -> None:
    with written_whole(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=SOFTWARE)


def is_result(path: str | os.PathLike) -> bool:
    """Whether this file is an image that `save_image` wrote."""
    if not os.path.isfile(path):  # reading a pipe would wait
        return False
    try:
        with open(path, "rb") as file:
            return SOFTWARE.chunks[0][1] in file.read(100)
    except OSError:
        return False


def text_lines(records: list[dict]) -> list[str]:
    """One line of text a prompt."""
    width = max(len(record["prompt"]) for record in records)
    return [
        f"{record['prompt']:<{width}}  area {100 * record['share']:5.1f} %  "
        f"highest probability {record['presence']:.2f}  {' '.join(record['files'])}"
        for record in records
    ]


def json_lines(records: list[dict], **options) -> str:
    """One JSON object a record and line, in ASCII unless json.dumps' options say otherwise."""
    return "\n".join(json.dumps(record, **options) for record in records)
