"""Work in slices and side by side: all of it, once, in order, and what a trace sees of it."""

import contextvars
import threading
import time

import numpy as np
import pytest

from clipseg_np.backends.numpy_ops import NumpyOps
from clipseg_np.model.batched import in_parallel, joined_slices
from clipseg_np.nn.ops import Ops
from clipseg_np.nn.trace import Activations, record, trace


@pytest.mark.parametrize("size", (1, 2, 5))
@pytest.mark.parametrize("length", (0, 1, 2, 5, 6, 17))
@pytest.mark.parametrize("threads", (None, 1, 2, 3))
def test_each_part_is_done_once_and_the_results_are_in_order(threads, length, size):
    lengths = []

    def work(part):
        lengths.append(part.stop - part.start)
        return [np.arange(length)[part], np.full(1, len(lengths))]

    results = joined_slices(NumpyOps(threads) if threads else Ops(), work, length, size)
    if length == 0:
        assert results == lengths == []
        return
    assert results[0].tolist() == list(range(length)) and len(results[1]) == len(lengths)
    assert max(lengths) <= size and max(lengths) - min(lengths) <= 1


def test_parts_are_done_at_the_same_time():
    meeting = threading.Barrier(3, timeout=20)  # breaks if one waits for another to end
    joined_slices(NumpyOps(3), lambda part: [np.full(1, meeting.wait())], 6, 2)


def test_who_is_done_with_fewer_parts_helps_with_more():
    """Of 3 parts, two threads take 2 and 1; as a rule the caller is first, and takes 2."""
    fast, meeting, mine = NumpyOps(2), threading.Barrier(2, timeout=20), []

    def work(part):
        length = part.stop - part.start
        if threading.current_thread() is threading.main_thread():
            mine.append(length)
        meeting.wait()  # so that each has its own
        end = time.monotonic() + 20
        while length == mine[-1] == 2 and fast.threads.free == 1 and time.monotonic() < end:
            time.sleep(0.001)
        if length == mine[-1] == 2:
            fast.threads.for_slices(lambda _: meeting.wait(), 2)
        return []

    for _ in range(5):
        joined_slices(fast, work, 3, 2)
    assert 2 in mine


def test_a_thread_that_is_done_takes_slices_of_a_task_that_has_begun():
    """As the one that embeds the texts, when it is done, takes images."""
    fast, begun, takers = NumpyOps(2), threading.Event(), set()

    def work(part):
        takers.add(threading.get_ident())
        begun.set()
        end = time.monotonic() + 20
        while len(takers) < 2 and time.monotonic() < end:
            time.sleep(0.001)
        return []

    fast.parallel_for([lambda: joined_slices(fast, work, 8, 1), lambda: begun.wait(20)])
    assert len(takers) == 2


def test_a_trace_sees_parts_and_tasks_in_their_order():
    fast, seen = NumpyOps(2), Activations()
    with trace(seen):
        joined_slices(fast, lambda part: record("part", part.start) or [], 6, 2)
        here = threading.get_ident()
        for _ in range(5):
            in_parallel(
                fast, [lambda: (time.sleep(0.01), record("task", 0)), lambda: record("task", here)]
            )
        record("task", threading.get_ident())
    assert seen.all == {"part": [0, 2, 4], "task": [0, here] * 5 + [here]}


@pytest.mark.parametrize("ops", [Ops(), NumpyOps(1), NumpyOps(2)])
def test_the_first_tasks_error_is_raised(ops):
    meeting = threading.Barrier(min(2, ops.workers), timeout=20)

    def failing(error):
        meeting.wait()
        raise error

    for _ in range(5):
        with pytest.raises(ValueError, match="first"):
            ops.parallel_for(
                [lambda: failing(ValueError("first")), lambda: failing(KeyError("second"))]
            )


def test_tasks_see_the_callers_context():
    variable = contextvars.ContextVar("variable")
    variable.set("the caller's")
    assert in_parallel(NumpyOps(2), [variable.get] * 5) == ["the caller's"] * 5
