"""`Job`: which prompts to look for and which results to write, for one image or for many."""

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..masks import dilate, feather, remove_small_components


@dataclass(frozen=True)
class CleanUp:
    """Mask post-processing, in this order; all numbers are in pixels.

    smallest: remove smaller connected components. grow: dilate by this radius; a negative one
    erodes. feather: soften the mask's edge, in images only.
    """

    smallest: int = 0
    grow: float = 0.0
    feather: float = 0.0

    def __call__(self, mask: np.ndarray) -> np.ndarray:
        """(height,width) bool -> (height,width) bool"""
        if self.smallest:
            mask = remove_small_components(mask, self.smallest)
        return dilate(mask, self.grow) if self.grow else mask

    def soften(self, mask: np.ndarray) -> np.ndarray:
        """(height,width) bool -> (height,width), 0 to 1"""
        return feather(mask, self.feather) if self.feather else mask


@dataclass(frozen=True)
class Job:
    """The same work for every image; small enough to be sent to each worker.

    `prompts` are texts and expressions. `image_prompts` are pairs of an image's path and the path
    of its mask, or None. Paths must mean the same wherever a worker runs. white_level: see
    image.load_image. overlay: also write a sheet of all prompts. In a batch, flat: one folder for
    all results, not one for each image; overwrite: replace the results of another job.
    `prompt_files` are paths of learned prompts, which `prompts` mention as "@name"; force: also
    take those that were learned with another decoder. `decoder` is a file whose decoder takes the
    place of the model's.

    Paths may be Path objects, and tuples lists. Raises InputError for a text in place of a list.
    """

    prompts: tuple[str, ...]
    output: str
    model: str | None = None
    image_prompts: tuple[tuple[str, str | None], ...] = ()
    kinds: tuple[str, ...] = ("mask",)
    threshold: float = 0.5
    clean_up: CleanUp = field(default_factory=CleanUp)
    labels: bool = False
    backend: str = "numpy"
    scales: tuple[int, ...] = (1,)
    white_level: float | None = None
    overlay: bool = False
    flat: bool = False
    overwrite: bool = False
    prompt_files: tuple[str, ...] = ()
    force: bool = False
    decoder: str | None = None

    def __post_init__(self):
        for option in fields(self):
            value = getattr(self, option.name)
            is_many = isinstance(option.default, tuple) or option.name == "prompts"
            if is_many and not isinstance(value, (list, tuple)):
                raise InputError(f"{option.name} is {value!r}; expected a list or a tuple")
            object.__setattr__(self, option.name, as_plain(value))

    @property
    def captions(self) -> list[str]:
        """A name for each prompt: the text, or the image's file name."""
        return [*self.prompts, *(Path(image).name for image, _ in self.image_prompts)]


def as_plain(value: Any) -> Any:
    """Lists as tuples, paths as texts, NumPy's numbers as Python's: for hashes and JSON."""
    if isinstance(value, (list, tuple)):
        return tuple(map(as_plain, value))
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    return value.item() if isinstance(value, np.generic) else value
