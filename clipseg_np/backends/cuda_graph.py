"""Work of fixed shapes, recorded once on the GPU and from then on started by one call.

A forward pass is some hundred kernels. For one image the GPU finishes each before Python has
asked for the next; a CUDA graph asks for all of them at once. See model/recorded.py.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from ..errors import InputError
from ..nn.ops import Array, Ops, in_main_memory


class CannotRecord(InputError):
    """The function does what CUDA cannot record, or is not on a GPU."""


class GraphMemory:
    """Memory of a graph's own, so that each launch writes to the same places.

    A run after `replay` gets the addresses of the run before, in the same order, and so allocates
    nothing: both run the same program, and may share addresses among their arrays alike.
    """

    def __init__(self, cuda: Any):
        self.cuda, self.pool = cuda, cuda.MemoryPool()
        self.allocations: list[tuple[int, int]] = []  # sizes and addresses
        self.replayed: Iterator[tuple[int, int]] | None = None

    def replay(self) -> None:
        self.replayed = iter(self.allocations)

    def malloc(self, size: int) -> Any:
        if self.replayed is None:
            bytes_before = self.pool.total_bytes()
            pointer = self.pool.malloc(size)
            if self.pool.total_bytes() < bytes_before:
                # The pool gave blocks back, and others may take their addresses.
                raise MemoryError("too little memory is left on the GPU to record in")
            self.allocations.append((size, pointer.ptr))
            return pointer
        expected, address = next(self.replayed, (None, 0))
        if size != expected:
            raise RuntimeError(f"it allocates {size} bytes where it allocated {expected} before")
        device = self.cuda.runtime.getDevice()
        memory = self.cuda.UnownedMemory(address, size, self.pool, device)
        return self.cuda.MemoryPointer(memory, 0)


class CudaGraph:
    """A recorded function of device arrays, which neither waits for the GPU nor copies to it.

    It keeps the memory that it needs, and the function with all that this refers to. Several
    threads, on streams of their own, may call it. Raises CannotRecord where it cannot be recorded.
    """

    def __init__(self, ops: Ops, function: Callable[..., Array], *examples: Array):
        if not hasattr(ops, "streams"):
            raise CannotRecord("only a model on a GPU can be recorded: load it with backend='cupy'")
        self.ops, self.function, cuda = ops, function, ops.xp.cuda
        self.memory, self.stream = GraphMemory(cuda), ops.streams[0]
        with ops.lock:
            self.stream.wait_event(cuda.get_current_stream().record())
            with cuda.using_allocator(self.memory.malloc), self.stream:
                self.inputs = [ops.xp.array(example) for example in examples]
                # The first run compiles, and creates what the backend keeps; the next is replayed.
                function(*self.inputs)
                self.memory.allocations.clear()
                function(*self.inputs)
                self.memory.replay()
                self.stream.synchronize()
                self.stream.begin_capture()
                try:
                    self.output = function(*self.inputs)
                    self.graph = self.stream.end_capture()
                except BaseException as error:
                    # CUDA raises once more for a recording that has become invalid.
                    with suppress(Exception):
                        self.stream.end_capture()
                    if not isinstance(error, Exception):
                        raise
                    message = f"CUDA cannot record this pass as a graph: {error}"
                    raise CannotRecord(message) from error

    def __call__(self, *arrays: Any) -> Array:
        """The function's result for arrays of the examples' shapes, in an array of its own.

        Raises InputError for other shapes.
        """
        arrays = [x if hasattr(x, "shape") else in_main_memory(x) for x in arrays]
        shapes, expected = ([tuple(x.shape) for x in xs] for xs in (arrays, self.inputs))
        if shapes != expected:
            raise InputError(f"expected shapes {expected}, as recorded; got {shapes}: record again")
        caller = self.ops.xp.cuda.get_current_stream()
        with self.ops.lock:
            # Another caller's launch may still read its inputs.
            caller.wait_event(self.stream.record())
            for own, array in zip(self.inputs, arrays):
                if isinstance(array, type(own)):
                    own[...] = array
                else:
                    own.set(in_main_memory(array).astype(own.dtype, order="C", copy=False))
            self.stream.wait_event(caller.record())
            self.graph.launch(self.stream)
            caller.wait_event(self.stream.record())
            result = self.output.copy()
            # Another caller's launch may write its output only after this copy.
            self.stream.wait_event(caller.record())
        return result

    def __del__(self):
        # CuPy keeps the blocks of a pool that is gone.
        if hasattr(self, "memory") and not sys.is_finalizing():
            self.graph = self.inputs = self.output = None
            self.memory.pool.free_all_blocks()
