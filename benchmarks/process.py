"""The whole process, from start to a mask written: its time, its peak of memory, and what has to be installed for it.

    python benchmarks/process.py CHECKPOINT PICTURE ROUNDS

Prints JSON. It runs in a process of its own, which loads nothing large: Linux counts a parent's memory as its child's.
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

folder, picture, prompt, output = sys.argv[1:]
processor = CLIPSegProcessor.from_pretrained(folder)
model = CLIPSegForImageSegmentation.from_pretrained(folder)
image = Image.open(picture).convert("RGB")
inputs = processor(text=[prompt], images=[image], return_tensors="pt")
with torch.inference_mode():
    logits = model(**inputs).logits
size = (image.height, image.width)
logits = torch.nn.functional.interpolate(logits.view(1, 1, *logits.shape[-2:]), size, mode="bilinear")
mask = (logits[0, 0].sigmoid() > 0.5).numpy()
Image.fromarray(mask.astype("uint8") * 255).save(output)
"""
CLIPSEG_NP = """
import sys
from PIL import Image
from clipseg_np import Segmenter

folder, picture, prompt, output = sys.argv[1:]
mask = Segmenter.from_pretrained(folder)(picture, prompt).masks()[0]
Image.fromarray(mask.astype("uint8") * 255).save(output)
"""
PROGRAMS = {
    "transformers": (TRANSFORMERS, ("torch", "transformers", "pillow")),
    "clipseg_np, numpy": (CLIPSEG_NP, ("clipseg_np",)),
}


def in_a_small_process(folder: Path, picture: Path, rounds: int) -> dict[str, list[float]]:
    """What `measure` finds, whatever has been loaded here."""
    command = [sys.executable, __file__, folder, picture, str(rounds)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def measure(folder: Path, picture: Path, rounds: int) -> dict[str, tuple[float, float, float]]:
    """Of each program, in turn: median seconds, peak of resident memory and installed size, both in MB."""
    seconds = {name: [] for name in PROGRAMS}
    peaks = {name: 0.0 for name in PROGRAMS}
    for number in range(rounds + 1):  # the first round fills the disk's cache, and is not counted
        for name, (program, _) in PROGRAMS.items():
            arguments = [program, folder, picture, "a red circle", folder / "mask.png"]
            start = time.perf_counter()
            process = subprocess.Popen([sys.executable, "-c", *map(str, arguments)])
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"{name} failed")
            if number:
                seconds[name].append(time.perf_counter() - start)
                peaks[name] = max(peaks[name], usage.ru_maxrss / 1024)
    return {
        name: (statistics.median(seconds[name]), peaks[name], installed_size(needed) / 1e6)
        for name, (_, needed) in PROGRAMS.items()
    }


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
            known[name] = 0  # required on other systems only
            continue
        files = (package.locate_file(file) for file in package.files or ())
        known[name] = sum(file.stat().st_size for file in files if file.is_file())
        wanted += [need for need in package.requires or () if "extra ==" not in need]
    return sum(known.values())


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
