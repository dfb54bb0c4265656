"""COCO's annotations, one file for all images of a run: https://cocodataset.org/#format-data.

Each prompt is a category, and its mask in an image is one annotation, unless it is empty.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from ..atomic_files import written_together
from ..image.load_image import load_image
from ..masks.morphology import mask_statistics, run_length_encoding
from .batch import JOB, file_hash, read_record
from .job import Job
from .results import check_replaced


def coco_dataset(captions: Iterable[str], images: Iterable[tuple], about: str = "") -> dict:
    """The dataset of pairs of an image's name and masks: one for each caption, (height,width) bool.

    Ids begin with 1; boxes are (left, top, width, height). `about` is added to the description.
    """
    entries, annotations = [], []
    for image_id, (name, masks) in enumerate(images, 1):
        for category_id, mask in enumerate(masks, 1):
            (height, width), about_mask = mask.shape, mask_statistics(mask)
            if about_mask["area"]:
                left, top, right, bottom = about_mask["box"]
                annotation = {"id": len(annotations) + 1, "image_id": image_id, "iscrowd": 0}
                annotation |= {"category_id": category_id, "area": about_mask["area"]}
                annotation["bbox"] = [left, top, right - left, bottom - top]
                annotations.append({**annotation, "segmentation": run_length_encoding(mask)})
        entries.append({"id": image_id, "file_name": name, "height": height, "width": width})
    info = {"description": f"Masks by clipseg_np {about}".strip()}
    lists = {"images": entries, "annotations": annotations, "licenses": []}
    names = [{"id": number, "name": name} for number, name in enumerate(captions, 1)]
    return {"info": info, **lists, "categories": names}


def write_coco(path: str | os.PathLike, job: Job, report: list[dict], is_batch: bool) -> None:
    """Write the dataset of a report's images from their masks; of soft edges, the inner half.

    Raises InputError where another file would be replaced unasked; the same batch's may be.
    """
    path, images, kind = Path(path), [], job.kinds.index("mask")
    for record in (record for record in report if "prompts" in record):
        folder = Path(job.output, "" if job.flat else record["image"]) if is_batch else Path()
        files = [folder / prompt["files"][kind] for prompt in record["prompts"]]
        images.append((record["image"], (load_image(file)[..., 0] > 127 for file in files)))
    about = file_hash(Path(job.output, JOB))[:11] if is_batch else ""
    dataset = coco_dataset(job.captions, images, about)
    is_older = is_batch and (read_record(path) or {}).get("info") == dataset["info"]
    with written_together(path.parent) as part:
        (part / path.name).write_text(json.dumps(dataset), "utf-8")
        check_replaced(part, path.parent, job.overwrite or is_older, "--coco")
