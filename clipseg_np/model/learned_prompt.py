"""`LearnedPrompt`: a conditional embedding that was learned from masks, and its file.

Source: the "custom conditional embeddings" of transformers' CLIPSegForImageSegmentation, which
reads the file's array, too: `conditional_embeddings` (1,projection_dim).
"""

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ..atomic_files import written_whole
from ..checkpoints.weights import write_tensors
from ..errors import InputError
from .clipseg import CLIPSegForImageSegmentation

KEY = "conditional_embedding"  # the file's only array
DECIDES = ("decoder.", "clip.text_projection.", "clip.visual_projection.")


def fingerprint(model: CLIPSegForImageSegmentation, places: tuple[str, ...] = DECIDES) -> str:
    """A SHA-256, in hexadecimal, of the arrays whose names start with one of `places`.

    By default, they are those that decide what a conditional embedding means: the decoder's and
    both projections'. They are rounded to float16: neither the files' layout nor storing or loading
    the checkpoint as float16 changes the hash. Storing it as bfloat16 does.
    """
    sha256 = hashlib.sha256()
    for name, array in sorted(model.scope.arrays.items()):
        if name.startswith(places):
            sha256.update(name.encode())
            # A float64 checkpoint, too, is rounded to float32 first, in which models are loaded.
            values = model.ops.to_numpy(array).astype(np.float32)
            with np.errstate(over="ignore"):
                sha256.update(np.ascontiguousarray(values, "<f2").data)
    return sha256.hexdigest()


@dataclass(frozen=True, eq=False)
class LearnedPrompt:
    """A prompt for one decoder: a vector (projection_dim,), float32, not normalized.

    fingerprint: that of the model it was learned with. name: its file's name without suffix; texts
    mention it as "@name". made: how it was made, an object of JSON. Raises InputError for a vector
    of another type or that is not finite.
    """

    vector: np.ndarray
    fingerprint: str
    name: str
    made: dict[str, Any]

    def __post_init__(self) -> None:
        given = self.vector
        if given.ndim != 1 or given.dtype != np.float32 or not np.isfinite(given).all():
            expected = "expected finite numbers, (projection_dim,), float32"
            raise InputError(f"a learned prompt is {given.dtype}, {given.shape}; {expected}")

    def __str__(self) -> str:
        return f"@{self.name}"

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file, whole or not at all; its name is the prompt's from then on."""
        about = {"fingerprint": self.fingerprint, "made": json.dumps(self.made, sort_keys=True)}
        with written_whole(path) as temporary:
            write_tensors(temporary, {KEY: ("F32", self.vector.shape, [self.vector])}, about)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "LearnedPrompt":
        """Read what `save` wrote. Raises FileNotFoundError, and InputError for another file."""
        path, expected = Path(path), "expected a file that `clipseg-np learn-prompt` wrote"
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}; {expected}")
        try:
            with safe_open(path, framework="numpy") as file:
                about, vector = file.metadata() or {}, file.get_tensor(KEY)
            return cls(vector, about["fingerprint"], path.stem, dict(json.loads(about["made"])))
        except (SafetensorError, OSError, LookupError, TypeError, ValueError, RecursionError) as e:
            raise InputError(f"{path} is no learned prompt ({e}); {expected}") from e

    def check(self, model: CLIPSegForImageSegmentation, force: bool = False) -> "LearnedPrompt":
        """The prompt, for this model. Raises InputError for one that does not fit it.

        `force` takes one of another decoder's values, and makes it this model's.
        """
        expected, own = model.config.projection_dim, fingerprint(model)
        advice = "use the checkpoint that it was learned with, or learn it again with this one"
        if self.vector.shape != (expected,):
            raise InputError(
                f"the learned prompt {self} has {len(self.vector)} numbers, and the checkpoint "
                f"takes {expected} (projection_dim): {advice}"
            )
        if self.fingerprint != own and not force:
            raise InputError(
                f"the learned prompt {self} does not fit this checkpoint, whose decoder or "
                f"projections have other values: {advice}. With --force (in Python, "
                f"prompt.check(model, force=True)) it is used all the same, which does little harm "
                f"where one checkpoint is the other, stored as bfloat16"
            )
        return replace(self, fingerprint=own)
