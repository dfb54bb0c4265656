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
    mention it as "@name". made: how it was made, an object of JSON.
    """

    vector: np.ndarray
    fingerprint: str
    name: str
    made: dict[str, Any]

    def __str__(self) -> str:
        return f"@{self.name}"

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file, whole or not at all; its name is the prompt's from then on."""
        about = {"fingerprint": self.fingerprint, "made": json.dumps(self.made, sort_keys=True)}
        vector = self.vector.astype(np.float32)
        with written_whole(path) as temporary:
            write_tensors(temporary, {KEY: ("F32", vector.shape, [vector])}, about)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "LearnedPrompt":
        """Read what `save` wrote. Raises FileNotFoundError, and InputError for another file."""
        path, expected = Path(path), "expected a file that `clipseg-np learn-prompt` wrote"
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}; {expected}")
        try:
            with safe_open(path, framework="numpy") as file:
                about, vector = file.metadata() or {}, file.get_tensor(KEY).astype(np.float32)
            if not np.isfinite(vector).all():
                raise ValueError("it holds NaN or infinity")
            return cls(vector, about["fingerprint"], path.stem, dict(json.loads(about["made"])))
        except (SafetensorError, OSError, LookupError, TypeError, ValueError, RecursionError) as e:
            raise InputError(f"{path} is no learned prompt ({e}); {expected}") from e

    def check(self, model: CLIPSegForImageSegmentation, force: bool = False) -> "LearnedPrompt":
        """The prompt, for this model. Raises InputError for one that does not fit it.

        `force` takes one of another decoder's values, and makes it this model's.
        """
        own, shape = fingerprint(model), (model.config.projection_dim,)
        advice = "use the checkpoint that it was learned with, or learn it again with this one"
        if self.vector.shape != shape:
            raise InputError(f"{self} has shape {self.vector.shape}; expected {shape}: {advice}")
        if self.fingerprint != own and not force:
            raise InputError(
                f"{self} does not fit this checkpoint, whose decoder or projections have other "
                f"values: {advice}. --force, in Python prompt.check(model, force=True), takes it "
                f"all the same; where one checkpoint is the other in bfloat16, it does little harm"
            )
        return replace(self, fingerprint=own)
