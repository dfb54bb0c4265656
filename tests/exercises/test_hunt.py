"""The bug hunts of notebooks/exercises."""

import re
import subprocess
import sys

import numpy as np
import pytest

from clipseg_np import trace
from clipseg_np.golden import compare, numbered

from ..helpers.exercises import FOLDER, faults, hunt

NUMBERS = range(1, len(faults.FAULTS) + 1)


def first_deviating(number):
    model, inputs, golden = hunt.hunt(number)
    with trace() as activations:
        model(**inputs)
    return next(row.name for row in compare(golden, numbered(activations)) if not row.fine)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_hunt_can_be_won(number):
    layer = first_deviating(number)
    answers = {kind: hunt.judge(number, layer, kind) for kind in faults.KINDS}
    [(kind, (_, text))] = [answer for answer in answers.items() if answer[1][0]]
    assert text.startswith("right: ") and len(text.splitlines()) == 1
    del answers[kind]
    assert all(
        said.startswith("The layer is right, the kind is not") for _, said in answers.values()
    )


def test_each_fault_is_hunted_once_and_another_hunt_does_not_change_it():
    assert len(set(map(hunt.fault_of, NUMBERS))) == len(faults.FAULTS) == 25
    before = faults.traced(*faults.sound())
    for number in NUMBERS:
        hunt.hunt(number)
    assert all(row.fine for row in compare(before, faults.traced(*faults.sound())))
    assert first_deviating(7) == hunt.fault_of(7).layer


def test_two_faults_of_one_layer_and_kind_differ_in_their_numbers():
    """As README and the words after a hunt say: one turns each block, one moves it."""
    blocks = {}
    for number in (7, 14):
        layer, kind = "decoder.transposed_convolution", "axes"
        assert first_deviating(number) == layer and hunt.judge(number, layer, kind)[0]
        model, inputs, golden = hunt.hunt(number)
        for logits in (golden[layer], faults.traced(model, inputs)[layer]):
            blocks.setdefault(number, []).append(logits.reshape(2, 4, 16, 3, 16).swapaxes(2, 3))
    expected, flipped = blocks[7]
    np.testing.assert_allclose(flipped[..., ::-1, ::-1], expected)
    expected, moved = blocks[14]
    np.testing.assert_allclose(moved.swapaxes(1, 2).reshape(expected.shape), expected)


@pytest.mark.parametrize(
    ("layer", "kind", "words"),
    [
        ("logits", "norm", "No layer is called logits. A layer is, for example, decoder.layers.0"),
        (
            "decoder.layers.0.self_attn.q_pro",
            "norm",
            "for example, decoder.layers.0.self_attn.q_pro",
        ),
        ("clip.vision_model.embeddings.patch_embedding", "norm", "agrees with the golden trace"),
        ("decoder.transposed_convolution", "norm", "deviates, but it is not the first that does"),
        ("decoder.reduces.0", "norms", "The layer is right. Of which kind is it: activation, axes"),
    ],
)
def test_a_wrong_answer_is_told_why(layer, kind, words):
    [number] = [n for n in NUMBERS if hunt.fault_of(n).plant.__name__.endswith("before_the_layer")]
    right, text = hunt.judge(number, layer, kind)
    assert not right and words in text


def run(*arguments):
    command = [sys.executable, str(FOLDER / "hunt.py"), *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=FOLDER)
    assert not done.stderr
    return done.returncode, done.stdout


def test_the_command():
    status, text = run()
    assert status == 0 and "25 hunts" in text and all(kind in text for kind in faults.KINDS)
    status, text = run(7)
    fault = hunt.fault_of(7)
    assert status == 0 and fault.layer not in text and fault.plant.__doc__ not in text
    [code] = re.findall(r"((?:^    .*\n|\n)+)\n`golden`", text, re.MULTILINE)
    python = subprocess.run(
        [sys.executable, "-c", re.sub("^    ", "", code, flags=re.MULTILINE)],
        check=False,
        capture_output=True,
        text=True,
        cwd=FOLDER,
        env={"PYTHONPATH": str(FOLDER.parents[1])},
    )
    assert python.stdout.startswith(f"{fault.layer} is the first of "), python.stderr
    assert run(7, fault.layer, fault.kind) == (0, f"right: {fault.plant.__doc__}\n")
    assert run(7, fault.layer, "token")[0] == 1
    for wrong in (["0"], ["26"], ["x"], ["7", fault.layer]):
        status, text = run(*wrong)
        assert status == 2 and "hunt.py NUMBER LAYER KIND" in text
