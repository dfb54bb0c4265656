"""`fine-tune` writes a checkpoint or a decoder, which `segment` and `batch` take by --decoder."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipseg_np import Segmenter
from clipseg_np.checkpoints.decoder_file import save_decoder
from clipseg_np.cli import learn
from clipseg_np.cli.parser import main
from clipseg_np.learn.fine_tune import FineTuned

rng = np.random.default_rng(0)


@pytest.fixture
def run(checkpoint, tmp_path, monkeypatch, capsys):
    """A function that runs the command in a folder with data: its code, output and errors."""
    monkeypatch.chdir(tmp_path)
    for name in (f"{number}.png" for number in range(5)):
        mask = np.zeros((32, 32), np.uint8)
        mask[rng.integers(4, 20) :, rng.integers(4, 20) :] = 255
        mask[30] = 0
        image = np.repeat(mask[..., None] // 2, 3, axis=2) + rng.integers(0, 60, (32, 32, 3))
        for place, values in {"images": image, "masks": mask}.items():
            Path("data", place).mkdir(exist_ok=True, parents=True)
            Image.fromarray(values.astype(np.uint8)).save(Path("data", place, name))

    def run(command: str, *arguments: object) -> tuple[int, str, str]:
        words = [command, "--model", str(checkpoint), *map(str, arguments)]
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


TUNE = ("fine-tune", "data", "--prompt", "a corner", "--steps", "3", "--batch-size", "4")
TUNE += ("--cache", "cache", "--threads", "1", "--output")


def files(folder: str) -> dict[str, bytes]:
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_checkpoint_is_written_and_can_be_used(run):
    code, out, err = run(*TUNE, "own")
    assert code == 0 and "error" not in err
    assert out.startswith("IoU on held-out images: new 0.") and out.endswith("  own\n")
    assert {"config.json", "model.safetensors", "vocab.json", "learning.jsonl"} < set(files("own"))
    assert main(["segment", "data/images/0.png", "a corner", "--model", "own"]) == 0


def test_without_a_test_of_the_old_nothing_is_said_of_it(run, monkeypatch):
    result = FineTuned(Path("own"), {"new_iou": 0.1, "old_iou": None}, {"new_iou": 0.5})
    monkeypatch.setattr(learn, "fine_tune", lambda *_, **__: result)
    assert run(*TUNE, "own")[1] == "IoU on held-out images: new 0.1 -> 0.5  own\n"


def test_the_options_reach_the_run(run, monkeypatch):
    given = {}

    def fine_tune(segmenter, data, output, **options):
        given.update(options, output=output, data=data)
        raise KeyboardInterrupt(130)

    monkeypatch.setattr(learn, "fine_tune", fine_tune)
    options = (
        "--keep",
        "data.jsonl",
        "--white-level",
        4095,
        "--rate",
        "0.5",
        "--pos-weight",
        "3",
        "--focal",
        "--seed",
        7,
    )
    row = {"image": "data/images/1.png", "mask": "data/masks/1.png", "prompt": "a thing"}
    Path("data.jsonl").write_text(json.dumps(row))
    code, _, err = run(*TUNE, "own", *options, "--decoder-only")
    assert code == 130 and "the same command goes on" in err
    keep, data = given.pop("keep"), given.pop("data")
    assert [e.prompts for e in keep.examples] == [("a thing",)]
    assert {e.prompts for e in data.examples} == {("a corner",)}
    assert keep.white_level == data.white_level == 4095
    assert given.pop("progress") is learn.progress
    expected = {"rate": 0.5, "pos_weight": 3, "focal": True, "seed": 7, "decoder_only": True}
    expected |= {"steps": 3, "batch_size": 4, "cache": "cache", "output": "own"}
    assert given == expected


@pytest.fixture
def decoder(run, checkpoint):
    """A decoder that marks everything."""
    segmenter = Segmenter.from_pretrained(checkpoint)
    arrays = segmenter.model.state_dict()
    bias = "decoder.transposed_convolution.bias"
    save_decoder("all.safetensors", arrays | {bias: arrays[bias] + np.float32(100)})
    return "all.safetensors"


def test_a_decoder_alone_goes_on_top_of_a_checkpoint(run, decoder):
    code, out, _ = run(*TUNE, "own", "--decoder-only")
    assert code == 0 and out.endswith("own/decoder.safetensors\n")
    assert set(files("own")) - {"learning.png"} == {"decoder.safetensors", "learning.jsonl"}
    assert (
        run("segment", "data/images/0.png", "red", "--decoder", "own/decoder.safetensors")[0] == 0
    )
    assert run("segment", "data/images/0.png", "red", "--decoder", decoder, "-o", "all.png")[0] == 0
    assert (np.asarray(Image.open("all.png")) == 255).all()


def test_a_batch_with_a_decoder_is_another_job(run, decoder, checkpoint):
    assert run("batch", "data/images", "red", "--workers", "1")[0] == 0
    old = files("masks")
    code, _, err = run("batch", "data/images", "red", "--workers", "1", "--decoder", decoder)
    assert code == 2 and "holds results of other options or weights" in err
    assert files("masks") == old
    options = ("--decoder", decoder, "--overwrite")
    assert run("batch", "data/images", "red", "--workers", "1", *options)[0] == 0
    assert (np.asarray(Image.open("masks/0.png/0_1_red.png")) == 255).all()
    save_decoder(decoder, Segmenter.from_pretrained(checkpoint).model.state_dict())
    code, _, err = run("batch", "data/images", "red", "--workers", "1", "--decoder", decoder)
    assert code == 2 and "holds results of other options or weights" in err


@pytest.mark.parametrize("command", [("segment", "data/images/0.png"), ("batch", "data/images")])
def test_a_decoder_that_does_not_fit_is_an_error_in_one_line(run, command):
    save_decoder("other.safetensors", Segmenter.from_pretrained().model.state_dict())
    for name, problem in {
        "other": "holds no decoder of this checkpoint",
        "none": "missing",
    }.items():
        code, _, err = run(*command, "red", "--decoder", f"{name}.safetensors")
        assert code == 2 and err.count("\n") == 1 and problem in err


@pytest.mark.parametrize("name", ["own.png", "own.JPG", "own.safetensors"])
def test_a_files_name_is_refused_for_the_folder(run, name):
    code, _, err = run(*TUNE, name)
    assert code == 2 and f"--output {name}: expected the name of a folder" in err
    assert not Path("cache").exists() and not Path(name).exists()


def test_faults_of_the_data_are_reported_before_anything_is_written(run):
    Path("data/masks/1.png").unlink()
    code, _, err = run(*TUNE, "own")
    assert code == 2 and "images/1.png" in err and not Path("own").exists()
    assert not Path("cache").exists()
