"""--prompt-file: a learned prompt by its name in prompts, and a prompt of its own otherwise."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipseg_np import LearnedPrompt, Segmenter
from clipseg_np.cli.parser import main
from clipseg_np.model.learned_prompt import fingerprint


@pytest.fixture
def run(checkpoint, segmenter, image, tmp_path, monkeypatch, capsys):
    """A function that runs the command in a folder with images and two learned prompts."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "images/a.png", "images/b.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(name)
    rng = np.random.default_rng(0)
    for name in ("heart", "star"):
        vector = rng.normal(size=segmenter.model.config.projection_dim).astype(np.float32)
        made = LearnedPrompt(vector, fingerprint(segmenter.model), "", {"prompt": name})
        made.save(f"{name}.safetensors")

    def run(command: str, *arguments: object) -> tuple[int, list[dict], str]:
        words = [command, "--model", str(checkpoint), "--json", *map(str, arguments)]
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err

    return run


HEART, STAR = ("--prompt-file", "heart.safetensors"), ("--prompt-file", "star.safetensors")


def prompts(records: list[dict]) -> list[str]:
    return [record["prompt"] for record in records]


def test_it_is_a_prompt_of_its_own_unless_a_prompt_mentions_it(run):
    assert prompts(run("segment", "a.png", *HEART)[1]) == ["@heart"]
    assert prompts(run("segment", "a.png", "red", *HEART)[1]) == ["red", "@heart"]
    mentioned = run("segment", "a.png", "red - @heart", *HEART, *STAR)[1]
    assert prompts(mentioned) == ["red - @heart", "@star"]
    quoted = run("segment", "a.png", '"@heart"', *HEART, "--overwrite")[1]
    assert prompts(quoted) == ['"@heart"', "@heart"]
    both = run(
        "segment", "a.png", "@heart", "!@heart", "--image-prompt", "a.png", *HEART, "-o", "b"
    )[1]
    assert prompts(both) == ["@heart", "!@heart", "a.png"]


def test_the_masks_are_the_segmenter_s_and_files_are_named_by_the_prompt(run, checkpoint):
    code, records, err = run("segment", "a.png", "red - @heart", *HEART, *STAR, "--write", "soft")
    assert (code, err) == (0, "")
    names = [name for record in records for name in record["files"]]
    assert names == ["masks/a_1_red-heart_soft.png", "masks/a_2_star_soft.png"]
    given = [LearnedPrompt.load(f"{name}.safetensors") for name in ("heart", "star")]
    segmenter = Segmenter.from_pretrained(checkpoint)
    expected = segmenter.combine("a.png", ["red - @heart", given[1]], learned=given)
    for name, probability in zip(names, expected):
        found = np.asarray(Image.open(name)).astype(int)
        assert np.abs(found - 255 * probability).max() < 0.51


def test_one_file_for_one_learned_prompt(run):
    assert run("segment", "a.png", *HEART, "-o", "heart.png")[0] == 0
    code, _, err = run("segment", "a.png", "red", *HEART, "-o", "both.png")
    assert code == 2 and "one prompt" in err


def test_several_images_and_a_batch_give_the_same(run):
    code, several, err = run("segment", "images/a.png", "images/b.png", "red", *HEART, "-o", "s")
    assert (code, err, len(several)) == (0, "", 4)
    arguments = ("batch", "images", "red", *HEART, "-o", "b", "--flat", "--workers", 2)
    for _ in range(2):
        code, records, err = run(*arguments)
        assert (code, err) == (0, "")
        assert [prompts(record["prompts"]) for record in records] == [["red", "@heart"]] * 2
    flat = [prompt for record in records for prompt in record["prompts"]]
    assert [p["area"] for p in flat] == [p["area"] for p in several]
    shutil.copy("star.safetensors", "heart.safetensors")
    code, _, err = run(*arguments)
    assert code == 2 and "name another --output" in err
    assert run(*arguments, "--overwrite")[0] == 0


@pytest.mark.parametrize("command", [("segment", "a.png"), ("batch", "images", "--workers", 2)])
def test_another_decoder_s_prompt_needs_force(command, run):
    other = LearnedPrompt.load("heart.safetensors")
    replace(other, fingerprint="0" * 64).save("other.safetensors")
    given = (*command, "--prompt-file", "other.safetensors", "-o", "out")
    code, _, err = run(*given)
    assert code == 2 and "@other does not fit" in err and "--force" in err
    assert len(err.splitlines()) == 1 and not Path("out").exists()
    code, forced, err = run(*given, "--force")
    assert (code, err) == (0, "")
    expected = run(*command, *HEART, "-o", "expected")[1]
    areas = [
        [p["area"] for p in record.get("prompts", [record])] for record in (*forced, *expected)
    ]
    assert areas[: len(forced)] == areas[len(forced) :]


@pytest.mark.parametrize("command", [("segment", "a.png"), ("batch", "images")])
@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--prompt-file", "none.safetensors"), "there is no file none.safetensors"),
        (("--prompt-file", "images"), "there is no file images"),
        (("--prompt-file", "a.png"), "a.png is no learned prompt"),
        (("--prompt-file", ""), "there is no file"),
        (("@hart", *HEART), "'@hart' is no learned prompt's name; given: @heart"),
        (("@heart",), "'@heart' is no learned prompt's name; given: none (--prompt-file"),
        (("@heart", "--", "@star", *HEART), "given: none"),
        ((*HEART, *HEART), "two learned prompts are named"),
        (("--prompt-file", "odd heart.safetensors"), "rename its file"),
    ],
)
def test_refusals(command, arguments, message, run):
    shutil.copy("heart.safetensors", "odd heart.safetensors")
    code, _, err = run(*command, *arguments, "-o", "out")
    assert code == 2 and message in err and len(err.splitlines()) == 1, err
    assert not Path("out").exists()


def test_words_that_the_checkpoint_does_not_know_are_those_of_texts(run, checkpoint, capsys):
    """On the demonstration checkpoint, which has a list of words."""
    from clipseg_np.checkpoints.locate import demo_folder

    segmenter = Segmenter.from_pretrained(demo_folder())
    vector = segmenter.embed(["a star"])[0]
    LearnedPrompt(vector, fingerprint(segmenter.model), "", {}).save("zzz.safetensors")
    given = ["a.png", "@zzz - a cat", "@zzz", "--prompt-file", "zzz.safetensors"]
    assert main(["segment", *given, "--json"]) == 0
    out, err = capsys.readouterr()
    words = [json.loads(line).get("unknown_words") for line in out.splitlines()]
    assert words == [["cat"], None] and "'cat'" in err and "zzz" not in err
