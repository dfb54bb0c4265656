"""The commands of `clipseg-np`: each takes the options that cli/parser.py read."""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ..atomic_files import written_together
from ..backends.select import ops_for
from ..backends.threads import usual_count
from ..checkpoints.hub import download
from ..convert.checkpoint import convert
from ..convert.from_authors import convert_original
from ..errors import InputError
from ..golden.compare import compare, report
from ..golden.traces import Golden, write_golden
from ..image.load_image import load_image
from ..model.clipseg import CLIPSegForImageSegmentation
from ..segment.batch import REPORT, run_batch
from ..segment.job import CleanUp, Job
from ..segment.processor import CLIPSegProcessor
from ..segment.results import KINDS, json_lines, prompt_maps, text_lines, write_results
from ..segment.segmenter import Segmenter, checkpoint_or_demo
from ..segment.visual_prompt import image_prompts
from ..segment.workers import WorkerProcesses
from ..version import __version__
from .signals import exit_code

MAX_MESSAGE = 2000  # characters
MAX_PIXELS, MAX_WORKERS = 10**9, 1024
PROGRESS_SECONDS = 5


def say(kind: str, message: object) -> None:
    """Print one line to standard error; characters that cannot be printed are escaped."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(message))
    if len(line) > MAX_MESSAGE:
        line = f"{line[: MAX_MESSAGE - 3]}..."
    print(f"clipseg-np: {kind}: {line}", file=sys.stderr)


def run_segment(options: argparse.Namespace) -> None:
    """Everything is computed before the first file is written."""
    to_stdout = options.output == "-"
    number = len(options.prompts) + len(options.image_prompt)
    if to_stdout and (number != 1 or len(options.write) != 1 or options.labels or options.json):
        raise InputError(
            "--output - writes one image: expected one prompt, one kind, no --labels and no --json"
        )
    folder = output_folder(options.output)
    stem, image = read_image(options.image, options.white_level)
    job = job_of(options, folder)
    prompts = [*job.prompts, *image_prompts(job.image_prompts)]
    segmenter = Segmenter.from_pretrained(job.model, backend=job.backend)
    given = {"scales": job.scales, "white_level": job.white_level}
    result = segmenter.combine(image, prompts, input_data_format="channels_last", **given)
    if to_stdout:
        kind = job.kinds[0]
        image = image if kind == "cutout" else load_image(image, "channels_last")
        pixels = KINDS[kind](image, *prompt_maps(result, 0, job), job.clean_up)
        Image.fromarray(pixels).save(sys.stdout.buffer, format="PNG")
        return
    with written_together(folder) as part:
        records = write_results(part, stem, image, result, job)
    for record in records:
        record["files"] = [str(folder / name) for name in record["files"]]
    if options.json:
        print(json_lines(records))
    else:
        print(text_lines(records))
        width = max(map(len, job.captions))
        print(f"{'all together':<{width}}  {folder / f'{stem}_overlay.png'}")


def model_path(options: argparse.Namespace) -> Path:
    return checkpoint_or_demo(options.model, local_files_only=options.offline)


def output_folder(name: str) -> Path:
    folder = Path(name)
    if not name or (folder.exists() and not folder.is_dir()):
        problem = f"{name} is a file" if name else "is empty"
        raise InputError(f"--output {problem}; expected a folder, which is created if missing")
    return folder


def read_image(name: str, white_level: float | None) -> tuple[str, np.ndarray]:
    """The stem of an image's results, and the image with its alpha; "-" is standard input."""
    options = {"white_level": white_level, "keep_alpha": True}
    if name != "-":
        return Path(name).stem, load_image(name, **options)
    with tempfile.NamedTemporaryFile() as file:
        file.write(sys.stdin.buffer.read())
        file.flush()
        return "image", load_image(file.name, name="standard input", **options)


def job_of(options: argparse.Namespace, folder: Path) -> Job:
    """The job that the options describe; its results go to `folder`."""
    images, masks = options.image_prompt, options.prompt_mask
    if masks and len(masks) != len(images):
        given = f"got {len(images)} --image-prompt and {len(masks)} --prompt-mask"
        raise InputError(f"{given}; expected a mask for each, or none")
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
        kinds=tuple(options.write),
        threshold=options.threshold,
        clean_up=CleanUp(options.smallest, options.grow, options.feather),
        labels=options.labels,
        scales=tuple(options.scales),
        backend=options.backend,
        white_level=options.white_level,
    )


def run_batch_command(options: argparse.Namespace) -> int:
    """Exit code 1 where an image failed; the others are segmented all the same."""
    job = job_of(options, output_folder(options.output))
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
        done = f"{progress.done} of {progress.total} done"
        say("stopped", f"{done}; the same command goes on{reason}")
        return 1 if reason else exit_code(stop)
    errors = [record["error"] for record in records if "error" in record]
    if options.json:
        print(json_lines(records))
    else:
        for error in errors:
            say("error", error)
        done = f"{progress.done} of {progress.total}"
        counts = f"({progress.new} new, {progress.stored} already there)"
        left = f", {len(errors)} left" if errors else ""
        print(f"{done} {counts}{left}  {Path(options.output, REPORT)}")
    return 1 if errors else 0


class Progress:
    """Counts a batch's images, and shows how far it is: tqdm's bar, or a line every few seconds."""

    def __init__(self):
        self.total = self.new = self.stored = 0

    @property
    def done(self) -> int:
        return self.new + self.stored

    def __call__(self, records: Iterator[tuple[str, dict]], total: int) -> Iterator:
        self.total = total
        for name, record in self.shown(records):
            self.new += record.get("new") is True
            self.stored += record.get("new") is False
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
        f"checkpoint   {path}\n"
        f"size         {parameters:,} parameters, {size:.1f} MB on disk\n"
        f"vision       {vision.num_hidden_layers} layers, {vision.hidden_size} wide, patches of "
        f"{vision.patch_size} pixels, positions for {side} x {side} pixels\n"
        f"text         {text.num_hidden_layers} layers, {text.hidden_size} wide, "
        f"{text.vocab_size} tokens, at most {text.max_position_embeddings} in a prompt\n"
        f"decoder      {config.reduce_dim} wide, reads vision layers {layers}, {head} head"
    )


def run_trace(options: argparse.Namespace) -> None:
    target = Path(options.output)
    if target.suffix == ".npz" or (target.exists() and not target.is_file()):
        raise InputError(f"--output {options.output}: expected the name of a .safetensors file")
    path = model_path(options)
    load = partial(CLIPSegForImageSegmentation.from_pretrained, path, backend=options.backend)
    model = load(dtype=options.dtype)
    rough = load(dtype="float32") if options.dtype == "float64" else None
    processor = CLIPSegProcessor.from_pretrained(path)
    image = load_image(options.image, white_level=options.white_level)
    images = [image] * len(options.prompts)
    inputs = processor(options.prompts, images, padding=True, input_data_format="channels_last")
    about = {"checkpoint": options.model or "demonstration", "image": Path(options.image).name}
    about["prompts"] = options.prompts
    write_golden(options.output, model, inputs, options.names, about, rough)
    size = os.path.getsize(options.output) / 1e6
    print(f"{len(Golden(options.output))} arrays, {size:.1f} MB, {model.dtype}  {options.output}")


def run_compare(options: argparse.Namespace) -> int:
    if options.tolerance is not None and not options.tolerance >= 0:
        raise InputError(f"--tolerance is {options.tolerance}; expected a number of 0 or more")
    rows = compare(Golden(options.golden), Golden(options.other), options.tolerance)
    print(report(rows))
    return 0 if all(row.fine for row in rows) else 1


def run_download(options: argparse.Namespace) -> None:
    folder = Path(options.folder or options.hub_id.split("/")[-1])
    print(f"{options.hub_id} is in {download(options.hub_id, folder)}")


def run_convert(options: argparse.Namespace) -> None:
    source, output, stored = options.source, options.output, (options.dtype, options.shard_size)
    if source.endswith((".pth", ".pt")):
        others = options.tokenizer, options.extract_layers
        written = convert_original(source, options.clip, output, *stored, *others)
        if options.tokenizer is None:
            say(
                "warning",
                "no tokenizer was given, and the authors' files have none: for text prompts, put "
                "vocab.json and merges.txt of openai/clip-vit-base-patch16 into "
                f"{output}, or convert again with --tokenizer.",
            )
    elif options.clip or options.tokenizer or options.extract_layers:
        raise InputError(
            f"--clip, --tokenizer and --extract-layers are for the authors' decoder, a .pth file; "
            f"got {source}"
        )
    else:
        written = convert(source, output, *stored)
    files = written.files[0] if len(written.files) == 1 else f"{len(written.files)} shards"
    print(f"{written.tensors} tensors, {written.size / 1e6:.1f} MB, {files}  {output}")
