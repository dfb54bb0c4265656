"""The notebooks run from top to bottom in a clean kernel, and are committed with what they show."""

import json
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.notebooks
FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path):
    nbclient = pytest.importorskip("nbclient", reason="needs the extra 'notebooks'")
    nbformat = pytest.importorskip("nbformat", reason="needs the extra 'notebooks'")
    notebook = nbformat.read(path, as_version=4)
    kept = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    where = {"metadata": {"path": str(FOLDER)}}
    nbclient.NotebookClient(notebook, timeout=120, resources=where).execute()
    made = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert [kinds(outputs) for outputs in made] == [kinds(outputs) for outputs in kept]


def kinds(outputs) -> set[str]:
    """What a cell shows: text, images, a value."""
    shown = {output["output_type"] for output in outputs}
    return shown | {kind for output in outputs for kind in output.get("data", {})}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_as_it_ran(path):
    notebook = json.loads(path.read_text("utf-8"))
    cells = notebook["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    text = json.dumps([cell["outputs"] for cell in code])
    assert "Traceback" not in text and "Warning" not in text
    assert not re.search(r"/(home|work|tmp|root|Users)/", text)  # nobody's folders
    number = path.stem.split("_")[0]
    assert "".join(cells[0]["source"]).startswith(f"# {number}. ")
    assert any("**Try:**" in "".join(cell["source"]) for cell in cells[-2:] + cells[:3])


def test_all_ten_are_there():
    assert sorted(int(path.stem.split("_")[0]) for path in NOTEBOOKS) == [*range(1, 11)]
