"""The whole process, from start to a mask written: its time, peak memory and installed size.

    python benchmarks/process.py CHECKPOINT IMAGE ROUNDS [CHECKOUT ...]

Prints JSON for each program, or for this package as it is in each CHECKOUT. It runs in a process of
its own, which loads nothing large: Linux counts a parent's memory as its child's.
"""

import importlib.metadata
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

TRANSFORMERS = """
import sys
import torch
from PIL import Image
from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

folder, image, prompt, output = sys.argv[1:]
processor = CLIPSegProcessor.from_pretrained(folder)
model = CLIPSegForImageSegmentation.from_pretrained(folder)
image = Image.open(image).convert("RGB")
inputs = processor(text=[prompt], images=[image], return_tensors="pt")
with torch.inference_mode():
    logits = model(**inputs).logits
size = (image.height, image.width)
logits = logits.view(1, 1, *logits.shape[-2:])
logits = torch.nn.functional.interpolate(logits, size, mode="bilinear")
mask = (logits[0, 0].sigmoid() > 0.5).numpy()
Image.fromarray(mask.astype("uint8") * 255).save(output)
"""
CLIPSEG_NP = """
import sys
from PIL import Image
from clipseg_np import Segmenter

folder, image, prompt, output = sys.argv[1:]
mask = Segmenter.from_pretrained(folder)(image, prompt).masks()[0]
Image.fromarray(mask.astype("uint8") * 255).save(output)
"""
PROGRAMS = {
    "transformers": (TRANSFORMERS, ("torch", "transformers", "pillow")),
    "clipseg_np, numpy": (CLIPSEG_NP, ("clipseg_np",)),
}
# Fails if the package was imported from another folder than the one that `inside` names.
CHECK = """
import pathlib
import clipseg_np

assert pathlib.Path(clipseg_np.__file__).parents[1].samefile("."), clipseg_np.__file__
"""


def inside(checkout: str | Path) -> dict:
    """Arguments of Popen: the program imports the package of this folder, an absolute path."""
    path = os.pathsep.join(filter(None, (str(checkout), os.environ.get("PYTHONPATH"))))
    return {"cwd": checkout, "env": {**os.environ, "PYTHONPATH": path}}


def in_a_small_process(folder: Path, image: Path, rounds: int, *checkouts: Path) -> dict:
    """Run this file: the result of `measure`, or of `in_turn` if there are checkouts."""
    command = [sys.executable, __file__, folder, image, str(rounds), *checkouts]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def in_turn(
    programs: dict[str, tuple[str, dict]], folder: str, image: str, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Run each program, with its arguments of Popen, once a round: its seconds and peak MB."""
    found = {name: [] for name in programs}
    # The first round fills the disk's cache, and is not counted.
    for number in range(rounds + 1):
        for name in list(programs)[:: 1 if number % 2 else -1]:
            program, options = programs[name]
            arguments = [program, folder, image, "a red circle", Path(folder) / "mask.png"]
            start = time.perf_counter()
            process = subprocess.Popen([sys.executable, "-c", *map(str, arguments)], **options)
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"{name} failed")
            if number:
                found[name].append((time.perf_counter() - start, usage.ru_maxrss / 1024))
    return found


def measure(folder: str, image: str, rounds: int) -> dict[str, tuple[float, float, float]]:
    """For each of PROGRAMS: median seconds, peak of resident memory in MB, installed size in MB."""
    programs = {name: (program, {}) for name, (program, _) in PROGRAMS.items()}
    found = {}
    for name, measured in in_turn(programs, folder, image, rounds).items():
        seconds, peaks = zip(*measured)
        size = installed_size(PROGRAMS[name][1]) / 1e6
        found[name] = statistics.median(seconds), max(peaks), size
    return found


def installed_size(roots: tuple[str, ...]) -> int:
    """Bytes of these packages and of all that they require, by what pip has on record."""
    wanted, known = list(roots), {}
    while wanted:
        name = re.match(r"[\w.-]+", wanted.pop()).group().lower().replace("_", "-")
        if name in known:
            continue
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            # Required on other systems only.
            known[name] = 0
            continue
        files = (package.locate_file(file) for file in package.files or ())
        known[name] = sum(file.stat().st_size for file in files if file.is_file())
        wanted += [need for need in package.requires or () if "extra ==" not in need]
    return sum(known.values())


if __name__ == "__main__":
    folder, image, rounds, *checkouts = sys.argv[1:]
    if checkouts:
        ours = CLIPSEG_NP + CHECK
        programs = {f"{n}, {path}": (ours, inside(path)) for n, path in enumerate(checkouts)}
        print(json.dumps(in_turn(programs, folder, image, int(rounds))))
    else:
        print(json.dumps(measure(folder, image, int(rounds))))
