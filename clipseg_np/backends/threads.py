"""Threads that share out independent work, while BLAS keeps to one thread.

NumPy releases Python's lock inside its loops and products, so that threads run at the same time.
BLAS has threads of its own, which wait for each other inside every product and keep the cores busy
for a while after it. Here one thread computes a whole product, and the threads share out products
and the steps around them. This gains 29 % for 1 prompt (AVX2 imitated: 54 %) and 36 % for 20
prompts (47 %): benchmarks/tricks.md has all gains. A ThreadPoolExecutor has the threads: a pool by
hand would gain less than 1 %.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from functools import cache, partial
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import Any

from threadpoolctl import ThreadpoolController

from ..errors import InputError
from ..nn.ops import T

MAX_THREADS, MANY = 1024, 1 << 60

_is_inside_task: ContextVar[bool] = ContextVar("_is_inside_task", default=False)


@cache
def usual_count() -> int:
    """As many threads as BLAS uses, this process's cores or OPENBLAS_NUM_THREADS, up to a quota."""
    count = max((library.num_threads for library in _blas()), default=os.cpu_count() or 1)
    return min(count, quota())


def quota(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """The cores whose time this process or its container may use (Linux, cgroup v2), rounded up."""
    limits, group = [MAX_THREADS], cgroups
    with suppress(OSError):
        group /= own.read_text().partition("0::/")[2].strip()
    for folder in (group, *group.parents):
        # There is no file, or it says "max".
        with suppress(OSError, ValueError):
            microseconds, period = map(int, (folder / "cpu.max").read_text().split())
            limits.append(-(-microseconds // period))
    return min(limits)


def evenly(length: int, count: int) -> list[slice]:
    """`count` consecutive slices of range(length), as equal as can be; the first is the longest."""
    ends = [*(-(-length * number // count) for number in range(count)), length]
    return [slice(*pair) for pair in pairwise(ends)]


def slices(length: int, size: int) -> list[slice]:
    """Consecutive slices of range(length), each `size` long but for the last."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def checked_count(threads: Any) -> int | None:
    """The number itself. Raises InputError unless it is None or whole, from 1 to MAX_THREADS."""
    if threads is None or (isinstance(threads, Integral) and 1 <= threads <= MAX_THREADS):
        return threads
    raise InputError(
        f"threads is {threads!r}; expected a whole number from 1 to {MAX_THREADS}, or None for as "
        f"many as there are cores"
    )


class Threads:
    """`count` threads, the caller's among them; by default, as many as BLAS uses."""

    def __init__(self, count: int | None = None):
        self.count = checked_count(count) or usual_count()

    @property
    def free(self) -> int:
        """How many threads the caller can use: all; inside a task, its own and the idle ones."""
        if not _is_inside_task.get():
            return self.count
        # Idle threads join in the last of 3 or 5 prompts: gains 11 %, 5 % of the decoder's time.
        _, futures = _pool(self.count)
        return max(1, self.count - sum(not future.done() for future in tuple(futures)))

    def for_slices(
        self, work: Callable[[slice], object], length: int, min_size: int = 1, max_size: int = MANY
    ) -> None:
        """Call `work` for consecutive slices of range(length), each at most `max_size` long.

        Each free thread that can have `min_size` gets the same number of slices: where two share 3
        instead of 4, a pass takes 17 % longer. A range shorter than 2 `min_size` stays one slice,
        however long. Errors as in `run`.
        """
        count = max(1, min(self.free, length // min_size))
        if length >= 2 * min_size:
            count = min(length, count * -(-length // (count * max_size)))
        self.run([partial(work, part) for part in evenly(length, count)])

    def run(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """Run the tasks, each in the caller's context, and return their results in order.

        The caller takes the first, which should be the longest: while it waits, its core is idle.
        Each thread takes the next task that is left; a thread that is busy elsewhere joins in once
        it is free. A task may share out work too. After an error no other task begins; when all
        that have begun have ended, the error of the first task that failed is raised.
        """
        count = min(self.count, len(tasks))
        if count <= 1:
            with one_blas_thread:
                return [task() for task in tasks]
        results: list = [None] * len(tasks)
        errors: dict[int, BaseException] = {}
        context = copy_context()
        context.run(_is_inside_task.set, True)
        left = deque((number, context.copy(), task) for number, task in enumerate(tasks))
        first = left.popleft()

        def take(number: int, own_context: Context, task: Callable[[], T]) -> None:
            try:
                results[number] = own_context.run(task)
            except BaseException as error:  # noqa: BLE001  (raised below)
                errors[number] = error
                left.clear()

        def take_tasks() -> None:
            while left:
                with suppress(IndexError):  # another thread was first
                    take(*left.popleft())

        pool, futures = _pool(self.count)
        helpers: list[Future] = []
        with one_blas_thread:
            try:
                # No thread starts once the interpreter is ending: then this one works alone.
                with suppress(RuntimeError):
                    for _ in range(count - 1):
                        helpers.append(pool.submit(lambda: take_tasks()))
                        futures.add(helpers[-1])
                take(*first)
                take_tasks()
            finally:
                for helper in helpers:
                    if not helper.cancel():
                        helper.result()
                    futures.discard(helper)
                # A canceled helper stays in the pool's queue, where it would hold the results.
                take_tasks = None
        if errors:
            raise errors[min(errors)]
        return results


@cache
def _pool(count: int) -> tuple[ThreadPoolExecutor, set[Future]]:
    """The threads beside the caller's, and the futures of those who wait for them."""
    return ThreadPoolExecutor(max(1, count - 1), "clipseg_np"), set()


class OneBlasThread:
    """`with` this, BLAS keeps to one thread, until the last caller has left.

    The setting is the whole process's: if each of two callers restored the number that it saw, the
    number could stay changed.
    """

    def __init__(self):
        self.lock = threading.Lock()
        self.callers = 0

    def __enter__(self) -> None:
        with self.lock:
            if not self.callers:
                self.counts = [library.num_threads for library in _blas()]
                _set_blas_threads([1] * len(self.counts))
            self.callers += 1

    def __exit__(self, *_) -> None:
        with self.lock:
            self.callers -= 1
            if not self.callers:
                _set_blas_threads(self.counts)


@cache
def _blas() -> list:
    """threadpoolctl's controllers of the BLAS libraries here; to find them takes a while."""
    return ThreadpoolController().select(user_api="blas").lib_controllers


def _set_blas_threads(counts: list[int]) -> None:
    """Set each library's number of threads, and leave it to any thread to set it next.

    threadpoolctl 3.8 ignores all threads but the first to set OpenBLAS's number. Here the last
    of several callers restores it, in any thread; `OneBlasThread.lock` keeps them apart.
    """
    for library, count in zip(_blas(), counts):
        library.set_num_threads(count)
        if hasattr(library, "clear_controlling_thread"):
            library.clear_controlling_thread()


one_blas_thread = OneBlasThread()


def _start_afresh() -> None:
    """A forked process has none of its parent's threads, and none of its callers."""
    _pool.cache_clear()
    one_blas_thread.__init__()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_afresh)
