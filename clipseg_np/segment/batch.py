"""A folder of images, segmented by any `concurrent.futures.Executor`: threads, processes, or another machine's.

    with ProcessPoolExecutor() as executor:
        report = run_batch(Job(prompts=("a cat",), output="out"), images_in("photos"), executor)

Each image gets a folder of its own under the output folder, written beside it and renamed when it is whole, with a
`record.json` that holds the key of what made it: image, prompts, options, checkpoint. A second run leaves alone what
has the same key; a killed one loses no more than the images it was at. An image that fails is in the report with its
reason, and the others go on.

Each image is computed by one thread, however many workers there are: the bytes of the results do not depend on that.
"""

import functools
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path

from PIL import Image

from ..atomic_files import NOT_UTF8, written_whole
from ..checkpoints.hub import CHECKPOINT_FILES
from ..checkpoints.locate import checkpoint_path, demo_folder
from ..errors import InputError
from ..image.load_image import load_image
from ..version import __version__
from .prompt_algebra import parse
from .results import KINDS, CleanUp, write_results
from .segmentation import checked_threshold
from .segmenter import Query, Segmenter
from .visual_prompt import VisualPrompt

RECORD = "record.json"
REPORT = "report.jsonl"


@dataclass(frozen=True)
class Job:
    """What is to be done with each image: the same for all, and small enough to be sent to each worker.

    `prompts` are texts and expressions; `image_prompts` pairs of an image's path and its mask's, or None. Paths must
    mean the same wherever a worker runs.
    """

    prompts: tuple[str, ...]
    output: str
    model: str | None = None
    image_prompts: tuple[tuple[str, str | None], ...] = ()
    kinds: tuple[str, ...] = ("mask",)
    threshold: float = 0.5
    clean_up: CleanUp = field(default_factory=CleanUp)
    labels: bool = False
    backend: str = "numpy"
    scales: tuple[int, ...] = (1,)

    @property
    def captions(self) -> list[str]:
        return [*self.prompts, *(Path(image).name for image, _ in self.image_prompts)]


def images_in(folder: str | os.PathLike, patterns: Iterable[str] = ()) -> list[Path]:
    """The images of a folder and of those inside it, in order of their names; by suffix, or by glob patterns.

    Raises InputError where there is none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected one with images in it")
    Image.init()  # fills in the suffixes of all formats
    suffixes = {suffix for suffix, name in Image.EXTENSION.items() if name in Image.OPEN}
    found = [
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if not name.startswith(".")
        and (
            any(fits(Path(parent, name), pattern) for pattern in patterns)
            if patterns
            else Path(name).suffix.lower() in suffixes
        )
    ]
    if not found:
        wanted = f"that fits {', '.join(patterns)}" if patterns else "by its suffix"
        raise InputError(f"{folder} holds no image {wanted}, and no folder inside it does")
    return sorted(found)


pictures_in = images_in  # its name in 0.1


def fits(path: Path, pattern: str) -> bool:
    try:
        return path.match(pattern)
    except ValueError as error:
        raise InputError(f"--glob {pattern!r}: {error}; expected one such as '*.jpg'") from error


def run_batch(
    job: Job,
    folder: str | os.PathLike,
    executor: Executor,
    patterns: Iterable[str] = (),
    progress: Callable[[Iterator, int], Iterable] | None = None,
) -> list[dict]:
    """Segment every image in `folder`. Returns, and writes to report.jsonl, a record for each, in order of their names.

    A record holds the "image" (its path within the folder) and "prompts", what results.write_results says of each; or,
    where it failed, the "error". `progress` is shown the records as they come, with their number.
    Raises InputError for a job that cannot be done at all.
    """
    folder, output = Path(folder), Path(job.output)
    made = os.path.join(os.path.realpath(output), "")
    images = [p for p in images_in(folder, patterns) if not os.path.realpath(p).startswith(made)]
    if not images:
        raise InputError(f"{folder} holds no image outside of the output folder {output}")
    mark = job_mark(job)
    output.mkdir(parents=True, exist_ok=True)
    names = [image.relative_to(folder).as_posix() for image in images]
    futures = {
        executor.submit(one_image, job, mark, str(image), name): name
        for image, name in zip(images, names)
    }
    done = ((futures[future], future.result()) for future in as_completed(futures))
    records = dict(done if progress is None else progress(done, len(futures)))
    report = [{"image": name, "picture": name, **records[name]} for name in names]  # 0.1's key
    with written_whole(output / REPORT) as temporary:
        temporary.write_text(
            "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in report),
            "utf-8",
            errors=NOT_UTF8,
        )
    return report


def job_mark(job: Job) -> str:
    """What the results depend on besides the image, as a hash. Raises InputError for a job that cannot be done."""
    if not job.captions:
        raise InputError("there is no prompt: give at least one text or image")
    unknown = set(job.kinds) - set(KINDS)
    if unknown:
        raise InputError(f"unknown kind {min(unknown)!r} of image; expected {', '.join(KINDS)}")
    for prompt in job.prompts:
        parse(prompt)
    checked_threshold(job.threshold)
    said = asdict(job) | {"output": None, "model": None, "version": __version__}
    said["clean_up"] = [float(number) for number in said["clean_up"].values()]  # 1 and 1.0 are one
    hashes = [file_hash(file) for pair in job.image_prompts for file in pair if file]
    path = demo_folder() if job.model is None else checkpoint_path(job.model)
    folder = path.parent if path.is_file() else path
    files = {f for pattern in CHECKPOINT_FILES for f in folder.glob(pattern) if f.is_file()}
    if path.is_file():
        files = {file for file in files if file.suffix != ".safetensors"} | {path}
    hashes += [f"{file.name} {file_hash(file)}" for file in sorted(files)]
    return hashlib.sha256(json.dumps([said, hashes], sort_keys=True).encode()).hexdigest()


def file_hash(path: str | os.PathLike) -> str:
    hashed = hashlib.sha256()
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path} is a folder, a device or a pipe; expected a file")
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            hashed.update(block)
    return hashed.hexdigest()


def one_image(job: Job, mark: str, image: str, name: str) -> dict:
    """A worker's part: segment one image, unless that is done. Returns {"prompts": ...} or {"error": ...}."""
    place = Path(job.output, name)
    try:
        key = hashlib.sha256(f"{mark} {name} {file_hash(image)}".encode(errors=NOT_UTF8))
        key = key.hexdigest()
        record = finished(place, key)
        if record is None:
            record = {"key": key, "prompts": segmented(job, image, place, key)}
        return {"prompts": record["prompts"]}
    except Exception as error:  # noqa: BLE001  (one bad image of thousands must not stop the others)
        shutil.rmtree(place, ignore_errors=True)  # what an earlier run made of another image
        if isinstance(error, (InputError, OSError)):
            return {"error": str(error)}
        return {"error": f"{type(error).__name__}: {error}"}


def finished(place: Path, key: str) -> dict | None:
    """The record of an image that is done: made by the same key, and none of its files missing."""
    try:
        record = json.loads((place / RECORD).read_text("utf-8"))
        done = record["key"] == key and all((place / file).is_file() for file in record["files"])
        return record if done and isinstance(record["prompts"], list) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def segmented(job: Job, image: str, place: Path, key: str) -> list[dict]:
    """Write an image's folder. It has its name only when all is in it."""
    pixels = load_image(image)
    segmenter, query = worker(job)
    result = segmenter.combine(pixels, query, scales=job.scales, input_data_format="channels_last")
    part = place.with_name(f".{place.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    part.mkdir(parents=True)
    said = write_results(
        part,
        Path(image).stem,
        pixels,
        result,
        job.captions,
        list(job.kinds),
        job.threshold,
        job.clean_up,
        job.labels,
    )
    for one in said:
        one["files"] = [Path(file).name for file in one["files"]]
    record = {"key": key, "prompts": said, "files": sorted(file.name for file in part.iterdir())}
    (part / RECORD).write_text(json.dumps(record, ensure_ascii=False), "utf-8", errors=NOT_UTF8)
    shutil.rmtree(place, ignore_errors=True)
    os.replace(part, place)
    return said


_loading = threading.Lock()


def worker(job: Job) -> tuple[Segmenter, Query]:
    """The model and the embedded prompts, made once in each process, however many threads ask."""
    with _loading:
        return _loaded(job.model, job.backend, job.prompts, job.image_prompts)


@functools.lru_cache(maxsize=1)
def _loaded(model, backend, prompts, image_prompts) -> tuple[Segmenter, Query]:
    segmenter = Segmenter.from_pretrained(model, backend=backend, threads=1)
    images = [
        VisualPrompt(Path(image), Path(mask)) if mask else Path(image)
        for image, mask in image_prompts
    ]
    return segmenter, segmenter.prepare([*prompts, *images])
