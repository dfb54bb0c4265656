"""A user's mypy accepts the documented examples: the package has hints, and says so by py.typed."""

import importlib.metadata
import os
import re
import subprocess
import sys

import pytest

from ..helpers.documents import ROOT, blocks, recipes

# What the recipes' expressions assume: the values that a user's program has at hand.
GIVEN = """\
from concurrent.futures import Executor
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from clipseg_np import CLIPSegForImageSegmentation, Job, LearnedPrompt, Segmentation, Segmenter
from clipseg_np import VisualPrompt, convert, golden, masks, run_batch


def recipes(
    segmenter: Segmenter,
    image: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    result: Segmentation,
    executor: Executor,
    file: BinaryIO,
    activations: dict[str, NDArray[Any]],
) -> None:
"""


@pytest.fixture(scope="module")
def user_program(tmp_path_factory):
    """A folder with a file for each example, and one with all recipes."""
    folder = tmp_path_factory.mktemp("program")
    for block, code in blocks("python").items():
        if "dask" not in code:  # it has no hints
            (folder / f"{block.lower().replace(' ', '_')}.py").write_text(code, "utf-8")
    lines = "".join(f"    {expression}\n" for _, _, expression in recipes())
    (folder / "recipes.py").write_text(GIVEN + lines, "utf-8")
    return folder


@pytest.fixture(scope="module")
def mypy(tmp_path_factory):
    """Check a folder as if the package were installed: errors inside the package are not shown."""
    pytest.importorskip("mypy", reason="needs the extra 'oracle'")
    cache = str(tmp_path_factory.mktemp("cache"))

    def check(folder, *options) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "mypy", "--follow-imports=silent", *options, "."],
            cwd=folder,
            env={**os.environ, "MYPYPATH": str(ROOT), "MYPY_CACHE_DIR": cache},
            check=False,
            capture_output=True,
            text=True,
        )

    return check


@pytest.mark.parametrize("options", [[], ["--strict"]], ids=["default", "strict"])
def test_the_examples_have_the_right_types(mypy, user_program, options):
    done = mypy(user_program, *options)
    assert done.returncode == 0, done.stdout + done.stderr


MISTAKES = """\
from clipseg_np import *
from clipseg_np import Job, masks, run_batch
Segmenter.from_pretrained(backend=3)
Segmenter.from_pretrained()("a.png", "a cat").masks("high")
Segmenter.from_pretrained()("a.png", "a cat").mask
CLIPSegForImageSegmentation.from_pretrained("a").encode_images
CLIPSegConfig.from_pretrained("a").reduce_dims
CLIPTokenizer.from_pretrained("a").encode_text
Job("a cat", "masks")
run_batch(Job(("a cat",), "masks"), "photos", 2)
masks.dilate(3, "much")
with trace() as activations: activations.names
"""


def test_mistakes_are_found(mypy, tmp_path):
    (tmp_path / "mistakes.py").write_text(MISTAKES, "utf-8")
    printed = mypy(tmp_path).stdout
    lines = [int(line) for line in re.findall(r"^mistakes.py:(\d+): error", printed, re.MULTILINE)]
    assert sorted(set(lines)) == list(range(3, 1 + len(MISTAKES.splitlines()))), printed


def test_the_marker_is_there():
    assert (ROOT / "clipseg_np" / "py.typed").is_file()
    try:
        files = importlib.metadata.files("clipseg_np") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed")
    assert any(file.name == "py.typed" for file in files)
