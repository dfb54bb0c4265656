"""The glossary's names stand in the source that they are said to be of."""

import re
from pathlib import Path

import pytest

from ..helpers.documents import ROOT

GLOSSARY = (ROOT / "docs" / "TEACHING.md").read_text("utf-8").partition("\n## Twenty words\n")[2]
ROWS = re.findall(r"^\| (.+?) \| .+? \| (.+?) \| (.+?) \|$", GLOSSARY, re.MULTILINE)[1:]
HERE = [row[1] for row in ROWS]
THERE = [here if there == "the same" else there for _, here, there in ROWS]


def names(cells) -> set[str]:
    """Every identifier of the code in these cells."""
    code = " ".join(re.findall(r"`(.+?)`", " ".join(cells)))
    return set(re.findall(r"[A-Za-z_]\w*", code))


def words(folder: Path) -> set[str]:
    files = folder.rglob("*.py")
    return set(re.findall(r"\w+", " ".join(file.read_text("utf-8") for file in files)))


def test_there_are_twenty_words_and_each_name_is_in_the_package():
    assert len(ROWS) == 20 and names(HERE) - words(ROOT / "clipseg_np") == set()


@pytest.mark.oracle
def test_each_name_of_transformers_is_in_its_source():
    from transformers.models import clipseg

    assert len(names(THERE)) > 20 and names(THERE) - words(Path(clipseg.__path__[0])) == set()
