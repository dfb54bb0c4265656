"""Work recorded as a CUDA graph, on a stand-in that follows CUDA's rules. On a GPU: tests/gpu."""

import gc
import weakref
from threading import RLock, Thread
from types import SimpleNamespace

import numpy as np
import pytest

from clipseg_np.backends.cuda_graph import CannotRecord, CudaGraph, GraphMemory
from clipseg_np.errors import InputError
from clipseg_np.nn.ops import Ops

from ..helpers.recording_device import RecordingModule


@pytest.fixture
def ops():
    """The readable arithmetic on the device that records."""
    ops = Ops(RecordingModule())
    ops.streams = tuple(ops.xp.cuda.Stream(non_blocking=True) for _ in range(2))
    ops.lock = RLock()
    return ops


class Doubling:
    """A function that doubles on the device, and how often Python ran it."""

    runs = 0

    def __call__(self, x):
        self.runs += 1
        return x * 2


def on_device(ops, *values):
    return [ops.asarray(np.array(value, "float32")) for value in values]


def test_what_is_recorded_is_replayed_for_other_numbers(ops):
    double = Doubling()
    graph = CudaGraph(ops, double, *on_device(ops, [1, 1, 1]))
    ran = double.runs
    first, second = graph([1, 2, 3]), graph(np.array([4, 5, 6.0]))
    third = graph(*on_device(ops, [7, 8, 9]))
    found = [ops.to_numpy(x).tolist() for x in (first, second, third)]
    assert found == [[2, 4, 6], [8, 10, 12], [14, 16, 18]]
    assert first.dtype == "float32" and double.runs == ran


def test_each_stream_waits_for_the_other(ops):
    graph = CudaGraph(ops, Doubling(), *on_device(ops, [1, 1, 1]))
    ops.xp.events.clear()
    graph(np.ones(3))
    waits = ["caller waits for first", "first waits for caller"]
    assert ops.xp.events == [*waits, "launched on first", *waits]


def test_the_example_is_not_what_is_written_to(ops):
    (example,) = on_device(ops, [1, 1, 1])
    CudaGraph(ops, Doubling(), example)(np.zeros(3))
    assert ops.to_numpy(example).tolist() == [1, 1, 1]


@pytest.mark.parametrize("given", [(np.ones(4),), (np.ones((1, 3)),), (), (np.ones(3), np.ones(3))])
def test_other_shapes_are_refused(given, ops):
    graph = CudaGraph(ops, Doubling(), *on_device(ops, [1, 1, 1]))
    with pytest.raises(
        InputError, match=r"expected shapes \[\(3,\)\], as recorded; got .*record again"
    ):
        graph(*given)


WAITS = {
    "bool": lambda xp, x: bool(x.any()),
    "int": lambda xp, x: int(x.sum()),
    "float": lambda xp, x: float(x.max()),
    "get": lambda xp, x: x.get(),
    "from the host": lambda xp, x: xp.asarray(np.ones(3)),
    "a list as an index": lambda xp, x: x[[0, 1]],
    "a join of nine": lambda xp, x: xp.stack([x] * 9),
    "a wait": lambda xp, x: xp.cuda.get_current_stream().synchronize(),
    "nobody waits": lambda xp, x: on_second_stream(xp, x),
}


def on_second_stream(xp, x):
    first, second = xp.cuda.get_current_stream(), xp.cuda.Stream(non_blocking=True)
    second.wait_event(first.record())
    with second:
        return x + 1


@pytest.mark.parametrize("name", WAITS)
def test_what_cannot_be_recorded_is_said_and_leaves_nothing_recording(name):
    """Even where CUDA raises once more at the end: for a recording that a wait has made invalid."""
    ops, runs = Ops(RecordingModule()), []
    ops.streams, ops.lock = (ops.xp.cuda.Stream(non_blocking=True),), RLock()

    def fails(x):
        runs.append(1)
        if len(runs) > 2:  # the third run is recorded
            WAITS[name](ops.xp, x)
        return x

    causes = {"a wait": "StreamCaptureUnsupported", "nobody waits": "Unjoined"}
    cause = causes.get(name, "records may not|H2D transfers are disallowed")
    with pytest.raises(CannotRecord, match=f"cannot record this pass as a graph: .*({cause})"):
        CudaGraph(ops, fails, *on_device(ops, [1, 1, 1]))
    assert not ops.xp.taking_part and len(ops.xp.current) == 1
    CudaGraph(ops, Doubling(), *on_device(ops, [1, 1, 1]))


def test_an_interrupt_leaves_nothing_recording(ops):
    runs = []

    def interrupted(x):
        runs.append(1)
        if len(runs) > 2:
            raise KeyboardInterrupt
        return x * 2

    with pytest.raises(KeyboardInterrupt):
        CudaGraph(ops, interrupted, *on_device(ops, [1, 1, 1]))
    assert not ops.xp.taking_part
    CudaGraph(ops, Doubling(), *on_device(ops, [1, 1, 1]))


def test_nobody_launches_while_another_records(ops):
    """A launch would be recorded with the rest."""
    graph, order = CudaGraph(ops, Doubling(), *on_device(ops, [1, 1, 1])), []
    thread = Thread(target=lambda: (graph(np.ones(3)), order.append("launched")))

    def slow(x):
        if ops.xp.taking_part:
            thread.start()
            thread.join(0.2)
            order.append("recorded")
        return x * 2

    CudaGraph(ops, slow, *on_device(ops, [1, 1, 1]))
    thread.join()
    assert order == ["recorded", "launched"]


def test_a_graph_keeps_its_function_alive(ops):
    double = Doubling()
    graph, kept = CudaGraph(ops, double, *on_device(ops, [1, 1, 1])), weakref.ref(double)
    del double
    gc.collect()
    assert kept() is not None
    del graph
    assert kept() is None


def test_a_dropped_graph_gives_its_memory_back(ops):
    graph = CudaGraph(ops, Doubling(), *on_device(ops, [1, 1, 1]))
    (pool,) = ops.xp.pools
    result = graph(np.ones(3))
    assert pool.used > 0
    del graph
    assert pool.used == pool.free == 0
    assert ops.to_numpy(result).tolist() == [2, 2, 2]


class Cuda:
    """What GraphMemory asks of CuPy, with addresses that count on."""

    def __init__(self):
        self.asked, self.held = [], 0
        self.runtime = SimpleNamespace(getDevice=lambda: 0)

    def MemoryPool(self):
        return self

    def malloc(self, size):
        self.asked.append(size)
        self.held += size
        return SimpleNamespace(ptr=1000 * len(self.asked))

    def total_bytes(self):
        return self.held

    def UnownedMemory(self, address, size, owner, device):
        assert owner is self and device == 0
        return SimpleNamespace(ptr=address)

    def MemoryPointer(self, memory, offset):
        return SimpleNamespace(ptr=memory.ptr + offset)


def test_a_repeated_run_is_given_the_same_addresses_and_allocates_nothing():
    cuda = Cuda()
    memory = GraphMemory(cuda)
    first = [memory.malloc(size).ptr for size in (8, 16, 8)]
    memory.replay()
    assert [memory.malloc(size).ptr for size in (8, 16, 8)] == first
    assert cuda.asked == [8, 16, 8]


def test_a_pool_that_gave_blocks_back_cannot_be_recorded_from():
    """Which CuPy does by itself where memory is short; the addresses would be others'."""
    cuda = Cuda()
    memory, malloc = GraphMemory(cuda), cuda.malloc
    memory.malloc(100)

    def short_of_memory(size):
        cuda.held = 0
        return malloc(size)

    cuda.malloc = short_of_memory
    with pytest.raises(MemoryError, match="too little memory"):
        memory.malloc(8)


@pytest.mark.parametrize("sizes", [(8, 8), (8, 16, 8, 4)])
def test_a_run_that_allocates_otherwise_is_not_recorded(sizes):
    memory = GraphMemory(Cuda())
    for size in (8, 16, 8):
        memory.malloc(size)
    memory.replay()
    with pytest.raises(RuntimeError, match="allocates . bytes where it allocated (16|None) before"):
        for size in sizes:
            memory.malloc(size)
