"""Worker processes: a dead one costs its task, warnings and errors come back, none is left."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import BrokenExecutor
from pathlib import Path

import pytest

from clipseg_np.cli import main, segment
from clipseg_np.segment.workers import WorkerProcesses


@pytest.fixture
def workers():
    with WorkerProcesses(2) as workers:
        yield workers
    assert not multiprocessing.active_children()


def test_results_and_errors_come_back(workers):
    assert [workers.submit(pow, 2, n).result() for n in range(5)] == [1, 2, 4, 8, 16]
    assert workers.submit(os.getpid).result() != os.getpid()
    with pytest.raises(ValueError, match="invalid literal"):
        workers.submit(int, "x").result()


def test_a_task_whose_worker_dies_fails_alone(workers):
    others = [workers.submit(time.sleep, 0.1) for _ in range(3)]
    with pytest.raises(BrokenExecutor, match=r"was killed \(exit code 3\); if memory was short"):
        workers.submit(os._exit, 3).result()
    others += [workers.submit(time.sleep, 0.1) for _ in range(3)]
    assert [other.result() for other in others] == [None] * 6


def test_warnings_come_back(workers):
    with pytest.warns(FutureWarning, match="of a worker"):
        workers.submit(warnings.warn, "of a worker", FutureWarning).result()


def wait_and_clean_up(folder: str) -> None:
    file = Path(folder, str(os.getpid()))
    try:
        file.touch()
        time.sleep(600)
    finally:
        file.unlink()


def wait_and_fail(folder: str) -> None:
    try:
        wait_and_clean_up(folder)
    except SystemExit:
        raise ValueError from None


@pytest.mark.parametrize("task", [wait_and_clean_up, wait_and_fail])
def test_shutdown_ends_tasks_which_clean_up(task, tmp_path, monkeypatch):
    monkeypatch.setattr("clipseg_np.segment.workers.MAX_SECONDS_TO_END", 60)
    with WorkerProcesses(2) as workers:
        futures = [workers.submit(task, str(tmp_path)) for _ in range(5)]
        while len(list(tmp_path.iterdir())) < 2:
            assert not all(future.done() for future in futures)
            time.sleep(0.01)
        processes = multiprocessing.active_children()
    assert [process.exitcode for process in processes] == [1, 1]  # they were not killed
    assert not list(tmp_path.iterdir()) and all(future.done() for future in futures)
    assert not multiprocessing.active_children()
    with pytest.raises(RuntimeError):
        workers.submit(pow, 1, 1)


KILLED = """
import os, signal, sys, time
from pathlib import Path
from clipseg_np.segment.workers import WorkerProcesses
from tests.segment.test_workers import wait_and_clean_up

if __name__ == "__main__":
    workers = WorkerProcesses(2)
    for _ in range(2):
        workers.submit(wait_and_clean_up, sys.argv[1])
    while len(list(Path(sys.argv[1]).iterdir())) < 2:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX's signals")
def test_tasks_end_and_clean_up_when_the_parent_is_killed(tmp_path):
    (tmp_path / "script.py").write_text(KILLED)
    (tmp_path / "files").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, tmp_path / "script.py", tmp_path / "files"]
    # The workers hold standard error: this waits for them, too.
    done = subprocess.run(
        command, stderr=subprocess.PIPE, env=environment, check=False, timeout=300
    )
    assert done.returncode == -signal.SIGKILL and not done.stderr
    assert not list((tmp_path / "files").iterdir())


def test_a_worker_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr("clipseg_np.segment.workers.MAX_SECONDS_TO_END", 0.1)
    with WorkerProcesses(1) as workers:
        future = workers.submit(stay, 600)
        time.sleep(1)
    assert isinstance(future.exception(), BrokenExecutor)


def stay(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            time.sleep(1)
        except SystemExit:
            continue


WITHOUT_SEMAPHORES = """
import _multiprocessing, sys

def refused(*_, **__):
    raise OSError(38, "Function not implemented")

_multiprocessing.SemLock = refused
from clipseg_np.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("count", [1, 2])
def test_a_host_without_semaphores(count, checkpoint, image_file, tmp_path):
    (tmp_path / "script.py").write_text(WITHOUT_SEMAPHORES)
    command = [sys.executable, tmp_path / "script.py", "batch", image_file.parent, "red"]
    options = ["--workers", str(count), "--model", checkpoint, "--output", tmp_path / "out"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("1 of 1 (1 new, 0 already there)")
    assert not done.stderr


def test_one_worker_is_this_process(checkpoint, image_file, tmp_path, monkeypatch):
    monkeypatch.delattr(segment, "WorkerProcesses")
    monkeypatch.delattr(segment, "ThreadPoolExecutor")
    arguments = ["--workers", "1", "--model", str(checkpoint), "--output", str(tmp_path / "out")]
    assert main(["batch", str(image_file.parent), "red", *arguments]) == 0
