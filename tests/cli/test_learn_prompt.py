"""`learn-prompt` writes a prompt that `segment` takes, and nothing over another file unasked."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipseg_np import LearnedPrompt, Segmenter
from clipseg_np.cli import learn, terminal
from clipseg_np.cli.parser import main
from clipseg_np.learn import learn_prompt, read_data


@pytest.fixture
def command(checkpoint, tmp_path, monkeypatch):
    """Run learn-prompt on 4 images of noise; some steps are enough to see that it works."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for number in range(4):
        pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / "images" / f"{number}.png")
        Image.fromarray(np.tri(32, 32, number, bool)).save(tmp_path / f"data/masks/{number}.png")
    monkeypatch.setattr(learn, "learn_prompt", lambda *a, **b: learn_prompt(*a, steps=20, **b))
    monkeypatch.chdir(tmp_path)
    options = ["--model", str(checkpoint), "--cache", "cache", "--threads", "1"]
    return lambda *more: main(["learn-prompt", "data", *options, *more])


def test_it_writes_a_prompt_for_segment(command, checkpoint, capsys, tmp_path):
    assert command("--prompt", "a wedge|wedges", "--output", "new/wedge.safetensors") == 0
    prompt = LearnedPrompt.load("new/wedge.safetensors")
    said = capsys.readouterr()
    made = prompt.made
    ious = f"{made['start_iou']:.3f} ({made['start']!r}) -> {made['held_out_iou']:.3f}"
    line = f"IoU on held-out images: {ious}, step {made['steps']}  new/wedge.safetensors\n"
    assert said.out == line and not said.err
    assert (prompt.name, made["prompt"], made["images"]) == ("wedge", "a wedge", 4)
    arguments = ["segment", "data/images/0.png", "@wedge", "--model", str(checkpoint)]
    assert main([*arguments, "--prompt-file", "new/wedge.safetensors"]) == 0
    assert len(list((tmp_path / "cache").iterdir())) == 4 * 8


def test_options(command, checkpoint):
    chosen = ["--start", "red", "--start", "x", "--seed", "3"]
    assert command("--prompt", "a wedge", "--output", "a.safetensors", *chosen) == 0
    segmenter = Segmenter.from_pretrained(checkpoint, threads=1)
    data = read_data("data", "a wedge")
    options = {"starts": ["red", "x"], "seed": 3, "steps": 20, "cache": "cache"}
    expected = learn_prompt(segmenter, data, **options)
    assert (LearnedPrompt.load("a.safetensors").vector == expected.vector).all()


def test_another_file_is_replaced_when_asked_alone(command, capsys, tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_text("mine")
    arguments = "--prompt", "a wedge", "--output", "a.safetensors"
    assert command(*arguments) == 2
    assert "a.safetensors is there already; replace it with --overwrite" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert command(*arguments, "--overwrite") == 0
    assert LearnedPrompt.load(file).name == "a"


def test_a_file_that_was_written_meanwhile_is_left(command, capsys, tmp_path, monkeypatch):
    learn_too = learn.learn_prompt

    def beside(*given, **options):
        (tmp_path / "a.safetensors").write_text("another run's")
        return learn_too(*given, **options)

    monkeypatch.setattr(learn, "learn_prompt", beside)
    assert command("--prompt", "a wedge", "--output", "a.safetensors") == 2
    assert "a.safetensors is there already" in capsys.readouterr().err
    assert (tmp_path / "a.safetensors").read_text() == "another run's"


@pytest.mark.parametrize("name", ["my heart", "a(b", "what!", 'a"'])
def test_a_name_that_no_text_can_mention_is_refused_first(name, command, capsys, tmp_path):
    assert command("--prompt", "a wedge", "--output", f"{name}.safetensors") == 2
    error = capsys.readouterr().err
    assert f"no text could mention the prompt as '@{name}'; expected no spaces, quotes" in error
    assert not (tmp_path / "cache").exists()


def test_twelve_bits(command, capsys):
    for path in Path("data/images").iterdir():
        with Image.open(path) as image:
            numbers = np.asarray(image.convert("L")).astype(np.uint16) * 16
        Image.fromarray(numbers).save(path)
    arguments = "--prompt", "a wedge", "--output", "a.safetensors"
    assert command(*arguments, "--white-level", "4095") == 0
    assert "dark" not in capsys.readouterr().err
    assert command(*arguments, "--overwrite") == 0
    error = capsys.readouterr().err
    assert "is dark" in error and "give it as white_level (--white-level)" in error


@pytest.mark.parametrize("output", ["folder", "a.npz", "a.txt", "a"])
def test_names_that_cannot_be_written_are_refused_first(output, command, capsys, tmp_path):
    (tmp_path / "folder").mkdir()
    assert command("--prompt", "a wedge", "--output", output) == 2
    assert "expected the name of a .safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_data_are_checked_first(command, capsys, tmp_path):
    assert command("--output", "a.safetensors") == 2
    assert "--prompt" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists() and not (tmp_path / "a.safetensors").exists()


def test_progress_is_said_every_few_seconds(command, capsys, monkeypatch):
    monkeypatch.setattr(terminal, "PROGRESS_SECONDS", -1)
    assert command("--prompt", "a wedge", "--output", "a.safetensors") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("clipseg-np: progress: encoding images: 1 of 4, 0:")
    assert lines[-1] == "clipseg-np: progress: learning: 20 of 20, 0:00 left"
