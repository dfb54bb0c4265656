"""A decoder alone, in a file of its own, and that decoder on top of a checkpoint.

The file holds the arrays `decoder.*` by the checkpoint's names and, as metadata, the words that the
decoder has learned and a hash of the projections, by which another checkpoint's towers are known.
"""

import hashlib
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors import safe_open

from ..errors import InputError
from .weights import Raw, save_weights, tensors_of_file

DECODER_NAME = "decoder.safetensors"
START = "decoder."
PROJECTIONS = ("clip.text_projection.weight", "clip.visual_projection.weight")


def save_decoder(
    path: str | os.PathLike, arrays: dict[str, np.ndarray], words: Iterable[str] = ()
) -> None:
    """Write the decoder of a checkpoint's arrays, and the words that it has learned."""
    decoder = {name: array for name, array in arrays.items() if name.startswith(START)}
    save_weights(path, decoder, base=_hash(arrays), words=" ".join(sorted(words)))


def on_top(base: dict[str, Raw], path: str | os.PathLike) -> dict[str, Raw]:
    """The tensors `base` with the decoder of a file. Warns of one trained on other towers.

    Raises FileNotFoundError or InputError for a file that cannot be read, and InputError for
    arrays of other names or shapes than the decoder of `base` has.
    """
    own = tensors_of_file(Path(path))
    new, old = (
        {name: raw.array.shape for name, raw in tensors.items() if name.startswith(START)}
        for tensors in (own, base)
    )
    if new != old or len(own) != len(new):
        other = min({name for name, _ in new.items() ^ old.items()} or own.keys() - new.keys())
        raise InputError(
            f"{os.fspath(path)} holds no decoder of this checkpoint ({other}: the file has "
            f"{new.get(other, 'none')}, the checkpoint {old.get(other, 'none')}); expected a file "
            f"that `clipseg-np fine-tune --decoder-only` wrote for it"
        )
    hashed = _hash({name: base[name].floats() for name in PROJECTIONS})
    if _metadata(path).get("base", hashed) != hashed:
        warnings.warn(
            f"{os.fspath(path)} was trained on another checkpoint than this: its masks may mean "
            f"nothing. Give its own, as stored then",
            stacklevel=3,
        )
    return base | own


def decoder_words(path: str | os.PathLike) -> frozenset[str]:
    """The words that a decoder's file says it has learned."""
    return frozenset(_metadata(path).get("words", "").split())


def _metadata(path: str | os.PathLike) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


def _hash(arrays: dict[str, np.ndarray]) -> str:
    """A SHA-256 of the projections, as float32: the decoder reads texts through one of them."""
    sha256 = hashlib.sha256()
    for name in PROJECTIONS:
        sha256.update(np.ascontiguousarray(arrays[name], "<f4").data)
    return sha256.hexdigest()
