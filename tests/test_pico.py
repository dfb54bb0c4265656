"""pico.py, CLIPSeg on one page, against the package: two implementations that share no code."""

import ast
import json
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from clipseg_np import CLIPSegConfig, CLIPSegForImageSegmentation, Segmenter, pico
from clipseg_np.golden.traces import Golden

ROOT = Path(__file__).parents[1]
PAGE = Path(pico.__file__)
GOLDEN = sorted((ROOT / "golden").glob("*.safetensors"))
GRIDS = ("the learned grid", "another square", "high", "wide")


def read(folder, dtype="float64"):
    """A checkpoint's arrays and its config.json, as pico.py takes them."""
    arrays = load_file(folder / "model.safetensors")
    w = {name: array.astype(dtype) for name, array in arrays.items()}
    return w, json.loads((folder / "config.json").read_text("utf-8"))


def pico_logits(w, config, inputs):
    """What pico.py makes of the arguments of the package's model."""
    prompts = inputs.get("conditional_embeddings")
    if "input_ids" in inputs:
        mask = inputs.get("attention_mask", np.ones_like(inputs["input_ids"]))
        prompts = pico.text_tower(inputs["input_ids"], mask, w, config)
    elif "conditional_pixel_values" in inputs:
        prompts = pico.vision_tower(inputs["conditional_pixel_values"], w, config)[1]
    return pico.clipseg(inputs["pixel_values"], prompts, w, config)


def assert_same(got, expected, tolerance=1e-12):
    assert got.shape == expected.shape and got.dtype == expected.dtype
    assert abs(got - expected).max() <= tolerance * abs(expected).max()


def save(config, folder, rng):
    """A checkpoint on disk in which no array is zeros or ones, biases and norms neither."""
    start = CLIPSegForImageSegmentation(config, dtype="float64").state_dict()
    w = {n: np.asarray(array + rng.normal(0, 0.1, array.shape)) for n, array in start.items()}
    config.save_pretrained(folder)
    save_file(w, folder / "model.safetensors")


def draw_config(rng, refined, activation):
    N, layers = int(rng.integers(1, 4)), int(rng.integers(2, 5))
    extract_layers = [int(i) for i in rng.choice(layers, rng.integers(1, layers + 1), False)]
    tower = {"hidden_act": activation, "intermediate_size": 20, "num_attention_heads": N}
    patch_size = int(rng.choice([4, 8, 16] if refined else [2, 5, 8]))
    return CLIPSegConfig(
        text_config={
            "vocab_size": 30,
            "hidden_size": 6 * N,
            "num_hidden_layers": 2,
            "max_position_embeddings": 9,
            "layer_norm_eps": 1e-3,
            "eos_token_id": int(rng.choice([2, 28])),  # 2: where the highest id, 29, stands
            **tower,
        },
        vision_config={
            "hidden_size": 8 * N,
            "num_hidden_layers": layers,
            "num_channels": int(rng.integers(1, 4)),
            "image_size": patch_size * int(rng.integers(2, 6)),
            "patch_size": patch_size,
            "layer_norm_eps": 1e-2,
            **tower,
        },
        projection_dim=11,
        reduce_dim=4 * N,
        extract_layers=extract_layers,
        conditional_layer=int(rng.integers(len(extract_layers))),
        decoder_num_attention_heads=2 * N,
        decoder_intermediate_size=20,
        use_complex_transposed_convolution=refined,
    )


def draw_inputs(rng, config, kind, grid):
    """One image with several prompts, or one for each prompt; texts padded or not."""
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    h, w = {
        "the learned grid": (side, side),
        "another square": (side + 1, side + 1),
        "high": (side + 3, 1),
        "wide": (side - 1, 2 * side),
    }[grid]
    P = int(rng.integers(2, 5))
    B = int(rng.choice([1, P]))
    shape = vision.num_channels, h * vision.patch_size, w * vision.patch_size
    inputs = {"pixel_values": rng.normal(size=(B, *shape))}
    if kind == "images":
        inputs["conditional_pixel_values"] = rng.normal(size=(P, *shape))
        return inputs
    T = int(rng.integers(4, 10))
    inputs["input_ids"] = rng.integers(3, 28, (P, T))
    inputs["input_ids"][:, 2:] = rng.integers(26, 30, (P, T - 2))  # several end tokens in a text
    inputs["input_ids"][:, -2:] = 28, 29
    if rng.random() < 0.7:
        inputs["attention_mask"] = rng.integers(0, 2, (P, T))  # whatever is padded, and all of it
        inputs["attention_mask"][0] = 0
    return inputs


CASES = list(product((False, True), ("quick_gelu", "gelu", "relu"), ("texts", "images"), GRIDS))


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda i: "-".join(map(str, CASES[i])))
def test_drawn_architectures(number, tmp_path):
    refined, activation, kind, grid = CASES[number]
    rng = np.random.default_rng([18, number])
    config = draw_config(rng, refined, activation)
    save(config, tmp_path, rng)
    model = CLIPSegForImageSegmentation.from_pretrained(
        tmp_path, backend="numpy-reference", dtype="float64"
    )
    inputs = draw_inputs(rng, config, kind, grid)
    w, config = read(tmp_path)
    assert_same(pico_logits(w, config, inputs), model(**inputs).logits)

    w = {name: array.astype("float32") for name, array in w.items()}
    inputs = {n: a.astype("float32") if a.dtype == float else a for n, a in inputs.items()}
    got = pico_logits(w, config, inputs)
    assert got.dtype == np.float32


def test_the_defaults_of_what_config_json_leaves_out(tmp_path):
    rng = np.random.default_rng(0)
    text = {"hidden_size": 16, "intermediate_size": 8}
    vision = {"hidden_size": 24, "intermediate_size": 8, "image_size": 64}
    config = CLIPSegConfig(
        text_config=text, vision_config=vision, reduce_dim=8, decoder_intermediate_size=8
    )
    save(config, tmp_path, rng)
    model = CLIPSegForImageSegmentation.from_pretrained(
        tmp_path, backend="numpy-reference", dtype="float64"
    )
    inputs = {"pixel_values": rng.normal(size=(1, 3, 64, 96))}
    inputs["input_ids"] = np.array([[49406, 320, 49407, 49407], [49406, 9, 8, 49407]])
    w, _ = read(tmp_path)
    bare = {"text_config": {}, "vision_config": {}}
    assert_same(pico_logits(w, bare, inputs), model(**inputs).logits)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_golden_files(path):
    golden = Golden(path)
    w, config = read(ROOT / "tests" / "data" / golden.about["checkpoint"])
    expected = golden["decoder.transposed_convolution"][:, 0]
    assert_same(pico_logits(w, config, golden.inputs), expected)


def test_the_demonstration_checkpoint_on_the_example():
    segmenter = Segmenter.from_pretrained(backend="numpy-reference", dtype="float64")
    image = Image.open(ROOT / "examples" / "shapes.png")
    processed = segmenter.processor(["a star", "red"], image, padding=True, return_tensors="np")
    inputs = {**processed, "pixel_values": processed.pixel_values.astype("float64")}
    w, config = read(ROOT / "weights" / "demo")
    assert_same(pico_logits(w, config, inputs), segmenter.model(**inputs).logits)


def test_it_is_one_page_of_numpy_and_math():
    page = PAGE.read_text("utf-8")
    assert len(page.splitlines()) <= 120
    assert max(map(len, page.splitlines())) <= 100
    nodes = list(ast.walk(ast.parse(page)))
    imports = [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert sorted(ast.unparse(node) for node in imports) == ["import math", "import numpy as np"]
    assert not any(isinstance(node, ast.ClassDef) for node in nodes)


def test_the_rest_of_the_package_does_not_use_it():
    for path in PAGE.parent.rglob("*.py"):
        assert not re.search(r"import .*\bpico\b|\bpico import", path.read_text("utf-8")), path


def run_demo(folder, *arguments):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "pico_demo.py"), *arguments],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PAGE.parents[1])},
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


def test_the_example_finds_what_the_segmenter_finds(tmp_path):
    """Pillow and image/resize.py both enlarge the logits bilinearly; they may round differently."""
    said = run_demo(tmp_path)
    assert said.count("\n") == 1 and "pico_mask.png" in said
    mask = np.asarray(Image.open(tmp_path / "pico_mask.png"))
    expected = Segmenter.from_pretrained()(ROOT / "examples" / "shapes.png", "a red thing").masks()
    assert mask.dtype == bool and expected.mean() > 0.1
    assert (mask != expected[0]).sum() <= 5


def test_the_example_writes_where_it_is_told(tmp_path):
    assert "red.png" in run_demo(tmp_path, "red.png")
    assert [path.name for path in tmp_path.iterdir()] == ["red.png"]
