"""The drawing of the architecture and README's table of shapes agree with the model."""

import importlib.util
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from clipseg_np import CLIPSegConfig, CLIPSegForImageSegmentation, trace

ROOT = Path(__file__).parents[2]
HEAD = "| step | name in the code | shape | official numbers |\n|---|---|---|---|\n"


@pytest.fixture(scope="module")
def drawing():
    """docs/draw_architecture.py as a module."""
    path = ROOT / "docs" / "draw_architecture.py"
    spec = importlib.util.spec_from_file_location("draw_architecture", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_the_committed_drawing_is_what_the_script_draws(drawing):
    assert (ROOT / "docs" / "architecture.svg").read_text("utf-8") == drawing.draw()


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


def test_the_drawing_can_be_read_without_seeing_it(drawing):
    root = ElementTree.fromstring(drawing.draw())
    texts = {element.get("id"): element.text for element in root}
    assert root.get("role") == "img" and root.get("aria-labelledby") == "title desc"
    assert texts["title"] == drawing.TITLE and len(texts["desc"]) > 300
    assert "prefers-color-scheme: dark" in drawing.STYLE


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
