"""Defects that hostile input revealed: overflowing numbers, odd names and files, thin images."""

import json
import os

import numpy as np
import pytest
from PIL import Image, ImageFont

from clipseg_np import CLIPSegConfig, CLIPTokenizer, ViTImageProcessor
from clipseg_np.atomic_files import write_json, written_together, written_whole
from clipseg_np.checkpoints.locate import read_json
from clipseg_np.cli.parser import main
from clipseg_np.errors import InputError, naming
from clipseg_np.golden.traces import Golden
from clipseg_np.image.image_processor import output_size, probabilities_at
from clipseg_np.image.load_image import load_image
from clipseg_np.masks.draw import shorten
from clipseg_np.masks.morphology import dilate
from clipseg_np.segment.batch import file_hash
from clipseg_np.segment.prompt_algebra import parse

from ..helpers.command import hurry


@pytest.mark.parametrize("height", [1, 3, 4])
def test_an_image_as_high_as_there_are_channels(segmenter, checkpoint, height, tmp_path):
    """Loaded, it is an array that could be (C,H,W) too."""
    pixels = np.random.default_rng(height).integers(0, 256, (height, 50, 3), np.uint8)
    file = tmp_path / "thin.png"
    Image.fromarray(pixels).save(file)
    expected = segmenter(Image.fromarray(pixels), ["red", Image.fromarray(pixels)])
    values = segmenter.processor.image_processor(Image.fromarray(pixels))["pixel_values"]
    logits = segmenter.model(pixel_values=values, conditional_pixel_values=values).logits
    by_hand = probabilities_at(logits, (height, 50))
    np.testing.assert_allclose(expected.probabilities[1:], by_hand, atol=1e-5)
    result = segmenter(file, ["red", file])
    assert np.array_equal(result.probabilities, expected.probabilities)
    command = [
        "segment",
        file,
        "red",
        "--image-prompt",
        file,
        "--write",
        "soft",
        "--model",
        checkpoint,
    ]
    assert main([str(argument) for argument in (*command, "--output", tmp_path / "out")]) == 0
    for name, values in zip(("1_red", "2_thin-png"), expected.probabilities):
        written = np.asarray(Image.open(tmp_path / "out" / f"thin_{name}_soft.png"))
        assert np.array_equal(written, np.rint(255 * values))


@pytest.mark.parametrize("pixels", [1e9, 1e300, np.inf])
def test_growing_beyond_the_image_takes_all_of_it(pixels):
    mask = np.zeros((5, 9), bool)
    assert not dilate(mask, pixels).any()
    mask[4, 0] = True
    assert dilate(mask, pixels).all() and not dilate(mask, -pixels).any()
    assert not dilate(mask, np.hypot(4, 8) - 0.1).all()


@pytest.mark.parametrize(
    "text", ["(" * 200, "!" * 200 + "a", "(" * 60 + "a" + ")" * 60, " + ".join("a" * 200)]
)
def test_expressions_of_too_many_signs(text):
    with pytest.raises(InputError, match="more than 100 operators") as error:
        parse(text)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "text", ['{"a": ' + "[" * 51 + "]" * 51 + "}", "[" * 10_000, '{"a": ' + "9" * 5000 + "}"]
)
def test_json_that_python_cannot_take(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match="config.json is not valid JSON"):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"a": ' + "[" * 48 + "]" * 48 + "}")
    assert len(read_json(tmp_path / "config.json")["a"]) == 1


def test_numbers_of_a_config_that_overflow():
    for field, value in [
        ("layer_norm_eps", 10**400),
        ("image_size", int("9" * 3000)),
        ("layer_norm_eps", 1e31),
    ]:
        with pytest.raises(InputError, match=f"{field} is .*at most"):
            CLIPSegConfig(vision_config={field: value})
    with pytest.raises(InputError, match="conditional_layer"):
        CLIPSegConfig(conditional_layer=0.0)
    for settings in ({"rescale_factor": 10**400}, {"image_mean": [0, 0, 1e31]}, {"size": 10**9}):
        with pytest.raises(InputError, match=next(iter(settings))):
            ViTImageProcessor(**settings)
    with pytest.warns(UserWarning, match="'self'"):
        assert ViTImageProcessor.from_dict({"self": 1}).do_resize


def test_a_size_that_makes_far_too_many_pixels_or_none():
    image = np.zeros((1, 4000, 3), np.uint8)
    for size in ({"shortest_edge": 352}, {"max_height": 100, "max_width": 100}):
        result_size = output_size(size, 1, 4000)
        if min(result_size) < 1 or result_size[0] * result_size[1] > 2**22:
            with pytest.raises(InputError, match="preprocessor_config.json"):
                ViTImageProcessor(size=size)(Image.fromarray(image))
    assert output_size({"max_height": 100, "max_width": 100}, 1, 4000)[0] == 0
    with pytest.raises(InputError, match="expected 1 to"):
        ViTImageProcessor(size={"shortest_edge": 2**12})(Image.fromarray(image))


def test_added_tokens_without_a_text_or_a_number(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for entry, message in [
        ({"content": ""}, "special token"),
        ({"content": "x", "id": 1}, "number"),
    ]:
        number = "190" if not entry["content"] else "x"
        changed = {**config, "added_tokens_decoder": {number: entry}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(changed))
        with pytest.raises(InputError, match=message) as error:
            CLIPTokenizer.from_pretrained(tmp_path)
        assert str(error.value).startswith(f"{tmp_path}: ")


def test_a_message_names_its_file_once():
    for message, expected in [
        ("merges are cut off", "m: merges are cut off"),
        ("m/vocab.json is missing", "m/vocab.json is missing"),
        ("there is no m", "there is no m"),
    ]:
        with pytest.raises(InputError) as error, naming("m"):
            raise InputError(message)
        assert str(error.value) == expected


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_and_devices_are_not_waited_for_nor_replaced(tmp_path):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    for read, message in [
        (load_image, "a device or a pipe"),
        (file_hash, "a folder, a device or a pipe"),
    ]:
        with hurry(), pytest.raises(InputError, match=f"pipe.png is {message}"):
            read(pipe)
    with pytest.raises(InputError, match="no file"), written_whole(pipe):
        pass
    assert pipe.is_fifo()


def test_a_line_of_an_image_is_too_long(tmp_path):
    Image.new("1", (70_000, 1)).save(tmp_path / "line.png")
    with pytest.raises(InputError, match=r"line.png is 70000 x 1 pixels; expected at most 65,535"):
        load_image(tmp_path / "line.png")


def test_files_written_together_are_there_all_or_none(tmp_path):
    folder = tmp_path / "a" / "b"
    with pytest.raises(OSError, match="full"), written_together(folder) as part:
        (part / "1.txt").write_text("new")
        raise OSError("disk full")
    assert not (tmp_path / "a").exists()
    folder.mkdir(parents=True)
    (folder / "1.txt").write_text("old")
    (folder / "2.txt").mkdir()
    with pytest.raises(InputError, match="2.txt is no file"), written_together(folder) as part:
        for name in ("1.txt", "2.txt"):
            (part / name).write_text("new")
    assert (folder / "1.txt").read_text() == "old"
    (folder / "2.txt").rmdir()
    with written_together(folder) as part:
        (part / "1.txt").write_text("new")
    assert [path.name for path in folder.iterdir()] == ["1.txt"]
    assert (folder / "1.txt").read_text() == "new"


def test_too_many_labels_leave_nothing(checkpoint, image_file, tmp_path, capsys):
    prompts = [f"a {chr(97 + n % 26)}{n}" for n in range(256)]
    command = ["segment", str(image_file), *prompts, "--labels", "--model", str(checkpoint)]
    assert main([*command, "--output", str(tmp_path / "out")]) == 2
    assert "at most 255" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_long_caption_is_cut_to_what_can_be_seen():
    font = ImageFont.load_default(size=15)
    asked = []

    class Counting:
        def getlength(self, text):
            asked.append(len(text))
            return font.getlength(text)

    assert shorten("i" * 10_000, 320, Counting()) == shorten("i" * 400, 320, font)
    assert sum(asked) < 200_000


def test_names_that_are_no_unicode(checkpoint, image_file, tmp_path, capsys):
    name = os.fsdecode(b"odd\xff.png")
    try:
        image_file.rename(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes no such name")
    command = [
        "segment",
        str(tmp_path / name),
        "red",
        "--model",
        str(checkpoint),
        "--labels",
        "--json",
    ]
    assert (
        main([*command, "--image-prompt", str(tmp_path / name), "--output", str(tmp_path / "out")])
        == 0
    )
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert records[1]["prompt"] == name
    labels = json.loads((tmp_path / "out" / os.fsdecode(b"odd\xff_labels.json")).read_text("utf-8"))
    assert labels["labels"][1]["name"] == name
    write_json(tmp_path / "a.json", {"a": name})
    assert read_json(tmp_path / "a.json") == {"a": name}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segment", "a\nb.png", "red"], r"a\nb.png"),
        (["segment", "a\0b.png", "red"], "NUL"),
        (["segment", "a.png", "red", "--threshold", "x"], "See clipseg-np segment --help"),
        (["segment", "a.png", "red", "--grow", "nan"], "There is no image"),
        (["segment", "-", "red", "--output", ""], "--output is empty"),
        (["batch", ".", "a", "--workers", "3000000000"], "at most 1024"),
        (["batch", ".", "a", "--glob", ""], "--glob ''"),
        (["batch", ".", "a - "], "a prompt is expected"),
        (["batch", ".", "a", "--threshold", "2"], "threshold is 2.0"),
        (["trace", "a.png", "red", "--output", "x.npz"], "a .safetensors file"),
        (["x\ny"], r"x\ny"),
        (["segment", "x" * 100_000, "red"], "There is no image"),
    ],
)
def test_one_line_for_each_mistake(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4)).save("b.png")
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("clipseg-np: error: ") and error.count("\n") == 1, error
    assert message in error and len(error) < 2100
    assert os.listdir() == ["b.png"]


@pytest.mark.parametrize(
    ("option", "value"), [("--grow", "nan"), ("--feather", "nan"), ("--smallest", "9" * 30)]
)
def test_numbers_of_pixels_that_are_none(option, value, image_file, tmp_path, capsys):
    output = tmp_path / "out"
    assert (
        main(["segment", str(image_file), "red", f"{option}={value}", "--output", str(output)]) == 2
    )
    assert option in capsys.readouterr().err and not output.exists()


def test_standard_input_is_called_so(monkeypatch, tmp_path, capsys):
    (tmp_path / "stdin").write_bytes(b"no image")
    with (tmp_path / "stdin").open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert main(["segment", "-", "red", "--output", str(tmp_path / "out")]) == 2
    assert "error: standard input is not an image" in capsys.readouterr().err


def test_golden_files_whose_metadata_lies(tmp_path):
    from safetensors.numpy import save_file

    for metadata in (
        {"order": '["a", "b"]'},
        {"order": "5"},
        {"about": "[]"},
        {"about": '{"float32_error": {"a": "x"}}'},
    ):
        save_file({"a": np.zeros(2)}, tmp_path / "x.safetensors", metadata=metadata)
        with pytest.raises(InputError, match="x.safetensors is damaged"):
            Golden(tmp_path / "x.safetensors")
    np.savez(tmp_path / "x.npz", a=np.array(["text"]))
    with pytest.raises(InputError, match="no real numbers"):
        Golden(tmp_path / "x.npz")["a"]
