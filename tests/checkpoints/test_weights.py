"""Loading and saving: the ways in which a checkpoint may be stored, and may be wrong."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from clipseg_np import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegModel,
    CLIPSegTextModel,
    CLIPSegVisionModel,
)
from clipseg_np.checkpoints.weights import save_weights
from clipseg_np.convert import convert
from clipseg_np.errors import InputError

from ..helpers.archives import write_state_dict
from ..helpers.checkpoints import (
    PLAIN,
    REFINED,
    checkpoint,
    sharded,
    stored_arrays,
    write_file,
    write_raw,
)

KEY = "decoder.film_mul.weight"
SHAPE = (16, 20)


@pytest.fixture
def arrays():
    return stored_arrays(PLAIN)


def load(folder, **options):
    return CLIPSegForImageSegmentation.from_pretrained(folder, **options)


def assert_holds(model, arrays, dtype="float32"):
    """The model's arrays are exactly these."""
    held = model.state_dict()
    assert set(held) == set(arrays)
    for name, array in held.items():
        assert array.dtype == dtype, name
        np.testing.assert_array_equal(array, arrays[name].astype(dtype), err_msg=name)


# How numbers may be stored


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stored", ["float16", "float32", "float64"])
def test_stored_types(stored, dtype, arrays, tmp_path):
    arrays = {name: array.astype(stored) for name, array in arrays.items()}
    assert_holds(load(checkpoint(tmp_path, arrays), dtype=dtype), arrays, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bfloat16_is_the_upper_half_of_a_float32(dtype, arrays, tmp_path):
    # A little-endian float32 is two uint16, the lower half first.
    pairs = {
        name: array.reshape(-1).view(np.uint16).reshape(-1, 2) for name, array in arrays.items()
    }
    halves = {name: pair[:, 1].reshape(arrays[name].shape) for name, pair in pairs.items()}
    checkpoint(tmp_path, arrays)
    write_file(tmp_path / "model.safetensors", halves, dict.fromkeys(halves, "BF16"))
    expected = {
        name: (pair * np.uint16([0, 1])).reshape(-1).view(np.float32).reshape(arrays[name].shape)
        for name, pair in pairs.items()
    }
    assert expected["clip.logit_scale"].shape == ()  # NumPy 1.26 treats it otherwise
    assert_holds(load(tmp_path, dtype=dtype), expected, dtype)
    largest = max(np.abs(expected[name] - arrays[name]).max() for name in arrays)
    assert 0 < largest < 0.05  # near the float32 numbers, and not they


def test_one_file_may_hold_several_types(arrays, tmp_path):
    arrays[KEY] = arrays[KEY].astype(np.float16)
    assert_holds(load(checkpoint(tmp_path, arrays)), arrays)


def test_a_header_of_any_length(arrays, tmp_path):
    """Numbers may begin at any byte of the file: the format asks for no alignment."""
    for spaces in range(4):
        checkpoint(tmp_path, arrays)
        path = tmp_path / "model.safetensors"
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        write_raw(path, content[8 : 8 + length] + b" " * spaces, content[8 + length :])
        assert_holds(load(tmp_path), arrays)


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from clipseg_np import CLIPSegForImageSegmentation
from clipseg_np.convert.torch_archive import read_archive
models = [CLIPSegForImageSegmentation.from_pretrained(folder) for folder in sys.argv[2:]]
tensors = read_archive(sys.argv[1])
print(*[len(model.state_dict()) for model in models], len(tensors))
"""


def test_a_file_is_mapped_once(tmp_path):
    """All layers of the official architecture, narrow, in one file and in many shards, where a
    process may open 64 files.
    """
    pytest.importorskip("resource")
    narrow = {"hidden_size": 4, "num_attention_heads": 1, "intermediate_size": 4}
    config = CLIPSegConfig(narrow, narrow, projection_dim=4, reduce_dim=4)
    model = CLIPSegForImageSegmentation(config)
    model.save_pretrained(tmp_path)
    write_state_dict(tmp_path / "a.pth", model.state_dict())
    assert len(convert(tmp_path, tmp_path / "shards", shard_size=2e-4).files) > 64
    given = [sys.executable, "-c", LIMITED, tmp_path / "a.pth", tmp_path, tmp_path / "shards"]
    count = len(model.state_dict())
    assert count > 400
    assert subprocess.check_output(given, text=True) == f"{count} {count} {count}\n"


def test_shards(arrays, tmp_path):
    assert_holds(load(sharded(tmp_path, arrays)), arrays)


def test_one_file_is_preferred_to_shards(arrays, tmp_path):
    """As in transformers; saving into a folder of shards therefore replaces them."""
    sharded(tmp_path, {name: 0 * array for name, array in arrays.items()})
    load(PLAIN).save_pretrained(tmp_path)
    assert_holds(load(tmp_path), arrays)


def test_P20_position_ids_buffers_are_left_over(arrays, tmp_path):
    ids = {
        "clip.text_model.embeddings.position_ids": np.arange(7)[None],
        "clip.vision_model.embeddings.position_ids": np.arange(5)[None],
    }
    assert_holds(load(checkpoint(tmp_path, ids | arrays)), arrays)
    for tower in (CLIPSegTextModel, CLIPSegVisionModel):
        tower.from_pretrained(tmp_path)


# Where the keys of a part may begin


def under(arrays, start):
    return {n.removeprefix(start): a for n, a in arrays.items() if n.startswith(start)}


PARTS = [
    (CLIPSegTextModel, "clip.text_model."),
    (CLIPSegVisionModel, "clip.vision_model."),
    (CLIPSegModel, "clip."),
]


@pytest.mark.parametrize("part, start", PARTS)
def test_P27_a_part_is_found_in_a_whole_checkpoint(part, start, arrays):
    assert_holds(part.from_pretrained(PLAIN), under(arrays, start))


@pytest.mark.parametrize("part, start", PARTS[:2])
def test_P27_a_tower_is_found_in_a_checkpoint_of_both(part, start, arrays, tmp_path):
    checkpoint(tmp_path, under(arrays, "clip."))
    assert_holds(part.from_pretrained(tmp_path), under(arrays, start))


@pytest.mark.parametrize("part, start", PARTS)
@pytest.mark.parametrize("new", [True, False])
def test_P27_a_part_on_its_own(part, start, new, arrays, tmp_path):
    """Before transformers 5.6 a tower's own checkpoint kept "text_model." or "vision_model."."""
    own = under(arrays, start)
    older = start.removeprefix("clip.")
    checkpoint(tmp_path, own if new else {older + name: array for name, array in own.items()})
    assert_holds(part.from_pretrained(tmp_path), own)


@pytest.mark.parametrize("part, start", PARTS)
def test_P27_left_over_keys_of_a_part_are_seen_at_every_nesting(part, start, arrays, tmp_path):
    extra = np.zeros(3, np.float32)
    for folder, stored, key in [
        ("whole", arrays, start + "extra.weight"),
        ("own", under(arrays, start), "extra.weight"),
    ]:
        with pytest.raises(InputError, match="extra.weight"):
            part.from_pretrained(checkpoint(tmp_path / folder, stored | {key: extra}))


def test_P27_a_part_of_a_model_saves_its_own_keys(arrays, tmp_path):
    load(PLAIN).clip.text_model.save_pretrained(tmp_path)
    assert set(stored_arrays(tmp_path)) == set(under(arrays, "clip.text_model."))
    assert_holds(CLIPSegTextModel.from_pretrained(tmp_path), under(arrays, "clip.text_model."))


# Keys that do not fit


def test_P28_a_missing_key_is_named_with_what_was_expected_and_the_nearest(arrays, tmp_path):
    arrays["decoder.film_mull.weight"] = arrays.pop(KEY)
    with pytest.raises(InputError) as caught:
        load(checkpoint(tmp_path, arrays))
    said = str(caught.value)
    assert f"lacks {KEY}; expected an array of shape {SHAPE}" in said
    assert "nearest key there is decoder.film_mull.weight" in said


def test_P28_a_misshapen_key_is_named_with_both_shapes(arrays, tmp_path):
    arrays[KEY] = arrays[KEY].T
    with pytest.raises(InputError) as caught:
        load(checkpoint(tmp_path, arrays))
    assert f"{KEY} has shape {SHAPE[::-1]}; the config makes it {SHAPE}" in str(caught.value)


def test_P28_left_over_keys_are_named(arrays, tmp_path):
    extra = {f"decoder.reduce.{i}": np.zeros(2, np.float32) for i in range(5)}
    with pytest.raises(InputError) as caught:
        load(checkpoint(tmp_path, arrays | extra))
    assert "holds 5 key(s)" in str(caught.value)
    assert "decoder.reduce.0, decoder.reduce.1, decoder.reduce.2, ..." in str(caught.value)


@pytest.mark.parametrize(
    "weights, config, named",
    [(REFINED, PLAIN, "token_embedding|position_embedding|shape"), (PLAIN, REFINED, "shape")],
)
def test_P28_another_architectures_weights_are_refused(weights, config, named, tmp_path):
    with pytest.raises(InputError, match=named):
        load(checkpoint(tmp_path, stored_arrays(weights), like=config))


def test_P28_refined_weights_do_not_pass_for_plain_ones(tmp_path):
    """The original loader takes them and computes nonsense."""
    values = json.loads((REFINED / "config.json").read_text())
    checkpoint(tmp_path, stored_arrays(REFINED), like=REFINED)
    values["use_complex_transposed_convolution"] = False
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="decoder.transposed_convolution.weight"):
        load(tmp_path)


def test_P11_the_misspelt_key_is_the_right_one(arrays, tmp_path):
    arrays["clip.vision_model.pre_layernorm.weight"] = arrays.pop(
        "clip.vision_model.pre_layrnorm.weight"
    )
    with pytest.raises(InputError, match="lacks clip.vision_model.pre_layrnorm.weight"):
        load(checkpoint(tmp_path, arrays))


@pytest.mark.parametrize(
    "key",
    ["clip.text_projection.bias", "clip.visual_projection.bias"]
    + ["clip.vision_model.embeddings.patch_embedding.bias"],
)
def test_P11_projections_and_patches_have_no_bias(key, arrays, tmp_path):
    with pytest.raises(InputError, match=key):
        load(checkpoint(tmp_path, arrays | {key: np.zeros(20, np.float32)}))


def test_whole_numbers_for_weights_are_refused(arrays, tmp_path):
    arrays[KEY] = arrays[KEY].astype(np.int64)
    with pytest.raises(InputError, match=f"{KEY} is stored as I64; expected one of"):
        load(checkpoint(tmp_path, arrays))


def test_a_vocabulary_that_does_not_fit_the_config(arrays, tmp_path):
    name = "clip.text_model.embeddings.token_embedding.weight"
    arrays[name] = arrays[name][:-1]
    with pytest.raises(
        InputError, match=rf"{name} has shape \(23, 16\); the config makes it \(24, 16\)"
    ):
        load(checkpoint(tmp_path, arrays))


# Saving


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("source", [PLAIN, REFINED])
def test_a_round_trip_keeps_every_bit(source, dtype, tmp_path):
    model = load(source, dtype=dtype)
    model.save_pretrained(tmp_path)
    stored = stored_arrays(tmp_path)
    assert {a.dtype.name for a in stored.values()} == {dtype}
    again = load(tmp_path, dtype=dtype)
    assert_holds(again, {n: a.astype(dtype) for n, a in stored_arrays(source).items()}, dtype)
    config = model.config.to_dict() | {"dtype": dtype}
    assert again.config == CLIPSegConfig.from_dict(config)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_numbers_of_either_byte_order_are_saved(tmp_path):
    numbers = np.linspace(-3, 7, 11, dtype=np.float32)
    path, tensors = tmp_path / "a.safetensors", {"<": numbers, ">": numbers.astype(">f4")}
    save_weights(path, tensors)
    for name, array in load_file(path).items():
        np.testing.assert_array_equal(array, numbers, err_msg=name)


def test_saving_over_the_folder_that_is_loaded(arrays, tmp_path):
    """The model's arrays are views of the mapped file, which must outlive its replacement."""
    model = load(checkpoint(tmp_path, arrays))
    model.save_pretrained(tmp_path)
    assert_holds(model, arrays)
    assert_holds(load(tmp_path), arrays)


def test_a_failed_save_leaves_all_as_it_was(arrays, tmp_path, monkeypatch):
    checkpoint(tmp_path, arrays)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def half(path, *_):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("clipseg_np.checkpoints.weights.write_tensors", half)
    with pytest.raises(OSError, match="no space left"):
        load(REFINED).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(OSError, match="no space left"):
        load(REFINED).save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()
