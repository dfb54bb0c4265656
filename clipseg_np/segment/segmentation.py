"""`Segmentation`: what was found in one image. Maps at the image's own size are made when they are asked for."""

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
    """What was found in one image for P prompts.

    It holds the decoder's small maps, and makes of them, prompt by prompt, those of the image's size: one of 100
    megapixels takes 400 MB.
    """

    prompts: tuple[Any, ...]
    logits: Array  # (L,h,w): of each thing that was looked for
    size: tuple[int, int]  # the image's height and width
    names: tuple[Hashable, ...]  # L: what the expressions call these things
    expressions: tuple[Expression, ...]  # P: what each prompt asks for
    ops: Ops = REFERENCE

    def __len__(self) -> int:
        return len(self.expressions)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Of all prompts at once: (P,height,width), float32, 0 to 1."""
        return np.stack([self.probability(number) for number in range(len(self))])

    def probability(self, number: int) -> np.ndarray:
        """How likely each pixel belongs to what prompt `number`, from 0, asks for: (height,width), float32, 0 to 1."""
        expression = self.expressions[number]
        logits = self.logits[[self.names.index(name) for name in expression.prompts]]
        whole = np.empty(self.size, np.float32)
        for rows in row_blocks(*self.size):
            maps = self.ops.to_numpy(probabilities_at(logits, self.size, self.ops, rows))
            whole[rows] = expression.value(dict(zip(expression.prompts, maps)))
        return whole

    def masks(self, threshold: float = 0.5) -> np.ndarray:
        """Where the probability is above `threshold`, 0 to 1.  (P,height,width), bool

        A lower threshold gives larger masks; the paper used 0.1 to 0.3. Raises InputError for one outside 0 to 1.
        """
        return self.probabilities > checked_threshold(threshold)


def checked_threshold(threshold: float) -> float:
    """The threshold. Raises InputError for one outside 0 to 1."""
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold is {threshold}; expected a probability, from 0 to 1")
    return threshold
