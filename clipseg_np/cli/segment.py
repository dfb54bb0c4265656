"""The commands `segment` and `batch`."""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np

from ..backends.select import ops_for
from ..backends.threads import usual_count
from ..checkpoints.locate import checkpoint_folder
from ..errors import InputError
from ..image.load_image import load_image
from ..model.learned_prompt import LearnedPrompt
from ..segment import results
from ..segment.batch import REPORT, run_batch
from ..segment.coco import write_coco
from ..segment.job import CleanUp, Job
from ..segment.prompt_algebra import parse
from ..segment.segmentation import checked_threshold
from ..segment.segmenter import Segmenter, by_name
from ..segment.visual_prompt import image_prompts
from ..segment.workers import WorkerProcesses
from ..text.known_words import known_words, unknown_words
from .files import DEMONSTRATION, model_path, read_image
from .terminal import progress_of, say, show

MAX_PIXELS, MAX_WORKERS = 10**9, 1024


def run_segment(options: argparse.Namespace) -> int:
    """Exit code 1 where one of several images failed; the others are segmented all the same."""
    add_learned(options)
    images = options.images
    for name in images:
        if os.path.isdir(name):
            raise InputError(f"{name} is a folder; `clipseg-np batch` segments all images in one")
        if name != "-" and not os.path.isfile(name):
            load_image(name)  # says why not
    kinds, to_stdout = kinds_of(options), options.output == "-"
    single = len(images) == len([*options.prompts, *options.image_prompt]) == len(kinds) == 1
    single = single and not (options.labels or options.overlay)
    if to_stdout and (not single or options.json or options.coco or sys.stdout is None):
        raise InputError(
            "--output - writes one image: expected one image, one prompt, one kind, no --labels, "
            "no --overlay, no --json and no --coco, and standard output to be open"
        )
    folder, file = results.output_place(options.output, single)
    overlay = options.overlay or not (options.write or file or to_stdout or images[1:])
    job = job_of(options, folder, overlay)
    stems = results.result_stems(["image" if name == "-" else name for name in images], job)
    prompts = [*job.prompts, *image_prompts(job.image_prompts)]
    segmenter = Segmenter.from_pretrained(job.model, backend=job.backend, decoder=job.decoder)
    learned = [LearnedPrompt.load(f).check(segmenter.model, job.force) for f in job.prompt_files]
    query = segmenter.prepare(prompts, job.white_level, learned) if images[1:] else prompts
    reading = {"white_level": job.white_level, "learned": learned}
    segment = partial(segmenter.combine, scales=job.scales, **reading)
    notes = notes_on_words(job) if options.json else {}
    failures, written = 0, []
    for name, stem in zip(images, stems):
        try:
            image = read_image(name, job.white_level)
            result = segment(image, query, input_data_format="channels_last")
            if to_stdout:
                with tempfile.TemporaryDirectory() as part:
                    (record,) = results.write_results(Path(part), stem, image, result, job)
                    sys.stdout.buffer.write(Path(part, *record["files"]).read_bytes())
                return 0
            records, sheet = results.write_unlike_others(stem, image, result, job, file)
        except (InputError, OSError) as error:
            if len(images) == 1:
                raise
            failures += 1
            say("error", error if name in str(error) else f"{name}: {error}")
            continue
        written.append({"image": name, "prompts": records})
        if options.json:
            about = {"image": name, "checkpoint": options.model or DEMONSTRATION}
            lines = [{**about, **record, **notes.get(record["prompt"], {})} for record in records]
            print(results.json_lines(lines))
            continue
        show(*results.text_lines(records))
        if overlay:
            show(f"{'all together':<{max(map(len, job.captions))}}  {sheet}")
    if options.coco:
        write_coco(options.coco, job, written, is_batch=False)
    return 1 if failures else 0


def add_learned(options: argparse.Namespace) -> None:
    """Add the learned prompts that no text mentions to the prompts."""
    named = by_name(map(LearnedPrompt.load, options.prompt_file))
    texts = options.prompts if named else ()
    mentioned = {part for text in texts for part in parse(text, named).prompts}
    options.prompts += [str(prompt) for prompt in named.values() if prompt not in mentioned]


def kinds_of(options: argparse.Namespace) -> tuple[str, ...]:
    masks = ("mask",) if options.coco or not options.write else ()
    return tuple(dict.fromkeys((*(options.write or ()), *masks)))


def job_of(options: argparse.Namespace, folder: Path, overlay: bool) -> Job:
    """The job that the options describe; its results go to `folder`."""
    images, masks = options.image_prompt, options.prompt_mask
    if masks and len(masks) != len(images):
        given = f"got {len(images)} --image-prompt and {len(masks)} --prompt-mask"
        raise InputError(f"{given}; expected a mask for each, or none")
    if options.coco is not None and (options.coco[-5:] != ".json" or os.path.isdir(options.coco)):
        raise InputError(f"--coco is {options.coco}; expected the name of a .json file")
    for name, lowest in {"smallest": 0, "feather": 0, "grow": -MAX_PIXELS}.items():
        pixels = getattr(options, name)
        if not lowest <= pixels <= MAX_PIXELS:  # NaN is not
            raise InputError(
                f"--{name} is {pixels}; expected a number of pixels, {lowest} to {MAX_PIXELS}"
            )
    return Job(
        prompts=tuple(options.prompts),
        output=str(folder),
        model=str(model_path(options)),
        image_prompts=tuple(zip(images, masks or [None] * len(images))),
        kinds=kinds_of(options),
        threshold=checked_threshold(options.threshold),
        clean_up=CleanUp(options.smallest, options.grow, options.feather),
        labels=options.labels,
        scales=tuple(options.scales or (1,)),
        backend=options.backend,
        white_level=options.white_level,
        overlay=overlay,
        flat=getattr(options, "flat", False),
        overwrite=options.overwrite,
        prompt_files=tuple(options.prompt_file),
        force=options.force,
        decoder=options.decoder,
    )


def notes_on_words(job: Job) -> dict[str, dict]:
    """Of each text prompt, a field of the words that the checkpoint does not know, if any."""
    known = known_words(checkpoint_folder(str(job.model)), job.decoder)
    named, unknown = by_name(map(LearnedPrompt.load, job.prompt_files)), {}
    for text in job.prompts:
        parts = [part for part in parse(text, named).prompts if isinstance(part, str)]
        unknown[text] = unknown_words(known, parts)
    return {text: {"unknown_words": words} for text, words in unknown.items() if words}


def run_batch_command(options: argparse.Namespace) -> int:
    """Exit code 1 where an image failed; the others are segmented all the same."""
    add_learned(options)
    job = job_of(options, results.output_place(options.output)[0], options.overlay)
    workers = usual_count() if options.workers is None else options.workers
    if not 1 <= workers <= MAX_WORKERS:
        raise InputError(f"--workers is {workers}; expected 1 or more, at most {MAX_WORKERS}")
    on_gpu = ops_for(options.backend).xp is not np
    if workers == 1:
        pool = nullcontext()
    else:  # one model on the GPU for all; threads read and write images beside it
        pool = ThreadPoolExecutor(workers) if on_gpu else WorkerProcesses(workers)
    counts = Counts()
    try:
        with pool as executor:
            records = run_batch(job, options.folder, executor, options.glob, counts)
    except BrokenPipeError:
        raise
    except (KeyboardInterrupt, OSError) as stop:
        if not counts.total:
            raise
        reason = f" ({stop.filename}: {stop.strerror})" if isinstance(stop, OSError) else ""
        say("stopped", f"{counts.done} done; the same command goes on{reason}")
        return 1 if reason else stop.args[0]
    errors = [record["error"] for record in records if "error" in record]
    if options.json:
        notes = notes_on_words(job)
        for record in records:
            record["checkpoint"] = options.model or DEMONSTRATION
            for prompt in record.get("prompts", []):
                prompt |= notes.get(prompt["prompt"], {})
        print(results.json_lines(records))
    else:
        for error in errors:
            say("error", error)
        there = f"({counts.new} new, {counts.stored} already there)"
        left = f", {len(errors)} left" if errors else ""
        show(f"{counts.done} {there}{left}  {Path(options.output, REPORT)}")
    if options.coco:
        write_coco(options.coco, job, records, is_batch=True)
    return 1 if errors else 0


class Counts:
    """Counts a batch's images, and shows how far it is."""

    def __init__(self):
        self.total = self.new = self.stored = 0

    @property
    def done(self) -> str:
        return f"{self.new + self.stored} of {self.total}"

    def __call__(self, records: Iterator[tuple[str, dict]], total: int) -> Iterator:
        self.total = total
        for name, record in progress_of(total, records, "images"):
            self.new += record.get("state") in ("new", "replaced")
            self.stored += record.get("state") == "there"
            yield name, record
