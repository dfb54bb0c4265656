"""PORTING.md's recipes for code without hooks, as they are written there, compare clean."""

import re
from pathlib import Path

import numpy as np
import pytest

from clipseg_np import pico
from clipseg_np.cli.parser import main
from clipseg_np.golden import Golden

from ..helpers.documents import ROOT, fenced

BLOCKS = fenced(ROOT / "PORTING.md", "python")


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """The page's golden file."""
    path = tmp_path_factory.mktemp("golden") / "golden.safetensors"
    prompts = ["a red thing", "a star"]
    image = str(ROOT / "examples" / "shapes.png")
    assert main(["trace", image, *prompts, "--output", str(path)]) == 0
    return path


@pytest.fixture
def run(golden, tmp_path, monkeypatch):
    """Run the page's block that holds a word, beside the golden file."""
    for path in (golden, ROOT / "weights"):
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)

    def run_block(word):
        (code,) = (block for block in BLOCKS if word in block)
        exec(code, {})  # noqa: S102

    return run_block


@pytest.mark.parametrize("epsilon", [None, 1e-6])
def test_free_functions(run, capsys, monkeypatch, epsilon):
    for name in ("linear", "layer_norm", "attention", "mlp"):
        monkeypatch.setattr(pico, name, getattr(pico, name))  # the page replaces it
    if epsilon:
        right = pico.layer_norm
        wrong = lambda x, w, name, config: right(x, w, name, {"layer_norm_eps": epsilon})
        monkeypatch.setattr(pico, "layer_norm", wrong)
    run("recorded(")
    capsys.readouterr()
    assert main(["compare", "golden.safetensors", "mine.npz"]) == bool(epsilon)
    text = capsys.readouterr().out
    assert re.search(r"^\d+ (before it )?are not there yet, last ", text, re.MULTILINE)
    if epsilon:
        assert text.startswith("clip.vision_model.pre_layrnorm is the first of ")
    else:
        assert int(re.match(r"All (\d+) agree", text)[1]) > 80


def test_files_of_another_language(run, capsys):
    Path("mine").mkdir()
    names = list(Golden("golden.safetensors"))[3:8]
    for name in names:
        Golden("golden.safetensors")[name].tofile(f"mine/{name}.f64")
    run("np.fromfile")
    assert set(np.load("mine.npz").files) == set(names)
    capsys.readouterr()
    assert main(["compare", "golden.safetensors", "mine.npz"]) == 0
    assert capsys.readouterr().out.startswith("All 5 agree.")
