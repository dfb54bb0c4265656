"""Batches that are really stopped: by a signal, a killed process, a full disk, a closed pipe.

Each ends with one line, its report, no worker that lives on and nothing half written, and the same
command goes on.
"""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from clipseg_np.segment.batch import NOT_DONE, REPORT
from tests.segment.test_batch import content, finished

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX's signals")
IMAGES = 30
MAX_SECONDS = 300  # for what takes a few, on any machine
STOPPED = r"clipseg-np: stopped: (\d+) of 30 done; the same command goes on"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty images, one of which is larger."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        size = (300, 300 + number) if number != 20 else (800, 800)
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png", compress_level=1)
    return folder


@pytest.fixture(scope="module")
def command(folder, checkpoint):
    command = [sys.executable, "-m", "clipseg_np", "batch", str(folder), "red", "a blue x"]
    return [*command, "--model", str(checkpoint), "--write", "mask", "soft", "heat", "--output"]


@pytest.fixture(scope="module")
def undisturbed(command, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed")
    done = subprocess.run([*command, output, "--workers", "2"], capture_output=True, check=True)
    assert done.stdout.decode().startswith("30 of 30 (30 new, 0 already there)")
    assert not said(done.stderr.decode())
    return content(output)


class Run:
    """The command at work in a session of its own, some of whose images are done."""

    def __init__(self, command, output, workers: int, images: int = 3, **options):
        self.output = output
        self.process = subprocess.Popen(
            [*command, output, "--workers", str(workers)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
        wait_until(lambda: finished(output) >= images or self.process.poll() is not None)
        assert self.process.poll() is None, self.process.communicate()
        self.members = session(self.process.pid)

    @property
    def workers(self) -> list[int]:
        return [pid for pid, words in self.members.items() if "spawn_main" in words]

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
    found = (row.split(None, 3) for row in rows)
    return {
        int(pid): words
        for pid, sess, state, *rest in found
        if int(sess) == leader and state[0] != "Z"
        for words in ["".join(rest)]
    }


def said(err: str) -> list[str]:
    """Lines on standard error, without those of progress, which come where a batch takes long."""
    return [line for line in err.splitlines() if not line.startswith("clipseg-np: progress: ")]


def wait_until(condition) -> None:
    deadline = time.monotonic() + MAX_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_goes_on(command, output, undisturbed, stored: int) -> None:
    """The same command does the rest, and only the rest."""
    again = [*command, output, "--workers", "2"]
    done = subprocess.run(again, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not said(done.stderr)
    new, there = map(int, re.match(r"30 of 30 \((\d+) new, (\d+) already", done.stdout).groups())
    assert new + there == IMAGES and there >= stored
    assert content(output) == undisturbed


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("number", "target", "code"),
    [
        (signal.SIGINT, os.killpg, 130),  # Ctrl-C in a terminal
        (signal.SIGTERM, os.kill, 143),
        pytest.param(signal.SIGINT, os.kill, 130, marks=pytest.mark.slow),
        # The terminal is closed.
        pytest.param(signal.SIGHUP, os.killpg, 129, marks=pytest.mark.slow),
    ],
)
def test_a_signal(number, target, code, workers, command, tmp_path, undisturbed):
    run = Run(command, tmp_path / "out", workers)
    assert len(run.workers) == (workers if workers > 1 else 0)
    target(run.process.pid, number)
    returned, out, err = run.end()
    assert returned == code and not out
    (line,) = err
    done = int(re.fullmatch(STOPPED, line)[1])
    assert 0 < done < IMAGES
    left = [record for record in run.report() if record.get("error") == NOT_DONE]
    assert len(run.report()) == IMAGES and len(left) == IMAGES - done
    assert_goes_on(command, tmp_path / "out", undisturbed, done)


def test_a_signal_while_the_workers_start(command, tmp_path, undisturbed):
    """Ctrl-C reaches all processes of a terminal, also those that cannot handle it yet."""
    run = Run(command, tmp_path / "out", workers=2, images=0)
    wait_until(lambda: any("spawn_main" in words for words in session(run.process.pid).values()))
    os.killpg(run.process.pid, signal.SIGINT)
    code, out, err = run.end()
    assert code == 130 and not out and len(err) == 1 and re.fullmatch(STOPPED, err[0])
    assert_goes_on(command, tmp_path / "out", undisturbed, 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_parent_is_killed(workers, command, tmp_path, undisturbed):
    """It can say nothing more. Its workers see that it has gone; the report has what was done."""
    run = Run(command, tmp_path / "out", workers)
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.communicate(timeout=MAX_SECONDS)
    wait_until(lambda: not session(run.process.pid))
    if (
        workers > 1
    ):  # a process that is killed leaves what it was writing, and the next run removes it
        assert not list(run.output.rglob(".*"))
    assert run.report() and all("prompts" in record for record in run.report())
    assert_goes_on(command, run.output, undisturbed, len(run.report()))


@pytest.mark.parametrize("number", [0, 1])
def test_a_worker_is_killed(number, command, tmp_path, undisturbed):
    """It costs the image that it was at."""
    run = Run(command, tmp_path / "out", workers=2)
    os.kill(run.workers[number], signal.SIGKILL)
    code, out, err = run.end()
    assert code == 1 and out.startswith("29 of 30 (29 new, 0 already there), 1 left")
    (failed,) = (record for record in run.report() if "error" in record)
    assert err == [f"clipseg-np: error: {failed['error']}"]
    assert f"{failed['image']}: the worker process was killed (exit code -9)" in failed["error"]
    assert_goes_on(command, run.output, undisturbed, IMAGES - 1)


def test_every_worker_is_killed_again_and_again(command, tmp_path, undisturbed):
    run, killed = Run(command, tmp_path / "out", workers=2, images=1), set()
    while len(killed) < 5 and run.process.poll() is None:
        alive = [pid for pid, words in session(run.process.pid).items() if "spawn_main" in words]
        for pid in set(alive) - killed:
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)
    code, out, err = run.end()
    failed = [record for record in run.report() if "error" in record]
    assert code == 1 and len(run.report()) == IMAGES
    assert 2 <= len(failed) == len(err) <= len(killed)
    assert out.startswith(f"{IMAGES - len(failed)} of 30 (")
    assert_goes_on(command, run.output, undisturbed, IMAGES - len(failed))


@pytest.mark.parametrize("workers", [1, 2])
def test_no_room_for_a_file(workers, command, tmp_path, undisturbed):
    """The process may write the files of all images but one."""
    limit = max(len(data) for path, data in undisturbed.items() if not path.startswith("20"))
    assert limit < max(map(len, undisturbed.values()))
    output = tmp_path / "out"
    done = subprocess.run(
        [*command, output, "--workers", str(workers)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    (line,) = said(done.stderr)
    number, reason = re.fullmatch(STOPPED + r" \((.*)\)", line).groups()
    assert done.returncode == 1 and not done.stdout
    assert reason == f"{output}/20.png: File too large"
    assert 18 <= int(number) < IMAGES and not list(output.rglob(".*"))
    report = [json.loads(line) for line in (output / REPORT).read_text("utf-8").splitlines()]
    assert sum("prompts" in record for record in report) == int(number) and len(report) == IMAGES
    assert_goes_on(command, output, undisturbed, int(number))
