"""Images on the command line: what is white, several images in one file, kept transparency."""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipseg_np import Segmenter, masks
from clipseg_np.cli.parser import main
from clipseg_np.golden.traces import Golden
from clipseg_np.image import load_image


@pytest.fixture
def deep_file(tmp_path, image):
    """12 bits in a TIFF of 16."""
    path = tmp_path / "images" / "deep.tif"
    path.parent.mkdir()
    Image.fromarray(image[..., 0].astype(np.uint16) * 16).save(path)
    return path


@pytest.fixture
def run(checkpoint, tmp_path, capfd):
    """Run a command, return its warnings; results go to the folder "out", which is empty before."""

    def run(command: str, *arguments: object, output: object = tmp_path / "out") -> list[str]:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        words = [command, *arguments, "--model", checkpoint, "--output", output]
        assert main([str(word) for word in words]) == 0
        lines = capfd.readouterr().err.splitlines()
        assert all(line.startswith("clipseg-np: warning: ") for line in lines)
        return lines

    return run


def opened(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_white_can_be_said(run, deep_file, image, checkpoint, tmp_path):
    soft = ("red", "--write", "soft", "--image-prompt", deep_file)
    warning = run("segment", deep_file, *soft)[0]
    assert "deep.tif is dark: its brightest number is 40" in warning
    assert "65535 counts as white" in warning and "--white-level" in warning
    grey = np.repeat(load_image(deep_file, white_level=4080)[..., :1], 3, axis=2)
    np.testing.assert_array_equal(grey, np.repeat(image[..., :1], 3, axis=2))
    expected = Segmenter.from_pretrained(checkpoint)(image[..., 0], ["red", image[..., 0]])
    assert run("segment", deep_file, *soft, "--white-level", 4080) == []
    names = ["deep_1_red_soft.png", "deep_2_deep-tif_soft.png"]
    written = [opened(tmp_path / "out" / name) for name in names]
    np.testing.assert_array_equal(written, np.rint(expected.probabilities * 255))
    batch = ("batch", deep_file.parent, *soft, "--white-level", 4080, "--workers", 1)
    assert run(*batch) == []
    written = [opened(path) for path in sorted((tmp_path / "out").rglob("deep.tif/*_soft.png"))]
    np.testing.assert_allclose(written, 255 * expected.probabilities, atol=1)
    grey_file = deep_file.with_name("grey.png")
    Image.fromarray(image[..., 0]).save(grey_file)
    traces = []
    for file, *options in ((deep_file, "--white-level", 4080), (grey_file,)):
        golden = tmp_path / f"{file.stem}.safetensors"
        names = "clip.vision_model.embeddings"
        run("trace", file, "red", "--names", names, *options, output=golden)
        traces.append(Golden(golden)[names])
    np.testing.assert_array_equal(*traces)


def test_another_white_is_another_job_in_a_batch(run, deep_file, tmp_path):
    def key(*options: object) -> str:
        run("batch", deep_file.parent, "red", "--workers", 1, *options)
        return json.loads((tmp_path / "out" / "deep.tif" / "record.json").read_text())["key"]

    keys = [key(), key("--white-level", 4095), key("--white-level", 4080), key()]
    assert len(set(keys)) == 3 and keys[0] == keys[3]


def test_white_has_to_be_a_number_above_0(checkpoint, deep_file, capsys):
    command = ["segment", str(deep_file), "red", "--model", str(checkpoint), "--white-level", "0"]
    assert main(command) == 2
    assert "white_level is 0.0; expected a number above 0" in capsys.readouterr().err


def test_several_images_in_standard_input_are_warned_of(run, image, monkeypatch):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    for data, words in (
        (2 * file.getvalue(), ["standard input holds several images; the first is used"]),
        (file.getvalue(), []),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        warnings = run("segment", "-", "red")
        assert len(warnings) == len(words)
        assert all(word in warning for word, warning in zip(words, warnings))


def test_frames_are_warned_of_by_a_batch_s_workers(run, image, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    frames = [Image.fromarray(image), Image.fromarray(image[::-1])]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    (warning,) = run("batch", folder, "red", "--workers", 1)
    assert warning.endswith("moving.gif has 2 frames; the first is used.")


def test_a_cutout_keeps_the_image_s_own_alpha(run, image, checkpoint, tmp_path, monkeypatch):
    """Its colors are those of the file, not mixed with white."""
    alpha = np.linspace(0, 255, 60).astype(np.uint8)
    rgba = np.dstack([image, np.broadcast_to(alpha, (40, 60))])
    folder = tmp_path / "images"
    folder.mkdir()
    file = folder / "logo.png"
    Image.fromarray(rgba).save(file)
    result = Segmenter.from_pretrained(checkpoint)(file, "red")
    mask = result.masks(result.probabilities.mean())[0]
    expected = masks.cut_out(load_image(file, keep_alpha=True), mask)
    np.testing.assert_array_equal(expected[..., :3], image)
    np.testing.assert_array_equal(expected[..., 3], alpha * mask)
    threshold = ("--threshold", result.probabilities.mean(), "--write", "cutout")
    for command in (("segment", file), ("batch", folder, "--workers", 1)):
        run(*command, "red", *threshold)
        (written,) = (tmp_path / "out").rglob("logo_1_red_cutout.png")
        np.testing.assert_array_equal(opened(written), expected)
    for kind, pixels in (("cutout", expected), ("highlight", None)):
        out = io.TextIOWrapper(io.BytesIO())
        monkeypatch.setattr(sys, "stdout", out)
        run("segment", file, "red", *threshold[:2], "--write", kind, output="-")
        written = np.asarray(Image.open(out.buffer))
        assert written.shape[2] == (4 if kind == "cutout" else 3)
        assert pixels is None or np.array_equal(written, pixels)
