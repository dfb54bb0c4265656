"""`Scope`, which hands each layer its arrays by dotted name."""

from typing import Any, Protocol

import numpy as np

from .ops import Array, Ops


class Source(Protocol):
    """The source of arrays: a checkpoint (checkpoints/weights.py) or model/random_init.py."""

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray: ...


class Scope:
    """A place in a model. `scope / "q_proj"` is a place inside it.

    `scope.take("weight", shape)` is an array of this place.
    """

    def __init__(
        self, source: Source, ops: Ops, dtype: Any, name: str = "", arrays: dict | None = None
    ):
        self.source = source
        self.ops = ops
        self.dtype = dtype
        self.name = name
        self.arrays: dict[str, Array] = {} if arrays is None else arrays

    def __truediv__(self, part: str | int) -> "Scope":
        return Scope(self.source, self.ops, self.dtype, self._join(part), self.arrays)

    def take(self, name: str, shape: tuple[int, ...]) -> Array:
        """The array of this name, on the backend's device. `arrays` keeps it, for all places."""
        full_name = self._join(name)
        array = self.ops.asarray(self.source.take(full_name, shape), dtype=self.dtype)
        self.arrays[full_name] = array
        return array

    def within(self, place: str) -> dict[str, Array]:
        """The arrays of a place of the model, by their names there."""
        start = f"{place}." if place else ""
        return {name[len(start) :]: a for name, a in self.arrays.items() if name.startswith(start)}

    def _join(self, part: str | int) -> str:
        return f"{self.name}.{part}" if self.name else str(part)
