"""Each row of the tables of recipes in README and COOKBOOK: the command, and the same in Python."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import clipseg_np
from clipseg_np import Segmenter, convert, golden, masks, trace

from ..helpers.documents import recipes
from .conftest import PHOTO_SIZE
from .test_documentation import run_shell

RECIPES = recipes()

# The files that a recipe's command writes; those of the image itself have its upright size.
WRITTEN = {
    "a mask of": ["masks/photo_1_a-cat.png", "masks/photo_overlay.png"],
    "several images": ["masks/photo_1_a-cat.png"],
    "one mask": ["cat.png"],
    "a folder's masks": ["masks/photo_1_a-cat.png", "masks/report.jsonl"],
    "a file of each kind": ["masks/photo_1_a-cat_cutout.png", "masks/photo_overlay.png"],
    "several things": ["masks/photo_1_a-cat.png", "masks/photo_2_a-dog.png"],
    "larger or smaller": ["masks/photo_1_a-cat_soft.png", "masks/photo_1_a-cat_heat.png"],
    "small things": ["masks/photo_1_a-cat.png"],
    "combined prompts": ["masks/photo_1_a-cat-a-collar.png"],
    "to show": ["masks/photo_1_cup-jpg.png"],
    "a thing that no text": ["masks/photo_1_heart-a-circle.png"],
    "a decoder that": ["masks/photo_1_a-heart.png"],
    "clean masks": ["masks/photo_1_a-cat.png"],
    "the thing cut out": [
        f"masks/photo_1_a-cat_{k}.png" for k in ("cutout", "contour", "highlight")
    ],
    "all masks of a run": ["cats.json", "masks/index.html"],
    "one label map": [
        "masks/photo_labels.png",
        "masks/photo_labels.json",
        "masks/photo_legend.png",
    ],
    "to know whether": ["masks/photo_1_a-unicorn.png"],
    "a folder": ["masks/inner/photo.jpg/photo_1_a-cat.png", "masks/report.jsonl"],
    "an image whose white": ["masks/photo_1_a-cat.png"],
    "a part of": ["mask.png"],
    "no network": ["masks/photo_1_a-cat.png"],
    "the GPU": ["masks/photo_1_a-cat.png"],
    "to check": [],
    "one file": [],
    "half of": ["smaller/model.safetensors", "smaller/config.json", "smaller/vocab.json"],
    "reference numbers": ["golden.safetensors"],
}


def start_of(want: str) -> str:
    return next(start for start in WRITTEN if want.startswith(start))


def test_every_recipe_has_its_expectation():
    assert sorted(start_of(want) for want, _, _ in RECIPES) == sorted(WRITTEN)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe[0][:20])
def test_the_command(recipe, user_folder):
    want, command, _ = recipe
    printed = run_shell(command, user_folder)
    for name in WRITTEN[start_of(want)]:
        assert (user_folder / name).is_file(), name
        if name.endswith(".png") and not name.endswith(("overlay.png", "legend.png")):
            assert PIL.Image.open(user_folder / name).size == PHOTO_SIZE[::-1]
    if "--json" in command:
        record = json.loads(printed)
        assert record["prompt"] == "a unicorn" and 0 <= record["presence"] <= 1


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe[0][:20])
@pytest.mark.filterwarnings("ignore:backend 'auto' uses NumPy")
def test_in_python(recipe, user_folder):
    expression = recipe[2]
    segmenter = Segmenter.from_pretrained()
    image = np.asarray(PIL.Image.open("cup.jpg"))
    result = segmenter(image, ["a cat", "a dog"])
    activations = {}
    if "golden" in expression:
        inputs = segmenter.processor(text="a cat", images=image)
        golden.write_golden("golden.safetensors", segmenter.model, inputs)
        with trace() as activations:
            segmenter.model(**inputs)
    mask = result.masks()[0]
    with ThreadPoolExecutor(1) as executor, open("photo.jpg", "rb") as file:
        package = {name: getattr(clipseg_np, name) for name in clipseg_np.__all__}
        rooms = {"PIL": PIL, "Path": Path, "convert": convert, "golden": golden, "masks": masks}
        value = eval(expression, package | rooms | locals())
    if isinstance(value, tuple):
        assert all(part is not None for part in value)
    assert value is not None or "assert_matches" in expression
