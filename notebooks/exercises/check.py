"""The judge of the exercises.

    python notebooks/exercises/check.py                   # the twelve steps, and how far you are
    python notebooks/exercises/check.py 4                 # is step 4 right?
    python notebooks/exercises/check.py 4 my_folder       # the same, for files in another folder

Your function takes the place of the page's, and the whole runs on two golden files.
"""

import json
import os
import subprocess
import sys
import time
from _thread import interrupt_main
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import TextIO

HERE = Path(__file__).parent
JUDGE = "--judge"  # as the first argument: this is the process in which a reader's file runs
MAX_SECONDS = 5  # of computing
MAX_SECONDS_ASLEEP = 20  # of an answer that computes for less than MIN_SHARE of them
MIN_SHARE = 0.01  # an answer that does not sleep has more, on a busy computer, too
MAX_SECONDS_IN_ALL = 60  # of an answer that catches its interruption
MAX_CHARACTERS = 2000  # of what a reader's file prints
ENDLESS = "Does a loop wait for what never comes?"
TOGETHER = {
    True: "\nAll twelve together are right: you have written pico.py.",
    False: "\nAll twelve together are not right yet: check.py alone names the step.",
}


def main(arguments: list[str]) -> int:
    if arguments[:1] == [JUDGE]:
        return judge(int(arguments[1]), Path(arguments[2]))
    folder = Path(arguments[1]) if len(arguments) > 1 else HERE
    files = {int(path.name[5:7]): path for path in sorted(folder.glob("step_[01][0-9]_*.py"))}
    if not arguments:
        return show_ladder(files)
    step = int(arguments[0]) if arguments[0].isdecimal() else 0
    if step not in files:
        print(f"There is no step {arguments[0]} in {folder}. Write, say: check.py 4")
        return 2
    right, text = ask(step, files[step])
    print(f"{title(step)}\n\n{text}")
    if right and step + 1 in files:
        print(f"Next: {files[step + 1].name}, check.py {step + 1}")
    return 0 if right else 1


def title(step: int) -> str:
    """The first line of a stub, without the quotes."""
    [stub] = HERE.glob(f"step_{step:02}_*.py")
    return stub.read_text("utf-8").partition("\n")[0].strip('"')


def is_written(file: Path) -> bool:
    return "raise NotImplementedError" not in file.read_text("utf-8", "replace")


def show_ladder(files: dict[int, Path]) -> int:
    written = {step: file for step, file in files.items() if is_written(file)}
    with ThreadPoolExecutor(4) as pool:
        answers = dict(zip(written, pool.map(ask, written, written.values())))
    marks = dict.fromkeys(files, "not written yet")
    marks |= {step: "right" if right else "wrong" for step, (right, _) in answers.items()}
    for step, mark in marks.items():
        print(f"{title(step):40}{mark}")
    left = [step for step, mark in marks.items() if mark != "right"]
    print(f"\n{len(marks) - len(left)} of {len(marks)} steps are right.", end=" ")
    print(f"Go on with: check.py {left[0]}" if left else "You have written the page.")
    return 0


def ask(step: int, file: Path) -> tuple[bool, str]:
    """Whether the answer is right, and the judge's words. The file runs in a process of its own."""
    command = [sys.executable, __file__, JUDGE, str(step), str(file.resolve())]
    given = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": MAX_SECONDS_IN_ALL}
    try:
        done = subprocess.run(command, check=False, encoding="utf-8", errors="replace", **given)
    except subprocess.TimeoutExpired:
        return False, still_ran(MAX_SECONDS_IN_ALL)
    printed = done.stderr.strip()
    try:
        right, text = json.loads(done.stdout)
    except ValueError:
        return False, f"stopped: the process ended without an answer.\n{printed}"
    return right, f"Your file printed:\n{printed}\n\n{text}" if printed else text


class Printed:
    """Standard output of a reader's file: the first characters, and no more."""

    left = MAX_CHARACTERS

    def write(self, text: str) -> None:
        sys.stderr.write(text[: self.left])
        self.left = max(0, self.left - len(text))

    def flush(self) -> None:
        sys.stderr.flush()


def watch(done: Event, output: TextIO) -> None:
    """Interrupt what computes for too long, and end what sleeps, which no interruption wakes."""
    begun = time.process_time()
    for waits in count():
        if done.wait(0.05):
            return
        seconds, computed = 0.05 * waits, time.process_time() - begun
        if computed > MAX_SECONDS:
            interrupt_main()
            return
        if seconds > MAX_SECONDS_ASLEEP and computed < MIN_SHARE * seconds:
            json.dump((False, still_ran(MAX_SECONDS_ASLEEP)), output)
            output.flush()
            os._exit(0)


def still_ran(seconds: int, line: str = "") -> str:
    return f"stopped: it still ran after {seconds} seconds.\n{line}".strip() + f"\n\n{ENDLESS}"


def judge(step: int, file: Path) -> int:
    """Write [right, words] in JSON to standard output."""
    output, sys.stdout = sys.stdout, Printed()
    import ladder  # the command does not wait for NumPy

    done = Event()
    Thread(target=watch, args=[done, output], daemon=True).start()
    outcome = ladder.attempt({step: partial(ladder.load, file)}, {str(file)})
    done.set()
    right, text = words(step, outcome)
    files = ladder.stubs(file.parent)
    if right and step == 12 and len(files) == 12 and all(map(is_written, files.values())):
        answers = {step: partial(ladder.load, path) for step, path in files.items()}
        together, _ = words(step, ladder.attempt(answers, set()))
        text += TOGETHER[together]
    json.dump((right, text), output)
    return 0


def words(step: int, outcome) -> tuple[bool, str]:
    """Whether a run is right; else where it first deviates or why it stopped, and a question."""
    from ladder import FUNCTIONS, first_wrong, question

    agreeing, total, row = first_wrong(outcome)
    left = ", ".join(outcome.unwritten)
    written = [name for name in FUNCTIONS[step] if name not in outcome.unwritten]
    if not written:
        return False, f"not written yet: {left}"
    if "KeyboardInterrupt" in outcome.error:
        return False, still_ran(MAX_SECONDS, outcome.line)
    if row:
        place, _, diagnosis = row.message.partition(". ")
        text = f"wrong: {agreeing} of {total} layers agree. The first that deviates is\n{row.name}:"
        text += f" it {place.partition(';')[0]}.{diagnosis and f' {diagnosis}.'}"
    elif outcome.error:
        text = "stopped: " + "\n".join(filter(None, (outcome.line, outcome.error)))
    elif left:
        return False, f"{', '.join(written)}: right. Not written yet: {left}"
    else:
        return True, f"right: {agreeing} of {total} layers"
    return False, f"{text}\n\n{question(step, outcome)}".rstrip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
