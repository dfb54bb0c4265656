"""`LearnedPrompt`: a conditional embedding that was learned from masks, and its file.

Source: the "custom conditional embeddings" of transformers' CLIPSegForImageSegmentation, which
reads the file's array, too: `conditional_embeddings` (1,projection_dim).
"""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ..checkpoints.weights import arrays_hash, save_weights
from ..errors import InputError
from .clipseg import CLIPSegForImageSegmentation

KEY = "conditional_embedding"  # the file's only array
DECIDES = ("decoder.", "clip.text_projection.", "clip.visual_projection.")


def fingerprint(model: CLIPSegForImageSegmentation, places: tuple[str, ...] = DECIDES) -> str:
    """The hash of the arrays whose names start with one of `places`; see `arrays_hash`.

    By default, they are those that decide what a conditional embedding means: the decoder's and
    both projections'.
    """
    arrays = {name: array for name, array in model.scope.arrays.items() if name.startswith(places)}
    return arrays_hash({name: model.ops.to_numpy(array) for name, array in arrays.items()})


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
        """Write a safetensors file, over another, too; its name is the prompt's from then on."""
        about = {"fingerprint": self.fingerprint, "made": json.dumps(self.made, sort_keys=True)}
        save_weights(path, {KEY: self.vector.astype(np.float32)}, **about)

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
            fault = f"{self} does not fit this checkpoint, whose decoder or projections have other"
            advice += ". --force, in Python prompt.check(model, force=True), takes it all the same"
            harm = "where one checkpoint is the other in bfloat16, it does little harm"
            raise InputError(f"{fault} values: {advice}; {harm}")
        return replace(self, fingerprint=own)
