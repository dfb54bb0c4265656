"""The words of code and documents: one thing has one word, and lines are short enough to read.

An image is never called a picture, except where 0.1 did and programs read it.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each line of code that may hold the word: public names of 0.1, kept in 0.2.
ALIASES = {
    "clipseg_np/masks/metrics.py": ["picture_iou = image_iou"],
    "clipseg_np/segment/batch.py": ["pictures_in = images_in", '"picture": self.name'],
    "tests/segment/test_batch_0_1.py": ['["picture"]'],
    "clipseg_np/segment/visual_prompt.py": ["picture = prepared"],
    "tests/golden/test_traces.py": ['"picture"'],
}
FOLDERS = ("clipseg_np", "tests", "training", "benchmarks", "examples", "golden", "notebooks")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def test_an_image_is_an_image():
    for path in FILES:
        name = path.relative_to(ROOT).as_posix()
        if name == "tests/test_words.py":
            continue
        lines = path.read_text("utf-8").splitlines()
        found = [line for line in lines if re.search("picture", line, re.IGNORECASE)]
        kept = ALIASES.get(name, [])
        assert all(any(alias in line for alias in kept) for line in found), (name, found)


DOCUMENTS = [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md", ROOT / "CHANGELOG.md"]
DOCUMENTS += [ROOT / "weights" / "README.md", ROOT / "training" / "README.md"]
DOCUMENTS += [ROOT / "tests" / "PITFALLS.md", ROOT / "notebooks" / "exercises" / "README.md"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_line_of_a_document_is_too_long(path):
    """120 characters, except rows of tables."""
    lines = path.read_text("utf-8").splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


def test_the_names_of_0_1_are_kept():
    from clipseg_np import VisualPrompt
    from clipseg_np.masks.metrics import image_iou, picture_iou
    from clipseg_np.segment.batch import images_in, pictures_in

    assert picture_iou is image_iou and pictures_in is images_in
    assert VisualPrompt.picture is VisualPrompt.prepared


def test_lines_are_at_most_100_characters_long():
    lines = ((path, line) for path in FILES for line in path.read_text("utf-8").splitlines())
    assert [(path.name, line) for path, line in lines if len(line) > 100] == []
