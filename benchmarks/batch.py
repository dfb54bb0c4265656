"""Time `clipseg-np batch` on a folder of JPEG photos against ONNX Runtime in a loop.

    python -m pip install '.[benchmark]'
    python benchmarks/batch.py --output benchmarks/batch.md

Both decode each photo, segment it by one prompt and write its mask, of the photo's size, as a PNG.
Each runs in a process of its own, from start to end, in turn. The loop is the one that people
write: one photo after the other, and the session's threads on all cores.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image
from speed import setup
from systems import example, onnx_file, save_checkpoint

PROMPT = "a red circle"
MEGAPIXELS = 2, 12
NOTE = (
    "Each worker maps the file of weights: they count in the memory of every process, and once in "
    "that of all."
)
LOOP = """
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

model, ids, photos, output = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
ids = np.load(ids)
mean = np.array([0.485, 0.456, 0.406], np.float32)
deviation = np.array([0.229, 0.224, 0.225], np.float32)
Path(output).mkdir()
for path in sorted(Path(photos).iterdir()):
    image = Image.open(path).convert("RGB")
    small = np.asarray(image.resize((352, 352), Image.BILINEAR), np.float32) / 255
    pixels = ((small - mean) / deviation).transpose(2, 0, 1)[None]
    logits = session.run(None, {"input_ids": ids, "pixel_values": pixels})[0][0]
    mask = np.asarray(Image.fromarray(logits).resize(image.size, Image.BILINEAR)) > 0
    Image.fromarray(mask.astype(np.uint8) * 255).save(Path(output, f"{path.stem}.png"))
"""


def draw_photos(folder: Path, count: int) -> None:
    """JPEG files of smooth colors with grain, of 2 to 12 megapixels, upright and lying."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        area = 1e6 * np.exp(rng.uniform(*np.log(MEGAPIXELS)))
        width, height = int((area * 4 / 3) ** 0.5), int((area * 3 / 4) ** 0.5)
        size = (width, height) if number % 3 else (height, width)
        coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        colors = np.asarray(coarse.resize(size, Image.BICUBIC))
        grain = rng.integers(-12, 13, (*colors.shape[:2], 1), dtype=np.int8)
        photo = np.clip(colors.astype(np.int16) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(photo).save(folder / f"{number:03}.jpg", quality=90)


def memory(pid: int) -> tuple[float, float]:
    """Of a process and those below it, in MB: the largest peak of one, and all of them together.

    The weights that several processes map count in each, and once in all together.
    """
    largest = together = 0.0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            if pid in (int(fields["Pid"]), int(fields["PPid"])):
                largest = max(largest, int(fields["VmHWM"].split()[0]) / 1024)
                shares = status.with_name("smaps_rollup").read_text().partition("\nPss:")[2]
                together += int(shares.split()[0]) / 1024
        except (OSError, LookupError, ValueError):  # it has ended
            continue
    return largest, together


def run(command: list) -> tuple[float, float, float, float]:
    """Seconds, cores at work on average, and the peaks of `memory`."""
    start, peaks = time.perf_counter(), [(0.0, 0.0)]
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.25):
            peaks.append(memory(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    ended.set()
    watcher.join()
    if status:
        raise SystemExit(f"{command[0]} failed")
    cores = (usage.ru_utime + usage.ru_stime) / seconds
    return seconds, cores, *map(max, zip(*peaks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_checkpoint(folder / "model")
        draw_photos(folder / "photos", options.photos)
        # The graph takes texts of this length; a text's content does not change its time.
        np.save(folder / "ids.npy", example(1)[0])
        loop = ["-c", LOOP, onnx_file(folder / "model"), folder / "ids.npy", folder / "photos"]
        ours = ["-m", "clipseg_np", "batch", folder / "photos", PROMPT]
        ours += ["--model", folder / "model", "--output"]
        programs = {"clipseg-np batch": ours, "ONNX Runtime in a loop": loop}
        measured = {name: [] for name in programs}
        for number in range(options.rounds):
            for name, command in list(programs.items())[:: -1 if number % 2 else 1]:
                output = folder / f"{name} {number}".replace(" ", "_")
                measured[name].append(run([*command, output]))
                print(name, *measured[name][-1], flush=True)
        written = [len(list(folder.glob(f"{n.replace(' ', '_')}_0/**/*.png"))) for n in programs]
        assert written == [options.photos] * 2, written
    ratios = [a[0] / b[0] for a, b in zip(*measured.values())]
    photos = f"{options.photos} JPEG photos of {MEGAPIXELS[0]} to {MEGAPIXELS[1]} megapixels"
    figures = f"medians of {options.rounds} rounds, memory: the highest"
    lines = [
        f"{photos}, one prompt, a mask each; {figures}. {setup()}",
        "",
        "|  | images a second | cores at work | largest process, MB | all processes, MB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, runs in measured.items():
        columns = list(zip(*runs))
        seconds, cores = (statistics.median(column) for column in columns[:2])
        largest, together = (max(column) for column in columns[2:])
        cells = f"{options.photos / seconds:.2f} | {cores:.2f} | {largest:.0f} | {together:.0f}"
        lines.append(f"| {name} | {cells} |")
    lines += ["", f"Time of the first over the second: {statistics.median(ratios):.3f}.", NOTE]
    print(*lines, sep="\n")
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    os.environ.pop("OPENBLAS_CORETYPE", None)
    main()
