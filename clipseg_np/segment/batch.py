"""A folder of images, segmented by any `concurrent.futures.Executor`, on one machine or many.

    with WorkerProcesses(4) as executor:
        report = run_batch(Job(prompts=("a cat",), output="out"), "photos", executor)

Each image gets a folder of its own under the output folder, which is there once it is complete. Its
`record.json` holds a key: a hash of the image, prompts, options and checkpoint; a second run skips
each image whose key is the same. In the flat layout, results lie side by side in the output folder,
and the records in `.records`. The report gets a line for each image, and is sorted at the end.

An output folder belongs to one job, which its `clipseg_np.json` describes. The results of another
job or of other images are replaced only where `Job.overwrite` says so, and other files never.

One thread computes each image: the bytes of the results do not depend on the number of workers.
"""

import errno
import functools
import hashlib
import json
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from ..atomic_files import NOT_UTF8, folder_replaced, is_other_file, remove_part, write_text
from ..checkpoints.hub import CHECKPOINT_FILES, WORDS_NAME
from ..checkpoints.locate import checkpoint_folder
from ..errors import InputError
from ..image.folder import images_in
from ..image.load_image import load_image
from ..model.clipseg import CLIPSegForImageSegmentation
from ..model.learned_prompt import LearnedPrompt
from .contact_sheet import write_contact_sheet
from .job import Job
from .results import KINDS, is_result, json_lines, result_stems, text_lines, write_results
from .segmentation import checked_threshold
from .segmenter import Query, Segmenter, checkpoint_or_demo, read_prompts
from .sliding_window import MAX_SCALE, checked_scales
from .visual_prompt import image_prompts

RECORD = "record.json"
REPORT = "report.jsonl"
JOB = "clipseg_np.json"
FLAT_RECORDS = ".records"
NOT_DONE = "not segmented: the batch was stopped; the same command or call goes on"
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

# Part of every key. It changes with the results, not with the release: a batch that an older
# release began is resumed.
RESULTS_VERSION = "0.1.0"


pictures_in = images_in  # its name in 0.1


class Task(NamedTuple):
    """One image of a batch; small enough to be sent to a worker."""

    job: Job
    mark: str  # of the job
    image: str  # a path
    name: str  # the path within the batch's folder
    stem: str  # of the results' names

    @property
    def place(self) -> Path:
        """The folder of the record and, unless the layout is flat, of the results."""
        return Path(self.job.output, *[FLAT_RECORDS] * self.job.flat, self.name)

    def record(self, **fields) -> dict:
        return {"image": self.name, "picture": self.name, **fields}  # the latter is 0.1's


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
    does all. `progress` gets an iterator over each image's name and record, which also holds the
    "state" of its results ("new", "replaced" or "there"), and their number.
    Raises InputError for a job that cannot be done at all, and OSError where the disk is full.
    After that or Ctrl-C, the executor is shut down, and the report names the images that are left.
    """
    if isinstance(patterns, str):
        raise InputError(f"patterns is {patterns!r}; expected a list of them")
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
    stems = [stem for group in groups for stem in result_stems(group, job)]
    tasks = [Task(job, mark, images[name], name, stem) for name, stem in zip(images, stems)]
    records = {task.name: task.record(error=NOT_DONE) for task in tasks}
    replaced: list[str] = []
    report = Path(job.output, REPORT)
    try:
        with (
            closing(outcomes(tasks, executor)) as done,
            open(report, "w", encoding="utf-8", errors=NOT_UTF8) as file,
        ):
            for name, record in done if progress is None else progress(done, len(tasks)):
                replaced += [images[name]] * (record.pop("state", None) == "replaced")
                records[name] = record
                print(json_lines([record], ensure_ascii=False), file=file, flush=True)
    finally:
        for task in tasks:
            if "error" in records[task.name]:  # its worker may have been killed
                remove_part(task.place)
        with suppress(OSError):  # the disk is full: what is done is in the report
            write_text(report, json_lines(records.values(), ensure_ascii=False))
            write_contact_sheet(job, images, list(records.values()))
        if replaced:
            text = f"replaced the results of {len(replaced)} images, such as {replaced[0]}"
            warnings.warn(text, stacklevel=2)
    return list(records.values())


def outcomes(
    tasks: list[Task], executor: Executor | None
) -> Generator[tuple[str, dict], None, None]:
    """Each image's name and record, once it is done. Closed before the end, all work stops."""
    if executor is None:
        yield from ((task.name, segment_image(task)) for task in tasks)
        return
    futures: dict[Future, Task] = {}
    try:
        with suppress(BrokenExecutor):  # those that it has taken fail; the others are left
            for task in tasks:
                futures[executor.submit(segment_image, task)] = task
        for future in as_completed(futures):
            task = futures[future]
            try:
                record = future.result()
            except Exception as error:  # noqa: BLE001  (of the executor, or the disk is full)
                record = failure(task, error)
            yield task.name, record
    except BaseException:
        for future in futures:
            future.cancel()
        executor.shutdown()
        raise


def without_results(images: dict[str, str]) -> dict[str, str]:
    """Pass over the results of earlier runs, with a warning, unless there is nothing else."""
    keys = {"key", "prompts", "files"}
    in_record = functools.cache(lambda folder: keys <= set(read_record(folder / RECORD) or ()))
    results = {name: p for name, p in images.items() if in_record(Path(p).parent) or is_result(p)}
    if not 0 < len(results) < len(images):
        return images
    text = f"passed over {len(results)} results of earlier runs, such as {min(results.values())}"
    warnings.warn(text, stacklevel=3)
    return {name: path for name, path in images.items() if name not in results}


def take_output(job: Job, mark: str, folder: Path) -> None:
    """Name the job of the output folder in it. Raises InputError if it is another job's."""
    path, images = Path(job.output, JOB), os.path.realpath(folder)
    about = {"mark": mark, "images": images, "flat": job.flat, "prompts": job.captions}
    stored = read_record(path)
    if stored not in (None, about) and not job.overwrite:
        other = [name for name in ("prompts", "images") if stored.get(name) != about[name]]
        held = [f"other {name} ({stored.get(name)})" for name in other]
        held += ["another layout (--flat)"] * (stored.get("flat") != job.flat)
        raise InputError(
            f"{job.output} holds results of {' and '.join(held) or 'other options or weights'}; "
            f"name another --output, or replace them with --overwrite"
        )
    if stored != about:
        write_text(path, json_lines([about], ensure_ascii=False))


def job_mark(job: Job) -> str:
    """A hash of all that the results depend on but the image. Raises InputError for a bad job."""
    path, learned = checkpoint_or_demo(job.model), []
    if job.prompt_files or job.decoder:
        model = CLIPSegForImageSegmentation.from_pretrained(path, decoder=job.decoder)
        learned = [LearnedPrompt.load(f).check(model, job.force) for f in job.prompt_files]
    read_prompts([*job.prompts, *image_prompts(job.image_prompts)], learned=learned)
    unknown = set(job.kinds) - set(KINDS)
    if unknown:
        raise InputError(f"unknown kind {min(unknown)!r} of image; expected {', '.join(KINDS)}")
    checked_threshold(job.threshold)
    checked_scales(job.scales, (MAX_SCALE, MAX_SCALE))
    options = asdict(job) | dict.fromkeys(("output", "model", "decoder"))
    options["version"] = RESULTS_VERSION
    # 0.1 had no such options; four of them change no image.
    later = ("white_level", "prompt_files", "decoder")
    later = [name for name in later if not getattr(job, name)]
    for name in ("overlay", "flat", "overwrite", "force", *later):
        del options[name]
    # As floats: 1 and 1.0 are the same option.
    options["clean_up"] = [float(pixels) for pixels in options["clean_up"].values()]
    hashes = [file_hash(file) for pair in job.image_prompts for file in pair if file]
    hashes += map(file_hash, (*job.prompt_files, *filter(None, [job.decoder])))
    folder = checkpoint_folder(path)
    files = sorted(f for pattern in CHECKPOINT_FILES for f in folder.glob(pattern) if f.is_file())
    files = [file for file in files if file.name != WORDS_NAME]  # changes no mask
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


def segment_image(task: Task) -> dict:
    """A worker's work. Returns the image's record, with "state" as run_batch says, or "error".

    Raises OSError where the disk is full.
    """
    try:
        flat = f" {task.stem}" * task.job.flat
        key = f"{task.mark} {task.name} {file_hash(task.image)}{flat}"
        key = hashlib.sha256(key.encode(errors=NOT_UTF8)).hexdigest()
        state, stored = stored_results(task, key)
        prompts = stored["prompts"] if state == "there" else write_image(task, key, stored)
        return task.record(prompts=prompts, state=state)
    except Exception as error:  # noqa: BLE001  (one bad image must not stop the others)
        return failure(task, error)


def failure(task: Task, error: Exception) -> dict:
    """The record of an image that failed. Raises OSError where the disk is full."""
    text = str(error)
    if isinstance(error, OSError) and error.errno:
        if error.errno in DISK_FULL:
            raise error
        text = f"{error.filename or task.image}: {error.strerror}"
    elif not isinstance(error, (InputError, OSError, BrokenExecutor)):
        text = f"{type(error).__name__}: {error}"
    is_named = task.image in text or str(task.place) in text
    return task.record(error=text if is_named else f"{task.image}: {text}")


def stored_results(task: Task, key: str) -> tuple[str, dict]:
    """Whether an image's results are "there", "new" or to be "replaced", and the stored record.

    Raises InputError for what is not to be replaced.
    """
    record, place, job = read_record(task.place / RECORD), task.place, task.job
    if record is None and place.exists():
        raise InputError(f"{place} is there already, and holds no results; move it away")
    if not record:
        return "new", {}
    files = record.get("files", [])
    if record.get("key") == key:
        folder = Path(job.output) if job.flat else place
        overlay = not job.overlay or any(file.endswith("_overlay.png") for file in files)
        complete = overlay and all((folder / file).is_file() for file in files)
        # Raises an error where the stored record is damaged.
        text_lines(record["prompts"])
        return "there" if complete else "new", record
    if record.get("mark") != task.mark and not job.overwrite:
        raise InputError(
            f"{place} holds results of other prompts, options or another checkpoint; name another "
            f"--output, or replace them with --overwrite"
        )
    return "replaced", record


def read_record(path: Path) -> dict | None:
    """A JSON file that a batch wrote: None where there is none, {} for a damaged one."""
    try:
        record = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def write_image(task: Task, key: str, stored: dict) -> list[dict]:
    """Segment an image and write its folder whole. Returns the prompts' records."""
    job = task.job
    image = load_image(task.image, white_level=job.white_level, keep_alpha=True)
    with _loading:
        segmenter, query = _loaded(task.mark, job)
    result = segmenter.combine(image, query, scales=job.scales, input_data_format="channels_last")
    with folder_replaced(task.place) as part:
        prompts = write_results(part, task.stem, image, result, job)
        files = sorted(file.name for file in part.iterdir())
        if job.flat:
            move_results(part, Path(job.output), files, stored.get("files", []))
        about = {"key": key, "mark": task.mark, "prompts": prompts, "files": files}
        write_text(part / RECORD, json_lines([about], ensure_ascii=False))
        keep_others(task.place, part, {RECORD, *stored.get("files", [])})
    return prompts


def keep_others(place: Path, part: Path, results: set[str]) -> None:
    """Copy the user's own files, which lie among results that are replaced."""
    for path in place.iterdir() if place.is_dir() else ():
        if path.name in results or (part / path.name).exists():
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, part / path.name, symlinks=True)
        else:
            shutil.copy2(path, part / path.name, follow_symlinks=False)


def move_results(part: Path, folder: Path, files: list[str], old_files: list[str]) -> None:
    """Move an image's results into the folder of all, where only its old ones are replaced."""
    for file in set(files) - set(old_files):
        if is_other_file(part / file, folder / file):
            raise InputError(f"{folder / file} is there already, of another image; move it away")
    for file in files:
        os.replace(part / file, folder / file)
    for file in set(old_files) - set(files):
        (folder / Path(file).name).unlink(missing_ok=True)


_loading = threading.Lock()


@functools.lru_cache(maxsize=1)
def _loaded(mark: str, job: Job) -> tuple[Segmenter, Query]:
    """The model and the embedded prompts: made once in a process, however many threads ask.

    The job's `mark` tells files of one name apart.
    """
    options = {"backend": job.backend, "threads": 1, "decoder": job.decoder}
    segmenter = Segmenter.from_pretrained(job.model, **options)
    learned = [LearnedPrompt.load(f).check(segmenter.model, job.force) for f in job.prompt_files]
    prompts = [*job.prompts, *image_prompts(job.image_prompts)]
    query = segmenter.prepare(prompts, job.white_level, learned)
    # No image needs it, and a published checkpoint's takes 35 MB.
    del segmenter.processor.tokenizer
    return segmenter, query
