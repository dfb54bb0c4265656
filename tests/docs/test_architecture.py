"""The drawings, and README's table of shapes agree with the model."""

import importlib
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from clipseg_np import CLIPSegConfig, CLIPSegForImageSegmentation, trace

ROOT = Path(__file__).parents[2]
HEAD = "| step | name in the code | shape | official numbers |\n|---|---|---|---|\n"


@pytest.fixture(scope="module")
def drawing():
    """docs/draw_architecture.py, which docs/draw.py imports."""
    return sys.modules["draw_architecture"]


def draw():
    """docs/draw.py as a module."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        return importlib.import_module("draw")
    finally:
        sys.path.pop(0)


DRAWINGS = {function.__name__: function for function in draw().DRAWINGS}


def rows() -> list[list[str]]:
    """README's table of shapes: step, name, shape, official numbers."""
    table = (ROOT / "README.md").read_text("utf-8").partition(HEAD)[2].partition("\n\n")[0]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table.splitlines()]


def shape(formula: str, letters: dict[str, int]) -> tuple[int, ...]:
    """The numbers of a shape such as `(B,1+hw,D)`; letters side by side are multiplied."""
    axes = []
    for axis in formula.strip("`()").rstrip(",").split(","):
        terms = axis.strip().split("+")
        factors = [re.findall(r"\d+|[A-Za-z]", term) for term in terms]
        axes.append(sum(np.prod([int(letters.get(f, f)) for f in term]) for term in factors))
    return tuple(int(axis) for axis in axes)


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_committed_drawing_is_what_the_script_draws(name):
    assert (ROOT / "docs" / f"{name}.svg").read_text("utf-8") == DRAWINGS[name]()


def test_every_drawing_is_drawn_by_the_script():
    assert {path.stem for path in (ROOT / "docs").glob("*.svg")} == set(DRAWINGS)


def test_the_drawing_has_the_sizes_of_the_configs(drawing):
    config = CLIPSegConfig(vision_config={"patch_size": 16})
    text, vision = config.text_config, config.vision_config
    assert (drawing.PATCH, drawing.CHANNELS) == (vision.patch_size, vision.num_channels)
    assert drawing.VISION == vision.hidden_size
    assert drawing.VISION_LAYERS == vision.num_hidden_layers
    assert drawing.VISION_HEADS == vision.num_attention_heads
    assert drawing.TEXT == text.hidden_size
    assert drawing.TEXT_LAYERS == text.num_hidden_layers
    assert drawing.TEXT_HEADS == text.num_attention_heads
    assert drawing.TEXT_TOKENS == text.max_position_embeddings
    assert drawing.PROJECTION == config.projection_dim
    assert drawing.EXTRACT_LAYERS == config.extract_layers
    assert drawing.CONDITIONAL_LAYER == config.conditional_layer
    assert drawing.DECODER == config.reduce_dim
    assert drawing.DECODER_HEADS == config.decoder_num_attention_heads
    assert drawing.TOKENS == 485


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_can_be_read_without_seeing_it(name):
    drawn = DRAWINGS[name]()
    root = ElementTree.fromstring(drawn)
    texts = {element.get("id"): element.text for element in root}
    assert root.get("role") == "img" and root.get("aria-labelledby") == "title desc"
    assert len(texts["title"]) > 20 and len(texts["desc"]) > 300
    assert "prefers-color-scheme: dark" in drawn


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_stays_on_its_page(name):
    """No text begins or ends outside, at 7 units a letter; no box stands outside."""
    root = ElementTree.fromstring(DRAWINGS[name]())
    width, height = (float(number) for number in root.get("viewBox").split()[2:])
    for element in root:
        tag = element.tag.rpartition("}")[2]
        if tag == "text":
            half = 3.5 * len(element.text)
            left = 0 if "left" in element.get("class") else half
            assert float(element.get("x")) - left > 0, element.text
            assert float(element.get("x")) - left + 2 * half < width, element.text
            assert 10 < float(element.get("y")) < height, element.text
        elif tag == "rect":
            assert float(element.get("x", 0)) + float(element.get("width")) <= width
            assert float(element.get("y", 0)) + float(element.get("height")) <= height


def test_the_table_has_the_shapes_of_a_trace():
    """On a model with the official names, layers and patches, and few features."""
    letters = {"B": 1, "P": 3, "C": 3, "H": 48, "W": 32, "h": 3, "w": 2, "T": 5}
    letters |= {"D": 8, "E": 12, "F": 10, "R": 4}
    config = CLIPSegConfig(
        text_config={
            "vocab_size": 20,
            "hidden_size": letters["E"],
            "intermediate_size": 8,
            "num_attention_heads": 2,
            "eos_token_id": 19,
            "bos_token_id": 18,
        },
        vision_config={
            "hidden_size": letters["D"],
            "intermediate_size": 8,
            "num_attention_heads": 2,
            "patch_size": 16,
            "image_size": 32,
        },
        projection_dim=letters["F"],
        reduce_dim=letters["R"],
        decoder_num_attention_heads=2,
        decoder_intermediate_size=8,
        use_complex_transposed_convolution=True,
    )
    model = CLIPSegForImageSegmentation(config)
    pixel_values = np.zeros((letters["B"], letters["C"], letters["H"], letters["W"]), np.float32)
    input_ids = np.array([[18, 1, 2, 3, 19]] * letters["P"])
    with trace() as activations:
        output = model(input_ids=input_ids, pixel_values=pixel_values)
    arrays = {**activations, "input_ids": input_ids, "pixel_values": pixel_values}
    arrays["logits"] = output.logits
    assert len(rows()) >= 12
    for _, names, formula, _ in rows():
        for name in re.findall("`([^`]+)`", names):
            assert arrays[name].shape == shape(formula, letters), name


def test_the_table_has_the_official_numbers(drawing):
    letters = {"B": 1, "P": 1, "C": drawing.CHANNELS, "H": drawing.SIDE, "W": drawing.SIDE}
    letters |= {"h": drawing.GRID, "w": drawing.GRID, "T": drawing.TEXT_TOKENS}
    letters |= {"D": drawing.VISION, "E": drawing.TEXT, "F": drawing.PROJECTION}
    letters |= {"R": drawing.DECODER}
    for step, _, formula, official in rows():
        numbers = tuple(int(number) for number in official.split(" x "))
        assert numbers == shape(formula, letters), step
