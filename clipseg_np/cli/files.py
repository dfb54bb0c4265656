"""The files that options name."""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..image.load_image import load_image
from ..segment.segmenter import checkpoint_or_demo

DEMONSTRATION = "demonstration"


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


def new_file(options: argparse.Namespace) -> Path:
    """The .safetensors file that is to be written. Raises InputError for one that may not be."""
    target = Path(options.output)
    if target.suffix == ".npz" or (target.exists() and not target.is_file()):
        raise InputError(f"--output {options.output}: expected the name of a .safetensors file")
    if target.exists() and not options.overwrite:
        raise InputError(f"--output {target} is there already; replace it with --overwrite")
    return target
