"""One run of the command inside this process, and the rules for every run, whatever its input.

It ends with exit code 0 and its results, or with 2 and one line on standard error with the reason;
a batch or a comparison may end with 1. It never ends with a traceback, never hangs, and writes
nothing outside of the output folder, and nothing into it before exit code 2.
"""

import io
import os
import signal
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clipseg_np.cli.parser import main

PATIENCE = 20  # seconds for one run; the slowest takes a fraction of one
START = "clipseg-np: "

# kind: {"answers": n, "clear errors": n}; printed at the end of the tests
FIGURES: dict[str, Counter] = {}


class Hang(BaseException):
    """No Exception, which the command might take for one of its own."""


@dataclass(frozen=True)
class Run:
    code: int
    out: bytes
    err: str
    error: str  # the line that says why, "" for an answer


class Yard:
    """A folder with all that a run may see or touch; what it writes belongs into `output`."""

    def __init__(self, root: Path, monkeypatch):
        self.root, self.output = root, root / "out"
        for name in ("in", "cwd", "tmp"):
            (root / name).mkdir()
        self.given = root / "in"
        monkeypatch.chdir(root / "cwd")
        monkeypatch.setattr(tempfile, "tempdir", str(root / "tmp"))
        self.monkeypatch = monkeypatch

    def run(self, kind: str, *arguments: object, stdin: bytes = b"", codes=(0, 2)) -> Run:
        """Run and judge it; `kind` is what it is counted as."""
        before = self.seen(outside=True)
        with self.monkeypatch.context() as patch, hurry():
            streams = [io.TextIOWrapper(io.BytesIO(data), "utf-8") for data in (stdin, b"", b"")]
            for name, stream in zip(("stdin", "stdout", "stderr"), streams):
                patch.setattr(sys, name, stream)
            streams[2].reconfigure(errors="backslashreplace")  # as Python opens standard error
            try:
                code = main([str(argument) for argument in arguments])
            except SystemExit as end:
                code = end.code
        out, err = (finished(stream) for stream in streams[1:])
        run = Run(code, out, err.decode(), self.judged(code, err.decode(), codes))
        changed = {path for path, _ in self.seen(outside=True).items() ^ before.items()}
        assert not changed, f"it wrote outside of the output folder: {sorted(changed)}"
        if code == 2:
            assert not self.seen(outside=False), f"it left {self.seen(outside=False)}"
        counts = FIGURES.setdefault(kind, Counter())
        counts["clear errors" if code == 2 else "answers"] += 1
        return run

    def judged(self, code: int, err: str, codes) -> str:
        assert code in codes, f"exit code {code}"
        assert "Traceback" not in err, err
        lines = err.splitlines()
        errors = [line for line in lines if line.startswith(f"{START}error: ")]
        assert code == 1 or len(errors) == (code == 2), err
        if code == 2:
            assert len(errors[0]) > len(f"{START}error: ") + 10, err
        others = [line for line in lines if not line.startswith(f"{START}warning: ")]
        assert others == errors, err
        return errors[0] if errors else ""

    def seen(self, outside: bool) -> dict:
        """Files, folders and what they hold, in the output folder or everywhere else."""
        found = {}
        for parent, folders, files in os.walk(self.root if outside else self.output):
            if Path(parent) == self.root and outside:
                folders[:] = [name for name in folders if name != self.output.name]
            for name in folders if outside else ():
                found[os.path.join(parent, name)] = None
            for name in files:
                path = os.path.join(parent, name)
                about = os.lstat(path)
                found[path] = about.st_size, about.st_mtime_ns
        return found


def finished(stream: io.TextIOWrapper) -> bytes:
    stream.flush()
    return stream.buffer.getvalue()


@contextmanager
def hurry():
    """Raise Hang where the block takes too long; on systems without alarms, wait."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def give_up(*_):
        raise Hang(f"no end after {PATIENCE} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class failing_as:
    """Puts kind and seed before whatever goes wrong in a case."""

    def __init__(self, kind: str, seed: int):
        self.case = f"{kind!r}, seed {seed}"

    def __enter__(self):
        return self

    def __exit__(self, _, error, __):
        if error is not None:
            raise AssertionError(f"{self.case}: {type(error).__name__}: {error}") from error
