"""The command `clipseg-np`: segment, batch, learn-prompt, fine-tune, info, trace, compare,
download, convert.

Exit code 2 with a one-line reason on standard error means an error that the user can fix; `compare`
exits with 1 for a deviation, `batch` and `segment` where one of several images failed.
"""

import argparse
import functools
import os
import re
import sys
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from typing import NoReturn

from ..atomic_files import NOT_UTF8
from ..backends.select import NAMES
from ..convert.checkpoint import STORED_AS
from ..errors import InputError, MissingExtra
from ..image.plugins import has_image_suffix
from ..learn.fine_tune import BATCH, RATE, STEPS
from ..segment.results import KINDS
from ..version import __version__
from .checkpoints import run_compare, run_convert, run_download, run_info, run_trace
from .learn import run_fine_tune, run_learn_prompt
from .segment import run_batch_command, run_segment
from .signals import raised_as_interrupts
from .terminal import say

REPEATED = {"action": "append", "default": []}
DEFAULT = "default: %(default)s"
DECODER = "a file of `fine-tune --decoder-only`, in place of the decoder of --model"


def kinds(text: str) -> tuple[str, ...]:
    """ "mask,soft" -> ("mask", "soft"); "all" is all."""
    words = [word.strip() for word in text.split(",") if word.strip()] or [text]
    for word in words:
        if word not in (*KINDS, "all"):
            expected = f"expected {', '.join(KINDS)} or all"
            raise argparse.ArgumentTypeError(f"{word!r} is no kind of image; {expected}")
    return tuple(KINDS) if "all" in words else tuple(words)


def whole_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        problem = f"{text!r} is no list of whole numbers"
        raise argparse.ArgumentTypeError(f"{problem}; expected such as 1 2 or 1,2") from error


# Options that take several words, as patterns; the first word that is none of them ends the list.
NUMBER = r"[-+]?\d+|"
LISTS = {"--write": "|".join((*KINDS, "all", "")), "--scales": NUMBER, "--extract-layers": NUMBER}


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns its exit code."""
    open_streams()
    warn_once = functools.cache(functools.partial(say, "warning"))
    with warnings.catch_warnings(), raised_as_interrupts():
        warnings.showwarning = lambda message, *_, **__: warn_once(str(message))
        try:
            try:
                options = read_options(sys.argv[1:] if arguments is None else arguments)
                return options.run(options) or 0
            finally:  # a closed pipe is seen here, not when Python has ended
                print(end="", flush=True)
        except BrokenPipeError:  # the reader of the output has closed it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except KeyboardInterrupt as stop:
            say("stopped", "nothing is left half written")
            return stop.args[0]
        except MemoryError as error:
            reason = str(error) or "give a smaller image"
            say("error", f"there is not enough memory: {reason}")
        except (InputError, MissingExtra, OSError) as error:
            say("error", error)
        return 2


def open_streams() -> None:
    """Open what is closed of the standard streams, so that no other file gets its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):  # any terminal can print any prompt and name
        sys.stdout.reconfigure(errors=NOT_UTF8)


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; `images` are the words at the start that are images, `prompts` all others.

    After "--", all words are prompts. Raises InputError for a prompt that a file was meant by.
    """
    arguments, prompts_alone = list(arguments), []
    if arguments[:1] in (["segment"], ["batch"], ["trace"]) and "--" in arguments:
        end = arguments.index("--")
        arguments, prompts_alone = arguments[:end], arguments[end + 1 :]
    top = parser()
    if any("\0" in argument for argument in arguments):
        top.error("an argument holds the character NUL; no text and no file name may hold it")
    options, words = top.parse_known_args(joined_lists(arguments))
    unknown = [word for word in words if word.startswith("-") or "prompts" not in options]
    if unknown:
        files = [f"./{word}" for word in unknown if os.path.exists(word)]
        hint = f"; a file's name is written {files[0]}" if files else ""
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if "prompts" in options:
        prompts = [*options.prompts, *getattr(options, "prompt", ()), *words]
        if "images" in options:
            first, *others = options.images
            end = next((n for n, word in enumerate(others) if not is_image(word)), len(others))
            options.images = list(dict.fromkeys([first, *others[:end]]))
            prompts = [*others[end:], *prompts]
        for prompt in prompts:
            if prompt != options.output or os.path.isfile(prompt):
                check_prompt(prompt)
        options.prompts = [*prompts, *prompts_alone]
    return options


def joined_lists(arguments: list[str]) -> list[str]:
    """["--write", "mask", "soft", "a star"] -> ["--write=mask,soft", "a star"]"""
    words, joined = deque(arguments), []
    while words:
        word, values = words.popleft(), []
        one = next((LISTS[n] for n in LISTS if len(word) > 2 and n.startswith(word)), None)
        while one and words and all(re.fullmatch(one, w.strip()) for w in words[0].split(",")):
            values.append(words.popleft().strip(" ,"))
        joined.append(f"{word}={','.join(values)}" if values else word)
    return joined


def is_image(word: str) -> bool:
    return word == "-" or (os.path.isfile(word) and has_image_suffix(word))


def check_prompt(word: str) -> None:
    """Raise InputError for a word by which a file or folder was meant."""
    if os.path.isdir(word):
        problem = "is a folder: `clipseg-np batch` takes one, and segments all images in it"
    elif word == "-" or os.path.exists(word):
        problem = (
            "is a file: images come first, before prompts and options; an option takes one file, "
            "and is repeated for more; quote a pattern, as in --glob '*.jpg'"
        )
    elif has_image_suffix(word):
        problem = "is the name of an image that is not there"
    else:
        return
    raise InputError(f"{word} {problem}. If it is a prompt, put it last, after --")


class Parser(argparse.ArgumentParser):
    """Reports errors in one line, as the commands do."""

    def error(self, message: str) -> NoReturn:
        say("error", f"{message}. See {self.prog} --help.")
        self.exit(2)


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="clipseg-np", description="Segment an image by texts or by other images.")
    top.add_argument("--version", action="version", version=f"clipseg-np {__version__}")
    subparsers = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable, help: str) -> Callable:
        """Add a command. Returns its `add_argument`."""
        subparser = subparsers.add_parser(name, help=help)
        subparser.set_defaults(run=run, parser=subparser)
        return subparser.add_argument

    segment = command("segment", run_segment, "write a mask of an image for each prompt")
    segment(
        "images", metavar="IMAGE", nargs="+", help="files, before all prompts; - is standard input"
    )
    batch = command("batch", run_batch_command, "segment all images in a folder")
    batch("folder", metavar="FOLDER", help="its subfolders are searched, too")
    text = "file names to read, such as '*.jpg'; may be repeated; default: all that Pillow can read"
    batch("--glob", metavar="PATTERN", **REPEATED, help=text)
    batch("--workers", metavar="N", type=int, help="processes; default: one for each core")
    text = "write all results into one folder, instead of one folder for each image"
    batch("--flat", action="store_true", help=text)
    for add in (segment, batch):
        add_segment_options(add)

    text = "learn a prompt from masks of a thing, for --prompt-file"
    learn_prompt = command("learn-prompt", run_learn_prompt, text)
    add_learning_options(learn_prompt)
    learn_prompt("--output", "-o", metavar="FILE", required=True, help="a .safetensors file")
    text = "a text to start from; may be repeated: the best; default: the name and a few others"
    learn_prompt("--start", dest="starts", metavar="TEXT", **REPEATED, help=text)

    text = "train a decoder of your own on masks, for --model or segment's --decoder"
    fine_tune = command("fine-tune", run_fine_tune, text)
    add_learning_options(fine_tune)
    text = "a new folder, for the checkpoint; a run that was stopped goes on in its own"
    fine_tune("--output", "-o", metavar="FOLDER", required=True, help=text)
    text = "examples, as DATA, of what it must not forget; default: its own masks of other prompts"
    fine_tune("--keep", metavar="DATA", help=text)
    text = "write decoder.safetensors alone, for segment's --decoder"
    fine_tune("--decoder-only", action="store_true", help=text)
    text = "steps of each of the four decoders whose mean is written; default: %(default)s"
    fine_tune("--steps", metavar="N", type=int, default=STEPS, help=text)
    fine_tune("--batch-size", metavar="N", type=int, default=BATCH, help=DEFAULT)
    text = "the highest learning rate of AdamW; default: %(default)s"
    fine_tune("--rate", metavar="R", type=float, default=RATE, help=text)
    text = "count each pixel of a thing W times in the cross-entropy; default: 1"
    fine_tune("--pos-weight", metavar="W", type=float, default=1, help=text)
    text = "the focal loss in place of the cross-entropy"
    fine_tune("--focal", action="store_true", help=text)

    info = command("info", run_info, "show versions, and a checkpoint's size and shape")
    trace = command("trace", run_trace, "write every layer's output, to check a port with")
    trace("image", metavar="IMAGE", help="a file")
    trace(
        "prompts",
        metavar="PROMPT",
        nargs="*",
        default=[],
        help="texts; after --, every word is one",
    )
    trace("--output", "-o", metavar="FILE", required=True, help="a .safetensors file")
    trace("--names", metavar="PATTERN", default="*", help="layers to write, such as 'decoder.*'")
    trace("--dtype", choices=("float32", "float64"), default="float64", help="default: float64")
    for add in (segment, batch, learn_prompt, trace):
        add("--overwrite", action="store_true", help="replace other results that are there already")
    for add in (segment, batch, learn_prompt, fine_tune, trace):
        text = "the number that is white, such as 4095 for 12 bits in 16; not for images of 8 bits"
        add("--white-level", metavar="N", type=float, help=text)
    for add in (segment, batch, learn_prompt, fine_tune, info, trace):
        text = "a checkpoint's folder, .safetensors file or hub id; default: the demonstration's"
        add("--model", metavar="FOLDER_OR_ID", help=text)
        add("--offline", action="store_true", help="use no network, only the hub's cache")
        add("--backend", choices=NAMES, default="numpy", help="default: %(default)s")

    compare = command("compare", run_compare, "find the first layer where a port deviates")
    compare("golden", metavar="GOLDEN", help="a file that `trace` wrote")
    compare("other", metavar="OTHER", help="a .safetensors or .npz file with the same names")
    text = "maximum difference, relative to a layer's largest number; default: by the files' types"
    compare("--tolerance", metavar="T", type=float, help=text)

    download = command("download", run_download, "download from the Hugging Face hub")
    download("hub_id", metavar="HUB_ID", help="such as CIDAS/clipseg-rd64-refined")
    download("folder", metavar="FOLDER", nargs="?", help="default: the name after the slash")

    text = "store a checkpoint in another type or in shards, or make one from PyTorch files"
    convert = command("convert", run_convert, text)
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
    convert("--extract-layers", metavar="N,N", type=whole_numbers, action="extend", help=text)
    text = f"layer of {authors} before which the prompt comes in; default: 0"
    convert("--cond-layer", metavar="N", type=int, help=text)
    text = f"{authors} reads the first of its layers first; default: --no-rev-activations"
    flag = argparse.BooleanOptionalAction
    convert("--rev-activations", action=flag, default=None, help=text)
    return top


def add_learning_options(add: Callable) -> None:
    """Add the options of all that learns."""
    text = "a folder with images/ and masks/, a .csv, .jsonl or COCO .json file: see the cookbook"
    add("data", metavar="DATA", help=text)
    text = "names what the masks mark, where DATA does not; 'a heart|hearts' are two wordings"
    add("--prompt", metavar="TEXT", **REPEATED, help=text)
    add("--decoder", metavar="FILE", help=DECODER)
    add("--seed", metavar="N", type=int, default=0, help=DEFAULT)
    text = "1 repeats a run to the bit; default: one for each core"
    add("--threads", metavar="N", type=int, help=text)
    text = (
        "the folder of the images' features, which the next run reads; default: the system's cache"
    )
    add("--cache", metavar="FOLDER", help=text)


def add_segment_options(add: Callable) -> None:
    """Add the options of prompts and results: the same for one image and for many."""
    examples = '"a cat - a collar", "a cat + a dog", "a & b", "!a"'
    text = f"a text, or several combined: {examples}; after --, every word is one"
    add("prompts", metavar="PROMPT", nargs="*", default=[], help=text)
    add("--prompt", **REPEATED, help=argparse.SUPPRESS)  # else, it is short for --prompt-mask
    add("--image-prompt", metavar="FILE", **REPEATED, help="an image as a prompt; may be repeated")
    text = "a learned prompt; @NAME in a PROMPT means NAME.safetensors; may be repeated"
    add("--prompt-file", metavar="FILE", **REPEATED, help=text)
    add("--decoder", metavar="FILE", help=DECODER)
    text = "take a --prompt-file that was learned with another decoder"
    add("--force", action="store_true", help=text)
    text = "an image prompt's mask, white on black; one for each --image-prompt, in their order"
    add("--prompt-mask", metavar="FILE", **REPEATED, help=text)
    text = (
        "default: %(default)s; for one image and one prompt also NAME.png, or - for standard output"
    )
    add("--output", "-o", metavar="FOLDER", default="masks", help=text)
    text = "a mask holds the pixels whose probability, 0 to 1, is above T; default: %(default)s"
    add("--threshold", metavar="T", type=float, default=0.5, help=text)
    text = f"images to write for each prompt: all, or several of {', '.join(KINDS)}; default: mask"
    add("--write", metavar="KIND,KIND", type=kinds, action="extend", help=text)
    text = "write a sheet of the image and all masks; the default for one image without --write"
    add("--overlay", action="store_true", help=text)
    add("--labels", action="store_true", help="write a label map of all prompts: PNG, JSON, legend")
    text = "write the masks of all images into one .json file, as COCO's annotations"
    add("--coco", metavar="FILE", help=text)
    text = "remove components below N pixels; default: %(default)s"
    add("--smallest", metavar="N", type=int, default=0, help=text)
    text = "dilate masks by N pixels; -N erodes; default: %(default)s"
    add("--grow", metavar="N", type=float, default=0, help=text)
    text = "soften mask edges by N pixels; default: %(default)s"
    add("--feather", metavar="N", type=float, default=0, help=text)
    text = "1: the whole image; S: its windows of 1/S of its sides; several: their mean; default: 1"
    add("--scales", metavar="S,S", type=whole_numbers, action="extend", help=text)
    add("--json", action="store_true", help="print one line of JSON for each prompt")
