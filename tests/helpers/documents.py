"""The tables of recipes and the blocks of code in README.md and docs/."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README, COOKBOOK = ROOT / "README.md", ROOT / "docs" / "COOKBOOK.md"
TRANSFORMERS = ROOT / "docs" / "TRANSFORMERS.md"
HEAD = "| I want | on the command line | in Python |\n|---|---|---|\n"


def recipes() -> list[list[str]]:
    """The rows of both tables of recipes: what one wants, the command, the Python expression."""
    tables = [path.read_text("utf-8").partition(HEAD)[2] for path in (README, COOKBOOK)]
    rows = [row for table in tables for row in table.partition("\n\n")[0].splitlines()]
    return [[cell.strip(" `") for cell in row.strip("|").split(" | ")] for row in rows]


def blocks(language: str) -> dict[str, str]:
    """The blocks of code in a language, by document and number, such as "README 1"."""
    return {
        f"{path.stem} {number}": block
        for path in (README, COOKBOOK, TRANSFORMERS)
        for number, block in enumerate(fenced(path, language), start=1)
    }


def fenced(path: Path, language: str) -> list[str]:
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return fence.findall(path.read_text("utf-8"))
