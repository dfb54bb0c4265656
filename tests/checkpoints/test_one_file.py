"""One .safetensors file as a checkpoint, and the files that stand where a whole one should be."""

import shutil

import numpy as np
import pytest

from clipseg_np import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor, Segmenter
from clipseg_np.checkpoints.locate import checkpoint_folder, checkpoint_path
from clipseg_np.cli.parser import main
from clipseg_np.errors import InputError
from clipseg_np.segment.batch import Job, job_mark

from ..helpers.checkpoints import PLAIN, sharded, stored_arrays
from ..helpers.checkpoints import checkpoint as write_folder

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 603100000\n"
)


def load(path):
    return CLIPSegForImageSegmentation.from_pretrained(path)


@pytest.fixture
def two(checkpoint, tmp_path):
    """A folder with two weights files, neither of the usual name, and all others beside them."""
    folder = tmp_path / "two"
    shutil.copytree(checkpoint, folder)
    (folder / "model.safetensors").rename(folder / "first.safetensors")
    model = CLIPSegForImageSegmentation(CLIPSegConfig.from_pretrained(folder), seed=8)
    model.save_pretrained(tmp_path / "other")
    shutil.move(tmp_path / "other" / "model.safetensors", folder / "second.safetensors")
    return folder


def test_one_file_is_a_checkpoint(checkpoint, two, image):
    expected = Segmenter.from_pretrained(checkpoint)(image, "red").probabilities
    for name in (two / "first.safetensors", str(two / "first.safetensors")):
        assert np.array_equal(Segmenter.from_pretrained(name)(image, "red").probabilities, expected)
    second = Segmenter.from_pretrained(two / "second.safetensors")(image, "red").probabilities
    assert np.abs(second - expected).max() > 1e-3
    assert CLIPSegConfig.from_pretrained(two / "first.safetensors") == load(checkpoint).config
    assert len(CLIPSegProcessor.from_pretrained(two / "first.safetensors")("red").input_ids) == 3


def test_what_a_path_is(two):
    assert checkpoint_path(two / "first.safetensors") == two / "first.safetensors"
    assert checkpoint_folder(two / "first.safetensors") == two
    assert checkpoint_path(two) == checkpoint_folder(two) == two


def test_on_the_command_line(two, image_file, tmp_path, capsys):
    first = str(two / "first.safetensors")
    command = ["segment", str(image_file), "red", "--output", str(tmp_path / "masks")]
    assert main([*command, "--model", first]) == 0
    assert main(["info", "--model", first]) == 0
    printed = capsys.readouterr().out
    size = (two / "first.safetensors").stat().st_size
    assert f"checkpoint   {first}" in printed and f"{size / 1e6:.1f} MB on disk" in printed


def test_a_batch_knows_which_file_it_was_made_with(two):
    def mark():
        return [
            job_mark(Job(("red",), "out", str(two / f"{n}.safetensors")))
            for n in ("first", "second")
        ]

    first, second = mark()
    assert first != second
    (two / "second.safetensors").write_bytes(b"changed")
    again = mark()
    assert again[0] == first and again[1] != second


def test_one_file_without_a_config(tmp_path):
    shutil.copy(PLAIN / "model.safetensors", tmp_path / "alone.safetensors")
    with pytest.raises(
        FileNotFoundError, match="config.json is missing: beside the one file alone"
    ):
        load(tmp_path / "alone.safetensors")


def test_one_shard_of_several(tmp_path):
    folder = sharded(tmp_path, stored_arrays(PLAIN))
    with pytest.raises(InputError, match="one of several shards: give their folder"):
        load(folder / "model-00001-of-00003.safetensors")


def test_one_file_that_is_cut_off(tmp_path):
    path = write_folder(tmp_path, stored_arrays(PLAIN)) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="not a whole safetensors file.*cut off: fetch it again"):
        load(path)


def test_a_pointer_of_git_lfs(tmp_path):
    folder = write_folder(tmp_path, stored_arrays(PLAIN))
    (folder / "model.safetensors").write_text(POINTER)
    with pytest.raises(InputError, match=r"model.safetensors .*git-LFS pointer.*git lfs pull"):
        load(folder)
    (folder / "config.json").write_text(POINTER)
    with pytest.raises(InputError, match=r"config.json .*git-LFS pointer.*git lfs pull"):
        load(folder)


@pytest.mark.parametrize(
    "place",
    [
        "snapshots/abc/model.safetensors.incomplete",
        "snapshots/abc/.cache/huggingface/download/x.incomplete",
        "blobs/4d7a.incomplete",
    ],
)
def test_a_download_that_was_broken_off(place, tmp_path):
    """As huggingface_hub leaves it: in a folder of one's own, new and old, and in its cache."""
    folder = tmp_path / "snapshots" / "abc"
    folder.mkdir(parents=True)
    shutil.copy(PLAIN / "config.json", folder)
    with pytest.raises(FileNotFoundError) as before:
        load(folder)
    assert "broken off" not in str(before.value)
    part = tmp_path / place
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(b"half")
    with pytest.raises(FileNotFoundError, match=f"broken off .*{part.name}.*fetch it again"):
        load(folder)


def test_a_shard_whose_download_was_broken_off(tmp_path):
    folder = sharded(tmp_path, stored_arrays(PLAIN))
    (folder / "model-00002-of-00003.safetensors").rename(folder / "x.incomplete")
    with pytest.raises(FileNotFoundError, match="00002-of-00003.* is missing.*broken off"):
        load(folder)


def test_an_unfinished_file_that_is_named(tmp_path):
    path = tmp_path / "model.safetensors.incomplete"
    path.write_bytes(b"half")
    with pytest.raises(InputError, match="is a file; expected .* unfinished download"):
        load(path)
