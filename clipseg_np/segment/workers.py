"""Worker processes for a batch: a killed worker costs one task, and none outlives its parent.

A `ProcessPoolExecutor` gives up all tasks when one of its processes is killed, its processes wait
for ever once their parent was killed, and it needs semaphores, which some hosts forbid.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

MAX_SECONDS_TO_END = 5  # for a worker that is told to end; then it is killed


class WorkerProcesses(ThreadPoolExecutor):
    """An executor of `count` processes. Each has a thread here, which sends it one task at a time.

    A task is a function that can be imported, and its arguments. If a worker dies, the future of
    the task that it was at raises BrokenExecutor, and a new worker goes on. shutdown() does not
    wait for tasks: it raises SystemExit in those at work, so that they can remove what they wrote.
    """

    def __init__(self, count: int):
        super().__init__(count)
        self._local = threading.local()
        self._lock = threading.Lock()
        self._processes: set = set()
        self._is_ending = False

    def submit(self, task: Callable, /, *arguments: Any) -> Future:  # type: ignore[override]
        return super().submit(self._run, task, arguments)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:
        with self._lock:
            self._is_ending = True
            for process in self._processes:
                process.terminate()
            deadline = time.monotonic() + MAX_SECONDS_TO_END
            for process in self._processes:
                process.join(max(0, deadline - time.monotonic()))
                process.kill()
        super().shutdown(wait, cancel_futures=cancel_futures)

    def _run(self, task: Callable, arguments: tuple) -> Any:
        if not hasattr(self._local, "worker"):
            self._local.worker = self._start()
        process, connection = self._local.worker
        try:
            connection.send((task, arguments))
            result, error, caught = connection.recv()
        except (EOFError, OSError) as death:
            del self._local.worker
            connection.close()
            with self._lock:
                process.join()
                self._processes.discard(process)
            raise BrokenExecutor(
                f"the worker process was killed (exit code {process.exitcode}); if memory was "
                f"short, use fewer workers"
            ) from death
        for message in caught:
            warnings.warn(message, stacklevel=2)
        if error:
            raise error
        return result

    def _start(self) -> tuple:
        """A new process, and the connection to it."""
        context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks
        with self._lock:
            if self._is_ending:
                raise CancelledError
            if hasattr(signal, "pthread_sigmask"):
                # Ctrl-C is for the parent. The worker inherits this thread's mask; the tracker,
                # which runs beside the first worker, would reset it.
                resource_tracker.ensure_running()
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            connection, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._processes.add(process)
        return process, connection


def _serve(connection: Connection) -> None:
    """A worker's life: run the tasks that come, until the parent ends it or has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _raise_exit)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, OSError, SystemExit):
        # Something may catch SystemExit, or raise an error of its own in its place.
        while signal.getsignal(signal.SIGTERM) is _raise_exit:
            task, arguments = connection.recv()
            result = error = None
            with warnings.catch_warnings(record=True) as caught:
                try:
                    result = task(*arguments)
                except Exception as raised:  # noqa: BLE001  (raised in the parent)
                    error = raised
            connection.send((result, error, [warning.message for warning in caught]))
    os._exit(1)  # at once, without what another signal could disturb


def _raise_exit(*_) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # for mypy
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(MAX_SECONDS_TO_END)
    os._exit(1)
