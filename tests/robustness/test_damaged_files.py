"""Damaged, truncated, inconsistent or missing weight files: an error that names the file."""

import json

import numpy as np
import pytest

from clipseg_np import CLIPSegForImageSegmentation
from clipseg_np.errors import InputError

from ..helpers.checkpoints import PLAIN, checkpoint, sharded, stored_arrays, write_index, write_raw


@pytest.fixture
def arrays():
    return stored_arrays(PLAIN)


@pytest.fixture
def folder(arrays, tmp_path):
    return checkpoint(tmp_path, arrays)


def refused(folder, message, error=InputError):
    with pytest.raises(error, match=message) as caught:
        CLIPSegForImageSegmentation.from_pretrained(folder)
    return str(caught.value)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 5000, -4, -1])
def test_a_file_that_is_cut_off(kept, folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert "fetch it again" in refused(folder, "model.safetensors is not a whole safetensors file")


def test_a_file_with_something_behind_it(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0" * 4)
    refused(folder, "model.safetensors is not a whole safetensors file")


def entry(start, end, shape=(2,), stored_type="F32"):
    return {"dtype": stored_type, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(0, 8), "b": entry(8, 64)},  # beyond the end
        {"a": entry(0, 8), "b": entry(4, 12)},  # overlapping
        {"a": entry(0, 8), "b": entry(12, 16, shape=(1,))},  # a gap
        {"a": entry(0, 16, shape=(3,))},  # more bytes than the shape takes
        {"a": entry(0, 16, shape=(2**62, 8))},  # a product that overflows
        {"a": entry(8, 0)},  # backwards
        {"a": entry(0, 16, stored_type="F99")},
        {"a": {"dtype": "F32"}},
        ["a"],
    ],
)
def test_a_header_that_lies(header, folder):
    write_raw(folder / "model.safetensors", json.dumps(header).encode(), bytes(16))
    refused(folder, "model.safetensors is not a whole safetensors file")


@pytest.mark.parametrize("length", [17, 10**6, 10**12, 2**63, 2**64 - 1])
def test_a_header_that_is_said_to_be_longer_than_the_file(length, folder):
    write_raw(folder / "model.safetensors", b'{"a":{}}', bytes(8), length)
    refused(folder, "model.safetensors is not a whole safetensors file")


@pytest.mark.parametrize("header", [b"", b"{", b"\xff\xfe", b"null", b"[[[["])
def test_a_header_that_is_no_json(header, folder):
    write_raw(folder / "model.safetensors", header, b"")
    refused(folder, "model.safetensors is not a whole safetensors file")


def test_a_type_that_is_not_supported(folder):
    header = {"a": entry(0, 16, stored_type="C64")}
    write_raw(folder / "model.safetensors", json.dumps(header).encode(), bytes(16))
    refused(folder, "a is stored as C64, which is not supported|not a whole safetensors file")


def test_a_folder_without_weights_says_what_it_holds(folder):
    (folder / "model.safetensors").unlink()
    message = refused(folder, "There is no checkpoint in", FileNotFoundError)
    assert "expected model.safetensors" in message and "config.json" in message


@pytest.mark.parametrize("name", ["pytorch_model.bin", "rd64-uni.pth"])
def test_weights_in_pytorchs_own_format_get_advice(name, folder):
    (folder / "model.safetensors").rename(folder / name)
    assert "with clipseg-np convert" in refused(folder, name, FileNotFoundError)


@pytest.fixture
def shards(arrays, tmp_path):
    return sharded(tmp_path / "sharded", arrays)


def weight_map(folder):
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


def test_an_index_that_names_an_absent_shard(shards):
    (shards / "model-00002-of-00003.safetensors").unlink()
    refused(shards, "model-00002-of-00003.safetensors is missing", FileNotFoundError)


def test_an_index_that_names_an_absent_key(shards):
    write_index(shards, weight_map(shards) | {"absent": "model-00001-of-00003.safetensors"})
    refused(shards, "model-00001-of-00003.safetensors lacks absent")


def test_a_shard_with_a_key_that_the_index_does_not_name(shards):
    place = weight_map(shards)
    key = next(iter(place))
    del place[key]
    write_index(shards, place)
    refused(shards, f"holds {key}, which model.safetensors.index.json places in no file")


def test_a_shard_that_is_cut_off_is_named(shards):
    path = shards / "model-00003-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refused(shards, "model-00003-of-00003.safetensors is not a whole")


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_an_index_that_leaves_the_folder(shard, shards):
    write_index(shards, weight_map(shards) | {"x": shard})
    refused(shards, "expected files beside it")


@pytest.mark.parametrize("place", [None, ["a"], {"a": 1}])
def test_an_index_without_a_map(place, shards):
    write_index(shards, place)
    refused(shards, "has no weight_map")


def test_an_index_that_is_no_json(shards):
    (shards / "model.safetensors.index.json").write_text("{")
    refused(shards, "index.json is not valid JSON")


def test_a_sound_file_is_not_refused(folder):
    """The tests above would all pass if nothing could be loaded."""
    model = CLIPSegForImageSegmentation.from_pretrained(folder)
    assert np.isfinite(model.decoder.film_mul.weight).all()
