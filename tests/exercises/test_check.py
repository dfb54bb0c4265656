"""The judge of notebooks/exercises: solutions, likely wrong answers, and answers of other kinds."""

import ast
import json
import re
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from clipseg_np import pico
from clipseg_np.golden.compare import compare

from ..helpers.exercises import FOLDER, check, ladder, mistakes
from .right_answers import RIGHT_ANSWERS
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
    assert right and re.match(r"right: (\d+) of \1 layers\b", text)


@pytest.mark.parametrize(("step", "code"), RIGHT_ANSWERS, ids=STEPS)
def test_a_right_answer_in_other_words_is_right(step, code, tmp_path):
    stub = ladder.stubs()[step].read_text("utf-8")
    right, text = judged(step, stub + code, tmp_path / "answer.py")
    assert right, text


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


@pytest.mark.parametrize("step", [step for step in STEPS if len(ladder.FUNCTIONS[step]) > 1])
def test_what_is_written_of_a_step_is_judged_without_the_rest(step, tmp_path):
    """Each function of a step alone is right, and wrong if it returns something else."""
    stub = ladder.stubs()[step].read_text("utf-8")
    solution = ladder.SOLUTIONS[step].read_text("utf-8")
    for name, function in functions(ladder.SOLUTIONS[step]).items():
        code = ast.get_source_segment(solution, function)
        left = ", ".join(other for other in ladder.FUNCTIONS[step] if other != name)
        right, text = judged(step, stub + code, tmp_path / "answer.py")
        assert not right and text == f"{name}: right. Not written yet: {left}"
        code = re.sub("(?m)^    return", "    return 1 + 0 *", code)
        right, text = judged(step, stub + code, tmp_path / "answer.py")
        assert not right and text.startswith(("wrong: ", "stopped: "))


PYTHONS_ERRORS = {
    "NameError: name 'y' is not defined": (4, "def one_head(q, k, v):\n    return y", (
        "\n\nIs that name an argument, or made in a line above?"
    )),
    "UnboundLocalError": (4, "def one_head(q, k, v):\n    z = z; return q", (
        "\n\nIs that name an argument, or made in a line above?"
    )),
    "TypeError": (6, "def encoder(x, w, name, config, mask=True):\n    return x()", ""),
    "AxisError": (2, "def layer_norm(x, w, name, config):\n    return x.mean(axis=5)", ""),
    "ImportError": (2, "layer_norm = 0\nfrom clipseg_np.pico import layernorm", ""),
    "ValueError: einstein sum": (
        4, "import numpy as np\ndef one_head(q, k, v): return np.einsum('BTdx->BT', q)", ""
    ),
    "AssertionError": (8, "def text_tower(i, a, w, config):\n    assert False", ""),
    "KeyError: 'NAME.weight'": (3, (
        "def quick_gelu(x): return x\ndef mlp(x, w, name, activation): return w['NAME.weight']"
    ), "\n\nIs the name in w? The drawing shows the names."),
}  # fmt: skip


@pytest.mark.parametrize("error", PYTHONS_ERRORS)
def test_an_error_of_pythons_is_shown_with_its_line_and_no_question_about_the_step(error, tmp_path):
    step, code, question = PYTHONS_ERRORS[error]
    right, text = judged(step, code, tmp_path / "answer.py")
    line, shown = text.removesuffix(question).splitlines()
    assert not right and line.startswith("stopped: answer.py, line ") and error in shown
    assert text.endswith(question or shown)


# Answers of other kinds: a sentence, and no traceback

ANSWERS = {
    "crashing": (4, "def one_head(q, k, v):\n    return q / undefined", (
        "stopped: answer.py, line 2: return q / undefined\n",
        "NameError: name 'undefined' is not defined",
    )),
    "crashing in a function of the page": (
        3, ("from clipseg_np.pico import linear\n\ndef mlp(x, w, name, activation):\n"
        "    return linear(x[..., :3], w, name + '.fc1')\n\ndef quick_gelu(x):\n    return x"),
        ("stopped: answer.py, line 4: return linear(x[..., :3], w, name + '.fc1')\n", "matmul",
         "count from the last axis"),
    ),
    "without a return": (4, "def one_head(q, k, v):\n    q @ k.swapaxes(1, 2)", (
        "`one_head` returned None; expected an array of float64", "end with `return`?",
    )),
    "a number": (1, "def softmax(x):\n    return 1.0\n\ndef linear(x, w, name):\n    return 1.0", (
        "`linear`, called for clip.text_model.encoder.layers.0.self_attn.q_proj, returned 1.0;",
    )),
    "a list": (9, "bicubic = lambda old, new, a=-0.75: [[0.0]]\n\nembed = None", (
        "There is no function `embed`",
    )),
    "misshapen": (4, "def one_head(q, k, v):\n    return v[0]", (
        "`one_head` has shape (7, 8); expected (2, 7, 8)", "Print the shapes",
    )),
    "transposed": (4, """
from clipseg_np.pico import softmax

def one_head(q, k, v):
    weights = softmax(q @ k.swapaxes(1, 2) / q.shape[-1] ** 0.5)
    return (weights @ v).swapaxes(1, 2)
""", ("has shape (2, 8, 7); expected (2, 7, 8). transpose(0, 2, 1) fits, and makes the numbers",)),
    "of half the precision": (2, ("def layer_norm(x, w, name, config):\n"
        "    return x.astype('float32')"), (
        "returned an array of float32; expected an array of float64", "another kind",
    )),
    "of complex numbers": (2, "def layer_norm(x, w, name, config):\n    return x + 0j", (
        "returned an array of complex128; expected an array of float64",
    )),
    "of too few layers": (6, "def encoder(x, w, name, config, mask=True):\n    return [x]", (
        "called for clip.text_model.encoder, returned 1 in a list; expected 2 in a list",
    )),
    "changing its input": (2, "def layer_norm(x, w, name, config):\n    x -= 1\n    return x", (
        "stopped: answer.py, line 2: x -= 1\n", "read-only", "in place",
    )),
    "changing the weights": (2, ("def layer_norm(x, w, name, config):\n"
        "    w[name + '.weight'][:] = 1\n    return x"), ("answer.py, line 2: w[name", "in place")),
    "not text": (7, "def byte_pairs(word, ranks):\n    return 7", ('for "star", returned 7;',)),
    "with a syntax error": (2, "def layer_norm(x, w, name, config):\n    return (x", (
        "stopped: answer.py, line 2: return (x\nSyntaxError: '(' was never closed", "a bracket",
    )),
    "with other indentation": (2, "def layer_norm(x, w, name, config):\nreturn x", (
        "answer.py, line 2: return x\nIndentationError: expected an indented block", "same column",
    )),
    "another name": (2, "def layernorm(x, w, name, config):\n    return x", (
        "There is no function `layer_norm`: the file must keep its name",
    )),
    "other arguments": (2, "def layer_norm(x):\n    return x", (
        "TypeError: layer_norm() takes 1 positional argument but 4 were given",
    )),
    "calling the page wrongly": (3, ("from clipseg_np.pico import linear\n\n"
        "def mlp(x, w, name, activation):\n    return linear(x, w)\n\n"
        "def quick_gelu(x):\n    return x"),
        ("answer.py, line 4: return linear(x, w)\nTypeError: missing a required argument: 'name'",),
    ),
    "that asks": (2, "def layer_norm(x, w, name, config):\n    return input()", ("EOFError",)),
    "that exits": (2, "import sys\n\nsys.exit(3)", ("line 3: sys.exit(3)\nSystemExit: 3",)),
    "that kills": (2, "import os\n\nos._exit(3)", ("the process ended without an answer",)),
    "nothing": (2, "", ("There is no function `layer_norm`",)),
    "no text": (2, "\0\udcff", ("SyntaxError", )),
    "endless recursion": (2, ("def layer_norm(x, w, name, config):\n"
        "    return layer_norm(x, w, name, config)"), ("line 2", "RecursionError")),
}  # fmt: skip


@pytest.mark.parametrize("kind", ANSWERS)
def test_any_answer_gets_a_sentence(kind, tmp_path):
    step, code, words = ANSWERS[kind]
    path = tmp_path / "answer.py"
    path.write_text(code, "utf-8", "surrogateescape")
    right, text = check.ask(step, path)
    assert not right
    assert all(part in text for part in words), text
    assert "Traceback" not in text and "ladder.py" not in text and "check.py" not in text


def test_an_endless_answer_is_stopped_at_its_line(tmp_path, monkeypatch):
    path = tmp_path / "answer.py"
    path.write_text(
        "def one_head(q, k, v):\n    while True:\n        v = v + 1\n    return v", "utf-8"
    )
    monkeypatch.setattr(check, "MAX_SECONDS_IN_ALL", 600)  # on a busy computer
    right, text = check.ask(4, path)
    assert not right and text.startswith("stopped: it still ran after 5 seconds.\nanswer.py, line ")
    assert text.endswith("\n\nDoes a loop wait for what never comes?")
    monkeypatch.setattr(check, "MAX_SECONDS_IN_ALL", 0.5)
    assert check.ask(4, path)[1].startswith("stopped: it still ran after 0.5 seconds.\n\nDoes a ")


def test_an_answer_that_sleeps_is_ended(tmp_path):
    path = tmp_path / "answer.py"
    path.write_text("import time\n\ndef one_head(q, k, v):\n    time.sleep(10**6)", "utf-8")
    code = "import check; check.MAX_SECONDS_ASLEEP = check.MIN_SHARE = 0.5; check.main({})"
    command = [sys.executable, "-c", code.format([check.JUDGE, "4", str(path)])]
    given = {"capture_output": True, "timeout": 600}  # a sleep of days fails, too
    output = subprocess.run(command, check=True, cwd=FOLDER, **given).stdout
    right, text = json.loads(output)
    assert not right and text == f"stopped: it still ran after 0.5 seconds.\n\n{check.ENDLESS}"


def test_what_an_answer_prints_is_shown_but_not_all_of_it(tmp_path):
    path = tmp_path / "answer.py"
    solution = ladder.SOLUTIONS[4].read_text("utf-8")
    path.write_text(solution.replace("    scores", "    print('q', q.shape)\n    scores"), "utf-8")
    right, text = check.ask(4, path)
    assert right and text.startswith("Your file printed:\nq (2, 7, 8)\nq (2, 7, 8)\n")
    assert "\n\nright: 167 of 167 layers" in text
    path.write_text(solution.replace("    scores", "    print('x' * 9999)\n    scores"), "utf-8")
    right, text = check.ask(4, path)
    assert right and len(text) < 2100


# The command


def run(*arguments, folder=FOLDER):
    command = [sys.executable, str(FOLDER / "check.py"), *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder)
    assert not done.stderr
    return done.returncode, done.stdout


def test_the_command(tmp_path):
    status, text = run()
    assert status == 0 and text.count("not written yet") == 12
    assert "\n0 of 12 steps are right. Go on with: check.py 1" in text
    status, text = run(4, "solutions")
    assert status == 0 and text.startswith("4. One attention head\n\nright: ")
    status, text = run(4)
    assert status == 1 and text.endswith("\nnot written yet: one_head\n")
    for wrong in (["13"], ["0"], ["x"], ["4", tmp_path]):
        status, text = run(*wrong)
        assert status == 2 and text.startswith("There is no step ")


@pytest.fixture
def copies(tmp_path):
    """The solutions in a folder of the reader's."""
    for path in ladder.SOLUTIONS.values():
        shutil.copy(path, tmp_path)
    return {step: tmp_path / path.name for step, path in ladder.SOLUTIONS.items()}


def test_the_ladder_counts_what_is_right(copies, capsys):
    shutil.copy(ladder.stubs()[5], copies[5])
    copies[2].write_text("def layer_norm(x, w, name, config):\n    return x", "utf-8")
    check.show_ladder(copies)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1)[0] for line in lines[:12]] == [f"{step}." for step in STEPS]
    marks = ["right", "wrong", "right", "right", "written yet", *["right"] * 7]
    assert all(line.endswith(mark) for line, mark in zip(lines, marks))
    assert lines[-1] == "10 of 12 steps are right. Go on with: check.py 2"


def test_after_twelve_steps_one_has_written_the_page(copies):
    status, text = run(12, copies[1].parent)
    assert status == 0 and text.endswith(
        "\nAll twelve together are right: you have written pico.py.\n"
    )
    source = copies[2].read_text("utf-8")
    copies[2].write_text(
        source.replace("1e-5", "1e-6").replace("config.get", "(lambda _, eps: eps)")
    )
    status, text = run(12, copies[1].parent)
    assert status == 0 and text.endswith(
        "together are not right yet: check.py alone names the step.\n"
    )
    shutil.copy(ladder.stubs()[5], copies[5])
    status, text = run(12, copies[1].parent)
    assert status == 0 and text.endswith("right: 167 of 167 layers\n")
