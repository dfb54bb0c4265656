"""Threads do all the shared work, once and at the same time, and leave BLAS as it was."""

import contextvars
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import Future
from contextlib import contextmanager

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from clipseg_np import InputError, Segmenter
from clipseg_np.backends import threads as module
from clipseg_np.backends.select import ops_for
from clipseg_np.backends.threads import Threads, evenly, one_blas_thread, quota, usual_count


def blas_threads() -> list[int]:
    return [
        library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"
    ]


needs_blas = pytest.mark.skipif(
    not blas_threads(), reason="NumPy's BLAS here is not one that threadpoolctl knows"
)


@contextmanager
def both_threads_busy():
    """Both threads of `Threads(2)` work for another caller until this is left."""
    free, both_busy, in_time = threading.Event(), threading.Barrier(3, timeout=20), []

    def hold(part):
        both_busy.wait()
        in_time.append(free.wait(10))

    first = threading.Thread(target=lambda: Threads(2).for_slices(hold, 2))
    first.start()
    both_busy.wait()
    try:
        yield
    finally:
        free.set()
        first.join()
    assert in_time == [True, True]


@pytest.mark.parametrize("min_size", (1, 4, 100))
@pytest.mark.parametrize("length", (1, 2, 7, 100, 101))
@pytest.mark.parametrize("count", (1, 2, 5))
@pytest.mark.parametrize("max_size", (1 << 60, 3, 50))
def test_the_slices_make_up_the_whole(count, length, min_size, max_size):
    slices = []
    Threads(count).for_slices(slices.append, length, min_size, max_size)
    slices.sort(key=lambda part: part.start)
    assert [i for part in slices for i in range(part.start, part.stop)] == list(range(length))
    if max_size > length or length < 2 * min_size:
        assert len(slices) == max(1, min(count, length // min_size))
        assert len(slices) == 1 or all(part.stop - part.start >= min_size for part in slices)
    else:
        assert all(part.stop - part.start <= max_size for part in slices)
        assert len(slices) >= min(count, length // min_size)


def test_of_even_slices_the_first_is_the_longest():
    """It is the caller's, whose core would wait for a longer one."""
    for length, count in ((0, 0), (5, 3), (7, 5), (100, 7), (3, 3)):
        parts = evenly(length, count)
        lengths = [part.stop - part.start for part in parts]
        assert [i for part in parts for i in range(length)[part]] == list(range(length))
        assert len(lengths) == count and max(lengths, default=0) - min(lengths, default=0) <= 1
        assert count == 0 or lengths[0] == max(lengths)


def test_each_thread_gets_as_many_slices():
    for count, length, max_size in ((2, 12, 4), (3, 3072, 384), (6, 3072, 384), (2, 3, 1)):
        sizes = []
        Threads(count).for_slices(
            lambda part, sizes=sizes: sizes.append(part.stop - part.start), length, 1, max_size
        )
        assert len(sizes) % count == 0 or len(sizes) == length
        assert 0 < min(sizes) and max(sizes) <= max_size


def test_work_for_one_thread_stays_in_the_caller():
    seen = []
    Threads(4).for_slices(lambda part: seen.append(threading.get_ident()), 100, 60)
    assert seen == [threading.get_ident()]


def test_a_thread_that_is_done_takes_the_next_task():
    """One waits in its task until the other has done all the rest."""
    waiting, done = threading.Lock(), []
    others_done = threading.Event()

    def task():
        if waiting.acquire(blocking=False):
            assert others_done.wait(20)
        done.append(1)
        if len(done) == 7:
            others_done.set()

    Threads(2).run([task] * 8)
    assert len(done) == 8


def test_it_does_not_wait_for_threads_that_are_busy_elsewhere():
    slices = []
    with both_threads_busy():
        Threads(2).for_slices(slices.append, 2)
    assert len(slices) == 2


def test_the_threads_run_at_the_same_time():
    meeting = threading.Barrier(3, timeout=20)  # breaks if one waits for another to end
    Threads(3).for_slices(lambda part: meeting.wait(), 3)


def test_nested_work_is_done_alone_while_all_threads_are_busy():
    threads, inner = Threads(2), {}
    both = threading.Barrier(2, timeout=20)

    def work(part):
        both.wait()
        mine = inner.setdefault(threading.get_ident(), [])
        assert threads.free == 1
        threads.for_slices(lambda part: mine.append((part, threading.get_ident())), 8)
        both.wait()

    threads.for_slices(work, 2)
    assert len(inner) == 2
    for thread, seen in inner.items():
        assert seen == [(slice(0, 8), thread)]
    meeting = threading.Barrier(2, timeout=20)
    threads.for_slices(lambda part: meeting.wait(), 2)  # as before: nobody is busy any more


def test_idle_threads_take_part_in_nested_work():
    threads, meeting = Threads(3), threading.Barrier(2, timeout=20)

    def work(part):
        if part.start:  # done at once, as the third is
            return
        end = time.monotonic() + 20
        while threads.free < 3 and time.monotonic() < end:
            time.sleep(0.001)
        threads.for_slices(lambda part: meeting.wait(), 2)

    threads.for_slices(work, 2)


def test_a_thread_that_has_work_is_not_free_though_it_has_not_begun(monkeypatch):
    pending, done = Future(), Future()
    done.set_result(None)
    monkeypatch.setattr(module, "_pool", lambda count: (None, {pending, done}))
    inside = contextvars.copy_context()
    inside.run(module._is_inside_task.set, True)
    assert inside.run(lambda: Threads(3).free) == 2
    assert Threads(3).free == 3


def test_tasks_run_at_the_same_time_and_their_results_are_in_order():
    meeting = threading.Barrier(2, timeout=20)

    def task(number):
        meeting.wait()
        return number, threading.get_ident()

    first, second = Threads(2).run([lambda: task(1), lambda: task(2)])
    assert (first[0], second[0]) == (1, 2) and first[1] != second[1]


def test_the_caller_runs_the_tasks_that_no_other_thread_has_begun():
    me = threading.get_ident()
    with both_threads_busy():
        assert Threads(2).run([threading.get_ident] * 3) == [me] * 3
    assert Threads(1).run([threading.get_ident] * 3) == [me] * 3


def test_a_thread_that_becomes_free_takes_part():
    """Though none was when the tasks were handed out."""
    threads, seen = Threads(2), set()

    def task():
        seen.add(threading.get_ident())
        end = time.monotonic() + 20
        while len(seen) < 2 and time.monotonic() < end:
            time.sleep(0.001)

    with both_threads_busy():
        first = threading.Thread(target=lambda: threads.run([task] * 4))
        first.start()
        while not seen:
            time.sleep(0.001)
    first.join()
    assert len(seen) == 2


def test_tasks_see_the_callers_context():
    variable = contextvars.ContextVar("variable")
    variable.set("the caller's")
    meeting = threading.Barrier(2, timeout=20)

    def task():
        meeting.wait()
        return variable.get()

    assert Threads(2).run([task, task]) == ["the caller's"] * 2


def test_withdrawn_work_is_not_held_until_a_thread_is_free():
    array = np.zeros(3)
    seen = weakref.ref(array)
    with both_threads_busy():
        Threads(2).for_slices(lambda part, array=array: None, 2)
        del array
        gc.collect()
        assert seen() is None


def test_finished_work_is_not_held():
    array, meeting = np.zeros(3), threading.Barrier(2, timeout=20)
    seen = weakref.ref(array)
    Threads(2).for_slices(lambda part, array=array: meeting.wait(), 2)
    del array
    end = time.monotonic() + 5
    while seen() is not None and time.monotonic() < end:
        time.sleep(0.001)
        gc.collect()
    assert seen() is None


@pytest.mark.parametrize("count", (1, 2))
def test_the_first_tasks_error_is_raised_and_no_task_begins_after_it(count):
    begun, meeting = [], threading.Barrier(count, timeout=20)

    def task(number):
        begun.append(number)
        if number < 2:
            meeting.wait()
            raise ValueError(f"task {number}")

    for _ in range(5):
        begun.clear()
        with pytest.raises(ValueError, match="task 0"):
            Threads(count).run([lambda number=number: task(number) for number in range(5)])
        assert sorted(begun) == list(range(count))


@needs_blas
def test_tasks_have_one_thread_of_blas():
    before = blas_threads()
    assert Threads(2).run([blas_threads] * 2) == [[1] * len(before)] * 2
    assert blas_threads() == before


@needs_blas
def test_the_default_count_is_that_of_blas():
    """Asked in a process of its own: BLAS reads the variables when it is loaded."""
    code = "from clipseg_np.backends.threads import Threads; print(Threads().count)"
    variables = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "1"
    assert Threads().count == min(max(blas_threads()), quota())


def test_a_quota_of_cores_counts(tmp_path, monkeypatch):
    """Its own or its container's, rounded up; "max" is none."""
    own, inner = tmp_path / "cgroup", tmp_path / "slice" / "container"
    inner.mkdir(parents=True)
    assert quota(tmp_path, own) == module.MAX_THREADS
    own.write_text("1:cpu:/\n0::/slice/container\n")
    for place, text, cores in (
        (inner, "max 100000", module.MAX_THREADS),
        (inner, "300000 100000", 3),
        (inner.parent, "150000 100000", 2),
        (tmp_path, "10000 100000", 1),
    ):
        (place / "cpu.max").write_text(text + "\n")
        assert quota(tmp_path, own) == cores
    own.write_text("0::/\n")
    assert quota(tmp_path, own) == 1
    monkeypatch.setattr(module, "quota", lambda: 1)
    assert usual_count.__wrapped__() == 1


def test_while_the_interpreter_ends_the_caller_works_alone():
    code = (
        "import atexit; from clipseg_np.backends.threads import Threads\n"
        "atexit.register(lambda: print(Threads(2).run([lambda: 1, lambda: 2])))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[1, 2]" and not run.stderr


@pytest.mark.parametrize("failing", (0, 2))
def test_an_error_in_any_part_is_raised_when_all_that_began_have_ended(failing):
    ended, meeting = [], threading.Barrier(3, timeout=20)

    def work(part):
        meeting.wait()  # all have begun
        if part.start == failing:
            raise ValueError("this part")
        time.sleep(0.05)
        ended.append(part.start)

    with pytest.raises(ValueError, match="this part"):
        Threads(3).for_slices(work, 3)
    assert len(ended) == 2


@needs_blas
def test_blas_keeps_to_one_thread_and_gets_its_own_back():
    with threadpool_limits(2, user_api="blas"):
        seen = []
        Threads(2).for_slices(lambda part: seen.extend(blas_threads()), 2)
        assert set(seen) == {1}
        assert set(blas_threads()) == {2}


@needs_blas
def test_the_first_to_leave_does_not_lift_the_limit_of_another():
    with threadpool_limits(2, user_api="blas"):
        first, second = one_blas_thread, one_blas_thread
        first.__enter__()
        second.__enter__()
        first.__exit__()
        assert set(blas_threads()) == {1}
        second.__exit__()
        assert set(blas_threads()) == {2}


@needs_blas
def test_the_limit_is_lifted_by_another_thread_than_set_it():
    both_in, first_out = threading.Barrier(2, timeout=20), threading.Event()

    def first():
        with one_blas_thread:
            both_in.wait()
        first_out.set()

    with threadpool_limits(2, user_api="blas"):
        pass  # whoever limits BLAS from here on is the first to
    before = blas_threads()
    for _ in range(2):  # the second time, by what the first time left
        first_out.clear()
        other = threading.Thread(target=first)
        other.start()
        while not one_blas_thread.callers:
            time.sleep(0.001)
        with one_blas_thread:
            both_in.wait()
            first_out.wait(20)
            assert set(blas_threads()) == {1}
        other.join()
        assert blas_threads() == before


def in_a_fork(queue):
    slices, meeting = [], threading.Barrier(2, timeout=10)

    def work(part):
        meeting.wait()
        slices.append(part)

    Threads(2).for_slices(work, 2)
    queue.put(len(slices))


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork"
)
def test_a_forked_process_has_threads_of_its_own():
    Threads(2).for_slices(lambda part: None, 2)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=in_a_fork, args=(queue,))
    child.start()
    assert queue.get(timeout=20) == 2
    child.join()


def test_several_callers_at_once_get_their_own_results():
    ops = ops_for("numpy")
    xs = np.random.default_rng(0).normal(size=(4, 500, 300))
    expected = [x @ xs[0, :300].T for x in xs]
    results = [None] * 4

    def call(i):
        for _ in range(20):
            results[i] = ops.linear(xs[i], xs[0, :300])

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for result, product in zip(results, expected):
        np.testing.assert_allclose(result, product, rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [-1, 0, 1.5, 2.0, "2", 10**6, [2], float("nan")])
def test_wrong_numbers_of_threads_are_refused(count, checkpoint):
    for make in (
        lambda: Threads(count),
        lambda: ops_for("numpy", count),
        lambda: ops_for("numpy-reference", count),
        lambda: ops_for("auto", count),
        lambda: Segmenter.from_pretrained(checkpoint, threads=count),
    ):
        with pytest.raises(InputError, match="threads is .*; expected a whole number from 1 to"):
            make()


@pytest.mark.parametrize("count", [None, 1, np.int64(3), 1024])
def test_right_numbers_of_threads(count):
    assert Threads(count).count == (count or usual_count())


def test_the_caller_takes_the_first_task():
    threads = Threads(3)
    for _ in range(50):
        assert threads.run([threading.get_ident] * 3)[0] == threading.get_ident()
