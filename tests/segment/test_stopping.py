"""Batches that are really stopped: by a signal, a killed process, a full disk.

Each ends with one line, its report, no worker that lives on and nothing half written, and the same
command goes on. In these tests, each process waits at the first image after the third that it has
segmented but not put in its place, so that it is stopped there, on a machine of any speed.
"""

import functools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipseg_np.cli import main
from clipseg_np.segment.batch import NOT_DONE, REPORT
from tests.segment.test_batch import content

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX's signals")
slow = pytest.mark.slow
MAX_SECONDS = 300  # for what takes a few, on any machine
STOPPED = r"clipseg-np: stopped: (\d) of 6 done; the same command goes on"

# Worker processes import this script, too.
WAITING = """
import os, sys, time
from clipseg_np.cli import main
from clipseg_np.segment import batch

def write_and_wait(part, stem, *others):
    records = write_results(part, stem, *others)
    while stem >= "3" and not os.path.exists(__file__ + ".go"):
        time.sleep(0.01)
    return records

write_results, batch.write_results = batch.write_results, write_and_wait

if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.fixture(scope="module")
def arguments(checkpoint, tmp_path_factory):
    """Of a batch of six images, one of them larger; its output folder's name is missing."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(6):
        pixels = rng.integers(0, 256, (200 if number == 3 else 40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    options = ["--model", str(checkpoint), "--write", "mask", "heat", "--output"]
    return ["batch", str(folder), "red", "a blue x", *options]


@pytest.fixture(scope="module")
def undisturbed(arguments, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed")
    assert main([*arguments, str(output), "--workers", "1"]) == 0
    return content(output)


@pytest.fixture
def start(arguments, tmp_path):
    """A function that starts the command, and waits until three images are done."""
    script, output, runs = tmp_path / "script.py", tmp_path / "out", []
    script.write_text(WAITING)

    def start(workers: int, has_begun=lambda run: run.is_waiting, **options) -> Run:
        run = Run([script, *arguments, output, "--workers", str(workers)], output, **options)
        runs.append(run)
        wait_until(lambda: has_begun(run) or run.process.poll() is not None)
        assert has_begun(run), run.process.communicate()
        return run

    yield start
    for run in runs:  # where a test fails, nothing is left running
        with suppress(ProcessLookupError):
            os.killpg(run.process.pid, signal.SIGKILL)


@pytest.fixture
def assert_goes_on(arguments, undisturbed, tmp_path, capsys):
    """A function that asserts that the same command does the rest, and only the rest."""

    def assert_goes_on(done: int) -> None:
        assert main([*arguments, str(tmp_path / "out"), "--workers", "1"]) == 0
        out, err = capsys.readouterr()
        new, there = map(int, re.match(r"6 of 6 \((\d) new, (\d) already there\)", out).groups())
        assert new + there == 6 and there >= done and not said(err)
        assert content(tmp_path / "out") == undisturbed

    return assert_goes_on


class Run:
    """The command at work, in a session of its own."""

    def __init__(self, command: list, output: Path, **options):
        self.script, self.output, self.count = command[0], output, int(command[-1])
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            start_new_session=True,
            **options,
        )

    @property
    def is_waiting(self) -> bool:
        """Three images are in the report; each process has begun to write another one."""
        report = self.output / REPORT
        done = report.read_text("utf-8").count("\n") if report.exists() else 0
        begun = [files for path, _, files in os.walk(self.output) if path.endswith(".part")]
        return done == 3 and sum(map(bool, begun)) == self.count

    @property
    def workers(self) -> list[int]:
        return [pid for pid, words in session(self.process.pid).items() if "spawn_main" in words]

    def go_on(self) -> None:
        Path(f"{self.script}.go").touch()

    def end(self) -> tuple[int, str, list[str]]:
        """The exit code, standard output and error, once all processes have ended."""
        out, err = self.process.communicate(timeout=MAX_SECONDS)
        wait_until(lambda: not session(self.process.pid))
        assert not list(self.output.rglob(".*"))
        return self.process.returncode, out, said(err)

    def report(self) -> list[dict]:
        lines = (self.output / REPORT).read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines]


def session(leader: int) -> dict[int, str]:
    """The process ids and command lines of a session; without those that only wait for a parent."""
    columns = ["ps", "-Aww", "-o", "pid=,sess=,stat=,args="]
    rows = subprocess.run(columns, capture_output=True, text=True, check=True).stdout.splitlines()
    processes = (row.split(None, 3) for row in rows)
    return {
        int(pid): "".join(words)
        for pid, number, state, *words in processes
        if int(number) == leader and state[0] != "Z"
    }


def said(err: str) -> list[str]:
    """Lines on standard error, without those of progress, which come where a batch takes long."""
    return [line for line in err.splitlines() if not line.startswith("clipseg-np: progress: ")]


def wait_until(condition) -> None:
    deadline = time.monotonic() + MAX_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "target", "code", "workers"),
    [
        (signal.SIGINT, os.killpg, 130, 1),  # Ctrl-C in a terminal
        (signal.SIGINT, os.killpg, 130, 2),
        (signal.SIGTERM, os.kill, 143, 2),
        pytest.param(signal.SIGTERM, os.kill, 143, 1, marks=slow),
        pytest.param(signal.SIGINT, os.kill, 130, 2, marks=slow),
        pytest.param(signal.SIGHUP, os.killpg, 129, 2, marks=slow),  # the terminal is closed
    ],
)
def test_a_signal(number, target, code, workers, start, assert_goes_on):
    run = start(workers)
    assert len(run.workers) == (workers if workers > 1 else 0)
    target(run.process.pid, number)
    returned, out, err = run.end()
    assert returned == code and not out
    assert len(err) == 1 and re.fullmatch(STOPPED, err[0])[1] == "3"
    assert len(run.report()) == 6
    assert [record.get("error") for record in run.report()] == [None] * 3 + [NOT_DONE] * 3
    assert_goes_on(3)


def test_a_signal_while_the_workers_start(start, assert_goes_on):
    """Ctrl-C reaches all processes of a terminal. It is for the parent, even if a worker starts."""
    run = start(2, has_begun=lambda run: run.workers)
    for worker in run.workers:
        os.kill(worker, signal.SIGINT)
    wait_until(lambda: run.is_waiting or run.process.poll() is not None)
    assert run.is_waiting
    os.killpg(run.process.pid, signal.SIGINT)
    code, out, err = run.end()
    assert code == 130 and not out and len(err) == 1 and re.fullmatch(STOPPED, err[0])
    assert_goes_on(3)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=slow), 2])
def test_the_parent_is_killed(workers, start, assert_goes_on):
    """It can say nothing more. Its workers see that it has gone; the report has what was done."""
    run = start(workers)
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.communicate(timeout=MAX_SECONDS)
    wait_until(lambda: not session(run.process.pid))
    if workers > 1:  # else the killed process leaves a part, which the next run removes
        assert not list(run.output.rglob(".*"))
    assert ["prompts" in record for record in run.report()] == [True] * 3
    assert_goes_on(3)


@pytest.mark.parametrize("number", [0, 1])
def test_a_worker_is_killed(number, start, assert_goes_on):
    """It costs the image that it was at."""
    run = start(2)
    os.kill(run.workers[number], signal.SIGKILL)
    run.go_on()
    code, out, err = run.end()
    assert code == 1 and out.startswith("5 of 6 (5 new, 0 already there), 1 left")
    (failed,) = (record for record in run.report() if "error" in record)
    assert err == [f"clipseg-np: error: {failed['error']}"]
    assert f"{failed['image']}: the worker process was killed (exit code -9)" in failed["error"]
    assert_goes_on(5)


def test_every_worker_is_killed_again_and_again(start, assert_goes_on):
    run = start(2)
    while run.process.poll() is None:
        for worker in run.workers:
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(worker, signal.SIGKILL)
    code, out, err = run.end()
    assert code == 1 and out.startswith("3 of 6 (3 new, 0 already there), 3 left")
    assert len(err) == 3 and all("the worker process was killed" in line for line in err)
    assert ["error" in record for record in run.report()] == [False] * 3 + [True] * 3
    assert_goes_on(3)


@pytest.mark.parametrize("workers", [1, 2])
def test_no_room_for_a_file(workers, start, undisturbed, assert_goes_on):
    """The process may write the files of all images but one."""
    limit = max(len(data) for path, data in undisturbed.items() if not path.startswith("3"))
    assert limit < max(map(len, undisturbed.values()))
    limits = limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    set_limits = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
    run = start(workers, has_begun=lambda run: True, preexec_fn=set_limits)
    code, out, err = run.end()
    assert code == 1 and not out and len(err) == 1
    done, reason = re.fullmatch(STOPPED + r" \((.*)\)", err[0]).groups()
    assert reason == f"{run.output}/3.png/3_1_red_heat.png: File too large"
    assert (
        sum("prompts" in record for record in run.report()) == int(done) and len(run.report()) == 6
    )
    assert_goes_on(int(done))
