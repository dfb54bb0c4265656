"""`with trace() as activations:` records what every layer returns, under the layer's dotted name.

    with trace() as activations:
        model(pixel_values=..., input_ids=...)
    activations["clip.vision_model.encoder.layers.3.self_attn.q_proj"]    # (B,T,D)

A layer that runs twice inside one trace keeps both results, in `activations.all[name]`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


class Activations(dict):
    """Dotted name to the layer's last output; `.all` holds every output of each name, in order."""

    def __init__(self):
        super().__init__()
        self.all: dict[str, list] = {}

    def record(self, name: str, value: Any) -> None:
        self[name] = value
        self.all.setdefault(name, []).append(value)


_current: ContextVar[Any] = ContextVar("clipseg_np_trace", default=None)


@contextmanager
def trace(activations: Any = None) -> Iterator[Activations]:
    """Record what all layers return inside the block, in `activations` (or by its `record`)."""
    activations = Activations() if activations is None else activations
    token = _current.set(activations)
    try:
        yield activations
    finally:
        _current.reset(token)


def is_traced() -> bool:
    return _current.get() is not None


def record(name: str, value: Any) -> None:
    """Keep a layer's output in the trace in which it is called."""
    _current.get().record(name, value)
