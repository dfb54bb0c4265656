"""CuPy on the CPU, with streams that record.

Kernels are compiled as C++ (helpers/cuda_on_cpu.py), and arrays never mix with NumPy's
(helpers/device_array.py). It follows CUDA's rules: a stream takes part in a recording once it has
waited for an event of one that does; work on another is not recorded; each stream that takes part
must be waited for in the end. CUDA runs recorded work when the graph is launched; here it also runs
while it is recorded, so that shapes are known.
"""

import weakref
from contextlib import contextmanager
from itertools import chain, count
from types import SimpleNamespace
from typing import Any

import numpy as np

from . import device_array
from .cuda_on_cpu import CpuCublas, CpuCupy
from .device_array import DeviceArray, DeviceModule, Recording


class Stream:
    """Work in order. While it records, `done` counts its work, `awaited` the work waited for."""

    def __init__(self, device: "RecordingModule", name: str):
        self.device, self.name, self.ptr = device, name, id(self)
        self.done = self.awaited = 0

    def __enter__(self) -> None:
        self.device.current.append(self)

    def __exit__(self, *_) -> None:
        self.device.current.pop()

    def record(self) -> tuple["Stream", int]:
        return self, self.done

    def wait_event(self, event: tuple["Stream", int]) -> None:
        other, done = event
        self.device.events.append(f"{self.name} waits for {other.name}")
        taking_part = self.device.taking_part
        if other in taking_part and self is not other:
            other.awaited = max(other.awaited, done)
            taking_part.setdefault(self)
            self.done += self is not next(iter(taking_part))

    def synchronize(self) -> None:
        if self in self.device.taking_part:
            self.device.is_invalid = True
            raise RuntimeError("cudaErrorStreamCaptureUnsupported")
        self.device.events.append("synchronized")

    def begin_capture(self) -> None:
        self.done = self.awaited = 0
        self.device.taking_part = {self: None}
        device_array.record_into(StreamRecording(self.device))

    def end_capture(self) -> SimpleNamespace:
        device, steps = self.device, device_array.recording.steps
        others = list(device.taking_part)[1:]
        was_invalid, device.is_invalid, device.taking_part = device.is_invalid, False, {}
        device_array.record_into(None)
        if was_invalid:
            raise RuntimeError("cudaErrorStreamCaptureInvalidated")
        if any(other.done > other.awaited for other in others):
            raise RuntimeError("cudaErrorStreamCaptureUnjoined")

        def launch(stream: Stream) -> None:
            device.events.append(f"launched on {stream.name}")
            for step in steps:
                step()

        return SimpleNamespace(launch=launch, steps=steps)


class StreamRecording(Recording):
    def __init__(self, device: "RecordingModule"):
        super().__init__()
        self.device = device

    def keep(self, step: Any) -> None:
        current = self.device.current[-1]
        assert current in self.device.taking_part, f"{current.name} takes no part in the recording"
        current.done += 1
        super().keep(step)


class MemoryPool:
    """Counts bytes: `used` by arrays, and `free`, which the pool keeps until it is told to free."""

    def __init__(self):
        self.used = self.free = 0
        self.seen: set[int] = set()

    def malloc(self, size: int) -> SimpleNamespace:
        array = np.empty(size, np.uint8)
        return SimpleNamespace(ptr=array.ctypes.data, array=array)

    def take(self, values: np.ndarray) -> None:
        if id(values) not in self.seen:
            self.seen.add(id(values))
            self.used += values.nbytes
            weakref.finalize(values, self._give, id(values), values.nbytes)

    def _give(self, number: int, size: int) -> None:
        self.seen.discard(number)
        self.used, self.free = self.used - size, self.free + size

    def free_all_blocks(self) -> None:
        self.free = 0


class RecordingModule(DeviceModule):
    """CuPy's name for a device that records."""

    def __init__(self, folder: Any = None):
        super().__init__()
        self.events: list[str] = []
        self.pools: list[MemoryPool] = []
        self.taking_part: dict[Stream, None] = {}
        self.is_invalid = False
        self.current = [Stream(self, "caller")]
        names = chain(("first", "second"), (f"stream {n}" for n in count(3)))
        self.cuda = SimpleNamespace(
            runtime=SimpleNamespace(runtimeGetVersion=lambda: 12060, getDevice=lambda: 0),
            Device=lambda: SimpleNamespace(compute_capability="75"),
            Stream=lambda non_blocking: Stream(self, next(names)),
            get_current_stream=lambda: self.current[-1],
            MemoryPool=self._pool,
            using_allocator=using_allocator,
        )
        self.kernels = CpuCupy(folder)

    def _pool(self) -> MemoryPool:
        self.pools.append(MemoryPool())
        return self.pools[-1]

    def get_default_memory_pool(self) -> MemoryPool:
        return MemoryPool()

    def RawModule(self, **given: Any) -> SimpleNamespace:
        module = self.kernels.RawModule(**given)

        def get_function(name: str):
            function = module.get_function(name)
            return lambda blocks, threads, arguments: done(function, blocks, threads, arguments)

        return SimpleNamespace(get_function=get_function)


@contextmanager
def using_allocator(malloc: Any):
    owner = malloc.__self__
    device_array.count_into(getattr(owner, "pool", owner).take)
    try:
        yield
    finally:
        device_array.count_into(None)


def done(function: Any, *args: Any) -> Any:
    """Call a function that writes into memory, now and in each launch of what is being recorded."""
    args = [tuple(x._values if isinstance(x, DeviceArray) else x for x in part) for part in args]
    if device_array.recording is not None:
        device_array.recording.keep(lambda: function(*args))
    return function(*args)


class RecordingCublas(CpuCublas):
    """Each launch runs its products again. They use addresses: earlier steps keep the memory."""

    def cublasGemmStridedBatchedEx(self, *args: Any) -> int:
        if device_array.recording is not None:
            device_array.recording.keep(
                lambda: super(RecordingCublas, self).cublasGemmStridedBatchedEx(*args)
            )
        return super().cublasGemmStridedBatchedEx(*args)
