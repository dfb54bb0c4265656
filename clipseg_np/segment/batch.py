"""A folder of images, segmented by any `concurrent.futures.Executor`, on one machine or many.

    with ProcessPoolExecutor() as executor:
        report = run_batch(Job(prompts=("a cat",), output="out"), "photos", executor)

Each image gets a folder of its own under the output folder, written beside it and renamed once it
is complete. Its `record.json` holds a key: a hash of the image, prompts, options and checkpoint. A
second run skips each image whose key is the same. A killed run loses only the images in progress.
The report names each image that fails, with the reason, and the others go on.

One thread computes each image: the bytes of the results do not depend on the number of workers.
"""

import functools
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from ..atomic_files import NOT_UTF8, written_whole
from ..checkpoints.hub import CHECKPOINT_FILES
from ..errors import InputError
from ..image.load_image import load_image
from .job import Job
from .results import KINDS, json_lines, write_results
from .segmentation import checked_threshold
from .segmenter import Query, Segmenter, checkpoint_or_demo, read_prompts
from .visual_prompt import image_prompts

RECORD = "record.json"
REPORT = "report.jsonl"

# Part of every key. It changes with the results, not with the release: a batch that an older
# release began is resumed.
RESULTS_VERSION = "0.1.0"


def images_in(folder: str | os.PathLike, patterns: Sequence[str] = ()) -> list[Path]:
    """A folder's images, sorted, by suffix or by glob patterns. Raises InputError for none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected one with images in it")
    Image.init()  # registers the suffixes of all formats
    suffixes = {suffix for suffix, name in Image.EXTENSION.items() if name in Image.OPEN}
    files = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    images = sorted(path for path in files if not path.name.startswith("."))
    try:
        if patterns:
            images = [path for path in images if any(map(path.match, patterns))]
        else:
            images = [path for path in images if path.suffix.lower() in suffixes]
    except ValueError as error:
        problem = f"--glob {' '.join(map(repr, patterns))}: {error}"
        raise InputError(f"{problem}; expected patterns such as '*.jpg'") from error
    if not images:
        expected = f"that fits {', '.join(patterns)}" if patterns else "by its suffix"
        raise InputError(f"{folder} and its subfolders hold no image {expected}")
    return images


pictures_in = images_in  # its name in 0.1


def run_batch(
    job: Job,
    folder: str | os.PathLike,
    executor: Executor,
    patterns: Sequence[str] = (),
    progress: Callable[[Iterator, int], Iterable] | None = None,
) -> list[dict]:
    """Segment every image in `folder`. Returns a record of each, sorted by name.

    A record holds "image", the path within `folder`, and "prompts", as write_results returns them,
    or the "error". The same records are written to report.jsonl. `progress` gets the iterator over
    the finished images and their number. Raises InputError for a job that cannot be done at all.
    """
    folder, output = Path(folder), os.path.realpath(job.output)
    images = {
        path.relative_to(folder).as_posix(): str(path)
        for path in images_in(folder, patterns)
        if not Path(os.path.realpath(path)).is_relative_to(output)
    }
    if not images:
        raise InputError(f"{folder} holds no image outside of the output folder {job.output}")
    mark = job_mark(job)
    os.makedirs(job.output, exist_ok=True)
    submit = functools.partial(executor.submit, segment_image, job, mark)
    futures = {submit(image, name): name for name, image in images.items()}
    done = ((futures[future], future.result()) for future in as_completed(futures))
    records = dict(done if progress is None else progress(done, len(futures)))
    report = [{"image": name, "picture": name, **records[name]} for name in images]  # 0.1's key
    with written_whole(Path(job.output, REPORT)) as temporary:
        temporary.write_text(json_lines(report) + "\n", "utf-8", errors=NOT_UTF8)
    return report


def job_mark(job: Job) -> str:
    """A hash of all that the results depend on but the image. Raises InputError for a bad job."""
    read_prompts([*job.prompts, *image_prompts(job.image_prompts)])
    unknown = set(job.kinds) - set(KINDS)
    if unknown:
        raise InputError(f"unknown kind {min(unknown)!r} of image; expected {', '.join(KINDS)}")
    checked_threshold(job.threshold)
    options = asdict(job) | {"output": None, "model": None, "version": RESULTS_VERSION}
    if job.white_level is None:
        del options["white_level"]  # 0.1 had no such option
    # As floats: 1 and 1.0 are the same option.
    options["clean_up"] = [float(pixels) for pixels in options["clean_up"].values()]
    hashes = [file_hash(file) for pair in job.image_prompts for file in pair if file]
    path = checkpoint_or_demo(job.model)
    folder = path.parent if path.is_file() else path
    files = sorted(f for pattern in CHECKPOINT_FILES for f in folder.glob(pattern) if f.is_file())
    if path.is_file():
        files = [file for file in files if file.suffix != ".safetensors" or file == path]
    hashes += [f"{file.name} {file_hash(file)}" for file in files]
    return hashlib.sha256(json.dumps([options, hashes], sort_keys=True).encode()).hexdigest()


def file_hash(path: str | os.PathLike) -> str:
    """A file's SHA-256 in hexadecimal. Raises InputError for a folder, a device or a pipe."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path} is a folder, a device or a pipe; expected a file")
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
    return sha256.hexdigest()


def segment_image(job: Job, mark: str, image: str, name: str) -> dict:
    """A worker's task. Returns {"prompts": ...}, new or of an earlier run, or {"error": ...}."""
    folder = Path(job.output, name)
    try:
        key = f"{mark} {name} {file_hash(image)}".encode(errors=NOT_UTF8)
        key = hashlib.sha256(key).hexdigest()
        return {"prompts": stored_prompts(folder, key) or write_image(job, image, folder, key)}
    except Exception as error:  # noqa: BLE001  (one bad image must not stop the others)
        shutil.rmtree(folder, ignore_errors=True)  # it may hold results of an earlier image
        expected = isinstance(error, (InputError, OSError))
        return {"error": str(error) if expected else f"{type(error).__name__}: {error}"}


def stored_prompts(folder: Path, key: str) -> list[dict] | None:
    """The prompts' records of an earlier run with the same key whose files are all there."""
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
        complete = all((folder / file).is_file() for file in record["files"])
        prompts = record["prompts"] if complete and record["key"] == key else None
        return prompts if isinstance(prompts, list) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def write_image(job: Job, image: str, folder: Path, key: str) -> list[dict]:
    """Segment an image and write its folder whole. Returns the prompts' records."""
    pixels = load_image(image, white_level=job.white_level, keep_alpha=True)
    prompts = job.prompts, job.image_prompts, job.white_level
    with _loading:
        segmenter, query = _loaded(job.model, job.backend, *prompts)
    result = segmenter.combine(pixels, query, scales=job.scales, input_data_format="channels_last")
    part = folder.with_name(f".{folder.name}.part")  # a killed run may have left one
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    prompts = write_results(part, Path(image).stem, pixels, result, job)
    files = sorted(file.name for file in part.iterdir())
    record = json.dumps({"key": key, "prompts": prompts, "files": files}, ensure_ascii=False)
    (part / RECORD).write_text(record, "utf-8", errors=NOT_UTF8)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    return prompts


_loading = threading.Lock()


@functools.lru_cache(maxsize=1)
def _loaded(model, backend, prompts, pairs, white_level) -> tuple[Segmenter, Query]:
    """The model and the embedded prompts: made once in a process, however many threads ask."""
    segmenter = Segmenter.from_pretrained(model, backend=backend, threads=1)
    return segmenter, segmenter.prepare([*prompts, *image_prompts(pairs)], white_level)
