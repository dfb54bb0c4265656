"""A command that is stopped, or whose reader has gone, ends with one line and nothing half written.

tests/segment/test_stopping.py stops batches.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

from clipseg_np.cli.parser import main
from clipseg_np.cli.signals import raised_as_interrupts

COMMAND = [sys.executable, "-m", "clipseg_np"]
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX's signals")


@posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_segment_is_stopped(number, code, checkpoint, tmp_path):
    """While it waits for an image from standard input."""
    (tmp_path / "tmp").mkdir()
    options = ["--model", checkpoint, "--output", tmp_path / "out"]
    process = subprocess.Popen(
        [*COMMAND, "segment", "-", "red", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
    )
    while not list((tmp_path / "tmp").iterdir()):  # it has begun
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)  # it waits
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code and not out
    assert err.decode() == "clipseg-np: stopped: nothing is left half written\n"
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("words", [["info"], ["--help"], ["batch", "--help"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_the_reader_has_gone(words, unbuffered, checkpoint):
    reader, writer = os.pipe()
    os.close(reader)
    model = ["--model", str(checkpoint)] if "info" in words else []
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(
        [*COMMAND, *words, *model],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=environment,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 0 and not done.stderr


def test_the_reader_of_a_batch_has_gone(checkpoint, image_file, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    options = ["--model", checkpoint, "--output", tmp_path / "out", "--json", "--workers", "2"]
    command = [*COMMAND, "batch", image_file.parent, "red", *options]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.returncode == 0 and not done.stderr
    assert len((tmp_path / "out" / "report.jsonl").read_text().splitlines()) == 1


@posix
def test_handlers_are_put_back(capsys):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit):
        main(["--help"])
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@posix
def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raised_as_interrupts():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGHUP, before)


@posix
def test_a_signal_that_is_sent_twice_does_not_disturb_cleaning_up():
    with pytest.raises(KeyboardInterrupt, match="143"), raised_as_interrupts():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)


@posix
def test_a_later_signal_ends_a_process_that_cleans_up_for_long():
    code = (
        "import os, signal, time\n"
        "from clipseg_np.cli.signals import raised_as_interrupts\n"
        "with raised_as_interrupts():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    finally:\n"
        "        time.sleep(1.1)\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(600)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, check=False)
    assert done.returncode == 143 and not done.stderr
