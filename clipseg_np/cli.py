"""The command `clipseg-np`: segment, info, trace, compare, download.

What a user can mend is said in one line on standard error, with exit code 2; `compare` has 1 for a deviation.
"""

import argparse
import os
import platform
import sys
import warnings
from pathlib import Path

import numpy as np

from .backends import NAMES
from .clipseg import CLIPSegForImageSegmentation
from .compare import compare, report
from .errors import InputError, MissingExtra
from .files import checkpoint_folder, demo_folder, download
from .golden import Golden, write_golden
from .picture import load_image
from .processor import CLIPSegProcessor
from .results import KINDS, CleanUp, as_json_lines, as_lines, write_results
from .segmenter import Segmenter
from .version import __version__
from .visual_prompt import VisualPrompt


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _say("warning", message)
        try:
            return options.run(options) or 0
        except BrokenPipeError:  # whoever reads the output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except (InputError, MissingExtra, OSError) as error:
            _say("error", error)
            return 2


def _say(kind: str, message: object) -> None:
    print(f"clipseg-np: {kind}: {message}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="clipseg-np", description="Segment a picture by words or by another picture."
    )
    top.add_argument("--version", action="version", version=f"clipseg-np {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    segment = commands.add_parser("segment", help="write a mask of a picture for each prompt")
    segment.add_argument("picture", metavar="PICTURE", help="the picture's file")
    segment.add_argument(
        "prompts",
        metavar="PROMPT",
        nargs="*",
        help='a text, such as "a red circle", or several joined: "a cat - a collar", "a cat + a dog", "a & b", "!a"',
    )
    segment.add_argument(
        "--image-prompt",
        metavar="FILE",
        action="append",
        default=[],
        help="a picture that shows what to look for; may be given several times",
    )
    segment.add_argument(
        "--prompt-mask",
        metavar="FILE",
        action="append",
        default=[],
        help="what is meant in the image prompt, white on black; once for each --image-prompt, in their order",
    )
    segment.add_argument("--output", metavar="FOLDER", default="masks", help="default: %(default)s")
    segment.add_argument(
        "--threshold",
        metavar="T",
        type=float,
        default=0.5,
        help="what is more probable than this, 0 to 1, is in the mask; default: %(default)s",
    )
    segment.add_argument(
        "--write",
        metavar="KIND",
        nargs="+",
        choices=tuple(KINDS),
        default=["mask"],
        help=f"pictures to write for each prompt, of {', '.join(KINDS)}; default: mask",
    )
    segment.add_argument(
        "--labels",
        action="store_true",
        help="write a map of all prompts in one too, as an indexed PNG and as JSON",
    )
    segment.add_argument(
        "--smallest", metavar="N", type=int, default=0, help="leave out regions of fewer pixels"
    )
    segment.add_argument(
        "--grow", metavar="N", type=float, default=0, help="widen masks by N pixels; -N: shrink"
    )
    segment.add_argument(
        "--feather", metavar="N", type=float, default=0, help="soften edges by N pixels"
    )
    segment.add_argument("--json", action="store_true", help="print a line of JSON for each prompt")
    segment.set_defaults(run=run_segment)

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
    for command in (segment, info, golden):
        command.add_argument(
            "--model",
            metavar="FOLDER_OR_ID",
            help="a checkpoint's folder or hub id; default: the demonstration checkpoint",
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
    return top


def run_segment(options: argparse.Namespace) -> None:
    """Everything is computed before the first file is written."""
    folder = Path(options.output)
    if folder.exists() and not folder.is_dir():
        raise InputError(
            f"--output {folder} is a file; expected a folder, which is made if missing"
        )
    picture = load_image(options.picture)
    prompts = [*options.prompts, *image_prompts(options.image_prompt, options.prompt_mask)]
    clean_up = CleanUp(options.smallest, options.grow, options.feather)
    if options.smallest < 0 or options.feather < 0:
        raise InputError("--smallest and --feather are numbers of pixels; expected 0 or more")
    segmenter = Segmenter.from_pretrained(options.model, backend=options.backend)
    result = segmenter.combine(picture, prompts)
    stem = Path(options.picture).stem
    captions = [*options.prompts, *(Path(file).name for file in options.image_prompt)]
    said = write_results(
        folder,
        stem,
        picture,
        result,
        captions,
        options.write,
        options.threshold,
        clean_up,
        options.labels,
    )
    if options.json:
        print(as_json_lines(said))
    else:
        print(as_lines(said))
        width = max(map(len, captions))
        print(f"{'all together':<{width}}  {folder / f'{stem}_overlay.png'}")


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
    folder = demo_folder() if options.model is None else checkpoint_folder(options.model)
    model = CLIPSegForImageSegmentation.from_pretrained(folder, backend=options.backend)
    config = model.config
    vision, text = config.vision_config, config.text_config
    head = "refined" if config.use_complex_transposed_convolution else "plain"
    parameters = sum(array.size for array in model.state_dict().values())
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    print(f"clipseg-np   {__version__}")
    print(
        f"Python       {platform.python_version()}, NumPy {np.__version__}, {os.cpu_count()} CPU cores"
    )
    print(f"backend      {options.backend}, {model.dtype}")
    print(f"checkpoint   {folder}")
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
    folder = demo_folder() if options.model is None else checkpoint_folder(options.model)

    def load(dtype: str) -> CLIPSegForImageSegmentation:
        return CLIPSegForImageSegmentation.from_pretrained(
            folder, backend=options.backend, dtype=dtype
        )

    model = load(options.dtype)
    rough = load("float32") if options.dtype == "float64" else None
    processor = CLIPSegProcessor.from_pretrained(folder)
    pictures = [load_image(options.picture)] * len(options.prompts)
    inputs = processor(text=options.prompts, images=pictures, padding=True)
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
