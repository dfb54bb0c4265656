"""What each command of `clipseg-np` does with its options (cli/parser.py), and how it says so."""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..atomic_files import written_together
from ..backends.select import ops_for
from ..backends.threads import usual_count
from ..checkpoints.hub import download
from ..checkpoints.locate import checkpoint_path, demo_folder
from ..convert.checkpoint import convert
from ..convert.from_authors import convert_original
from ..errors import InputError
from ..golden.compare import compare, report
from ..golden.traces import Golden, write_golden
from ..image.load_image import load_image
from ..model.clipseg import CLIPSegForImageSegmentation
from ..segment.batch import REPORT, Job, run_batch
from ..segment.processor import CLIPSegProcessor
from ..segment.results import KINDS, CleanUp, Found, as_json_lines, as_lines, write_results
from ..segment.segmentation import checked_threshold
from ..segment.segmenter import Segmenter
from ..segment.visual_prompt import VisualPrompt
from ..version import __version__

LONGEST_LINE = 2000  # characters of a message
MOST_PIXELS, MOST_WORKERS = 10**9, 1024


def say(kind: str, message: object) -> None:
    """One line, whatever the names and texts in it hold: what cannot be printed is escaped."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(message))
    if len(shown) > LONGEST_LINE:
        shown = f"{shown[: LONGEST_LINE - 3]}..."
    print(f"clipseg-np: {kind}: {shown}", file=sys.stderr)


def run_segment(options: argparse.Namespace) -> None:
    """Everything is computed before the first file is written."""
    to_stdout = options.output == "-"
    number = len(options.prompts) + len(options.image_prompt)
    if to_stdout and (number != 1 or len(options.write) != 1 or options.labels or options.json):
        raise InputError(
            "--output - writes one image: expected one prompt, one kind, no --labels and no --json"
        )
    folder = output_folder(options.output)
    stem, image = read_image(options.image)
    prompts = [*options.prompts, *image_prompts(options.image_prompt, options.prompt_mask)]
    tidy = clean_up(options)
    segmenter = Segmenter.from_pretrained(model_path(options), backend=options.backend)
    result = segmenter.combine(
        image, prompts, scales=options.scales, input_data_format="channels_last"
    )
    if to_stdout:
        likely = result.probability(0)
        found = Found(
            image, tidy(likely > checked_threshold(options.threshold)), likely, tidy.feather
        )
        KINDS[options.write[0]](found).save(sys.stdout.buffer, format="PNG")
        return
    captions = [*options.prompts, *(Path(file).name for file in options.image_prompt)]
    kinds = options.write
    with written_together(folder) as part:
        said = write_results(
            part, stem, image, result, captions, kinds, options.threshold, tidy, options.labels
        )
    for one in said:
        one["files"] = [str(folder / Path(file).name) for file in one["files"]]
    if options.json:
        print(as_json_lines(said))
    else:
        print(as_lines(said))
        width = max(map(len, captions))
        print(f"{'all together':<{width}}  {folder / f'{stem}_overlay.png'}")


def model_path(options: argparse.Namespace) -> Path:
    """The folder, or the one file, of the checkpoint that --model names, or the demonstration checkpoint's."""
    if options.model is None:
        return demo_folder()
    return checkpoint_path(options.model, local_files_only=options.offline)


def output_folder(name: str) -> Path:
    folder = Path(name)
    if not name or (folder.exists() and not folder.is_dir()):
        what = f"{name} is a file" if name else "is empty"
        raise InputError(f"--output {what}; expected a folder, which is made if missing")
    return folder


def read_image(name: str) -> tuple[str, np.ndarray]:
    """What to call an image's results, and the image; "-" is standard input."""
    if name != "-":
        return Path(name).stem, load_image(name)
    with tempfile.NamedTemporaryFile() as file:
        file.write(sys.stdin.buffer.read())
        file.flush()
        try:
            return "image", load_image(file.name)
        except InputError as error:
            raise InputError(str(error).replace(file.name, "standard input")) from error


def clean_up(options: argparse.Namespace) -> CleanUp:
    if not (0 <= options.smallest <= MOST_PIXELS and 0 <= options.feather <= MOST_PIXELS):
        raise InputError(
            f"--smallest and --feather are numbers of pixels; expected 0 or more, at most {MOST_PIXELS}"
        )
    if not abs(options.grow) <= MOST_PIXELS:  # NaN, too, is not
        raise InputError(
            f"--grow is {options.grow}; expected a number of pixels, at most {MOST_PIXELS}"
        )
    return CleanUp(options.smallest, options.grow, options.feather)


def run_batch_command(options: argparse.Namespace) -> int:
    """Exit code 1 where an image failed; the others are done all the same."""
    masks = options.prompt_mask or [None] * len(options.image_prompt)
    image_prompts(options.image_prompt, options.prompt_mask)  # as many of one as of the other
    job = Job(
        prompts=tuple(options.prompts),
        output=str(output_folder(options.output)),
        model=None if options.model is None else str(model_path(options)),
        image_prompts=tuple(zip(options.image_prompt, masks)),
        kinds=tuple(options.write),
        threshold=options.threshold,
        clean_up=clean_up(options),
        labels=options.labels,
        scales=tuple(options.scales),
        backend=options.backend,
    )
    workers = usual_count() if options.workers is None else options.workers
    if not 1 <= workers <= MOST_WORKERS:
        raise InputError(f"--workers is {workers}; expected 1 or more, at most {MOST_WORKERS}")
    if ops_for(options.backend).xp is np:
        context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks
        pool = ProcessPoolExecutor(workers, mp_context=context)
    else:  # one model on the GPU for all; threads read and write images beside it
        pool = ThreadPoolExecutor(workers)
    with pool as executor:
        try:
            report = run_batch(job, options.folder, executor, options.glob, progress)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)  # of thousands that wait
            raise
    failed = [one for one in report if "error" in one]
    if options.json:
        for one in report:
            print(json.dumps(one, ensure_ascii=False))
    else:
        for one in failed:
            say("error", one["error"])
        print(
            f"{len(report) - len(failed)} of {len(report)} images  {Path(options.output, REPORT)}"
        )
    return 1 if failed else 0


def progress(done: Iterable, number: int) -> Iterable:
    """A bar on standard error, where someone looks at it and tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return done
    return tqdm(done, total=number, unit="image", disable=None)


def image_prompts(images: list[str], masks: list[str]) -> list[Path | VisualPrompt]:
    """Each image by itself, or each with its mask."""
    if not masks:
        return [Path(image) for image in images]
    if len(masks) != len(images):
        raise InputError(
            f"got {len(images)} --image-prompt and {len(masks)} --prompt-mask; expected a mask for each, or none"
        )
    return [VisualPrompt(Path(image), Path(mask)) for image, mask in zip(images, masks)]


def run_info(options: argparse.Namespace) -> None:
    path = model_path(options)
    model = CLIPSegForImageSegmentation.from_pretrained(path, backend=options.backend)
    config = model.config
    vision, text = config.vision_config, config.text_config
    head = "refined" if config.use_complex_transposed_convolution else "plain"
    parameters = sum(array.size for array in model.state_dict().values())
    files = [path] if path.is_file() else path.glob("*.safetensors")
    size = sum(file.stat().st_size for file in files)
    print(f"clipseg-np   {__version__}")
    print(
        f"Python       {platform.python_version()}, NumPy {np.__version__}, {os.cpu_count()} CPU cores"
    )
    print(f"backend      {options.backend}, on {model.ops.xp.__name__}, {model.dtype}")
    print(f"checkpoint   {path}")
    print(f"size         {parameters:,} parameters, {size / 1e6:.1f} MB on disk")
    print(
        f"vision       {vision.num_hidden_layers} layers, {vision.hidden_size} wide, patches of "
        f"{vision.patch_size} pixels, positions for {vision.image_size} x {vision.image_size} pixels"
    )
    print(
        f"text         {text.num_hidden_layers} layers, {text.hidden_size} wide, {text.vocab_size} tokens, "
        f"at most {text.max_position_embeddings} in a prompt"
    )
    print(
        f"decoder      {config.reduce_dim} wide, reads vision layers "
        f"{', '.join(map(str, config.extract_layers))}, {head} head"
    )


def run_trace(options: argparse.Namespace) -> None:
    target = Path(options.output)
    if target.suffix == ".npz" or (target.exists() and not target.is_file()):
        raise InputError(f"--output {options.output}: expected the name of a .safetensors file")
    path = model_path(options)

    def load(dtype: str) -> CLIPSegForImageSegmentation:
        return CLIPSegForImageSegmentation.from_pretrained(
            path, backend=options.backend, dtype=dtype
        )

    model = load(options.dtype)
    rough = load("float32") if options.dtype == "float64" else None
    processor = CLIPSegProcessor.from_pretrained(path)
    images = [load_image(options.image)] * len(options.prompts)
    inputs = processor(
        text=options.prompts, images=images, padding=True, input_data_format="channels_last"
    )
    about = {
        "checkpoint": str(options.model or "demonstration"),
        "image": Path(options.image).name,
        "prompts": options.prompts,
    }
    write_golden(options.output, model, inputs, options.names, about, rough)
    arrays = Golden(options.output)
    size = os.path.getsize(options.output)
    print(f"{len(arrays)} arrays, {size / 1e6:.1f} MB, {model.dtype}  {options.output}")


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
        of_clip = options.clip, output, *stored, options.tokenizer, options.extract_layers
        written = convert_original(source, *of_clip)
        if options.tokenizer is None:
            say(
                "warning",
                "no tokenizer was given, and the authors' files have none: for text prompts, put vocab.json and "
                f"merges.txt of openai/clip-vit-base-patch16 into {output}, or convert again with --tokenizer.",
            )
    elif options.clip or options.tokenizer or options.extract_layers:
        raise InputError(
            f"--clip, --tokenizer and --extract-layers are for the authors' decoder, a .pth file; got {source}"
        )
    else:
        written = convert(source, output, *stored)
    files = written.files[0] if len(written.files) == 1 else f"{len(written.files)} shards"
    print(f"{written.tensors} tensors, {written.size / 1e6:.1f} MB, {files}  {output}")
