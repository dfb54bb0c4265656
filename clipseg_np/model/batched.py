"""Many images and prompts in slices, and texts beside an image, by as many workers as a backend has.

A trace sees one after the other, in order.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

from ..nn.ops import Array, Ops
from ..nn.trace import is_traced

T = TypeVar("T")


def in_parallel(ops: Ops, tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Run independent tasks and return their results in order, by `ops.parallel_for` unless there is a trace."""
    return [task() for task in tasks] if is_traced() else ops.parallel_for(tasks)


def in_slices(ops: Ops, work: Callable[[slice], T], length: int, size: int) -> list[T]:
    """Apply `work` to consecutive slices of range(length), each at most `size` long, and return the results in order.

    The slices are as even as can be, the longest first, and each of the `ops.workers` gets as many. Under a
    trace all are `size` long but for the last.
    """
    if is_traced():
        ends = [*range(0, length, size), length]
    else:
        rounds = -(-length // (size * ops.workers))
        count = min(length, rounds * ops.workers)
        ends = [*(-(-length * number // count) for number in range(count)), length]
    return in_parallel(ops, [partial(work, slice(*pair)) for pair in pairwise(ends)])


def encode(model: Any, pixel_values: Array, **prompts: Any) -> tuple[Any, Array]:
    """`model.encode_image` of the images, and beside it `model.get_conditional_embeddings` of the prompts."""
    features = partial(model.encode_image, pixel_values)
    embeddings = partial(model.get_conditional_embeddings, **prompts)
    return tuple(in_parallel(model.ops, [features, embeddings]))
