"""The command `clipseg-np`: segment, batch, info, trace, compare, download, convert.

What a user can mend is said in one line on standard error, with exit code 2; `compare` has 1 for a deviation.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NoReturn

import numpy as np

from .backends import NAMES
from .batch import REPORT, Job, run_batch
from .clipseg import CLIPSegForImageSegmentation
from .compare import compare, report
from .convert import STORED_AS, convert
from .errors import InputError, MissingExtra
from .files import NOT_UTF8, checkpoint_path, demo_folder, written_together
from .golden import Golden, write_golden
from .hub import download
from .original import convert_original
from .picture import load_image
from .processor import CLIPSegProcessor
from .results import KINDS, CleanUp, Found, as_json_lines, as_lines, write_results
from .segmentation import checked_threshold
from .segmenter import Segmenter
from .threads import usual_count
from .version import __version__
from .visual_prompt import VisualPrompt

LONGEST_LINE = 2000  # characters of a message
MOST_PIXELS, MOST_WORKERS = 10**9, 1024


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    if hasattr(sys.stdout, "reconfigure"):  # prompts and names are printed on any terminal
        sys.stdout.reconfigure(errors=NOT_UTF8)
    options, left = parser().parse_known_args(arguments)
    prompts = [word for word in left if not word.startswith("-")]  # those that follow an option
    if prompts != left or (prompts and "prompts" not in options):
        parser().error(f"unrecognized arguments: {' '.join(left)}")
    if prompts:
        options.prompts = [*options.prompts, *prompts]
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _say("warning", message)
        try:
            return options.run(options) or 0
        except BrokenPipeError:  # whoever reads the output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except MemoryError as error:
            _say("error", f"there is not enough memory: {error or 'give a smaller picture'}")
            return 2
        except (InputError, MissingExtra, OSError) as error:
            _say("error", error)
            return 2


def _say(kind: str, message: object) -> None:
    """One line, whatever the names and texts in it hold: what cannot be printed is escaped."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(message))
    if len(shown) > LONGEST_LINE:
        shown = f"{shown[: LONGEST_LINE - 3]}..."
    print(f"clipseg-np: {kind}: {shown}", file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as the rest of the command does."""

    def parse_known_args(self, args=None, namespace=None):
        if any("\0" in one for one in args or ()):
            self.error("an argument holds the character NUL, which no file's name and no text has")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        _say("error", f"{message}. See {self.prog} --help.")
        self.exit(2)


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="clipseg-np", description="Segment a picture by words or by another picture.")
    top.add_argument("--version", action="version", version=f"clipseg-np {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    segment = commands.add_parser("segment", help="write a mask of a picture for each prompt")
    segment.add_argument(
        "picture", metavar="PICTURE", help="the picture's file; - reads it from standard input"
    )
    segment.set_defaults(run=run_segment)
    batch = commands.add_parser("batch", help="the same for all pictures of a folder")
    batch.add_argument("folder", metavar="FOLDER", help="with pictures, also in folders inside it")
    batch.add_argument(
        "--glob",
        metavar="PATTERN",
        action="append",
        default=[],
        help="of pictures' names, as '*.jpg'; may be given several times; default: all that Pillow reads",
    )
    batch.add_argument(
        "--workers", metavar="N", type=int, help="default: as many as there are cores"
    )
    batch.set_defaults(run=run_batch_command)
    for command in (segment, batch):
        add_options_of_results(command)

    info = commands.add_parser("info", help="show versions and a checkpoint's size and shape")
    info.set_defaults(run=run_info)

    golden = commands.add_parser("trace", help="write what every layer returns, to port from")
    golden.add_argument("picture", metavar="PICTURE", help="the picture's file")
    golden.add_argument("prompts", metavar="PROMPT", nargs="+", help="texts")
    golden.add_argument("--output", metavar="FILE", required=True, help="a .safetensors file")
    golden.add_argument(
        "--names", metavar="PATTERN", default="*", help="of the layers to write, as 'decoder.*'"
    )
    golden.add_argument(
        "--dtype", choices=("float32", "float64"), default="float64", help="default: %(default)s"
    )
    golden.set_defaults(run=run_trace)
    for command in (segment, batch, info, golden):
        command.add_argument(
            "--model",
            metavar="FOLDER_OR_ID",
            help="a checkpoint's folder, its one .safetensors file or its hub id; default: the demonstration checkpoint",
        )
        command.add_argument(
            "--offline",
            action="store_true",
            help="ask no network: a hub id must be in the hub's cache",
        )
        command.add_argument(
            "--backend", choices=NAMES, default="numpy", help="default: %(default)s"
        )

    check = commands.add_parser("compare", help="find the first layer of a port that deviates")
    check.add_argument("golden", metavar="GOLDEN", help="a file that `trace` wrote")
    check.add_argument("other", metavar="OTHER", help="a .safetensors or .npz with the same names")
    check.add_argument(
        "--tolerance",
        metavar="T",
        type=float,
        help="largest difference allowed, relative to a layer's largest number; default: by the float types",
    )
    check.set_defaults(run=run_compare)

    fetch = commands.add_parser("download", help="fetch a checkpoint from the Hugging Face hub")
    fetch.add_argument("hub_id", metavar="HUB_ID", help="such as CIDAS/clipseg-rd64-refined")
    fetch.add_argument(
        "folder", metavar="FOLDER", nargs="?", help="default: the name after the slash"
    )
    fetch.set_defaults(run=run_download)
    add_convert(commands)
    return top


def add_convert(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "convert",
        help="store a checkpoint in another type or in shards, or make one of PyTorch files",
    )
    command.add_argument(
        "source",
        metavar="SOURCE",
        help="a checkpoint's folder, .safetensors file or hub id, or the authors' decoder (rd64-uni.pth)",
    )
    command.add_argument("output", metavar="OUTPUT", help="a new or empty folder")
    command.add_argument(
        "--dtype",
        choices=tuple(STORED_AS),
        help="default: as it was; of the authors' files, float32",
    )
    command.add_argument(
        "--shard-size", metavar="MB", type=float, help="the most in one file; default: one file"
    )
    command.add_argument(
        "--clip", metavar="FILE", help="OpenAI's ViT-B-16.pt, beside the authors' decoder"
    )
    command.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="for the authors' decoder: a folder with CLIP's tokenizer, or bpe_simple_vocab_16e6.txt.gz",
    )
    command.add_argument(
        "--extract-layers",
        metavar="N",
        type=int,
        nargs="+",
        help="that the authors' decoder reads, counted from 0; default: 3 6 9",
    )
    command.set_defaults(run=run_convert)


def add_options_of_results(command: argparse.ArgumentParser) -> None:
    """What is looked for, and what is written of it: the same for one picture and for many."""
    command.add_argument(
        "prompts",
        metavar="PROMPT",
        nargs="*",
        help='a text, such as "a red circle", or several joined: "a cat - a collar", "a cat + a dog", "a & b", "!a"',
    )
    command.add_argument(
        "--image-prompt",
        metavar="FILE",
        action="append",
        default=[],
        help="a picture that shows what to look for; may be given several times",
    )
    command.add_argument(
        "--prompt-mask",
        metavar="FILE",
        action="append",
        default=[],
        help="what is meant in the image prompt, white on black; once for each --image-prompt, in their order",
    )
    command.add_argument(
        "--output",
        metavar="FOLDER",
        default="masks",
        help="default: %(default)s; for one picture and one prompt, - writes to standard output",
    )
    command.add_argument(
        "--threshold",
        metavar="T",
        type=float,
        default=0.5,
        help="what is more probable than this, 0 to 1, is in the mask; default: %(default)s",
    )
    command.add_argument(
        "--write",
        metavar="KIND",
        nargs="+",
        choices=tuple(KINDS),
        default=["mask"],
        help=f"pictures to write for each prompt, of {', '.join(KINDS)}; default: mask",
    )
    command.add_argument(
        "--labels",
        action="store_true",
        help="write a map of all prompts in one too, as an indexed PNG and as JSON",
    )
    command.add_argument(
        "--smallest", metavar="N", type=int, default=0, help="leave out regions of fewer pixels"
    )
    command.add_argument(
        "--grow", metavar="N", type=float, default=0, help="widen masks by N pixels; -N: shrink"
    )
    command.add_argument(
        "--feather", metavar="N", type=float, default=0, help="soften edges by N pixels"
    )
    command.add_argument(
        "--scales",
        metavar="S",
        type=int,
        nargs="+",
        default=[1],
        help="1: the whole picture; S: windows of an S-th of its sides, for what is small in it; several: their mean",
    )
    command.add_argument("--json", action="store_true", help="print a line of JSON for each prompt")


def run_segment(options: argparse.Namespace) -> None:
    """Everything is computed before the first file is written."""
    to_stdout = options.output == "-"
    number = len(options.prompts) + len(options.image_prompt)
    if to_stdout and (number != 1 or len(options.write) != 1 or options.labels or options.json):
        raise InputError(
            "--output - writes one picture: expected one prompt, one kind, no --labels and no --json"
        )
    folder = output_folder(options.output)
    stem, picture = read_picture(options.picture)
    prompts = [*options.prompts, *image_prompts(options.image_prompt, options.prompt_mask)]
    tidy = clean_up(options)
    segmenter = Segmenter.from_pretrained(model_path(options), backend=options.backend)
    result = segmenter.combine(
        picture, prompts, scales=options.scales, input_data_format="channels_last"
    )
    if to_stdout:
        likely = result.probability(0)
        found = Found(
            picture, tidy(likely > checked_threshold(options.threshold)), likely, tidy.feather
        )
        KINDS[options.write[0]](found).save(sys.stdout.buffer, format="PNG")
        return
    captions = [*options.prompts, *(Path(file).name for file in options.image_prompt)]
    kinds = options.write
    with written_together(folder) as part:
        said = write_results(
            part, stem, picture, result, captions, kinds, options.threshold, tidy, options.labels
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


def read_picture(name: str) -> tuple[str, np.ndarray]:
    """What to call a picture's results, and the picture; "-" is standard input."""
    if name != "-":
        return Path(name).stem, load_image(name)
    with tempfile.NamedTemporaryFile() as file:
        file.write(sys.stdin.buffer.read())
        file.flush()
        try:
            return "picture", load_image(file.name)
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
    """Exit code 1 where a picture failed; the others are done all the same."""
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
    context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks
    with ProcessPoolExecutor(workers, mp_context=context) as executor:
        report = run_batch(job, options.folder, executor, options.glob, progress)
    failed = [one for one in report if "error" in one]
    for one in failed:
        if not options.json:
            _say("error", one["error"])
    if options.json:
        for one in report:
            print(json.dumps(one, ensure_ascii=False))
    else:
        print(
            f"{len(report) - len(failed)} of {len(report)} pictures  {Path(options.output, REPORT)}"
        )
    return 1 if failed else 0


def progress(done: Iterable, number: int) -> Iterable:
    """A bar on standard error, where someone looks at it and tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return done
    return tqdm(done, total=number, unit="picture", disable=None)


def image_prompts(pictures: list[str], masks: list[str]) -> list[Path | VisualPrompt]:
    """Each picture by itself, or each with its mask."""
    if not masks:
        return [Path(picture) for picture in pictures]
    if len(masks) != len(pictures):
        raise InputError(
            f"got {len(pictures)} --image-prompt and {len(masks)} --prompt-mask; expected a mask for each, or none"
        )
    return [VisualPrompt(Path(picture), Path(mask)) for picture, mask in zip(pictures, masks)]


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
    pictures = [load_image(options.picture)] * len(options.prompts)
    inputs = processor(
        text=options.prompts, images=pictures, padding=True, input_data_format="channels_last"
    )
    about = {
        "checkpoint": str(options.model or "demonstration"),
        "picture": Path(options.picture).name,
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
            _say(
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
