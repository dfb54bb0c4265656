"""The demonstration checkpoint segments named objects, in the example and in generated scenes."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from clipseg_np import CLIPSegProcessor, Segmenter, VisualPrompt
from clipseg_np.checkpoints.locate import demo_folder
from clipseg_np.cli.parser import main
from clipseg_np.convert import convert
from clipseg_np.masks.metrics import image_iou

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo():
    return Segmenter.from_pretrained()


def test_the_masks_of_readmes_first_command_are_right(training, tmp_path, capsys):
    example = training.example
    scene = example.example()
    drawn = np.array(Image.open(ROOT / "examples/shapes.png"))
    if tuple(map(int, PIL.__version__.split(".")[:2])) < (11, 1):  # draws one polygon otherwise
        drawn[122, 288] = scene.image[122, 288]
    assert np.array_equal(drawn, scene.image)
    assert (
        main(
            [
                "segment",
                str(ROOT / "examples/shapes.png"),
                *example.PROMPTS,
                "--output",
                str(tmp_path),
            ]
        )
        == 0
    )
    files = sorted(tmp_path.glob("shapes_[0-9]*.png"))
    assert len(files) == len(example.PROMPTS)
    for prompt, file in zip(example.PROMPTS, files):
        assert image_iou(np.asarray(Image.open(file)) > 0, scene.mask(prompt)) >= 0.8, prompt
    assert f'"{example.PROMPTS[0]}"' in (ROOT / "README.md").read_text("utf-8")


def test_text_prompts_on_fresh_scenes(training, demo):
    phrases, scenes = training.phrases, training.scenes
    ious, empty = [], []
    for seed in range(40):
        rng = np.random.default_rng([2026, seed])
        scene = scenes.draw_scene(rng)
        there = [phrases.phrase_of(thing, rng) for thing in scene.things]
        absent = phrases.absent_phrase(scene.things, rng)
        *masks, nothing = demo(scene.image, [p.words(rng) for p in (*there, absent)]).masks()
        ious += [image_iou(mask, scene.mask(phrase)) for mask, phrase in zip(masks, there)]
        empty.append(nothing.mean() < 0.002)
    assert np.mean(ious) >= 0.8
    assert np.mean(empty) >= 0.85


def test_pairs_of_color_and_shape_that_it_never_saw(training, demo):
    phrases, scenes = training.phrases, training.scenes
    ious = []
    for seed in range(30):
        scene = scenes.draw_scene(np.random.default_rng([2027, seed]), held_out="only")
        pairs = {(t.color, t.shape) for t in scene.things} & set(phrases.HELD_OUT)
        for color, shape in pairs:
            phrase = phrases.Phrase(color=color, shape=shape)
            mask = demo(scene.image, f"a {color} {shape}").masks()[0]
            ious.append(image_iou(mask, scene.mask(phrase)))
    assert len(ious) >= 30 and np.mean(ious) >= 0.75


def test_an_image_of_a_like_thing_with_its_mask(training, demo):
    scenes = training.scenes
    ious = []
    for seed in range(30):
        rng = np.random.default_rng([2028, seed])
        scene = scenes.draw_scene(rng)
        thing = scene.things[0]
        other = scenes.draw_scene(rng, require=(thing.color, thing.shape))
        prompt = VisualPrompt(other.image, other.things[0].mask)
        expected = scene.mask(f"a {thing.color} {thing.shape}")
        ious.append(image_iou(demo(scene.image, prompt).masks()[0], expected))
    assert np.mean(ious) >= 0.7


def test_the_prompt_matters(training, demo):
    """The same image, two phrases: each mask is its own thing's and not the other's."""
    example = training.example
    scene = example.example()
    red, star = demo(scene.image, ["a red thing", "a star"]).masks()
    assert image_iou(red, scene.mask("a star")) < 0.05
    assert image_iou(star, scene.mask("a red thing")) < 0.05


def test_it_is_small():
    assert sum(file.stat().st_size for file in demo_folder().iterdir()) < 10e6


def test_the_demonstration_checkpoint_knows_its_words(training, demo):
    words = training.phrases.vocabulary_words()
    assert (ROOT / "weights/demo/words.txt").read_text("utf-8").split() == words
    assert demo.processor.words == set(words)


PROMPTS = ["a cat - a red circle", "A Photo of the STRIPED stars.", "a cup: 猫."]
UNKNOWN = {PROMPTS[0]: ["cat"], PROMPTS[2]: ["cup", "猫"]}
WARNING = "the checkpoint does not know 'cat', 'cup', '猫': .*clipseg-np download .* FOLDER"


def test_other_words_are_warned_of_in_python(demo, image, checkpoint, tmp_path):
    for call in (demo.combine, demo, lambda image, prompts: demo.prepare(prompts)):
        with pytest.warns(UserWarning, match="the checkpoint does not know 'cat'") as caught:
            call(image, PROMPTS)
        assert __file__ in {w.filename for w in caught if "know 'cat'" in str(w.message)}
    with pytest.warns(UserWarning, match=WARNING) as caught:
        demo.processor(text=PROMPTS)
    assert caught[0].filename == __file__
    demo.processor.save_pretrained(tmp_path)
    assert CLIPSegProcessor.from_pretrained(tmp_path).words == demo.processor.words
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        demo.combine(image, [PROMPTS[1], image])
        Segmenter.from_pretrained(checkpoint)(image, "a cat")


@pytest.mark.parametrize("command", ["segment", "batch"])
def test_other_words_are_warned_of_by_the_commands(command, checkpoint, tmp_path, capsys):
    place = {"segment": "examples/shapes.png", "batch": "examples"}[command]
    start = [command, str(ROOT / place), *PROMPTS, "--json", "--output"]
    if command == "batch":
        start[2:2] = ["--glob", "shapes.png", "--workers", "1"]
    assert main([*start, str(tmp_path / "a")]) == 0
    printed = capsys.readouterr()
    assert re.search(WARNING, printed.err.replace("\\u732b", "猫"))
    records = [json.loads(line) for line in printed.out.splitlines()]
    assert {record["checkpoint"] for record in records} == {"demonstration"}
    records = records[0]["prompts"] if command == "batch" else records
    found = {r["prompt"]: r["unknown_words"] for r in records if "unknown_words" in r}
    assert found == UNKNOWN
    assert main([*start, str(tmp_path / "b"), "--model", str(checkpoint)]) == 0
    printed = capsys.readouterr()
    assert "does not know" not in printed.err and "unknown_words" not in printed.out
    assert f'"checkpoint": "{checkpoint}"' in printed.out


def test_the_name_of_the_checkpoint(checkpoint, tmp_path, capsys):
    assert main(["info"]) == 0
    assert "checkpoint   demonstration, in " in capsys.readouterr().out
    assert main(["info", "--model", str(checkpoint)]) == 0
    assert f"checkpoint   {checkpoint}\n" in capsys.readouterr().out
    convert(ROOT / "weights/demo", tmp_path / "new", "bfloat16")
    assert CLIPSegProcessor.from_pretrained(tmp_path / "new").words
