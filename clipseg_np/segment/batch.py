"""A folder of images, segmented by any `concurrent.futures.Executor`, on one machine or many.

    with WorkerProcesses(4) as executor:
        report = run_batch(Job(prompts=("a cat",), output="out"), "photos", executor)

Each image gets a folder of its own under the output folder, written beside it and renamed once it
is complete. Its `record.json` holds a key: a hash of the image, prompts, options and checkpoint. A
second run skips each image whose key is the same. A killed run loses only the images in progress.
In the flat layout, results lie side by side in the output folder, and the records in `.records`.
The report names each image that fails, with the reason, and the others go on. It gets a line for
each image that is done, and is sorted at the end.

An output folder belongs to one job, which its `clipseg_np.json` describes. The results of another
job or of other images are replaced only where `Job.overwrite` says so, and other files never.

One thread computes each image: the bytes of the results do not depend on the number of workers.
"""

import errno
import functools
import hashlib
import json
import os
import re
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path

from ..atomic_files import (
    NOT_UTF8,
    folder_replaced,
    is_other_file,
    part_of,
    remove_folder,
    write_json,
    written_whole,
)
from ..checkpoints.hub import CHECKPOINT_FILES
from ..errors import InputError
from ..image.load_image import load_image
from ..image.plugins import image_suffixes
from .job import Job
from .results import KINDS, is_result, json_lines, result_stems, write_results
from .segmentation import checked_threshold
from .segmenter import Query, Segmenter, checkpoint_or_demo, read_prompts
from .visual_prompt import image_prompts

RECORD = "record.json"
REPORT = "report.jsonl"
JOB = "clipseg_np.json"
FLAT_RECORDS = ".records"
NOT_DONE = "not segmented: the batch was stopped; the same command or call goes on"
# Hidden files and folders, and those of macOS, network storage and Windows.
NOT_IMAGES = re.compile(r"\.|(__MACOSX|@eaDir|#recycle|@Recycle|\$RECYCLE\.BIN)$")
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

# Part of every key. It changes with the results, not with the release: a batch that an older
# release began is resumed.
RESULTS_VERSION = "0.1.0"


def images_in(folder: str | os.PathLike, patterns: Sequence[str] = ()) -> list[Path]:
    """A folder's images, sorted, by suffix or by glob patterns. Raises InputError for none.

    What is hidden is passed over, and what systems keep beside images. Warns of a folder that
    cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected one with images in it")
    suffixes, images = image_suffixes(), []

    def warn(error: OSError) -> None:
        warnings.warn(f"{error.filename} is left out: {error.strerror}", stacklevel=4)

    for parent, folders, names in os.walk(folder, onerror=warn):
        folders[:] = [name for name in folders if not NOT_IMAGES.match(name)]
        images += [Path(parent, name) for name in names if not NOT_IMAGES.match(name)]
    images.sort()
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
    executor: Executor | None = None,
    patterns: Sequence[str] = (),
    progress: Callable[[Iterator, int], Iterable] | None = None,
) -> list[dict]:
    """Segment every image in `folder`. Returns a record of each, sorted by name.

    A record holds "image", the path within `folder`, and "prompts", as write_results returns them,
    or the "error". The same records are written to report.jsonl. Without an executor, this thread
    does all. `progress` gets an iterator over each image's name and record, in which "new" is False
    where an earlier run has done it, and their number.
    Raises InputError for a job that cannot be done at all, and OSError where the disk is full.
    After that or Ctrl-C, the executor is shut down, and the report names the images that are left.
    """
    folder, output = Path(folder), os.path.realpath(job.output)
    images = {
        path.relative_to(folder).as_posix(): str(path)
        for path in images_in(folder, patterns)
        if not Path(os.path.realpath(path)).is_relative_to(output)
    }
    if not images:
        raise InputError(f"{folder} holds no image outside of the output folder {job.output}")
    images = without_results(images)
    mark = job_mark(job)
    take_output(job, mark, folder)
    groups = [list(images)] if job.flat else [[name] for name in images]
    stems = dict(zip(images, (stem for group in groups for stem in result_stems(group, job))))
    records: dict[str, dict] = {}
    replaced: list[str] = []

    def write_report() -> list[dict]:
        report = []
        for name in images:
            record = records.get(name, {"error": NOT_DONE})
            report.append({"image": name, "picture": name, **record})  # 0.1's key
            if "error" in record:  # its worker may have been killed
                remove_folder(part_of(place_of(job, name)))
        with written_whole(Path(job.output, REPORT)) as temporary:
            text = json_lines(report, ensure_ascii=False) + "\n"
            temporary.write_text(text, "utf-8", errors=NOT_UTF8)
        if replaced:
            text = f"replaced the results of {len(replaced)} images, such as {replaced[0]}"
            warnings.warn(text, stacklevel=3)
        return report

    try:
        with (
            closing(outcomes(job, mark, images, stems, executor)) as done,
            open(Path(job.output, REPORT), "w", encoding="utf-8", errors=NOT_UTF8) as file,
        ):
            for name, record in done if progress is None else progress(done, len(images)):
                replaced += [images[name]] if record.get("replaced") else []
                records[name] = {k: record[k] for k in record if k not in ("new", "replaced")}
                line = json_lines([{"image": name, **records[name]}], ensure_ascii=False)
                print(line, file=file, flush=True)
    except BaseException:
        with suppress(OSError):  # a full disk's
            write_report()
        raise
    return write_report()


def outcomes(
    job: Job, mark: str, images: dict[str, str], stems: dict[str, str], executor: Executor | None
) -> Generator[tuple[str, dict], None, None]:
    """Each image's name and record, once it is done. Closed before the end, all work stops."""
    if executor is None:
        for name, image in images.items():
            yield name, segment_image(job, mark, image, name, stems[name])
        return
    futures: dict[Future, str] = {}
    try:
        for name, image in images.items():
            future = executor.submit(segment_image, job, mark, image, name, stems[name])
            futures[future] = name
        for future in as_completed(futures):
            name = futures[future]
            try:
                record = future.result()
            except Exception as error:  # noqa: BLE001  (of the executor, or the disk is full)
                record = failure(images[name], place_of(job, name), error)
            yield name, record
    except BaseException:
        for future in futures:
            future.cancel()
        executor.shutdown()
        raise


def without_results(images: dict[str, str]) -> dict[str, str]:
    """Pass over the results of earlier runs, with a warning, unless there is nothing else."""
    keys = {"key", "prompts", "files"}
    in_record = functools.cache(lambda folder: keys <= set(read_record(folder / RECORD) or ()))
    results = {name for name, p in images.items() if in_record(Path(p).parent) or is_result(p)}
    if not 0 < len(results) < len(images):
        return images
    example = next(images[name] for name in images if name in results)
    warnings.warn(
        f"passed over {len(results)} results of earlier runs, such as {example}", stacklevel=3
    )
    return {name: path for name, path in images.items() if name not in results}


def take_output(job: Job, mark: str, folder: Path) -> None:
    """Write into the output folder whose it is. Raises InputError if it is another job's."""
    path = Path(job.output, JOB)
    about = {"mark": mark, "images": os.path.realpath(folder), "flat": job.flat}
    about["prompts"] = job.captions
    stored = read_record(path)
    if stored not in (None, about) and not job.overwrite:
        raise InputError(
            f"{job.output} holds results of the prompts {stored.get('prompts')} for the images in "
            f"{stored.get('images')}, or of other options; name another --output, or replace them "
            f"with --overwrite"
        )
    if stored != about:
        write_json(path, about)


def job_mark(job: Job) -> str:
    """A hash of all that the results depend on but the image. Raises InputError for a bad job."""
    read_prompts([*job.prompts, *image_prompts(job.image_prompts)])
    unknown = set(job.kinds) - set(KINDS)
    if unknown:
        raise InputError(f"unknown kind {min(unknown)!r} of image; expected {', '.join(KINDS)}")
    checked_threshold(job.threshold)
    options = asdict(job) | {"output": None, "model": None, "version": RESULTS_VERSION}
    # 0.1 had no such options; three of them change no image.
    for name in ("overlay", "flat", "overwrite", *["white_level"] * (job.white_level is None)):
        del options[name]
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


def place_of(job: Job, name: str) -> Path:
    """The folder of an image's record and, unless the layout is flat, of its results."""
    return Path(job.output, *[FLAT_RECORDS] * job.flat, name)


def segment_image(job: Job, mark: str, image: str, name: str, stem: str) -> dict:
    """A worker's task. Returns {"prompts": ..., "new": bool, "replaced": bool} or {"error": ...}.

    Raises OSError where the disk is full.
    """
    place = place_of(job, name)
    try:
        key = f"{mark} {name} {file_hash(image)}{f' {stem}' * job.flat}"
        key = hashlib.sha256(key.encode(errors=NOT_UTF8)).hexdigest()
        record = read_record(place / RECORD)
        prompts = stored_prompts(job, place, record, key)
        if prompts is not None:
            return {"prompts": prompts, "new": False}
        if record is None and place.is_dir():
            raise InputError(f"{place} is there already, and holds no results. Move it away.")
        replaced = bool(record) and record.get("key") != key
        if replaced and record.get("mark") != mark and not job.overwrite:
            raise InputError(
                f"{place} holds results of other prompts, options or another checkpoint; name "
                f"another --output, or replace them with --overwrite"
            )
        about = {"key": key, "mark": mark}
        prompts = write_image(job, image, place, stem, about, (record or {}).get("files", []))
        return {"prompts": prompts, "new": True, "replaced": replaced}
    except Exception as error:  # noqa: BLE001  (one bad image must not stop the others)
        return failure(image, place, error)


def failure(image: str, folder: Path, error: Exception) -> dict:
    """The record of an image that failed. Raises OSError if the disk is full: all others fail."""
    text = str(error)
    if isinstance(error, OSError) and error.errno:
        place = image if error.filename == image else str(folder)
        if error.errno in DISK_FULL:
            raise OSError(error.errno, error.strerror, place) from error
        text = f"{place}: {error.strerror}"
    elif not isinstance(error, (InputError, OSError, BrokenExecutor)):
        text = f"{type(error).__name__}: {error}"
    return {"error": text if image in text or str(folder) in text else f"{image}: {text}"}


def read_record(path: Path) -> dict | None:
    """A JSON file that a batch wrote: None where there is none, {} for a damaged one."""
    try:
        record = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def stored_prompts(job: Job, place: Path, record: dict | None, key: str) -> list[dict] | None:
    """The prompts' records of an earlier run with the same key whose files are all there."""
    folder = Path(job.output) if job.flat else place
    try:
        complete = record["key"] == key and all((folder / f).is_file() for f in record["files"])
        if job.overlay and not any(file.endswith("_overlay.png") for file in record["files"]):
            complete = False
        return record["prompts"] if complete and isinstance(record["prompts"], list) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_image(
    job: Job, image: str, place: Path, stem: str, about: dict, old_files: list[str]
) -> list[dict]:
    """Segment an image and write its folder whole. Returns the prompts' records."""
    pixels = load_image(image, white_level=job.white_level, keep_alpha=True)
    prompts = job.prompts, job.image_prompts, job.white_level
    with _loading:
        segmenter, query = _loaded(job.model, job.backend, *prompts)
    result = segmenter.combine(pixels, query, scales=job.scales, input_data_format="channels_last")
    with folder_replaced(place) as part:
        prompts = write_results(part, stem, pixels, result, job)
        files = sorted(file.name for file in part.iterdir())
        if job.flat:
            move_results(part, Path(job.output), files, old_files)
        record = json.dumps({**about, "prompts": prompts, "files": files}, ensure_ascii=False)
        (part / RECORD).write_text(record, "utf-8", errors=NOT_UTF8)
    return prompts


def move_results(part: Path, folder: Path, files: list[str], old_files: list[str]) -> None:
    """Move an image's results into the folder of all, where only its old ones are replaced."""
    for file in set(files) - set(old_files):
        if is_other_file(part / file, folder / file):
            raise InputError(
                f"{folder / file} is there already, and not of this image; move it away"
            )
    for file in files:
        os.replace(part / file, folder / file)
    for file in set(old_files) - set(files):
        (folder / Path(file).name).unlink(missing_ok=True)


_loading = threading.Lock()


@functools.lru_cache(maxsize=1)
def _loaded(model, backend, prompts, pairs, white_level) -> tuple[Segmenter, Query]:
    """The model and the embedded prompts: made once in a process, however many threads ask."""
    segmenter = Segmenter.from_pretrained(model, backend=backend, threads=1)
    return segmenter, segmenter.prepare([*prompts, *image_prompts(pairs)], white_level)
