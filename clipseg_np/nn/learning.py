"""`with learning() as gradients:` keeps what every layer is given, for the way back.

    with learning() as gradients:
        logits = decoder(reduced, embeddings, grid).logits
        d_reduced, d_embeddings = decoder.propagate(d_logits)
    gradients["decoder.film_mul.weight"]    # the loss's derivative by this array, of its shape

`d_y` is, everywhere, the derivative of one number, the loss, by the array `y`. A layer's `backward`
takes d_y, and what the layer was given, to the derivatives by the inputs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


class Gradients(dict):
    """Dotted name of a layer's array to its gradient: the sum over all calls of the layer."""

    def __init__(self, learns: Callable[[str], bool]):
        super().__init__()
        self.learns = learns
        self.given: dict[Any, list] = {}

    def add(self, name: str, gradient: Any) -> None:
        self[name] = self[name] + gradient if name in self else gradient


_current: ContextVar[Gradients | None] = ContextVar("clipseg_np_learning", default=None)


def learning(learns: Callable[[str], bool] = lambda name: True) -> Any:
    """Keep what layers are given inside the block; collect gradients of the arrays that learn."""
    return collecting(Gradients(learns))


@contextmanager
def collecting(gradients: Gradients | None) -> Iterator[Gradients | None]:
    """Collect `gradients` inside the block; with None, keep nothing."""
    token = _current.set(gradients)
    try:
        yield gradients
    finally:
        _current.reset(token)


def is_learning() -> bool:
    return _current.get() is not None


def current() -> Gradients:
    """The gradients of the `learning()` block that the caller is in."""
    return _current.get()
