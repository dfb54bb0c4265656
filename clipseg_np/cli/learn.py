"""The commands `learn-prompt` and `fine-tune`."""

import argparse
from pathlib import Path

from ..errors import InputError
from ..image.plugins import has_image_suffix
from ..learn.data import read_data
from ..learn.fine_tune import fine_tune
from ..learn.learn_prompt import learn_prompt
from ..segment.segmenter import NOT_IN_NAMES, Segmenter
from .files import model_path, new_file
from .terminal import progress, say, show

FINE_TUNE = "decoder_only", "steps", "batch_size", "rate", "pos_weight", "focal", "seed", "cache"


def learner(options: argparse.Namespace) -> Segmenter:
    given = {"backend": options.backend, "threads": options.threads, "decoder": options.decoder}
    return Segmenter.from_pretrained(model_path(options), **given)


def prompt_file(options: argparse.Namespace) -> Path:
    """The file to write. Raises InputError for one that `segment` could not take."""
    target = new_file(options)
    if target.suffix.lower() != ".safetensors":
        raise InputError(f"--output {target}: expected the name of a .safetensors file")
    if NOT_IN_NAMES.search(target.stem):
        fault = f"no text could mention the prompt as '@{target.stem}'"
        raise InputError(
            f"--output {target}: {fault}; expected no spaces, quotes, parentheses or !"
        )
    return target


def run_learn_prompt(options: argparse.Namespace) -> None:
    target = prompt_file(options)
    data = read_data(options.data, options.prompt, options.white_level)
    segmenter = learner(options)
    chosen = {name: getattr(options, name) for name in ("starts", "seed", "cache")}
    prompt = learn_prompt(segmenter, data, progress=progress, **chosen)
    prompt_file(options)  # another run may have written it meanwhile
    prompt.save(target)
    made = prompt.made
    ious = f"{made['start_iou']:.3f} ({made['start']!r}) -> {made['held_out_iou']:.3f}"
    show(f"IoU on held-out images: {ious}, step {made['steps']}  {target}")


def run_fine_tune(options: argparse.Namespace) -> int:
    """Exit code 130 or so where it was stopped; the same command goes on."""
    if has_image_suffix(options.output) or options.output.lower().endswith(".safetensors"):
        raise InputError(f"--output {options.output}: expected the name of a folder")
    data = read_data(options.data, options.prompt, options.white_level)
    keep = read_data(options.keep, white_level=options.white_level) if options.keep else None
    chosen = {name: getattr(options, name) for name in FINE_TUNE}
    chosen |= {"keep": keep, "progress": progress}
    try:
        result = fine_tune(learner(options), data, options.output, **chosen)
    except KeyboardInterrupt as stop:
        say("stopped", "the same command goes on")
        return stop.args[0]
    known = {name: iou for name, iou in result.before.items() if iou is not None}
    ious = [f"{name[:3]} {iou} -> {result.after[name]}" for name, iou in known.items()]
    show(f"IoU on held-out images: {', '.join(ious)}  {result.path}")
    return 0
