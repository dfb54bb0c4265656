"""Each row of README's table of what people ask for: the command, and the same in Python."""

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import clipseg_np
import clipseg_np.convert
import clipseg_np.masks
from clipseg_np import Job, Segmenter, golden, run_batch, trace  # noqa: F401  (README's rows use them)

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
HEAD = "| you want | on the command line | in Python |\n|---|---|---|\n"
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in README.partition(HEAD)[2].partition("\n\n")[0].splitlines()
]
SIZE = (150, 200)  # of the photo, height and width


@pytest.fixture(scope="module")
def asked(tmp_path_factory, checkpoint):
    """What the commands speak of: a photo, taken with the camera on its side; a cup and its mask; a folder; a checkpoint."""
    folder = tmp_path_factory.mktemp("asks")
    rng = np.random.default_rng(0)
    photo = PIL.Image.fromarray(rng.integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    photo.save(folder / "photo.jpg", exif=exif)
    PIL.Image.fromarray(rng.integers(0, 256, (60, 50, 3), np.uint8)).save(folder / "cup.jpg")
    mask = np.zeros((60, 50), bool)
    mask[10:40, 10:40] = True
    PIL.Image.fromarray(mask).save(folder / "cup_mask.png")
    (folder / "photos" / "inner").mkdir(parents=True)
    shutil.copy(folder / "photo.jpg", folder / "photos" / "inner")
    shutil.copytree(checkpoint, folder / "clipseg-rd64-refined")
    return folder


WRITTEN = {  # by a command: the files, in the image's own, upright size where they are images of it
    "a mask of": ["masks/photo_1_a-cat.png", "masks/photo_overlay.png"],
    "several things": ["masks/photo_1_a-cat.png", "masks/photo_2_a-dog.png"],
    "larger or smaller": ["masks/photo_1_a-cat_soft.png", "masks/photo_1_a-cat_heat.png"],
    "what is small": ["masks/photo_1_a-cat.png"],
    "prompts joined": ["masks/photo_1_a-cat-a-collar.png"],
    "to show": ["masks/photo_1_cup-jpg.png"],
    "no crumbs": ["masks/photo_1_a-cat.png"],
    "the thing cut out": [
        f"masks/photo_1_a-cat_{k}.png" for k in ("cutout", "contour", "highlight")
    ],
    "one map": ["masks/photo_labels.png", "masks/photo_labels.json", "masks/photo_legend.png"],
    "whether it is": ["masks/photo_1_a-unicorn.png"],
    "a folder": ["masks/inner/photo.jpg/photo_1_a-cat.png", "masks/report.jsonl"],
    "a part of": ["mask.png"],
    "no network": ["masks/photo_1_a-cat.png"],
    "the GPU": ["masks/photo_1_a-cat.png"],
    "to know": [],
    "one file": [],
    "half of": ["smaller/model.safetensors", "smaller/config.json", "smaller/vocab.json"],
    "reference numbers": ["golden.safetensors"],
}


def named(row: list[str]) -> str:
    return next(name for name in WRITTEN if row[0].startswith(name))


def test_every_row_has_its_expectation():
    assert sorted(named(row) for row in ROWS) == sorted(WRITTEN)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:20])
def test_the_command(row, asked, tmp_path):
    for path in asked.iterdir():
        os.symlink(path, tmp_path / path.name)
    (command,) = re.findall("`(.*)`", row[1])
    shell = f"""clipseg-np() {{ "{sys.executable}" -m clipseg_np "$@"; }}\n{command}"""
    done = subprocess.run(
        ["bash", "-euc", shell],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(clipseg_np.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    for name in WRITTEN[named(row)]:
        assert (tmp_path / name).is_file(), name
        if name.endswith(".png") and not name.endswith(("overlay.png", "legend.png")):
            assert PIL.Image.open(tmp_path / name).size == (SIZE[1], SIZE[0])
    if "--json" in command:
        said = json.loads(done.stdout)
        assert said["prompt"] == "a unicorn" and 0 <= said["presence"] <= 1


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:20])
@pytest.mark.filterwarnings("ignore:backend 'auto' uses NumPy")
def test_in_python(row, asked, tmp_path, monkeypatch):
    for path in asked.iterdir():
        os.symlink(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    (expression,) = re.findall("`(.*)`", row[2])
    segmenter = Segmenter.from_pretrained()
    image = np.asarray(PIL.Image.open("cup.jpg"))
    result = segmenter(image, ["a cat", "a dog"])
    if "golden" in expression:
        inputs = segmenter.processor(text="a cat", images=image)
        golden.write_golden("golden.safetensors", segmenter.model, inputs)
        with trace() as activations:
            segmenter.model(**inputs)
    mask = result.masks()[0]
    with ThreadPoolExecutor(1) as executor, open("photo.jpg", "rb") as file:
        known = {**vars(clipseg_np), **globals(), **locals()}
        found = eval(expression, known)
    if isinstance(found, tuple):
        assert all(part is not None for part in found)
    assert found is not None or "assert_matches" in expression
