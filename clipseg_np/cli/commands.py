"""The commands of `clipseg-np`: each takes the options that cli/parser.py read."""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import numpy as np

from ..backends.select import ops_for
from ..backends.threads import usual_count
from ..checkpoints.hub import download
from ..checkpoints.locate import checkpoint_folder
from ..convert.checkpoint import PYTORCH_SUFFIXES, convert, has_transformers_names
from ..convert.from_authors import convert_original
from ..errors import InputError, printable
from ..golden.compare import compare, report
from ..golden.traces import Golden, write_golden
from ..image.load_image import load_image
from ..learn.data import read_data
from ..learn.fine_tune import fine_tune
from ..learn.learn_prompt import learn_prompt
from ..learn.progress import progress_lines
from ..model.clipseg import CLIPSegForImageSegmentation
from ..model.learned_prompt import LearnedPrompt
from ..segment import results
from ..segment.batch import REPORT, run_batch
from ..segment.coco import write_coco
from ..segment.job import CleanUp, Job
from ..segment.processor import CLIPSegProcessor
from ..segment.prompt_algebra import parse
from ..segment.segmentation import checked_threshold
from ..segment.segmenter import Segmenter, by_name, checkpoint_or_demo
from ..segment.visual_prompt import image_prompts
from ..segment.workers import WorkerProcesses
from ..text.known_words import known_words, unknown_words
from ..version import __version__

DEMONSTRATION = "demonstration"
MAX_MESSAGE = 2000  # characters
MAX_PIXELS, MAX_WORKERS = 10**9, 1024
PROGRESS_SECONDS = 5


def say(kind: str, message: object) -> None:
    """Print one line to standard error; characters that cannot be printed are escaped."""
    line = printable(str(message))
    if len(line) > MAX_MESSAGE:
        line = f"{line[: MAX_MESSAGE - 3]}..."
    print(f"clipseg-np: {kind}: {line}", file=sys.stderr)


def show(*lines: str) -> None:
    for line in lines:
        print(printable(line))


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


def model_path(options: argparse.Namespace) -> Path:
    return checkpoint_or_demo(options.model, local_files_only=options.offline)


def read_image(name: str, white_level: float | None) -> np.ndarray:
    """The image with its alpha; "-" is standard input."""
    options = {"white_level": white_level, "keep_alpha": True}
    if name != "-":
        return load_image(name, **options)
    if sys.stdin is None:
        raise InputError("standard input is closed; expected an image")
    with tempfile.NamedTemporaryFile() as file:
        file.write(sys.stdin.buffer.read())
        file.flush()
        return load_image(file.name, name="standard input", **options)


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
    progress = Progress()
    try:
        with pool as executor:
            records = run_batch(job, options.folder, executor, options.glob, progress)
    except BrokenPipeError:
        raise
    except (KeyboardInterrupt, OSError) as stop:
        if not progress.total:
            raise
        reason = f" ({stop.filename}: {stop.strerror})" if isinstance(stop, OSError) else ""
        say("stopped", f"{progress.done} done; the same command goes on{reason}")
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
        counts = f"({progress.new} new, {progress.stored} already there)"
        left = f", {len(errors)} left" if errors else ""
        show(f"{progress.done} {counts}{left}  {Path(options.output, REPORT)}")
    if options.coco:
        write_coco(options.coco, job, records, is_batch=True)
    return 1 if errors else 0


class Progress:
    """Counts a batch's images, and shows how far it is: tqdm's bar, or a line every few seconds."""

    def __init__(self):
        self.total = self.new = self.stored = 0

    @property
    def done(self) -> str:
        return f"{self.new + self.stored} of {self.total}"

    def __call__(self, records: Iterator[tuple[str, dict]], total: int) -> Iterator:
        self.total = total
        for name, record in self.shown(records):
            self.new += record.get("state") in ("new", "replaced")
            self.stored += record.get("state") == "there"
            yield name, record

    def shown(self, records: Iterator) -> Iterator:
        if sys.stderr and sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                pass
            else:
                yield from tqdm(records, total=self.total, unit="image")
                return
        due = time.monotonic() + PROGRESS_SECONDS
        for number, record in enumerate(records, 1):
            yield record
            if time.monotonic() > due:
                say("progress", f"{number} of {self.total}")
                due = time.monotonic() + PROGRESS_SECONDS


def shown(parts: Sequence, name: str) -> Iterable:
    """The parts, with tqdm's bar or a line every few seconds."""
    if sys.stderr and sys.stderr.isatty():
        with suppress(ImportError):
            from tqdm import tqdm

            return tqdm(parts, desc=name)
    return progress_lines(partial(say, "progress"), PROGRESS_SECONDS)(parts, name)


def learner(options: argparse.Namespace) -> Segmenter:
    given = {"backend": options.backend, "threads": options.threads, "decoder": options.decoder}
    return Segmenter.from_pretrained(model_path(options), **given)


def run_learn_prompt(options: argparse.Namespace) -> None:
    target = new_file(options)
    data, segmenter = read_data(options.data, options.prompt), learner(options)
    chosen = {name: getattr(options, name) for name in ("starts", "seed", "cache")}
    prompt = learn_prompt(segmenter, data, progress=shown, **chosen)
    prompt.save(target)
    made = prompt.made
    ious = f"{made['start_iou']:.3f} ({made['start']!r}) -> {made['held_out_iou']:.3f}"
    show(f"IoU on held-out images: {ious}, step {made['steps']}  {target}")


FINE_TUNE = "decoder_only", "steps", "batch_size", "rate", "pos_weight", "focal", "seed", "cache"


def run_fine_tune(options: argparse.Namespace) -> int:
    """Exit code 130 or so where it was stopped; the same command goes on."""
    data = read_data(options.data, options.prompt)
    keep = read_data(options.keep) if options.keep else None
    chosen = {name: getattr(options, name) for name in FINE_TUNE}
    chosen |= {"keep": keep, "progress": shown}
    try:
        result = fine_tune(learner(options), data, options.output, **chosen)
    except KeyboardInterrupt as stop:
        say("stopped", "the same command goes on")
        return stop.args[0]
    ious = [f"{name[:3]} {iou} -> {result.after[name]}" for name, iou in result.before.items()]
    show(f"IoU on held-out images: {', '.join(ious)}  {result.path}")
    return 0


def run_info(options: argparse.Namespace) -> None:
    path = model_path(options)
    model = CLIPSegForImageSegmentation.from_pretrained(path, backend=options.backend)
    config = model.config
    vision, text = config.vision_config, config.text_config
    head = "refined" if config.use_complex_transposed_convolution else "plain"
    parameters = sum(array.size for array in model.state_dict().values())
    files = [path] if path.is_file() else path.glob("*.safetensors")
    size = sum(file.stat().st_size for file in files) / 1e6
    layers = ", ".join(map(str, config.extract_layers))
    side, cores = vision.image_size, os.cpu_count()
    print(
        f"clipseg-np   {__version__}\n"
        f"Python       {platform.python_version()}, NumPy {np.__version__}, {cores} CPU cores\n"
        f"backend      {options.backend}, on {model.ops.xp.__name__}, {model.dtype}\n"
        f"checkpoint   {path if options.model else f'{DEMONSTRATION}, in {path}'}\n"
        f"size         {parameters:,} parameters, {size:.1f} MB on disk\n"
        f"vision       {vision.num_hidden_layers} layers, {vision.hidden_size} wide, patches of "
        f"{vision.patch_size} pixels, positions for {side} x {side} pixels\n"
        f"text         {text.num_hidden_layers} layers, {text.hidden_size} wide, "
        f"{text.vocab_size} tokens, at most {text.max_position_embeddings} in a prompt\n"
        f"decoder      {config.reduce_dim} wide, reads vision layers {layers}, {head} head"
    )


def new_file(options: argparse.Namespace) -> Path:
    """The .safetensors file that is to be written. Raises InputError for one that may not be."""
    target = Path(options.output)
    if target.suffix == ".npz" or (target.exists() and not target.is_file()):
        raise InputError(f"--output {options.output}: expected the name of a .safetensors file")
    if target.exists() and not options.overwrite:
        raise InputError(f"--output {target} is there already; replace it with --overwrite")
    return target


def run_trace(options: argparse.Namespace) -> None:
    target, path = new_file(options), model_path(options)
    replaced = target.exists()
    load = partial(CLIPSegForImageSegmentation.from_pretrained, path, backend=options.backend)
    model = load(dtype=options.dtype)
    rough = load(dtype="float32") if options.dtype == "float64" else None
    processor = CLIPSegProcessor.from_pretrained(path)
    image = load_image(options.image, white_level=options.white_level)
    images = [image] * len(options.prompts)
    inputs = processor(options.prompts, images, padding=True, input_data_format="channels_last")
    about = {"checkpoint": options.model or DEMONSTRATION, "image": Path(options.image).name}
    about["prompts"] = options.prompts
    write_golden(options.output, model, inputs, options.names, about, rough)
    if replaced:
        say("warning", f"replaced {target}")
    size = os.path.getsize(options.output) / 1e6
    show(f"{len(Golden(options.output))} arrays, {size:.1f} MB, {model.dtype}  {options.output}")


def run_compare(options: argparse.Namespace) -> int:
    if options.tolerance is not None and not options.tolerance >= 0:
        raise InputError(f"--tolerance is {options.tolerance}; expected a number of 0 or more")
    rows = compare(Golden(options.golden), Golden(options.other), options.tolerance)
    show(*report(rows).split("\n"))
    return 0 if all(row.fine for row in rows) else 1


def run_download(options: argparse.Namespace) -> None:
    folder = Path(options.folder or options.hub_id.split("/")[-1])
    show(f"{options.hub_id} is in {download(options.hub_id, folder)}")


def run_convert(options: argparse.Namespace) -> None:
    source, output, stored = options.source, options.output, (options.dtype, options.shard_size)
    decoder_settings = options.extract_layers, options.cond_layer, options.rev_activations
    is_pytorch = source.endswith(PYTORCH_SUFFIXES) and not os.path.isdir(source)
    if is_pytorch and not has_transformers_names(source):
        others = options.tokenizer, *decoder_settings
        written = convert_original(source, options.clip, output, *stored, *others)
        if options.tokenizer is None:
            say(
                "warning",
                "no tokenizer was given, and the authors' files have none: for text prompts, put "
                "vocab.json and merges.txt of openai/clip-vit-base-patch16 into "
                f"{output}, or convert again with --tokenizer.",
            )
    elif options.clip or options.tokenizer or any(s is not None for s in decoder_settings):
        raise InputError(
            f"--clip, --tokenizer, --extract-layers, --cond-layer and --rev-activations are for "
            f"the authors' decoder, a .pth file; got {source}"
        )
    else:
        written = convert(source, output, *stored)
    files = written.files[0] if len(written.files) == 1 else f"{len(written.files)} shards"
    show(f"{written.tensors} tensors, {written.size / 1e6:.1f} MB, {files}  {output}")
