"""The judge of notebooks/exercises: solutions, likely wrong answers, and answers of other kinds."""

import ast
import re
from functools import partial

import numpy as np
import pytest

from clipseg_np import pico
from clipseg_np.golden.compare import compare

from ..helpers.exercises import FOLDER, check, ladder, mistakes
from .wrong_answers import WRONG_ANSWERS

STEPS = list(ladder.SOLUTIONS)


def judged(step, source, path):
    """The judge's words on an answer, in this process."""
    path.write_text(source, "utf-8")
    outcome = ladder.attempt({step: partial(ladder.load, path)}, {str(path)})
    return check.words(step, outcome)


def functions(path):
    """A file's functions by name, without docstrings."""
    found = {}
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            node.body = node.body[bool(ast.get_docstring(node)) :]
            found[node.name] = node
    return found


# The page


def test_the_page_cut_into_twelve_is_the_page():
    for golden, w, config in ladder.CHECKPOINTS.values():
        prompts = pico.text_tower(*list(golden.inputs.values())[1:], w, config)
        expected = pico.clipseg(golden.inputs["pixel_values"], prompts, w, config)
        np.testing.assert_array_equal(ladder.run(ladder.PAGE, golden, w, config), expected)


def test_solutions_are_the_pages_lines():
    page = functions(FOLDER.parents[1] / "clipseg_np" / "pico.py")
    whole = 0
    for path in ladder.SOLUTIONS.values():
        for name, function in functions(path).items():
            assert function.end_lineno - function.lineno <= 15
            if name in page and name not in ("vision_tower", "clipseg"):  # cut into pieces
                assert ast.unparse(function) == ast.unparse(page[name])
                whole += 1
    assert whole == 9


def test_stubs_have_the_solutions_functions():
    stubs = ladder.stubs()
    assert list(stubs) == STEPS
    for step, path in stubs.items():
        assert path.name == ladder.SOLUTIONS[step].name
        written = functions(path)
        for name, function in functions(ladder.SOLUTIONS[step]).items():
            assert ast.unparse(written[name].args) == ast.unparse(function.args)
        assert check.title(step).startswith(f"{step}. ")


# Right and wrong answers


@pytest.mark.parametrize("step", STEPS)
def test_a_solution_is_right(step):
    right, text = check.ask(step, ladder.SOLUTIONS[step])
    assert right and re.fullmatch(r"right: (\d+) of \1 layers", text)


@pytest.mark.parametrize("number", range(len(WRONG_ANSWERS)))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_likely_mistake_gets_the_question_that_helps(number, tmp_path):
    step, question, code = WRONG_ANSWERS[number]
    solution = ladder.SOLUTIONS[step].read_text("utf-8")
    right, text = judged(step, solution + code, tmp_path / "answer.py")
    assert not right and question in text.splitlines()[-1], text


def test_there_are_three_wrong_answers_for_each_step():
    steps = [step for step, *_ in WRONG_ANSWERS]
    assert all(steps.count(step) >= 3 for step in STEPS)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_each_likely_mistake_is_one(step):
    """It changes the solution, and its numbers or its errors are wrong."""
    source = ladder.SOLUTIONS[step].read_text("utf-8")
    for changes in mistakes.MISTAKES[step].values():
        for change in changes:
            changed = source
            for pair in zip(change[::2], change[1::2]):
                assert pair[0] in changed, change
                changed = changed.replace(*pair)
            answer = partial(ladder.load, ladder.SOLUTIONS[step], changed)
            outcome = ladder.attempt({step: answer}, set())
            assert outcome.error or not all(
                row.fine for row in compare(ladder.REFERENCE, outcome.arrays, ladder.TOLERANCE)
            ), change
