"""The package is a house: a room imports only from itself and from the rooms below it."""

import ast
from pathlib import Path

import pytest

import clipseg_np

PACKAGE = Path(clipseg_np.__file__).parent
FLOORS = {
    **dict.fromkeys(("errors", "version", "pico"), 0),
    **dict.fromkeys(("atomic_files", "habits"), 1),
    "nn": 2,
    "backends": 3,
    "checkpoints": 4,
    "model": 5,
    **dict.fromkeys(("text", "image", "golden"), 6),
    **dict.fromkeys(("masks", "convert"), 7),
    **dict.fromkeys(("segment", "learn"), 8),
    "cli": 9,
}
FILES = [path for path in PACKAGE.rglob("*.py") if not path.name.startswith("__")]


def imported(path: Path) -> list[str]:
    """The rooms, or files in the root, that a file imports from, once for each import."""
    here, found = path.relative_to(PACKAGE).parts, []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = [*here[: len(here) - node.level], *(node.module or "").split(".")]
            found.append(parts[0])
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("clipseg_np") for alias in node.names), path
    return found


def test_every_file_stands_on_a_floor():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert rooms == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_import_runs_upward(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for other in imported(path):
        assert other == room or FLOORS[other] < FLOORS[room], f"{path} imports from {other}"


def test_the_imports_are_found():
    assert sum(len(imported(path)) for path in FILES) > 150
    assert "nn" in imported(PACKAGE / "model" / "clip.py")
    assert "masks" in imported(PACKAGE / "segment" / "results.py")


def test_a_trace_is_asked_for_in_three_places():
    """Speed and meaning meet in Layer.__call__ and in model/batched.py, and nowhere else."""
    sources = {path.relative_to(PACKAGE).as_posix(): path.read_text("utf-8") for path in FILES}
    askers = {name for name, source in sources.items() if "is_traced()" in source}
    assert askers == {"nn/trace.py", "nn/layers.py", "model/batched.py"}
