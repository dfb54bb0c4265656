"""Golden files: writing, reading back, and no file if the model fails."""

import itertools
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from clipseg_np import CLIPSegForImageSegmentation, CLIPSegProcessor, InputError, trace
from clipseg_np.cli.parser import main
from clipseg_np.golden.compare import compare, report
from clipseg_np.golden.traces import Golden, assert_matches, golden_file, numbered, write_golden
from clipseg_np.nn.layers import LayerNorm

from ..helpers.checkpoints import PLAIN


@pytest.fixture(scope="module")
def model():
    return CLIPSegForImageSegmentation.from_pretrained(PLAIN, dtype="float64")


@pytest.fixture(scope="module")
def inputs():
    x = np.random.default_rng(0).normal(size=(2, 1, 32, 32))
    return {"pixel_values": x[:1], "conditional_pixel_values": x[1:]}


@pytest.fixture(scope="module")
def file(model, inputs, tmp_path_factory):
    path = tmp_path_factory.mktemp("golden") / "new" / "golden.safetensors"
    rough = CLIPSegForImageSegmentation.from_pretrained(PLAIN)
    write_golden(path, model, inputs, about={"made": "for a test"}, in_float32=rough)
    return path


def test_every_array_of_every_call_in_the_order_of_execution(file, model, inputs):
    with trace() as activations:
        model(**inputs)
    golden = Golden(file)
    names = [name for name in golden if not name.startswith("input.")]
    arrays = [name for name, value in activations.items() if name and hasattr(value, "dtype")]
    assert [name for name in names if not name.endswith("@2")] == arrays
    twice = "clip.visual_projection"
    first, second = activations.all[twice]
    np.testing.assert_array_equal(golden[twice], first)
    np.testing.assert_array_equal(golden[twice + "@2"], second)
    assert names.index(twice) < names.index(twice + "@2")
    assert golden[twice].dtype == np.float64


def test_any_reader_of_safetensors_reads_it(file):
    golden, arrays = Golden(file), load_file(file)
    assert set(arrays) == set(golden) and len(golden) == len(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(golden[name], array)


def test_it_describes_the_run(file, inputs):
    about = Golden(file).about
    assert {"clipseg_np", "numpy", "python", "dtype", "config", "sha256", "made"} <= set(about)
    assert about["config"]["reduce_dim"] == 16 and about["dtype"] == "float64"
    assert set(about["sha256"]) == set(inputs)
    errors = about["float32_error"]
    assert set(errors) == {name for name in Golden(file) if not name.startswith("input.")}
    assert 1e-9 < max(errors.values()) < 1e-5


def test_its_inputs_give_the_same_trace(file, model):
    golden = Golden(file)
    with trace() as activations:
        model(**golden.inputs)
    assert_matches(activations, golden)


def test_a_pattern_picks_layers(model, inputs, tmp_path):
    path = tmp_path / "decoder.safetensors"
    write_golden(path, model, inputs, "decoder.*")
    names = [name for name in Golden(path) if not name.startswith("input.")]
    assert names and all(name.startswith("decoder.") for name in names)
    with pytest.raises(InputError, match="no layer is called like 'decodr"):
        write_golden(tmp_path / "none.safetensors", model, inputs, "decodr.*")
    assert [entry.name for entry in tmp_path.iterdir()] == ["decoder.safetensors"]


def test_nothing_is_left_where_the_model_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), golden_file(tmp_path / "x.safetensors", {}) as writer:
        writer.add("x", np.ones(3))
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "int64", "int32", "uint8", "bool"]
)
def test_every_type_and_shape_comes_back(dtype, tmp_path):
    arrays = [np.arange(6).reshape(2, 3), np.zeros((0, 4)), np.array(3), np.arange(8)[::2]]
    with golden_file(tmp_path / "x.safetensors", {}) as writer:
        for number, array in enumerate(arrays):
            writer.add(str(number), array.astype(dtype))
    golden = Golden(tmp_path / "x.safetensors")
    for number, array in enumerate(arrays):
        stored = golden[str(number)]
        assert stored.dtype == dtype and stored.shape == array.shape
        np.testing.assert_array_equal(stored, array.astype(dtype))


def test_a_ports_file_may_be_an_npz_or_a_plain_safetensors(tmp_path):
    arrays = {"b": np.ones(2), "a": np.zeros(2)}
    np.savez(tmp_path / "port.npz", **arrays)
    save_file(arrays, tmp_path / "port.safetensors")
    for name in ("port.npz", "port.safetensors"):
        port = Golden(tmp_path / name)
        assert set(port) == {"a", "b"} and port.about == {}
        np.testing.assert_array_equal(port["b"], arrays["b"])
        with pytest.raises(KeyError):
            port["c"]


def test_a_file_of_0_1_is_read_and_compares(file, tmp_path, capsys):
    """0.1 named the image "picture" in what the file says about itself, and knew no "image"."""
    golden = Golden(file)
    about = golden.about | {"clipseg_np": "0.1.0", "picture": "shapes.png"}
    metadata = {"about": json.dumps(about), "order": json.dumps(golden.names)}
    path = tmp_path / "old.safetensors"
    save_file(dict(golden), path, metadata=metadata)
    old = Golden(path)
    assert old.about == about and "image" not in old.about and list(old) == list(golden)
    assert_matches(old, golden)
    assert_matches(golden, old)
    assert main(["compare", str(path), str(file)]) == main(["compare", str(file), str(path)]) == 0
    assert capsys.readouterr().out.count(f"All {len(golden)} agree.") == 2


@pytest.mark.parametrize("name", ["x.npz", "x.safetensors"])
def test_a_file_of_another_kind_is_refused(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        Golden(tmp_path / name)
    (tmp_path / name).write_bytes(b"not what it is called")
    with pytest.raises(InputError, match="neither a whole safetensors file nor an .npz"):
        Golden(tmp_path / name)


def test_assert_matches_takes_a_file_and_reports(file, model, inputs):
    with trace() as activations:
        model(**inputs)
    assert_matches(activations, file)  # a trace holds no inputs
    with trace() as activations:
        model(**{name: 2 * array for name, array in inputs.items()})
    with pytest.raises(AssertionError, match=r"patch_embedding is the first .* It is 2 times") as e:
        assert_matches(activations, file)
    assert "not there yet" not in str(e.value)
    wrong = {"input.pixel_values": 2 * inputs["pixel_values"], **activations}
    with pytest.raises(AssertionError, match=r"input.pixel_values is the first .* It is 2 times"):
        assert_matches(wrong, file)
    activations.all.clear()
    with pytest.raises(InputError, match="expected names such as .*, got none"):
        assert_matches(activations, file)


def test_a_port_in_the_middle_matches_in_the_layers_that_it_has(file, model, inputs):
    with trace() as activations:
        model(**inputs)
    begun = dict(itertools.islice(numbered(activations).items(), 5))
    assert_matches(begun, file)
    begun["decoder.film_mul"] = -activations["decoder.film_mul"]
    with pytest.raises(AssertionError, match="film_mul is the first of 1 .*") as caught:
        assert_matches(begun, file)
    assert "Before it, 5 agree(s), last clip.vision_model" in str(caught.value)
    assert " before it are not there yet, last decoder." in str(caught.value)


def test_a_wrong_epsilon_is_named_at_its_layer_in_each_float_type(monkeypatch):
    """In float64 this layer is the first to exceed the tolerance, in float32 a later one is."""
    demo = Path(__file__).parents[2] / "weights" / "demo"
    inputs = CLIPSegProcessor.from_pretrained(demo)("a star", Image.open("examples/shapes.png"))
    load = partial(CLIPSegForImageSegmentation.from_pretrained, demo, backend="numpy-reference")

    def run(dtype):
        with trace() as activations:
            load(dtype=dtype)(**inputs)
        return numbered(activations)

    golden = run("float64")
    wrong = lambda self, x: self.ops.layer_norm(x, self.weight, self.bias, 1e-6)
    monkeypatch.setattr(LayerNorm, "forward", wrong)
    norm = "clip.vision_model.pre_layrnorm"
    text = report(compare(golden, run("float64")), table=False)
    assert text.startswith(f"{norm} is the first") and "jumps" not in text
    text = report(compare(golden, run("float32")), table=False)
    assert text.startswith("clip.vision_model.encoder.layers.")
    assert re.search(rf"jumps before, at {norm}: from [01]\.\d% of the tolerance to 6\d", text)


def test_from_the_command_line(tmp_path, capsys):
    image, golden = "examples/shapes.png", tmp_path / "golden.safetensors"
    assert main(["trace", image, "a star", "red", "--output", str(golden)]) == 0
    assert "arrays" in capsys.readouterr().out
    assert Golden(golden).about["prompts"] == ["a star", "red"]
    assert Golden(golden).about["image"] == "shapes.png"
    port = tmp_path / "port.safetensors"
    backend = ["--dtype", "float32", "--backend", "numpy-reference"]
    assert main(["trace", image, "a star", "red", "--output", str(port), *backend]) == 0
    assert main(["compare", str(golden), str(port)]) == 0
    assert "agree" in capsys.readouterr().out
    arrays = load_file(port)
    wrong = "decoder.film_mul"
    arrays[wrong] = -arrays[wrong]
    save_file(arrays, port)
    assert main(["compare", str(golden), str(port)]) == 1
    assert capsys.readouterr().out.startswith(f"{wrong} is the first of 1 that deviate(s)")
    assert main(["compare", str(golden), str(port), "--tolerance", "3"]) == 0
    assert main(["compare", str(golden), str(port), "--tolerance", "-1"]) == 2
    assert main(["compare", str(golden), str(tmp_path / "none.npz")]) == 2
    assert main(["trace", image, "red", "--output", str(golden), "--names", "x*"]) == 2
    assert json.loads(json.dumps(Golden(golden).about)) == Golden(golden).about  # untouched, whole


def test_a_prompt_may_stand_alone_behind_two_dashes(tmp_path, capsys):
    command = ["trace", "examples/shapes.png", "--names", "decoder.layers.0"]
    for number, words in enumerate((["a star"], ["--", "a star"])):
        assert main([*command, "--output", str(tmp_path / f"{number}.safetensors"), *words]) == 0
    files = [(tmp_path / f"{number}.safetensors").read_bytes() for number in range(2)]
    assert files[0] == files[1]
    assert main([*command, "--output", str(tmp_path / "2.safetensors")]) == 2
    assert "there is no prompt: give at least one text" in capsys.readouterr().err


COMMITTED = sorted((Path(__file__).parents[2] / "golden").glob("*.safetensors"))


def test_the_committed_files_are_two_architectures_with_three_kinds_of_prompt():
    names = [f"{n}_{k}" for n in ("plain", "refined") for k in ("embeddings", "images", "texts")]
    assert [path.stem for path in COMMITTED] == names
    for path in COMMITTED:
        golden = Golden(path)
        assert golden.about["dtype"] == "float64" and golden.about["float32_error"]
        assert golden["decoder.film_mul"].dtype == np.float64


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_the_committed_files_are_what_both_backends_return(path, dtype):
    golden = Golden(path)
    folder = Path(__file__).parents[1] / "data" / golden.about["checkpoint"]
    for backend in ("numpy", "numpy-reference"):
        load = CLIPSegForImageSegmentation.from_pretrained
        with trace() as activations:
            load(folder, dtype=dtype, backend=backend)(**golden.inputs)
        assert_matches(activations, golden)
