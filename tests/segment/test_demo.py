"""The demonstration checkpoint segments named objects, in the example and in generated scenes."""

from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from clipseg_np import Segmenter, VisualPrompt
from clipseg_np.checkpoints.locate import demo_folder
from clipseg_np.cli.parser import main
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
