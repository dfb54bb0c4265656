"""Random command lines, right and wrong: every one succeeds or ends with one line that says why.

helpers/command.py checks each run, helpers/command_lines.py holds the grammar. A failure names its
command and seed, from which `drawn_line` makes the line again.
"""

import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from clipseg_np import LearnedPrompt
from clipseg_np.cli import segment
from clipseg_np.cli.parser import main

from ..helpers.command import Run, Yard, failing_as
from ..helpers.command_lines import drawn_line


class Hub:
    """In place of huggingface_hub: no test may reach for the network."""

    constants = SimpleNamespace(HF_HUB_OFFLINE=False, HF_HUB_CACHE="the cache")

    @staticmethod
    def model_info(*_, **__):
        raise ConnectionError("there is no network here\nand this is a second line")

    snapshot_download = model_info


@pytest.fixture
def yard(tmp_path, monkeypatch, checkpoint, segmenter) -> Yard:
    """With images, what is none, and files to compare."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    monkeypatch.setattr(segment, "WorkerProcesses", lambda count: ThreadPoolExecutor(1))
    yard = Yard(tmp_path, monkeypatch)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    images, wrong = yard.given / "images", yard.given / "wrong"
    for folder in (
        images / "inner",
        wrong,
        *(yard.given / name for name in ("few", "empty", "bad model")),
    ):
        folder.mkdir(parents=True)
    whole = images / "scene.png"
    Image.fromarray(pixels).save(whole)
    names = [
        "new\nline.png",
        "-dash.png",
        "日本.png",
        "x" * 200 + ".png",
        "y" * 251 + ".png",
        os.fsdecode(b"odd\xff.png"),
    ]
    for name in (*names, ".png", "inner/a b.png"):
        try:
            shutil.copy(whole, images / name)
        except OSError:  # a file system that has not all names
            continue
    Image.fromarray((pixels > 128)[..., 0]).save(yard.given / "mask.png")
    (wrong / "empty.png").write_bytes(b"")
    (wrong / "text.png").write_text("no image")
    (wrong / "cut.png").write_bytes(whole.read_bytes()[:500])
    (wrong / "folder.png").mkdir()
    for name, target in {"loop.png": "loop.png", "broken.png": "nowhere"}.items():
        (wrong / name).symlink_to(target)
    if hasattr(os, "mkfifo"):
        os.mkfifo(wrong / "pipe.png")
    few = [name for name in ("scene.png", "new\nline.png", names[-1]) if (images / name).exists()]
    for name in few:
        shutil.copy(images / name, yard.given / "few" / name)
    (yard.given / "bad model" / "config.json").write_text("{}")
    command = ["trace", str(whole), "red", "--model", str(checkpoint), "--names", "decoder.l*"]
    assert main([*command, "--output", str(yard.given / "golden.safetensors")]) == 0
    np.savez(yard.given / "other.npz", a=np.zeros(3))
    vector = np.zeros(segmenter.model.config.projection_dim, np.float32)
    LearnedPrompt(vector, "another decoder's", "", {}).save(yard.given / "heart.safetensors")
    return yard


LINES = {
    "segment": 280,
    "batch": 40,
    "info": 60,
    "trace": 60,
    "compare": 80,
    "download": 40,
    "convert": 60,
    "none": 30,
}
CODES = {"segment": (0, 1, 2), "batch": (0, 1, 2), "compare": (0, 1, 2)}


@pytest.mark.parametrize("command", LINES)
def test_command_lines(command, yard, checkpoint):
    whole, codes = (yard.given / "images" / "scene.png").read_bytes(), set()
    for seed in range(LINES[command]):
        with failing_as(command, seed):
            line = drawn_line(command, seed, yard, checkpoint)
            stdin = whole if seed % 4 else b"no image"
            run = yard.run("command lines", *line, stdin=stdin, codes=CODES.get(command, (0, 2)))
            codes.add(run.code)
            if run.code == 0 and "--help" not in line:
                assert_promises_kept(command, line, run, yard)
            shutil.rmtree(yard.output, ignore_errors=True)
    assert codes >= ({2} if command == "download" else {0, 2})  # both were drawn


def assert_promises_kept(command: str, line: list[str], run: Run, yard: Yard) -> None:
    """Every file is whole, as many as were asked for; every line of JSON can be read."""
    files = [path for path in yard.output.rglob("*") if path.is_file()]
    for file in files:
        assert not file.name.startswith(".part-"), files
        if file.suffix == ".png":
            with Image.open(file) as image:
                image.load()
    if command == "segment" and line[line.index("--output") + 1] == "-":
        assert run.out.startswith(b"\x89PNG") and not files
        return
    if command in ("segment", "batch"):
        lines = run.out.decode().splitlines()
        assert files and lines
        if "--json" in line:
            records = [json.loads(line) for line in lines]
            named = [name for record in records for name in record.get("files", ())]
            assert all(Path(name).is_file() for name in named), named
    if command == "trace":
        assert len(files) == 1 and files[0].stat().st_size > 1000
