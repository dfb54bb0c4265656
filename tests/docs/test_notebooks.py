"""The notebooks run from top to bottom in a clean kernel, and are committed with what they show."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from ..helpers.exercises import answers


def number(path) -> int:
    return int(path.stem.split("_")[0])


FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"), key=number)
ANSWER = "answer = ...  # your line"
HEAD = re.compile(r"# (\d+)\. .+\n\n\*\d+ minutes; before it: (.+)\.\*\n")


def markdown(path) -> list[str]:
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def cells(path):
    """(type, source, outputs) of each cell."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return [(c["cell_type"], "".join(c["source"]), c.get("outputs")) for c in cells]


@pytest.fixture
def texts(path):
    return markdown(path)


@pytest.mark.notebooks
def test_it_runs(path):
    """As it is committed; then each exercise with its solution, and with a likely mistake."""
    nbclient = pytest.importorskip("nbclient", reason="needs the extra 'notebooks'")
    nbformat = pytest.importorskip("nbformat", reason="needs the extra 'notebooks'")
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    kept = [cell.outputs for cell in code]
    asked = {f"{number(path)}.{k}": cell.source for k, cell in zip((1, 2), code[-2:])}
    for name, source in asked.items():
        exercise = answers.EXERCISES[name]
        for answer in (exercise.mistake, exercise.solution):
            filled = source.replace(ANSWER, f"answer = {answer}")
            notebook.cells.append(nbformat.v4.new_code_cell(filled))
    where = {"metadata": {"path": str(FOLDER)}}
    nbclient.NotebookClient(notebook, timeout=120, resources=where).execute()
    assert [kinds(cell.outputs) for cell in code] == [kinds(outputs) for outputs in kept]
    assert list(map(printed, code[-2:])) == hints(path)
    wrong_1, right_1, wrong_2, right_2 = map(printed, notebook.cells[-4:])
    assert right_1 == right_2 == "Right.\n"
    assert wrong_1.startswith("Not yet: ") and wrong_2.startswith("Not yet: ")


def printed(cell) -> str:
    return "".join("".join(output["text"]) for output in cell["outputs"])


def hints(path) -> list[str]:
    exercises = (answers.EXERCISES[f"{number(path)}.{k}"] for k in (1, 2))
    return [f"Hint: {exercise.hint}\n" for exercise in exercises]


def kinds(outputs) -> set[str]:
    """What a cell shows: text, images, a value."""
    shown = {output["output_type"] for output in outputs}
    return shown | {kind for output in outputs for kind in output.get("data", {})}


def test_it_is_kept_as_it_ran(path):
    notebook = json.loads(path.read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    text = json.dumps([cell["outputs"] for cell in code])
    assert "Traceback" not in text and "Warning" not in text
    assert not re.search(r"/(home|work|tmp|root|Users)/", text)  # nobody's folders
    assert list(map(printed, code[-2:])) == hints(path)
    assert all(ANSWER in "".join(cell["source"]) for cell in code[-2:])


def test_its_head_says_how_long_it_takes_and_what_comes_before(path, texts):
    head = HEAD.match(texts[0])
    assert head and int(head[1]) == number(path)
    before = [int(n) for n in re.findall(r"\d+", head[2])]
    assert all(n < number(path) for n in before) and (before or number(path) < 2)


def test_it_speaks_of_no_later_notebook(path, texts):
    for text in texts:
        named = re.findall(r"notebooks? (\d+)(?:(?:, | and | or )(\d+))?", text, re.IGNORECASE)
        assert all(int(n) < number(path) for pair in named for n in pair if n), text


def test_a_prediction_is_answered_one_cell_further(cells):
    for (kind, source, _), (next_kind, _, outputs) in pairwise(cells):
        if kind == "markdown" and "**Predict" in source:
            assert next_kind == "code" and outputs, source


def test_it_leads_on(texts):
    assert any("**Try:**" in text for text in texts) and any("**Read:**" in text for text in texts)


IDEAS = (FOLDER.parent / "docs" / "IDEAS.md").read_text("utf-8").split("\n## ")[1:]


@pytest.mark.parametrize("section", IDEAS, ids=lambda section: section.partition("\n")[0])
def test_the_notebooks_have_the_formulas_and_the_drawing_of_an_idea(section):
    parts = re.findall(r"\$\$.+?\$\$", section, re.DOTALL)
    parts += [drawing.replace("](", "](../docs/") for drawing in re.findall(r"!\[.+?\)", section)]
    sources = ["".join(markdown(path)) for path in NOTEBOOKS]
    assert parts and all(any(part in source for source in sources) for part in parts)


def test_links_of_notebooks_lead_somewhere(texts):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", "".join(texts)):
        assert (FOLDER / target).exists(), target


def test_all_twelve_are_there():
    assert [number(path) for path in NOTEBOOKS] == [*range(12)]
    assert [*answers.EXERCISES] == [f"{n}.{k}" for n in range(12) for k in (1, 2)]
