"""A decoder alone, in a file of its own, and that decoder on top of a checkpoint.

The file holds the arrays `decoder.*` by the checkpoint's names and, as metadata, the words that the
decoder has learned and a hash of the projections, by which another checkpoint's towers are known.
"""

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..errors import InputError
from .weights import Raw, arrays_hash, file_metadata, save_weights, tensors_of_file

DECODER_NAME = "decoder.safetensors"
START = "decoder."
PROJECTIONS = ("clip.text_projection.weight", "clip.visual_projection.weight")


def save_decoder(
    path: str | os.PathLike, arrays: dict[str, np.ndarray], words: Iterable[str] = ()
) -> None:
    """Write the decoder of a checkpoint's arrays, and the words that it has learned."""
    decoder = {name: array for name, array in arrays.items() if name.startswith(START)}
    projections = arrays_hash({name: arrays[name] for name in PROJECTIONS})
    save_weights(path, decoder, projections=projections, words=" ".join(sorted(words)))


def on_top(base: dict[str, Raw], path: str | os.PathLike) -> dict[str, Raw]:
    """The tensors `base` with the decoder of a file. Warns of one trained on other towers.

    Raises FileNotFoundError or InputError for a file that cannot be read, and InputError for
    arrays of other names or shapes than the decoder of `base` has.
    """
    own = tensors_of_file(Path(path))
    new = {name: raw.array.shape for name, raw in own.items()}
    old = {name: raw.array.shape for name, raw in base.items() if name.startswith(START)}
    if new != old:
        other = min(name for name, _ in new.items() ^ old.items())
        shapes = f"{new.get(other, 'none')}; expected {old.get(other, 'none')}"
        fault = f"{path} holds no decoder of this checkpoint ({other}: {shapes})"
        raise InputError(f"{fault}: give a file of `clipseg-np fine-tune --decoder-only` for it")
    found = arrays_hash({name: base[name].floats() for name in PROJECTIONS if name in base})
    if file_metadata(Path(path)).get("projections", found) != found:
        advice = "Load it on the checkpoint that it was trained with, as that was then"
        fault = f"{path} was trained on another checkpoint: its masks may mean nothing"
        warnings.warn(f"{fault}. {advice}", stacklevel=4)
    return base | own


def decoder_words(path: str | os.PathLike) -> frozenset[str]:
    """The words that a decoder's file says it has learned. Raises the errors of `on_top`."""
    return frozenset(file_metadata(Path(path)).get("words", "").split())
