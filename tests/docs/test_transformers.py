"""Each row of docs/TRANSFORMERS.md: what it names is taken, ignored with a warning or refused."""

import contextlib
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

import clipseg_np
from clipseg_np import habits
from clipseg_np import image as image_room

from ..helpers.checkpoints import clip_checkpoint
from ..helpers.documents import TRANSFORMERS

TEXT = TRANSFORMERS.read_text("utf-8")
OUTCOMES = ("taken", "ignored with a warning", "refused")


def table(head: str) -> list[list[str]]:
    """The rows of all tables with this head."""
    parts = TEXT.split(head)[1:]
    rows = [row for part in parts for row in part.strip().split("\n\n")[0].splitlines()]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


HABITS = table("| you write | it is | and |\n|---|---|---|\n")
CODE = [
    (code, outcome, note.strip())
    for codes, outcome, note in ([*row, ""][:3] for row in HABITS)
    for code in re.findall("`([^`]+)`", codes)
]
ARRAYS = table("| in PyTorch | here |\n|---|---|\n")


class Named:
    """A type or a device of PyTorch: nothing that NumPy knows."""

    def __init__(self, name: str):
        self.name = name

    def __str__(self) -> str:
        return self.name


TORCH = SimpleNamespace(
    float16=Named("torch.float16"),
    float32=Named("torch.float32"),
    device=Named,
    from_numpy=np.asarray,
)


@pytest.fixture
def names(user_folder):
    """The names that a script has at hand, and the words in capitals."""
    folder = Path("clipseg-rd64-refined")
    Path("CLIP").mkdir()
    clip_checkpoint(Path("CLIP"), folder)
    model = clipseg_np.CLIPSegForImageSegmentation.from_pretrained(folder)
    processor = clipseg_np.CLIPSegProcessor.from_pretrained(folder)
    photo = PIL.Image.open("photo.jpg")
    inputs = processor(text="a cat", images=photo, return_tensors="np")
    everything = {name: getattr(clipseg_np, name) for name in clipseg_np.__all__}
    return {
        **everything,
        **clipseg_np.ALIASES,
        "np": np,
        "torch": TORCH,
        "image": image_room,
        "from_pretrained": clipseg_np.CLIPSegForImageSegmentation.from_pretrained,
        "model": model,
        "config": model.config,
        "processor": processor,
        "tokenizer": processor.tokenizer,
        "photo": photo,
        "inputs": inputs,
        "texts": {"input_ids": inputs.input_ids},
        "outputs": model(**inputs),
        "FOLDER": str(folder),
        "CLIP": "CLIP",
        "STATE": {},
    }


@pytest.mark.parametrize("code, outcome, note", CODE, ids=[code for code, _, _ in CODE])
def test_what_a_script_says(code, outcome, note, names):
    with warnings.catch_warnings(record=True) as caught, contextlib.ExitStack() as stack:
        warnings.simplefilter("always")
        if outcome == "refused":
            refusal = stack.enter_context(pytest.raises((ValueError, AttributeError)))
        exec(code, names)  # noqa: S102
    said = [str(warning.message) for warning in caught]
    if outcome == "ignored with a warning":
        assert len(said) == 1 and note in said[0], said
        # The caller's line, not one of the package.
        assert caught[0].filename == "<string>" or "has no effect" not in said[0]
    else:
        assert said == []
    if outcome == "refused":
        assert note in str(refusal.value) and "\n" not in str(refusal.value)


def test_the_rows_are_there():
    assert len(CODE) > 80 and {outcome for _, outcome, _ in CODE} == set(OUTCOMES)


@pytest.mark.parametrize("there, here", ARRAYS, ids=[there for there, _ in ARRAYS])
def test_an_array_here(there, here, names):
    code = re.match("`([^`]+)`", here)
    if code is None:
        assert here == "left out, or kept: nothing is recorded here"
        return
    names["model"] = names["model"].clip
    names["outputs"].logits = np.zeros((2, 32, 32), np.float32)
    assert isinstance(eval(code[1], names), np.ndarray)


def test_every_advice_is_shown():
    keywords = {**habits.LOADING, **habits.SAVING, **habits.TEXT, **habits.FEATURES}.values()
    advice = {k.advice for k in keywords if isinstance(k, habits.Keyword) and k.advice}
    advice |= set(habits.ATTRIBUTES.values())
    notes = [note for _, outcome, note in CODE if outcome != "taken"]
    assert {text for text in advice if not any(note in text for note in notes)} == set()
