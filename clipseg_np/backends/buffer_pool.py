"""Arrays in memory that other arrays, no longer used, have left.

What the system hands out anew it first has to clear, page by page, each time again. For arrays of some megabytes, a few
hundred in a forward pass, that takes longer than the arithmetic on them.
"""

import math
from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np

PAGES = 1 << 16  # bytes; blocks are multiples of it, and smaller arrays are NumPy's own
LARGEST = 1 << 25  # bytes; larger arrays are few
KEPT = 1 << 26  # bytes that may lie idle


class Memory:
    """`empty` is numpy.empty; memory comes back when nobody holds the array, nor any view of it."""

    def __init__(self):
        self.idle: deque[_Block] = deque()  # of bytes; a deque is safe among threads

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if not PAGES <= size <= LARGEST:
            return np.empty(shape, dtype)
        lease = self._block(-(-size // PAGES) * PAGES).view(_Lease)
        lease.memory = self
        return lease.view(np.ndarray)[:size].view(dtype).reshape(shape)

    def _block(self, size: int) -> "_Block":
        for _ in range(len(self.idle)):
            try:
                block = self.idle.pop()  # what was left last may be in a cache
            except IndexError:  # another thread was first
                break
            if block.nbytes == size:
                return block
            self.idle.appendleft(block)
        return _Block(size, np.uint8)

    def take_back(self, block: "_Block") -> None:
        self.idle.append(block)
        idle = sum(other.nbytes for other in tuple(self.idle))
        with suppress(IndexError):  # another thread was first
            while idle > KEPT:
                idle -= self.idle.popleft().nbytes


class _Block(np.ndarray):
    """Memory, and a type of its own: an array's base is the first below it that is of another type than itself."""


class _Lease(np.ndarray):
    """A block in use. All views of what `empty` returns hold it, and let it go when they go."""

    memory: Memory | None = None

    def __del__(self):
        if self.memory is not None:
            self.memory.take_back(self.base)
