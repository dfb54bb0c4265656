"""`Segmentation`: one image's result. Maps of the image's own size are computed on demand."""

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import InputError
from ..image.image_processor import REFERENCE, probabilities_at
from ..image.row_blocks import row_blocks
from ..nn.ops import Array, Ops
from .prompt_algebra import Expression


@dataclass(frozen=True)
class Segmentation:
    """The result of one image of `size` (height,width) and P prompts.

    It holds the decoder's small `logits` (L,h,w), one map for each of L `names`, and computes maps
    of the image's size prompt by prompt, by its expression: one of 100 megapixels takes 400 MB.
    """

    prompts: tuple[Any, ...]
    logits: Array
    size: tuple[int, int]
    names: tuple[Hashable, ...]
    expressions: tuple[Expression, ...]
    ops: Ops = REFERENCE

    def __len__(self) -> int:
        return len(self.expressions)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """The probabilities of all prompts: (P,height,width), float32, 0 to 1."""
        return np.stack([self.probability(number) for number in range(len(self))])

    def probability(self, number: int) -> np.ndarray:
        """The probabilities of prompt `number`, from 0: (height,width), float32, 0 to 1."""
        expression = self.expressions[number]
        logits = self.logits[[self.names.index(name) for name in expression.prompts]]
        probabilities = np.empty(self.size, np.float32)
        for rows in row_blocks(*self.size):
            maps = self.ops.to_numpy(probabilities_at(logits, self.size, self.ops, rows))
            probabilities[rows] = expression.value(dict(zip(expression.prompts, maps)))
        return probabilities

    def masks(self, threshold: float = 0.5) -> np.ndarray:
        """Where the probability is above `threshold`, 0 to 1.  (P,height,width), bool

        A lower one gives larger masks; the paper used 0.1 to 0.3. Raises InputError outside 0 to 1.
        """
        return self.probabilities > checked_threshold(threshold)


def checked_threshold(threshold: float) -> float:
    """The threshold. Raises InputError for one outside 0 to 1."""
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold is {threshold}; expected a probability, from 0 to 1")
    return threshold
