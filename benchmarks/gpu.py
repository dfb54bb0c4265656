"""All measurements on a GPU, for a machine that is available for a few minutes.

    python benchmarks/gpu.py --minutes 6 --output FOLDER

Writes gpu.json, gpu.md and the logs of its processes to FOLDER, each result as soon as it is known.
Neither network nor installation is needed: NumPy, CuPy, torch, transformers, safetensors, regex,
Pillow, threadpoolctl and pytest are enough.

Each step runs in processes of its own (gpu_steps.py), since after an error of CUDA a process can do
nothing more on the GPU. No step can stop the next. A step that no longer fits into the time is left
out, and gpu.md says so.

--rehearse runs all steps on stand-ins for CUDA's libraries that compute nothing (a module dry_gpu,
which is not part of this repository), with small shapes. Its numbers mean nothing, and wrong
numbers are no error. The exit code is 1 if there was an error.
"""

import argparse
import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path

from gpu_report import EAGER, OURS, RECORDED, report

HERE = Path(__file__).resolve().parent
# The share of the time by which a step ends. Time that one step leaves, the next may use.
STEP_ENDS = {"card": 0.05, "tests": 0.37, "cells": 0.55, "compiled": 0.75}
STEP_ENDS |= {"operations": 0.83, "tf32": 0.9, "threads": 0.98}
# Seconds: the shortest time in which a process can do anything; the longest without a result,
# after which a process is stopped; the time that one compiled system takes to be timed.
MIN_SECONDS, MAX_SILENCE, TIMING_SECONDS = 8, 75, 4
# The exit code of a process that the GPU no longer answers.
BROKEN = 33
NO_TIME = "the time was up"
TYPES, BATCHES, MODES = ("float16", "float32"), (1, 32), ("default", "reduce-overhead")


class Worker:
    """A process whose results are lines of JSON in a file."""

    def __init__(self, command: list, results: Path, checkpoint: Path, more: dict[str, str]):
        results.touch()
        self.results, self.place = results, results.stat().st_size
        self.log = results.with_suffix(".log")
        given = {"GPU_RESULTS": str(results), "GPU_CHECKPOINT": str(checkpoint), **more}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=HERE.parent,
                env={**os.environ, "HF_HUB_OFFLINE": "1", **given},
                start_new_session=True,
            )

    def poll(self, take: Callable[[dict], None]) -> bool:
        """Pass its new results to `take`; return whether it is still running."""
        is_running = self.process.poll() is None
        with self.results.open("rb") as file:
            file.seek(self.place)
            whole = file.read().rpartition(b"\n")
        self.place += len(whole[0] + whole[1])
        for line in whole[0].splitlines():
            take(json.loads(line))
        return is_running

    def follow(self, until: float, take: Callable[[dict], None]) -> str:
        """Pass its results to `take` until it ends; return "", or the reason why it failed."""
        place, heard, why = self.place, time.monotonic(), ""
        while not why and self.poll(take):
            if self.place > place:
                place, heard = self.place, time.monotonic()
            if time.monotonic() > until:
                why = NO_TIME
            elif time.monotonic() > heard + MAX_SILENCE:
                why = f"nothing came in {MAX_SILENCE} seconds"
            time.sleep(0.05)
        self.stop()
        self.poll(take)
        return why or self.end()

    def stop(self) -> None:
        """Stop it and the processes that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> str:
        """Its exit code and last line, or "" if it succeeded."""
        lines = self.log.read_text("utf-8", "replace").split("\n")
        lines = [line for line in lines if line.strip() and "Extension modules" not in line]
        last = "".join(lines[-1:]).strip()[-300:]
        code = self.process.returncode
        return f"the process ended with code {code}: {last}" if code else ""


class Course:
    """The results of the steps, and the time that is left to them."""

    def __init__(self, minutes: float, output: Path, rehearse: bool, checkpoint: Path):
        self.start, self.seconds = time.monotonic(), 60 * minutes
        self.output, self.logs, self.checkpoint = output, output / "logs", checkpoint
        shutil.rmtree(self.logs, ignore_errors=True)
        self.logs.mkdir(parents=True)
        self.results = {"date": f"{datetime.now():%Y-%m-%d %H:%M}", "minutes": minutes}
        self.results |= {"rehearsal": rehearse, "left out": [], "errors": [], "seconds": {}}
        # The system that a worker is measuring.
        self.system = ""

    def until(self, step: str) -> float:
        return self.start + STEP_ENDS[step] * self.seconds

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.start:6.1f} s  {text}", flush=True)

    def write(self) -> None:
        both = {"gpu.json": json.dumps(self.results, indent=1), "gpu.md": report(self.results)}
        for name, text in both.items():
            new = self.output / f"{name}.new"
            new.write_text(text, "utf-8")
            new.replace(self.output / name)

    def note(self, where: str, what: str, why: str) -> None:
        """`where` is "left out" or "errors"."""
        self.say(f"{where}: {what}: {why}")
        self.results[where].append(f"{what}: {why}")
        self.write()

    def take(self, step: str, result: dict) -> None:
        """Keep a task's result, or the name of the system that it measures now."""
        self.system = result.get("system", "")
        if self.system:
            return
        self.say(f"{step}: {json.dumps(result)[:200]}")
        self.results.setdefault(step, []).append(result)
        for name, error in result["errors"].items():
            self.note("errors", f"{described(step, result['task'])}, {name}", error)
        self.write()

    def worker(self, name: str, tasks: list[dict], **more: str) -> Worker:
        command = [HERE / "gpu_steps.py", json.dumps(tasks)]
        return Worker(command, self.logs / f"{name}.jsonl", self.checkpoint, more)

    def work(self, step: str, tasks: list[dict], **more: str) -> None:
        """Run the tasks in one process; if a system breaks it, go on in another without it."""
        until, why = self.until(step), ""
        while tasks and why != NO_TIME and time.monotonic() < until - MIN_SECONDS:
            before = len(self.results.get(step, ()))
            worker = self.worker(step, tasks, **more)
            why = worker.follow(until, partial(self.take, step))
            count = len(self.results.get(step, ())) - before
            done, tasks = tasks[:count], tasks[count:]
            if why and why != NO_TIME:
                if worker.process.returncode == BROKEN and done:
                    task, failed = done[-1], self.results[step][-1]["errors"]
                else:
                    task = tasks.pop(0) if tasks else {}
                    failed = [self.system, *task.get("systems", ())] if self.system else []
                    self.note("errors", f"{described(step, task)}, {self.system}".strip(", "), why)
                names = task.get("systems", ())
                systems = [s for name in failed for s in names if name.startswith(s)]
                if rest := list(dict.fromkeys(systems))[1:]:
                    tasks.insert(0, {**task, "systems": rest})
        for task in tasks:
            self.note("left out", described(step, task), NO_TIME)


def described(step: str, task: dict) -> str:
    hidden = ("step", "go", "systems")
    return ", ".join([step, *(f"{key} {task[key]}" for key in task if key not in hidden)])


# The steps, in order


def card(course: Course) -> None:
    course.work("card", [{"step": "card"}])


def tests(course: Course) -> None:
    """Run the tests marked `gpu`. The next process skips a test that hangs or breaks the GPU."""
    until, results = course.until("tests"), {}
    found = course.results["tests"] = {"collected": 0, "results": results}
    command = ["-m", "pytest", "-m", "gpu", "-q", "--tb=short", "-p", "gpu_tests", "tests/gpu"]
    command += ["--timeout=45"] if importlib.util.find_spec("pytest_timeout") else []
    path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    running = why = ""

    def take(line: dict) -> None:
        nonlocal running
        found["collected"] = max(found["collected"], line.get("collected", 0))
        running = line.get("begun", running)
        name = line.pop("test", None)
        if name and (name not in results or line["outcome"] == "failed"):
            results[name] = line
            is_error = line["outcome"] == "failed" and line["kind"] != "AssertionError"
            if is_error or (line["outcome"] == "failed" and not course.results["rehearsal"]):
                course.note("errors", name, " / ".join([line["kind"], *line["last lines"][-2:]]))

    while why != NO_TIME and time.monotonic() < until - MIN_SECONDS:
        log = course.logs / "tests.jsonl"
        worker = Worker(command, log, course.checkpoint, {"PYTHONPATH": path})
        before, running = len(results), ""
        why = worker.follow(until, take)
        if worker.process.returncode in (0, 1):
            break
        if running and running not in results and why != NO_TIME:
            take({"test": running, "outcome": "failed", "kind": why[:200], "last lines": []})
        if len(results) == before:
            course.note("errors", "tests", why)
            break
    if len(results) < found["collected"]:
        course.note("left out", f"{found['collected'] - len(results)} tests", NO_TIME)
    course.say(f"{len(results)} tests of {found['collected']}")


def cells(course: Course) -> None:
    task = {"step": "cell", "systems": [EAGER, OURS, RECORDED]}
    course.work("cells", [{**task, "dtype": t, "batch": b} for b in BATCHES for t in TYPES])


def compiled(course: Course) -> None:
    """Compile several systems at a time; once no more compile, time them one by one."""
    until, cores = course.until("compiled"), os.cpu_count() or 1
    max_compiling = max(1, cores // 2)
    waiting = [
        {"step": "compiled", "dtype": t, "batch": b, "mode": m}
        for b, t, m in itertools.product(BATCHES, TYPES, MODES)
    ]
    compiling: list[tuple[dict, Worker]] = []
    ready: list[tuple[dict, Worker]] = []

    def take(result: dict) -> None:
        if "system" in result:
            return
        if "ready" in result:
            course.say(f"{described('compiled', task)} is ready")
            ready.append((task, worker))
        else:
            # It cannot be compiled, or was timed.
            course.take("compiled", result)

    try:
        while waiting or compiling:
            if time.monotonic() > until - TIMING_SECONDS * (len(ready) + 1):
                break
            while waiting and len(compiling) < max_compiling:
                task = waiting.pop(0)
                name = "-".join(map(str, task.values()))
                task["go"] = str(course.checkpoint / name)
                more = {"TORCHINDUCTOR_COMPILE_THREADS": str(max(1, cores // max_compiling))}
                compiling.append((task, course.worker(name, [task], **more)))
            for task, worker in compiling:
                if not worker.poll(take) and worker.process.returncode != BROKEN and worker.end():
                    course.note("errors", described("compiled", task), worker.end())
            alive = [pair for pair in compiling if pair[1].process.poll() is None]
            compiling = [pair for pair in alive if pair not in ready]
            time.sleep(0.05)
        for _, worker in compiling:
            worker.stop()
        for task in [task for task, _ in compiling] + waiting:
            course.note("left out", described("compiled", task), NO_TIME)
        for task, worker in ready:
            Path(task["go"]).touch()
            why = worker.follow(until, take)
            if why and worker.process.returncode != BROKEN:
                where = "left out" if why == NO_TIME else "errors"
                course.note(where, described("compiled", task), why)
    finally:
        for _, worker in compiling + ready:
            worker.stop()


def operations(course: Course) -> None:
    task = {"step": "operations", "systems": ["torch", "clipseg_np"]}
    tasks = [{**task, "dtype": t, "batch": b} for b in BATCHES for t in TYPES]
    course.work("operations", [{"step": "launches", "dtype": t} for t in TYPES] + tasks)


def tf32(course: Course) -> None:
    task = {"step": "cell", "systems": [EAGER, RECORDED], "dtype": "float32", "tf32": True}
    course.work("tf32", [{**task, "batch": b} for b in BATCHES], CUPY_TF32="1")


def threads(course: Course) -> None:
    counts = [count for count in (1, 16, 8, 4, 2) if count <= (os.cpu_count() or 1)]
    course.work("threads", [{"step": "threads", "count": count} for count in counts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--rehearse", action="store_true", help="on the dry GPU")
    args = parser.parse_args()
    if args.rehearse != ("DRY_GPU" in os.environ):
        parser.error("--rehearse and the dry GPU's variable DRY_GPU go together")
    with tempfile.TemporaryDirectory() as checkpoint:
        course = Course(args.minutes, args.output.resolve(), args.rehearse, Path(checkpoint))
        # The host draws the checkpoint while the first two steps run.
        drawing = course.worker("checkpoint", [{"step": "checkpoint"}])
        for step in (card, tests, cells, compiled, operations, tf32, threads):
            began = time.monotonic()
            try:
                if step is cells:
                    take = partial(course.take, "checkpoint")
                    if why := drawing.follow(course.until("cells"), take):
                        course.note("errors", "checkpoint", why)
                step(course)
            except Exception:  # noqa: BLE001  (the next step must run)
                course.note("errors", step.__name__, traceback.format_exc(limit=3))
            course.results["seconds"][step.__name__] = round(time.monotonic() - began, 1)
            course.write()
        drawing.stop()
    print(report(course.results), flush=True)
    sys.exit(1 if course.results["errors"] else 0)


if __name__ == "__main__":
    main()
