"""The command `clipseg-np`: segment, batch, info, trace, compare, download, convert.

What a user can mend is said in one line on standard error, with exit code 2; `compare` has 1 for a deviation.
"""

import argparse
import os
import sys
import warnings
from typing import NoReturn

from ..atomic_files import NOT_UTF8
from ..backends.select import NAMES
from ..convert.checkpoint import STORED_AS
from ..errors import InputError, MissingExtra
from ..segment.results import KINDS
from ..version import __version__
from .commands import (
    run_batch_command,
    run_compare,
    run_convert,
    run_download,
    run_info,
    run_segment,
    run_trace,
    say,
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    if hasattr(sys.stdout, "reconfigure"):  # prompts and names are printed on any terminal
        sys.stdout.reconfigure(errors=NOT_UTF8)
    top = parser()
    options, left = top.parse_known_args(arguments)
    prompts = [word for word in left if not word.startswith("-")]  # those that follow an option
    if prompts != left or (prompts and "prompts" not in options):
        top.error(f"unrecognized arguments: {' '.join(left)}")
    if prompts:
        options.prompts = [*options.prompts, *prompts]
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say("warning", message)
        try:
            return options.run(options) or 0
        except BrokenPipeError:  # whoever reads the output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except MemoryError as error:
            say("error", f"there is not enough memory: {error or 'give a smaller image'}")
            return 2
        except (InputError, MissingExtra, OSError) as error:
            say("error", error)
            return 2


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as the rest of the command does."""

    def parse_known_args(self, args=None, namespace=None):
        if any("\0" in one for one in args or ()):
            self.error("an argument holds the character NUL, which no file's name and no text has")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        say("error", f"{message}. See {self.prog} --help.")
        self.exit(2)


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="clipseg-np", description="Segment an image by words or by another image.")
    top.add_argument("--version", action="version", version=f"clipseg-np {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    segment = commands.add_parser("segment", help="write a mask of an image for each prompt")
    segment.add_argument(
        "image", metavar="IMAGE", help="the image's file; - reads it from standard input"
    )
    segment.set_defaults(run=run_segment)
    batch = commands.add_parser("batch", help="the same for all images of a folder")
    batch.add_argument("folder", metavar="FOLDER", help="with images, also in folders inside it")
    batch.add_argument(
        "--glob",
        metavar="PATTERN",
        action="append",
        default=[],
        help="of images' names, as '*.jpg'; may be given several times; default: all that Pillow reads",
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
    golden.add_argument("image", metavar="IMAGE", help="the image's file")
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
    """What is looked for, and what is written of it: the same for one image and for many."""
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
        help="an image that shows what to look for; may be given several times",
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
        help="default: %(default)s; for one image and one prompt, - writes to standard output",
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
        help=f"images to write for each prompt, of {', '.join(KINDS)}; default: mask",
    )
    command.add_argument(
        "--labels",
        action="store_true",
        help="write a map of all prompts in one too: an indexed PNG, JSON, and an image with a legend",
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
        help="1: the whole image; S: windows of an S-th of its sides, for what is small in it; several: their mean",
    )
    command.add_argument("--json", action="store_true", help="print a line of JSON for each prompt")
