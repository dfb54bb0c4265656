"""The command: its files and output, and exit code 2 with a reason for errors users can fix."""

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

import clipseg_np
from clipseg_np import Segmenter, __version__
from clipseg_np.cli import parser
from clipseg_np.cli.parser import main
from clipseg_np.segment.results import slug


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_segment_writes_a_mask_for_each_prompt_and_an_overlay(
    checkpoint, image, image_file, tmp_path, capsys
):
    folder = tmp_path / "out" / "deep"
    code = run(
        "segment", image_file, "red", "a/b", "--image-prompt", image_file,
        "--model", checkpoint, "--output", folder, "--threshold", 0.4,
    )  # fmt: skip
    assert code == 0
    names = ["scene_1_red.png", "scene_2_a-b.png", "scene_3_scene-png.png"]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "scene_overlay.png"]
    expected = Segmenter.from_pretrained(checkpoint)(image, ["red", "a/b", image]).masks(0.4)
    for name, mask in zip(names, expected):
        written = np.asarray(Image.open(folder / name))
        assert written.dtype == np.uint8
        assert np.array_equal(written, mask * np.uint8(255))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert f"area {100 * expected[0].mean():5.1f} %" in lines[0]
    assert all(name in line for name, line in zip([*names, "scene_overlay.png"], lines))


@pytest.mark.parametrize(
    "text, name",
    [
        ("A red circle!", "a-red-circle"),
        ("日本語", "日本語"),
        ("../..", "prompt"),
        ("x" * 99, "x" * 40),
    ],
)
def test_slug(text, name):
    assert slug(text) == name


def damaged(tmp_path, what: str):
    path = tmp_path / f"{what}.png"
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(whole)
    content = {"text": b"not an image", "empty": b"", "truncated": whole.read_bytes()[:2000]}[what]
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("what", ["text", "empty", "truncated"])
def test_damaged_images(checkpoint, tmp_path, capsys, what):
    path = damaged(tmp_path, what)
    assert_refused(capsys, tmp_path, path.name, "segment", path, "red", "--model", checkpoint)


def test_prompts_before_between_and_after_options(checkpoint, image_file, tmp_path):
    output = ["--output", tmp_path / "masks"]
    options = ["--model", checkpoint, *output]
    assert run("segment", image_file, "a", "--threshold", "0.4", "b", *options, "c") == 0
    names = sorted(path.name for path in (tmp_path / "masks").iterdir())
    assert names == ["scene_1_a.png", "scene_2_b.png", "scene_3_c.png", "scene_overlay.png"]
    for wrong in (["segment", image_file, "a", "--shreshold", "1"], ["info", "a"]):
        with pytest.raises(SystemExit, match="2"):
            run(*wrong)


@pytest.mark.parametrize("size", [(1, 9), (3, 9), (9, 1), (9, 3), (1, 3)])
def test_an_image_of_few_rows_is_not_taken_for_channels(checkpoint, tmp_path, capsys, size):
    height, width = size
    file, output = tmp_path / "images" / "thin.png", tmp_path / "masks"
    file.parent.mkdir()
    Image.new("RGB", (width, height), "white").save(file)
    for command in ("segment", file), ("batch", file.parent, "--workers", "1"):
        options = ["--image-prompt", file, "--prompt-mask", file, "--output", output / command[0]]
        assert run(*command, "red", *options, "--model", checkpoint) == 0
    assert "warning" not in capsys.readouterr().err
    masks = [Image.open(mask) for mask in output.rglob("thin_[12]_*.png")]
    assert len(masks) == 4 and all(mask.size == (width, height) for mask in masks)
    trace = ["--model", checkpoint, "--output", tmp_path / "golden.safetensors"]
    assert run("trace", file, "red", *trace) == 0
    assert "warning" not in capsys.readouterr().err


def test_decompression_bomb(checkpoint, tmp_path, capsys, monkeypatch, image_file):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert_refused(
        capsys, tmp_path, "scene.png", "segment", image_file, "red", "--model", checkpoint
    )


def assert_refused(capsys, tmp_path, message: str, *arguments: object) -> None:
    """Exit code 2, one line that says why, and no file written."""
    output = tmp_path / "masks"
    assert run(*arguments, *(["--output", output] if arguments[0] == "segment" else [])) == 2
    error = capsys.readouterr().err
    assert error.startswith("clipseg-np: error: ") and error.count("\n") == 1, error
    assert message in error
    assert not output.exists()


def test_refusals(checkpoint, tmp_path, capsys, image_file):
    model = ["--model", checkpoint]
    missing, empty = tmp_path / "missing.png", tmp_path / "empty"
    empty.mkdir()
    for message, *arguments in [
        ("missing.png", "segment", missing, "red", *model),
        (str(empty), "segment", empty, "red", *model),
        ("no prompt", "segment", image_file, *model),
        ("prompt 1 is empty", "segment", image_file, "", *model),
        ("threshold is 2.0", "segment", image_file, "red", "--threshold", 2, *model),
        ("missing.png", "segment", image_file, "--image-prompt", missing, *model),
        ("config.json is missing", "segment", image_file, "red", "--model", empty),
        ("There is no folder", "segment", image_file, "red", "--model", tmp_path / "absent"),
        ("name is empty", "segment", image_file, "red", "--model", ""),
        ("is a file", "segment", image_file, "red", "--model", image_file),
        ("not a hub id", "download", "no-slash"),
    ]:
        assert_refused(capsys, tmp_path, message, *arguments)


def test_output_that_is_a_file(checkpoint, capsys, image_file):
    taken = image_file.with_name("taken")
    taken.write_text("anything")
    for output, message in ((taken, "is a file"), (image_file, "is there already")):
        before = output.read_bytes()
        assert run("segment", image_file, "red", "--model", checkpoint, "--output", output) == 2
        assert message in capsys.readouterr().err and output.read_bytes() == before


def test_warnings_are_one_line_and_do_not_stop_the_work(checkpoint, tmp_path, capsys, image_file):
    long = "x" * 30
    code = run("segment", image_file, long, "--model", checkpoint, "--output", tmp_path / "masks")
    assert code == 0
    error = capsys.readouterr().err
    assert error.startswith("clipseg-np: warning: the prompt") and error.count("\n") == 1


@pytest.mark.parametrize("error", [MemoryError(), MemoryError("give a smaller image")])
def test_too_little_memory_comes_with_advice(error, capsys, monkeypatch):
    monkeypatch.setattr(parser, "run_info", Mock(side_effect=error))
    assert run("info") == 2
    assert "not enough memory: give a smaller image\n" in capsys.readouterr().err


def test_version_and_unknown_backend(capsys):
    with pytest.raises(SystemExit, match="0"):
        run("--version")
    assert capsys.readouterr().out == f"clipseg-np {__version__}\n"
    with pytest.raises(SystemExit, match="2"):
        run("info", "--backend", "abacus")
    assert "numpy-reference" in capsys.readouterr().err


def test_info_names_the_checkpoint_and_its_shape(checkpoint, capsys):
    assert run("info", "--model", checkpoint) == 0
    printed = capsys.readouterr().out
    assert str(checkpoint) in printed
    assert "reads vision layers 0, 2, plain head" in printed


def test_as_a_module_from_another_folder(checkpoint, tmp_path, image_file):
    root = Path(clipseg_np.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "clipseg_np", "segment", image_file, "red", "--model", checkpoint],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "masks" / "scene_1_red.png").is_file()
