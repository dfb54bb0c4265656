"""`Segmentation`: one image's result. Maps of the image's own size are computed on demand."""

import io
import os
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..image.image_processor import REFERENCE, probabilities_at
from ..image.load_image import image_name
from ..image.row_blocks import join_row_blocks
from ..masks.morphology import label_map, mask_statistics
from ..model.learned_prompt import LearnedPrompt
from ..nn.ops import Array, Ops
from .prompt_algebra import Expression


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The result of one image of `size` (height,width) and P prompts: P maps of probabilities.

    `result["a cat"]` or `result[0]` is a prompt's map, and `for` goes over all maps.
    It holds the decoder's small `logits` (L,h,w), one map for each of L `names`, and computes maps
    of the image's size prompt by prompt, by its expression: one of 100 megapixels takes 400 MB.
    `preview` (h,w,3) is the image made small, which a notebook shows with the masks.
    """

    prompts: tuple[Any, ...]
    logits: Array
    size: tuple[int, int]
    names: tuple[Hashable, ...]
    expressions: tuple[Expression, ...]
    preview: np.ndarray
    image_name: str = "image"
    ops: Ops = REFERENCE

    def __repr__(self) -> str:
        return f"Segmentation({self.captions} in {self.image_name}, height and width {self.size})"

    def __len__(self) -> int:
        return len(self.expressions)

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(self.probability, range(len(self)))

    def __getitem__(self, prompt: str | Path | LearnedPrompt | int) -> np.ndarray:
        """A prompt's probabilities, by itself (not an image) or by its number, as in a list."""
        number = self._number(prompt)
        if number is None:
            raise InputError(
                f"there is no such prompt; expected one of {self.captions}, or its number"
            )
        return self.probability(number)

    def _number(self, prompt: Any) -> int | None:
        key = prompt.name if isinstance(prompt, Path) else prompt
        key = str(key) if isinstance(key, LearnedPrompt) else key
        for number, caption in enumerate(self.captions if isinstance(key, (str, Integral)) else ()):
            if key in (caption, number, number - len(self)):
                return number
        return None

    def __contains__(self, prompt: Any) -> bool:
        """Whether `result[prompt]` is there."""
        return self._number(prompt) is not None

    def __reduce__(self) -> tuple:
        values = self.prompts, self.ops.to_numpy(self.logits), self.size, self.names
        return Segmentation, (*values, self.expressions, self.preview, self.image_name)

    def _repr_png_(self) -> bytes:
        from ..masks import draw  # takes a while to load

        masks = replace(self, size=self.preview.shape[:2]).masks()
        panels = [(c, draw.highlight(self.preview, m)) for c, m in zip(self.captions, masks)]
        file = io.BytesIO()
        draw.sheet([("the image", self.preview), *panels]).save(file, "PNG")
        return file.getvalue()

    @property
    def captions(self) -> list[str]:
        """A name for each prompt: the text, "@name", the image's file name, or "image"."""
        return [
            str(p)
            if isinstance(p, (str, LearnedPrompt))
            else Path(image_name(getattr(p, "image", p), "image")).name
            for p in self.prompts
        ]

    @cached_property
    def probabilities(self) -> np.ndarray:
        """The probabilities of all prompts: (P,height,width), float32, 0 to 1."""
        return np.stack([self.probability(number) for number in range(len(self))])

    def probability(self, number: int) -> np.ndarray:
        """The probabilities of prompt `number`, from 0: (height,width), float32, 0 to 1."""
        return join_row_blocks(partial(self.probability_of_rows, number), self.size)

    def probability_of_rows(self, number: int, rows: slice) -> np.ndarray:
        """A slice of the rows of `probability`, in memory for these alone."""
        expression = self.expressions[number]
        logits = self.logits[[self.names.index(name) for name in expression.prompts]]
        maps = self.ops.to_numpy(probabilities_at(logits, self.size, self.ops, rows))
        return expression.value(dict(zip(expression.prompts, maps)))

    def masks(self, threshold: float = 0.5) -> np.ndarray:
        """Where the probability is above `threshold`, 0 to 1.  (P,height,width), bool

        A lower one gives larger masks; the paper used 0.1 to 0.3. Raises InputError outside 0 to 1.
        """
        return self.probabilities > checked_threshold(threshold)

    def boxes(self, threshold: float = 0.5) -> list[list[int] | None]:
        """Each mask's box (left, top, right, bottom; the ends excluded), None where it is empty."""
        return [mask_statistics(mask)["box"] for mask in self.masks(threshold)]

    def labels(self, threshold: float = 0.5) -> np.ndarray:
        """Each pixel's likeliest prompt, from 1; 0 is the background: (height,width), uint8."""
        return label_map(self.probabilities, checked_threshold(threshold))

    def coco(self, threshold: float = 0.5) -> dict:
        """The masks as COCO's dataset of one image; see coco.py, which makes one of several."""
        from .coco import coco_dataset

        return coco_dataset(self.captions, [(self.image_name, self.masks(threshold))])

    def save(self, path: Any, threshold: float = 0.5, overwrite: bool = False) -> list[dict]:
        """Write the masks into a folder, or the only one to a file NAME.png, as the command does.

        Returns write_results' records. Raises InputError where a file would be replaced unasked.
        """
        from .job import Job
        from .results import output_place, result_stems, write_unlike_others

        if not isinstance(path, (str, os.PathLike)):
            raise InputError(f"path is {path!r}; expected a folder's name, or NAME.png")
        folder, file = output_place(os.fspath(path), len(self) == 1)
        job = Job(tuple(self.captions), str(folder), threshold=threshold, overwrite=overwrite)
        (stem,) = result_stems([self.image_name], job)
        return write_unlike_others(stem, self.preview, self, job, file)[0]


def checked_threshold(threshold: float) -> float:
    """The threshold. Raises InputError for one outside 0 to 1."""
    if not (isinstance(threshold, Real) and 0 <= threshold <= 1):
        raise InputError(f"threshold is {threshold!r}; expected a probability, from 0 to 1")
    return threshold
