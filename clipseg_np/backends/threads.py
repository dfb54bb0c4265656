"""A few threads that share out independent work, each with one thread of BLAS.

NumPy holds Python's lock only between its loops and products, so that plain threads run at the same time. Its matrix
products bring threads of their own (OpenBLAS), which wait for each other inside every product and, when it is done,
keep the processor busy for a while: here a product belongs to one thread, and what surrounds it is shared out too.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextvars import copy_context
from functools import cache
from itertools import pairwise
from queue import SimpleQueue
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

T = TypeVar("T")


@cache
def usual_count() -> int:
    """As many threads as BLAS would take: the cores that this process may run on, or OPENBLAS_NUM_THREADS and its like."""
    return max((part["num_threads"] for part in _blas().info()), default=os.cpu_count() or 1)


def evenly(length: int, count: int) -> list[slice]:
    """So many slices that make up 0 to `length`, as long as each other or one longer."""
    return between(length * part // count for part in range(count + 1))


def slices(length: int, size: int) -> list[slice]:
    """Consecutive slices of range(length), each `size` long but for the last."""
    return between([*range(0, length, size), length])


def between(ends: Iterable[int]) -> list[slice]:
    """From each of these to the next."""
    return [slice(*pair) for pair in pairwise(ends)]


class Threads:
    """`count` threads, the caller's among them; by default, as many as BLAS would take."""

    def __init__(self, count: int | None = None):
        self.count = count or usual_count()

    @property
    def free(self) -> int:
        """How many would share out what this thread shares out now: with a part of something, those that have none."""
        if not _this_thread.is_busy:
            return self.count
        turns, idle = _waiting(self.count)
        given = turns.qsize()  # turns stay in line until their threads are awake
        return 1 + max(0, len(idle) - given)

    def share(
        self, work: Callable[[slice], None], length: int, least: int = 1, most: int | None = None
    ) -> None:
        """Call `work` for slices that make up 0 to `length`, by several threads, each taking the next that is left.

        There are as many threads as find slices of `least`, and as many slices as make none longer than `most`. What
        `work` itself would share out, its thread does alone, or with those that have nothing to do. What it raises, this
        raises, when all that had begun have ended.
        """
        threads = min(self.free, length // least) if length >= 2 * least else 1
        count = max(threads, -(-length // most) if most else 1)
        self._take_in_turn(work, deque(evenly(length, count)), threads)

    def run(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """Run the tasks, each in the caller's context, and return their results in order.

        As many threads as there are take the next task that is left; one that is busy now takes part once it is free. What
        a task would share out, its thread does alone, or with those that have nothing to do. After an error no task
        begins, and when all that had begun have ended, the error of the first of those that failed is raised.
        """
        results: list = [None] * len(tasks)
        errors: dict[int, BaseException] = {}
        left = deque((number, copy_context(), task) for number, task in enumerate(tasks))

        def run_one(item: tuple) -> None:
            number, context, task = item
            try:
                results[number] = context.run(task)
            except BaseException as error:  # noqa: BLE001  (raised below)
                errors[number] = error
                left.clear()

        self._take_in_turn(run_one, left, min(self.count, len(tasks)))
        if errors:
            raise errors[min(errors)]
        return results

    def _take_in_turn(self, work: Callable[[Any], None], items: deque, threads: int) -> None:
        """Call `work` for each item, by so many threads, each taking the next that is left."""

        def take() -> None:
            while items:
                try:
                    item = items.popleft()
                except IndexError:  # another thread was first
                    return
                work(item)

        with one_blas_thread:
            others = [self._hand_over(lambda: _busy(take)) for _ in range(threads - 1)]
            try:
                _busy(take)
            finally:  # whoever has not begun yet finds nothing left to do
                begun = [other for other in others if not other.withdraw()]
                for other in begun:
                    other.wait()
        for other in begun:
            other.result()

    def _hand_over(self, work: Callable[[], Any]) -> "_Turn":
        turn = _Turn(work)
        _waiting(self.count)[0].put(turn)
        return turn


class _Turn:
    """Work that another thread does once it is free, unless it is withdrawn before.

    What concurrent.futures is for, with less around it: a forward pass has fifty turns, of a millisecond or a few.
    """

    def __init__(self, work: Callable[[], Any]):
        self.work: Callable[[], Any] | None = work
        self.error: BaseException | None = None
        self.taken, self.running = threading.Lock(), threading.Lock()
        self.running.acquire()

    def take(self) -> None:
        if self.taken.acquire(blocking=False):
            try:
                self.value = self.work()
            except BaseException as error:  # noqa: BLE001  (raised where the result is asked for)
                self.error = error
            finally:
                self.running.release()

    def withdraw(self) -> bool:
        """Whether nobody has begun, nor will; another thread may then still see the turn, not what it holds."""
        withdrawn = self.taken.acquire(blocking=False)
        if withdrawn:
            self.work = None
        return withdrawn

    def wait(self) -> None:
        with self.running:
            pass

    def result(self) -> Any:
        self.wait()
        if self.error is not None:
            raise self.error
        return self.value


class _ThisThread(threading.local):
    is_busy = False  # with a part of what is shared out


_this_thread = _ThisThread()


def _busy(work: Callable[[], Any]) -> Any:
    before, _this_thread.is_busy = _this_thread.is_busy, True
    try:
        return work()
    finally:
        _this_thread.is_busy = before


@cache
def _waiting(count: int) -> tuple[SimpleQueue, list[str]]:
    """Turns for `count` threads, less the caller's own, which live as long as the process; and those that have none."""
    turns, idle = SimpleQueue(), []

    def take_turns(name: str) -> None:
        while True:
            idle.append(name)
            turn = turns.get()
            idle.remove(name)
            turn.take()
            del turn  # and what it holds

    for number in range(1, count):
        name = f"clipseg_np_{number}"
        threading.Thread(target=take_turns, args=(name,), name=name, daemon=True).start()
    return turns, idle


class OneBlasThread:
    """`with` this, BLAS keeps to one thread, until the last of those who asked for it has left.

    The setting is the whole process's: two callers who each put back what they found would leave it changed.
    """

    def __init__(self):
        self.lock = threading.Lock()
        self.callers = 0

    def __enter__(self) -> None:
        with self.lock:
            if not self.callers:
                self.limit = _blas().limit(limits=1)
                _let_go()
            self.callers += 1

    def __exit__(self, *_) -> None:
        with self.lock:
            self.callers -= 1
            if not self.callers:
                self.limit.restore_original_limits()
                _let_go()


@cache
def _blas() -> ThreadpoolController:
    """BLAS among the process's libraries; to look for it takes a while."""
    return ThreadpoolController().select(user_api="blas")


def _let_go() -> None:
    """From 3.8 on, threadpoolctl passes over a thread that is not the one that set OpenBLAS's number first.

    Here the last of several callers puts it back, whichever thread that is; `OneBlasThread.lock` keeps them apart.
    """
    for library in _blas().lib_controllers:
        if hasattr(library, "clear_controlling_thread"):
            library.clear_controlling_thread()


one_blas_thread = OneBlasThread()


def _start_anew() -> None:
    """A forked process has none of its parent's threads, and nobody in it limits BLAS."""
    _waiting.cache_clear()
    one_blas_thread.__init__()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_anew)
