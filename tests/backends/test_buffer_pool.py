"""Memory that arrays leave is taken up again, and never while somebody holds it."""

import gc
import threading

import numpy as np
import pytest

from clipseg_np.backends import buffer_pool as module
from clipseg_np.backends.buffer_pool import Memory

SHAPE = (100, 500)


def test_what_an_array_leaves_the_next_of_its_size_takes_up():
    memory = Memory()
    first = memory.empty(SHAPE, "float32")
    place = first.ctypes.data
    del first
    again = memory.empty((SHAPE[1], SHAPE[0]), "float32")
    assert again.ctypes.data == place and again.shape == (SHAPE[1], SHAPE[0])


def test_what_was_left_last_is_taken_up_first_and_other_sizes_wait():
    memory, size = Memory(), module.BLOCK_BYTES
    arrays = {pages: memory.empty((pages * size,), "uint8") for pages in (1, 2, 3)}
    second = memory.empty((2 * size,), "uint8")
    places = {pages: array.ctypes.data for pages, array in arrays.items()}
    last = second.ctypes.data
    arrays.clear()
    del second
    taken = [memory.empty((pages * size,), "uint8") for pages in (2, 1)]
    assert [array.ctypes.data for array in taken] == [last, places[1]]
    assert sorted(block.nbytes for block in memory.idle) == [2 * size, 3 * size]


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x[3:7],
        lambda x: x.T.reshape(50, 10, 100)[1],
        lambda x: x.view("int32")[::2],
        lambda x: memoryview(x),
        lambda x: np.asarray(memoryview(x))[1:].ravel(),
    ],
)
def test_not_while_a_view_of_it_is_held(view):
    memory = Memory()
    held = view(memory.empty(SHAPE, "float32"))
    gc.collect()
    other = memory.empty(SHAPE, "float32")
    other[:] = 7
    assert not np.shares_memory(np.asarray(held), other)
    del held
    gc.collect()
    assert len(memory.idle) == 1


@pytest.mark.parametrize(
    "shape, dtype", [((3, 4), "float32"), (SHAPE, "float64"), ((0, 5), "int8")]
)
def test_shape_type_and_order_are_as_asked_for(shape, dtype):
    x = Memory().empty(shape, dtype)
    assert type(x) is np.ndarray and x.shape == shape and x.dtype == dtype
    assert x.flags.c_contiguous and x.flags.writeable


def test_what_lies_idle_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MAX_IDLE_BYTES", 5 * 2**20)
    memory = Memory()
    arrays = [memory.empty((2**20,), "uint8") for _ in range(9)]
    arrays.append(memory.empty((2**26,), "uint8"))  # too large to be kept at all
    assert not memory.idle
    arrays.clear()
    assert sum(block.nbytes for block in memory.idle) == 5 * 2**20


def test_threads_never_share_a_block():
    memory, faults = Memory(), []

    def work(number):
        for _ in range(300):
            x = memory.empty(SHAPE, "float32")
            x[:] = number
            y = memory.empty(SHAPE, "float32")
            y[:] = -number
            if not (x == number).all() or not (y == -number).all():
                faults.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults and 2 <= len(memory.idle) < 20
