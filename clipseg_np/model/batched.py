"""Images and prompts in slices, and texts beside an image: one after the other in a trace."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..backends.threads import evenly, slices
from ..nn.ops import Array, Ops, T
from ..nn.trace import is_traced


def in_parallel(ops: Ops, tasks: Sequence[Callable[[], T]]) -> list[T]:
    """The results of independent tasks, in order, by `ops.parallel_for` unless there is a trace."""
    return [task() for task in tasks] if is_traced() else ops.parallel_for(tasks)


def unless_traced(passes: T | None) -> T | None:
    """Recorded passes, or None in a trace, which must see every layer of the eager pass."""
    return None if is_traced() else passes


def joined_slices(
    ops: Ops, work: Callable[[slice], Sequence[Array]], length: int, size: int
) -> list[Array]:
    """Apply `work` to consecutive slices of range(length), each at most `size` long.

    Returns the arrays of all slices, concatenated in order. The lengths of slices differ by at most
    1, and each of the `ops.workers` gets the same number of slices, where `length` suffices. In a
    trace, all but the last are `size` long.
    """
    rounds = -(-length // (size * ops.workers))
    count = min(length, rounds * ops.workers)
    pieces = slices(length, size) if is_traced() else evenly(length, count)
    results = in_parallel(ops, [partial(work, piece) for piece in pieces])
    return [parts[0] if len(parts) == 1 else ops.xp.concatenate(parts) for parts in zip(*results)]


def encode(model: Any, pixel_values: Array, **prompts: Any) -> tuple[Any, Array]:
    """`model.encode_image(pixel_values)` beside `model.get_conditional_embeddings(**prompts)`."""
    features = partial(model.encode_image, pixel_values)
    embeddings = partial(model.get_conditional_embeddings, **prompts)
    return tuple(in_parallel(model.ops, [features, embeddings]))
