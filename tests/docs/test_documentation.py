"""The examples in the documentation run: the reference's own, and those of README and COOKBOOK."""

import os
import re
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ..helpers.documents import README, ROOT, blocks


def test_the_example_of_transformers_documentation(checkpoint, image, capsys):
    """The example of CLIPSegForImageSegmentation: import, return_tensors and path differ."""
    from clipseg_np import CLIPSegForImageSegmentation, CLIPSegProcessor

    processor = CLIPSegProcessor.from_pretrained(checkpoint)
    model = CLIPSegForImageSegmentation.from_pretrained(checkpoint)

    image = Image.fromarray(image)

    texts = ["a cat", "a remote", "a blanket"]
    inputs = processor(text=texts, images=[image] * len(texts), padding=True, return_tensors="np")

    outputs = model(**inputs)

    logits = outputs.logits
    print(logits.shape)
    assert capsys.readouterr().out == "(3, 32, 32)\n"


def test_the_examples_of_the_two_towers_and_of_both(checkpoint, image):
    """The examples of CLIPSegTextModel, CLIPSegVisionModel and CLIPSegModel, changed likewise."""
    from clipseg_np import (
        CLIPSegModel,
        CLIPSegProcessor,
        CLIPSegTextModel,
        CLIPSegVisionModel,
        CLIPTokenizer,
    )

    image = Image.fromarray(image)
    tokenizer = CLIPTokenizer.from_pretrained(checkpoint)
    inputs = tokenizer(["a cat", "a dog"], padding=True, return_tensors="np")
    outputs = CLIPSegTextModel.from_pretrained(checkpoint)(**inputs)
    assert outputs.last_hidden_state.shape == (2, inputs.input_ids.shape[1], 16)
    assert outputs.pooler_output.shape == (2, 16)

    processor = CLIPSegProcessor.from_pretrained(checkpoint)
    inputs = processor(images=image, return_tensors="np")
    outputs = CLIPSegVisionModel.from_pretrained(checkpoint)(**inputs)
    assert outputs.pooler_output.shape == (1, 16)

    model = CLIPSegModel.from_pretrained(checkpoint)
    inputs = processor(text=["a cat", "a dog"], images=image, return_tensors="np", padding=True)
    logits_per_image = model(**inputs).logits_per_image
    assert logits_per_image.shape == (1, 2) and np.isfinite(logits_per_image).all()


def run_shell(command: str, folder: Path) -> str:
    """Run a command of the documentation in bash, with `clipseg-np` of this source tree."""
    shell = f"""clipseg-np() {{ "{sys.executable}" -m clipseg_np "$@"; }}\n{command}"""
    done = subprocess.run(
        ["bash", "-euc", shell],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("block", blocks("bash"))
def test_a_block_of_commands(block, user_folder):
    commands = blocks("bash")[block].replace(".venv/bin/", "").splitlines()
    # A download and an installation need the network.
    kept = [line for line in commands if not re.match("pip |clipseg-np download ", line)]
    run_shell("\n".join(kept), user_folder)


@pytest.mark.parametrize("block", blocks("python"))
def test_a_block_of_python(block, user_folder, monkeypatch, capsys):
    with ThreadPoolExecutor(1) as executor:
        # A cluster of one thread stands in for the one that the example names.
        dask = SimpleNamespace(Client=lambda _: SimpleNamespace(get_executor=lambda: executor))
        monkeypatch.setitem(sys.modules, "dask", SimpleNamespace(distributed=dask))
        monkeypatch.setitem(sys.modules, "dask.distributed", dask)
        Path("block.py").write_text(blocks("python")[block], "utf-8")
        names = runpy.run_path("block.py")
    if "report" in names:
        assert [record["image"] for record in names["report"]] == ["inner/photo.jpg"]
        assert "error" not in names["report"][0]
    if "logits" in names:
        assert names["logits"].shape == (2, 32, 32)
    printed = capsys.readouterr().out
    if block == "README 1":
        shape, areas = printed.splitlines()
        width, height = Image.open("examples/shapes.png").size
        assert shape == f"(2, {height}, {width})"
        assert len(re.findall(r"\d+", areas)) == 2
    if "# (1, 257, 128)" in blocks("python")[block]:
        assert printed == "(1, 257, 128)\n"


def test_the_documents_have_blocks():
    assert len(blocks("python")) >= 7 and len(blocks("bash")) >= 2


def test_the_reading_order_has_the_minutes_of_its_files():
    """A minute for 15 lines, give or take 4: not every change of a file is one of README."""
    text = README.read_text("utf-8")
    rows = re.findall(r"^\| \d \| (.*?) \| (\d+) \|", text, re.MULTILINE)
    assert len(rows) == 8
    for names, minutes in rows:
        paths = [ROOT / "clipseg_np" / name for name in re.findall("`(.*?)`", names)]
        files = [f for path in paths for f in (path.glob("*.py") if path.is_dir() else [path])]
        lines = sum(len(file.read_text("utf-8").splitlines()) for file in files)
        assert abs(lines / 15 - int(minutes)) <= 4, (names, round(lines / 15))


def test_the_links_lead_somewhere():
    for path in (README, *ROOT.glob("docs/*.md"), ROOT / "weights" / "README.md"):
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text("utf-8")):
            file, _, place = target.partition("#")
            linked = path.parent / file if file else path
            assert linked.exists(), (path.name, target)
            titles = (
                re.findall(r"^#+ (.*)$", linked.read_text("utf-8"), re.MULTILINE) if place else []
            )
            assert not place or place in [t.lower().replace(" ", "-") for t in titles], target
