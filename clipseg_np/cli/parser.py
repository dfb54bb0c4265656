"""The command `clipseg-np`: segment, batch, info, trace, compare, download, convert.

Exit code 2 with a one-line reason on standard error means an error that the user can fix; `compare`
exits with 1 for a deviation, `batch` for an image that failed.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

from ..atomic_files import NOT_UTF8
from ..backends.select import NAMES
from ..convert.checkpoint import STORED_AS
from ..errors import InputError, MissingExtra
from ..segment.results import KINDS
from ..version import __version__
from . import commands
from .signals import exit_code, raised_as_interrupts

REPEATED = {"action": "append", "default": []}


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns its exit code."""
    if hasattr(sys.stdout, "reconfigure"):  # any terminal can print any prompt and name
        sys.stdout.reconfigure(errors=NOT_UTF8)
    with warnings.catch_warnings(), raised_as_interrupts():
        warnings.showwarning = lambda message, *_, **__: commands.say("warning", message)
        try:
            try:
                options = read_options(arguments)
                return options.run(options) or 0
            finally:  # a closed pipe is seen here, not when Python has ended
                print(end="", flush=True)
        except BrokenPipeError:  # the reader of the output has closed it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except KeyboardInterrupt as stop:
            commands.say("stopped", "nothing is left half written")
            return exit_code(stop)
        except MemoryError as error:
            reason = str(error) or "give a smaller image"
            commands.say("error", f"there is not enough memory: {reason}")
        except (InputError, MissingExtra, OSError) as error:
            commands.say("error", error)
        return 2


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    top = parser()
    if any("\0" in argument for argument in arguments or ()):
        top.error("an argument holds the character NUL; no text and no file name may hold it")
    options, unknown = top.parse_known_args(arguments)
    prompts = [word for word in unknown if not word.startswith("-")]  # those after an option
    if prompts != unknown or (prompts and "prompts" not in options):
        top.error(f"unrecognized arguments: {' '.join(unknown)}")
    if prompts:
        options.prompts += prompts
    return options


class Parser(argparse.ArgumentParser):
    """Reports errors in one line, as the commands do."""

    def error(self, message: str) -> NoReturn:
        commands.say("error", f"{message}. See {self.prog} --help.")
        self.exit(2)


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="clipseg-np", description="Segment an image by texts or by other images.")
    top.add_argument("--version", action="version", version=f"clipseg-np {__version__}")
    subparsers = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable, help: str) -> Callable:
        """Add a command. Returns its `add_argument`."""
        subparser = subparsers.add_parser(name, help=help)
        subparser.set_defaults(run=run)
        return subparser.add_argument

    segment = command("segment", commands.run_segment, "write a mask of an image for each prompt")
    segment("image", metavar="IMAGE", help="a file; - is standard input")
    batch = command("batch", commands.run_batch_command, "segment all images in a folder")
    batch("folder", metavar="FOLDER", help="its subfolders are searched, too")
    text = "file names to read, such as '*.jpg'; may be repeated; default: all that Pillow can read"
    batch("--glob", metavar="PATTERN", **REPEATED, help=text)
    batch("--workers", metavar="N", type=int, help="processes; default: one for each core")
    for add in (segment, batch):
        add_segment_options(add)

    info = command("info", commands.run_info, "show versions, and a checkpoint's size and shape")
    trace = command("trace", commands.run_trace, "write every layer's output, to check a port with")
    trace("image", metavar="IMAGE", help="a file")
    trace("prompts", metavar="PROMPT", nargs="+", help="texts")
    trace("--output", metavar="FILE", required=True, help="a .safetensors file")
    trace("--names", metavar="PATTERN", default="*", help="layers to write, such as 'decoder.*'")
    trace("--dtype", choices=("float32", "float64"), default="float64", help="default: float64")
    for add in (segment, batch, trace):
        text = "the number that is white, such as 4095 for 12 bits in 16; not for images of 8 bits"
        add("--white-level", metavar="N", type=float, help=text)
    for add in (segment, batch, info, trace):
        text = "a checkpoint's folder, .safetensors file or hub id; default: the demonstration's"
        add("--model", metavar="FOLDER_OR_ID", help=text)
        add("--offline", action="store_true", help="use no network, only the hub's cache")
        add("--backend", choices=NAMES, default="numpy", help="default: %(default)s")

    compare = command("compare", commands.run_compare, "find the first layer where a port deviates")
    compare("golden", metavar="GOLDEN", help="a file that `trace` wrote")
    compare("other", metavar="OTHER", help="a .safetensors or .npz file with the same names")
    text = "maximum difference, relative to a layer's largest number; default: by the files' types"
    compare("--tolerance", metavar="T", type=float, help=text)

    download = command("download", commands.run_download, "download from the Hugging Face hub")
    download("hub_id", metavar="HUB_ID", help="such as CIDAS/clipseg-rd64-refined")
    download("folder", metavar="FOLDER", nargs="?", help="default: the name after the slash")

    text = "store a checkpoint in another type or in shards, or make one from PyTorch files"
    convert = command("convert", commands.run_convert, text)
    authors = "the authors' decoder"
    text = f"a checkpoint's folder, .safetensors file or hub id, or {authors} (rd64-uni.pth)"
    convert("source", metavar="SOURCE", help=text)
    convert("output", metavar="OUTPUT", help="a new or empty folder")
    convert("--dtype", choices=tuple(STORED_AS), help="default: unchanged; of a .pth, float32")
    convert("--shard-size", metavar="MB", type=float, help="maximum of a file; default: one file")
    convert("--clip", metavar="FILE", help=f"OpenAI's ViT-B-16.pt, needed for {authors}")
    text = f"for {authors}: a folder with CLIP's tokenizer, or bpe_simple_vocab_16e6.txt.gz"
    convert("--tokenizer", metavar="PATH", help=text)
    text = f"layers that {authors} reads, counted from 0; default: 3 6 9"
    convert("--extract-layers", metavar="N", type=int, nargs="+", help=text)
    return top


def add_segment_options(add: Callable) -> None:
    """Add the options of prompts and results: the same for one image and for many."""
    examples = '"a cat - a collar", "a cat + a dog", "a & b", "!a"'
    text = f'a text, such as "a red circle", or several combined: {examples}'
    add("prompts", metavar="PROMPT", nargs="*", help=text)
    add("--image-prompt", metavar="FILE", **REPEATED, help="an image as a prompt; may be repeated")
    text = "an image prompt's mask, white on black; one for each --image-prompt, in their order"
    add("--prompt-mask", metavar="FILE", **REPEATED, help=text)
    text = "default: %(default)s; for one image and one prompt, - writes to standard output"
    add("--output", metavar="FOLDER", default="masks", help=text)
    text = "a mask holds the pixels whose probability, 0 to 1, is above T; default: %(default)s"
    add("--threshold", metavar="T", type=float, default=0.5, help=text)
    text = f"images to write for each prompt: {', '.join(KINDS)}; default: mask"
    add("--write", metavar="KIND", nargs="+", choices=tuple(KINDS), default=["mask"], help=text)
    add("--labels", action="store_true", help="write a label map of all prompts: PNG, JSON, legend")
    add("--smallest", metavar="N", type=int, default=0, help="remove components below N pixels")
    add("--grow", metavar="N", type=float, default=0, help="dilate masks by N pixels; -N erodes")
    add("--feather", metavar="N", type=float, default=0, help="soften mask edges by N pixels")
    text = "1: the whole image; S: its windows of 1/S of its sides; several: their mean"
    add("--scales", metavar="S", type=int, nargs="+", default=[1], help=text)
    add("--json", action="store_true", help="print one line of JSON for each prompt")
