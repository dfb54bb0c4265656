"""`Scope`, which hands each layer its arrays by dotted name."""

from dataclasses import dataclass, field, replace
from typing import Any

from .ops import Array, Ops


@dataclass(eq=False, repr=False)
class Scope:
    """A place in a model. `scope / "q_proj"` is a place inside it.

    `source.take(full_name, shape)` is an array of a checkpoint (checkpoints/weights.py) or a random
    one (model/random_init.py). `arrays` keeps all that were taken, for all places.
    """

    source: Any
    ops: Ops
    dtype: Any
    name: str = ""
    arrays: dict[str, Array] = field(default_factory=dict)

    def __truediv__(self, part: str | int) -> "Scope":
        return replace(self, name=self._join(part))

    def take(self, name: str, shape: tuple[int, ...]) -> Array:
        """The array of this name, on the backend's device."""
        full_name = self._join(name)
        values = self.source.take(full_name, shape)
        self.arrays[full_name] = self.ops.asarray(values, dtype=self.dtype)
        return self.arrays[full_name]

    def within(self, place: str) -> dict[str, Array]:
        """The arrays of a place of the model, by their names there."""
        start = f"{place}." if place else ""
        return {name[len(start) :]: a for name, a in self.arrays.items() if name.startswith(start)}

    def _join(self, part: str | int) -> str:
        return f"{self.name}.{part}" if self.name else str(part)
