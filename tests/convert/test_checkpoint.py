"""Converted checkpoints: float types, shards, copied files; written whole or not at all."""

import json
import re
import shutil
import tracemalloc

import numpy as np
import pytest
from safetensors import safe_open

from clipseg_np import CLIPSegForImageSegmentation, CLIPSegModel, CLIPSegTextModel, Segmenter
from clipseg_np.checkpoints.weights import Raw, stored_tensors
from clipseg_np.cli.parser import main
from clipseg_np.convert.checkpoint import convert, stored_as, write_checkpoint
from clipseg_np.errors import InputError

from ..helpers.archives import (
    DICTIONARY,
    contents,
    described,
    state_dict,
    write_archive,
    write_state_dict,
)
from ..helpers.checkpoints import PLAIN, clip_checkpoint, sharded, stored_arrays, write_file
from ..helpers.checkpoints import checkpoint as write_folder

HALF = {"float16": "F16", "bfloat16": "BF16"}
KEY = "decoder.film_mul.weight"


def weights_of(folder) -> dict[str, np.ndarray]:
    return CLIPSegForImageSegmentation.from_pretrained(folder).state_dict()


def assert_same(folder, arrays) -> None:
    found = weights_of(folder)
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def rounded(array, dtype):
    """float32 to the nearest number of a type with fewer bits, by arithmetic.

    bfloat16 has 8 bits of significand, with a float32's sign and exponent.
    """
    if dtype == "float16":
        return array.astype(np.float16).astype(np.float32)
    _, exponent = np.frexp(array.astype(np.float64))
    unit = np.ldexp(1.0, np.maximum(exponent - 8, -133))
    return (np.rint(array / unit) * unit).astype(np.float32)


# Float types


def bfloat16(values, source="F32") -> np.ndarray:
    types = {"F32": np.float32, "F16": np.float16, "F64": np.float64}
    return stored_as(Raw(np.array(values, types[source]), source), "BF16")


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (0x3F800000, 0x3F80),  # 1
        (0x3F807FFF, 0x3F80),  # below the middle
        (0x3F808000, 0x3F80),  # the middle, to even
        (0x3F808001, 0x3F81),
        (0x3F818000, 0x3F82),  # the middle, to even, which is above
        (0x3FFFFFFF, 0x4000),  # carries into the exponent
        (0xBF808001, 0xBF81),
        (0x00000001, 0x0000),  # the smallest number
        (0x00008001, 0x0001),
        (0x80000000, 0x8000),  # -0
        (0x7F800000, 0x7F80),  # infinite
        (0xFF800000, 0xFF80),
        (0x7F7F7FFF, 0x7F7F),  # the largest that does not become infinite
    ],
)
def test_bfloat16_is_rounded_to_nearest_even(bits, expected):
    assert (
        stored_as(Raw(np.array([bits], np.uint32).view(np.float32), "F32"), "BF16")[0] == expected
    )


NANS = [0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7F80FFFF]


@pytest.mark.parametrize("bits", NANS)
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_a_nan_keeps_its_sign(bits, dtype):
    stored = Raw(np.array([bits], np.uint32).view(np.float32), "F32")
    found = Raw(stored_as(stored, dtype), dtype).floats()
    assert np.isnan(found[0]) and np.signbit(found[0]) == bool(bits >> 31)


def test_bfloat16_of_other_types():
    assert bfloat16([1, -3.14], "F16").tolist() == [0x3F80, 0xC049]
    assert bfloat16([1, -3.14], "F64").tolist() == [0x3F80, 0xC049]


def test_every_bfloat16_and_every_float16_comes_back():
    halves = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    for dtype, raw in [("BF16", Raw(halves, "BF16")), ("F16", Raw(halves.view(np.float16), "F16"))]:
        wide = Raw(stored_as(raw, "F32"), "F32")
        again = Raw(stored_as(wide, dtype), dtype)
        np.testing.assert_array_equal(again.floats(), raw.floats())


@pytest.mark.parametrize(
    ("value", "source", "dtype", "name"),
    [
        (65520, "F32", "F16", "float16"),
        (-1e30, "F64", "F16", "float16"),
        (3.4e38, "F32", "BF16", "bfloat16"),
        (1e300, "F64", "F32", "float32"),
        (1e300, "F64", "BF16", "bfloat16"),
    ],
)
def test_a_number_that_would_become_infinite(value, source, dtype, name):
    types = {"F32": np.float32, "F64": np.float64}
    raw = Raw(np.array([0, np.inf, value], types[source]), source)
    with pytest.raises(InputError, match=f"a.weight holds .* too large for {name}"):
        stored_as(raw, dtype, "a.weight")
    raw.array[2] = np.inf  # that it was before
    stored_as(raw, dtype, "a.weight")


def test_the_largest_number_that_float16_holds():
    raw = Raw(np.array([65504, 65519], np.float32), "F32")
    assert stored_as(raw, "F16").tolist() == [65504, 65504]


# Whole checkpoints


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shard_size", [None, 0.01])
def test_a_checkpoint_in_another_type(dtype, shard_size, checkpoint, tmp_path):
    before = weights_of(checkpoint)
    written = convert(checkpoint, tmp_path / "new", dtype, shard_size)
    expected = before if dtype == "float32" else {n: rounded(a, dtype) for n, a in before.items()}
    assert_same(tmp_path / "new", expected)
    types = {tensor.stored_type for tensor in stored_tensors(tmp_path / "new").values()}
    assert types == {{"float32": "F32", **HALF}[dtype]}
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert set(written.files) < names and written.tensors == len(before)
    assert (len(written.files) > 3) == (shard_size is not None)
    assert ("model.safetensors.index.json" in names) == (shard_size is not None)
    other = {path.name for path in checkpoint.iterdir()} - {"config.json", "model.safetensors"}
    assert len(other) == 4 and other < names
    for name in other:
        assert (tmp_path / "new" / name).read_bytes() == (checkpoint / name).read_bytes()
    Segmenter.from_pretrained(tmp_path / "new")


def test_without_a_type_each_tensor_keeps_its_own(tmp_path):
    arrays = stored_arrays(PLAIN)
    arrays[KEY] = arrays[KEY].astype(np.float16)
    arrays["decoder.film_add.weight"] = arrays["decoder.film_add.weight"].astype(np.float64)
    source = write_folder(tmp_path / "source", arrays)
    convert(source, tmp_path / "new", shard_size=0.01)
    assert_same(
        tmp_path / "new", {name: array.astype(np.float32) for name, array in arrays.items()}
    )
    tensors = stored_tensors(tmp_path / "new")
    assert tensors[KEY].stored_type == "F16"
    assert tensors["decoder.film_add.weight"].stored_type == "F64"
    assert (tmp_path / "new" / "config.json").read_text() == json.dumps(
        json.loads((source / "config.json").read_text()), indent=2, sort_keys=True
    ) + "\n"


def test_shards_and_one_file_again(tmp_path):
    """Every source that can be loaded: a folder of shards, a file of one's own name."""
    arrays = stored_arrays(PLAIN)
    convert(sharded(tmp_path / "shards", arrays), tmp_path / "one")
    assert_same(tmp_path / "one", arrays)
    (tmp_path / "one" / "model.safetensors").rename(tmp_path / "one" / "own.safetensors")
    convert(tmp_path / "one" / "own.safetensors", tmp_path / "again")
    assert_same(tmp_path / "again", arrays)


def test_shards_are_as_on_the_hub(checkpoint, tmp_path):
    written = convert(checkpoint, tmp_path / "new", shard_size=0.01)
    count = len(written.files)
    assert written.files[0] == f"model-00001-of-{count:05}.safetensors"
    assert written.files[-1] == f"model-{count:05}-of-{count:05}.safetensors"
    index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
    total = 0
    for file in written.files:
        with safe_open(tmp_path / "new" / file, framework="numpy") as shard:
            assert shard.metadata() == {"format": "pt"}
            names = set(shard.keys())
            size = sum(shard.get_tensor(name).nbytes for name in names)
        assert names == {name for name, place in index["weight_map"].items() if place == file}
        assert size <= 10_000 or len(names) == 1
        total += size
    assert index["metadata"] == {"total_size": total} and written.size == total


def test_a_tensor_larger_than_a_shard_has_a_file_of_its_own(checkpoint, tmp_path):
    written = convert(checkpoint, tmp_path / "new", shard_size=1e-6)
    assert len(written.files) == written.tensors
    assert_same(tmp_path / "new", weights_of(checkpoint))


def test_one_shard_needs_no_index(checkpoint, tmp_path):
    assert convert(checkpoint, tmp_path / "new", shard_size=1000).files == ("model.safetensors",)
    assert not (tmp_path / "new" / "model.safetensors.index.json").exists()


def test_numbers_lie_at_multiples_of_their_size(tmp_path):
    types = (np.float16, np.float64, np.float32)
    arrays = {n: a.astype(types[i % 3]) for i, (n, a) in enumerate(stored_arrays(PLAIN).items())}
    convert(write_folder(tmp_path / "a", arrays), tmp_path / "new")
    for tensor in stored_tensors(tmp_path / "new").values():
        assert tensor.array.flags.aligned


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"dtype": "float16"}),
        ({"dtype": "float32"}, {"dtype": "float16"}),
        ({"torch_dtype": "float32"}, {"dtype": "float16", "torch_dtype": "float16"}),
        (
            {"text_config": {"dtype": "float32", "x": 1}, "vision_config": {"torch_dtype": None}},
            {
                "text_config": {"dtype": "float16", "x": 1},
                "vision_config": {"torch_dtype": None},
                "dtype": "float16",
            },
        ),
    ],
)
def test_the_config_says_how_weights_are_stored(before, after, tmp_path):
    write_checkpoint(tmp_path, before, {"a": Raw(np.ones(3, np.float32), "F32")}, "float16", None)
    assert json.loads((tmp_path / "config.json").read_text()) == after


def test_weights_that_transformers_wrote_with_pytorch(tmp_path):
    """A folder with pytorch_model.bin; the buffers that old ones have are left out."""
    arrays = stored_arrays(PLAIN)
    ids = {"clip.text_model.embeddings.position_ids": np.arange(7)[None]}
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(PLAIN / "config.json", source)
    write_state_dict(source / "pytorch_model.bin", ids | arrays)
    with pytest.raises(
        FileNotFoundError, match=f"convert {source / 'pytorch_model.bin'} NEW_FOLDER$"
    ):
        weights_of(source)
    assert convert(source, tmp_path / "new").tensors == len(arrays)
    assert_same(tmp_path / "new", arrays)


PREFIXES = ["_orig_mod.", "module.", "model.", "net.model._orig_mod.", "_forward_module.module."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("inner", ["", "_orig_mod.", "_fsdp_wrapped_module.module."])
def test_names_of_pytorchs_wrappers(prefix, inner, tmp_path):
    """In a folder, and in a training's file; modules inside may be wrapped, too."""
    arrays = stored_arrays(PLAIN)
    names = {name: prefix + name.replace(".self_attn.", f".self_attn.{inner}") for name in arrays}
    wrapped = {names[name]: array for name, array in arrays.items()}
    source = write_folder(tmp_path / "source", wrapped)
    with pytest.raises(InputError, match="`clipseg-np convert` takes the names that PyTorch's"):
        weights_of(source)
    convert(source, tmp_path / "new")
    assert_same(tmp_path / "new", arrays)
    (source / "model.safetensors").unlink()
    assert main(["convert", str(training_file(source, wrapped)), str(tmp_path / "of_torch")]) == 0
    assert_same(tmp_path / "of_torch", arrays)


def training_file(folder, arrays, name="best.pt"):
    """As torch.save({"epoch": 3, "model_state_dict": model.state_dict()}, path) writes it."""
    tensors, members = described(arrays)
    state = DICTIONARY + contents(tensors)
    program = state_dict({"epoch": b"K\x03", "model_state_dict": state})
    return write_archive(folder / name, program, members)


@pytest.mark.parametrize("name", ["best.pt", "last.ckpt", "weights.pth", "a.bin"])
def test_the_file_of_a_training(name, checkpoint, tmp_path, capsys):
    """Its config and its tokenizer lie beside it."""
    arrays = stored_arrays(checkpoint)
    with pytest.raises(FileNotFoundError, match="config.json is missing: beside the one file"):
        convert(training_file(tmp_path, arrays, name), tmp_path / "new")
    source = shutil.copytree(checkpoint, tmp_path / "source")
    (source / "model.safetensors").unlink()
    path = training_file(source, arrays, name)
    with pytest.raises(FileNotFoundError, match=f"clipseg-np convert {path} NEW_FOLDER$"):
        weights_of(source)
    assert main(["convert", str(path), str(tmp_path / "new"), "--dtype", "float32"]) == 0
    assert_same(tmp_path / "new", arrays)
    Segmenter.from_pretrained(tmp_path / "new")


def test_tensors_beside_the_model_are_left_out_and_named(tmp_path):
    arrays = stored_arrays(PLAIN)
    wrapped = {f"module.{name}": array for name, array in arrays.items()}
    source = write_folder(tmp_path / "source", {**wrapped, "n_averaged": np.array(5)})
    with pytest.warns(UserWarning, match=r"no part of the model module.\*: n_averaged"):
        convert(source, tmp_path / "new")
    assert_same(tmp_path / "new", arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: {**a, **{f"ema.{n}": x for n, x in a.items()}},
            "there are 2 models in one file",
        ),
        (lambda a: {**a, "criterion.weight": np.ones(2)}, "no place for: criterion.weight"),
        (lambda a: {n: x for n, x in a.items() if n != KEY}, f"lacks {KEY}"),
        (lambda a: {f"a.{n}.b": x for n, x in a.items()}, "lacks clip."),
    ],
)
def test_tensors_that_no_model_takes_are_not_written(change, message, tmp_path, capsys):
    source = write_folder(tmp_path / "source", change(stored_arrays(PLAIN)))
    assert main(["convert", str(source), str(tmp_path / "new")]) == 2
    assert message in capsys.readouterr().err
    assert entries(tmp_path) == ["source"]


def test_checkpoints_of_clip_and_of_a_tower(tmp_path):
    for name, model in [("clip", CLIPSegModel), ("text", CLIPSegTextModel)]:
        part = model.from_pretrained(PLAIN)
        part.save_pretrained(tmp_path / name)
        convert(tmp_path / name, tmp_path / "new" / name)
        found = model.from_pretrained(tmp_path / "new" / name).state_dict()
        assert set(found) == set(part.state_dict())
    clip_checkpoint(tmp_path / "openai")
    convert(tmp_path / "openai", tmp_path / "new" / "openai")
    CLIPSegModel.from_pretrained(tmp_path / "new" / "openai")


def test_tensors_are_written_without_copies_of_all(tmp_path):
    """64 MB of numbers in four tensors: a block is 2**20 of them."""
    arrays = {name: np.ones((2**11, 2**11), np.float32) for name in "abcd"}
    write_file(tmp_path / "model.safetensors", arrays)
    del arrays
    tensors = stored_tensors(tmp_path)
    tracemalloc.start()
    write_checkpoint(tmp_path, {}, tensors, "bfloat16", shard_size=20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 * 2**20


# Whole or not at all


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_failure_leaves_nothing(tmp_path):
    arrays = stored_arrays(PLAIN)
    arrays[KEY][1, 2] = 1e6
    source = write_folder(tmp_path / "source", arrays)
    with pytest.raises(InputError, match=rf"{KEY} holds 1e\+06, which is too large for float16"):
        convert(source, tmp_path / "out" / "new", "float16")
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_there(checkpoint, tmp_path):
    (tmp_path / "empty").mkdir()
    convert(checkpoint, tmp_path / "empty")
    assert_same(tmp_path / "empty", weights_of(checkpoint))
    before = entries(tmp_path / "empty")
    (tmp_path / "file").write_text("")
    for taken in (tmp_path / "empty", tmp_path / "file", checkpoint):
        with pytest.raises(
            InputError, match="is there already; expected the name of a new or empty"
        ):
            convert(PLAIN, taken)
    assert entries(tmp_path / "empty") == before and entries(tmp_path) == ["empty", "file"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float64"}, "dtype is 'float64'; expected one of float32, float16, bfloat16"),
        ({"shard_size": 0}, "the shard size is 0 MB; expected more than 0"),
        ({"shard_size": float("nan")}, "the shard size is nan MB"),
    ],
)
def test_options_that_cannot_be(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        convert(PLAIN, tmp_path / "new", **options)
    assert entries(tmp_path) == []


def test_weights_that_are_whole_numbers(tmp_path):
    arrays = stored_arrays(PLAIN)
    arrays[KEY] = arrays[KEY].astype(np.int64)
    with pytest.raises(InputError, match=f"{KEY} is stored as I64; expected one of"):
        convert(write_folder(tmp_path / "source", arrays), tmp_path / "new")
    assert entries(tmp_path) == ["source"]


# The command


def test_the_command(checkpoint, tmp_path, capsys):
    command = ["convert", str(checkpoint), str(tmp_path / "new")]
    assert main([*command, "--dtype", "float16", "--shard-size", "0.01"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^\d+ tensors, 0\.0 MB, \d shards  ", printed)
    assert str(tmp_path / "new") in printed
    Segmenter.from_pretrained(tmp_path / "new")
    assert main(command) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["convert", str(checkpoint), str(tmp_path / "b"), "--clip", "ViT-B-16.pt"]) == 2
    assert "are for the authors' decoder, a .pth file" in capsys.readouterr().err
