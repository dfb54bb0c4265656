"""Generated scenes and phrases: drawings fit their words, and held-out pairs stay out."""

import sys

import numpy as np
import pytest

from clipseg_np import Segmenter
from clipseg_np.learn import read_data


@pytest.fixture
def draw(training):
    return lambda seed, **options: training.scenes.draw_scene(
        np.random.default_rng(seed), **options
    )


def test_the_same_seed_gives_the_same_scene(draw):
    one, again, other = draw(1), draw(1), draw(2)
    assert np.array_equal(one.image, again.image)
    assert one.image.shape != other.image.shape or not np.array_equal(one.image, other.image)


def test_every_pixel_has_one_owner_and_every_thing_can_be_seen(draw):
    for seed in range(60):
        scene = draw(seed)
        masks = np.array([thing.mask for thing in scene.things])
        assert 1 <= len(masks) <= 4
        assert scene.image.dtype == np.uint8 and masks.shape[1:] == scene.image.shape[:2]
        assert masks.sum(axis=0).max() == 1
        assert masks.any(axis=(1, 2)).all()


def test_size_words_go_by_the_box_and_the_shorter_side(draw):
    sizes = set()
    for seed in range(80):
        scene = draw(seed)
        side = min(scene.image.shape[:2])
        for thing in scene.things:
            left, top, right, bottom = thing.box
            longer = max(right - left, bottom - top)
            expected = "small" if longer < side / 4 else "large" if longer > side / 3 else None
            assert thing.size == expected
            sizes.add(expected)
    assert sizes == {"small", "large", None}


def test_a_solid_thing_has_its_color(draw):
    for seed in range(40):
        kinds = [("square", "red", "solid"), ("circle", "green", "solid")]
        scene = draw(seed, kinds=kinds)
        for thing in scene.things:
            red, green, _ = scene.image[thing.mask].mean(axis=0)
            assert (red > green) == (thing.color == "red")


def test_held_out_pairs_are_neither_drawn_nor_named(training, draw):
    pairs = set(training.phrases.HELD_OUT)
    assert pairs == {
        ("green", "triangle"),
        ("purple", "star"),
        ("yellow", "ring"),
        ("red", "cross"),
        ("blue", "circle"),
    }
    for seed in range(150):
        scene = draw(seed)
        rng = np.random.default_rng(seed)
        phrase = training.phrases.absent_phrase(scene.things, rng)
        assert not pairs & {(thing.color, thing.shape) for thing in scene.things}
        assert not phrase.held_out
        only = draw(seed, held_out="only")
        assert pairs & {(thing.color, thing.shape) for thing in only.things}


def test_the_mask_of_a_phrase_is_all_that_it_fits(draw):
    scene = draw(3, kinds=[("square", "red", "solid"), ("circle", "red", "striped")])
    square, circle = scene.things
    assert np.array_equal(scene.mask("a red thing"), square.mask | circle.mask)
    assert np.array_equal(scene.mask("the striped shape"), circle.mask)
    assert not scene.mask("a blue square").any()


def test_phrases_mean_what_they_say(training, draw):
    phrases = training.phrases
    for seed in range(150):
        scene, rng = draw(seed), np.random.default_rng(seed)
        thing = scene.things[0]
        there = phrases.phrase_of(thing, rng)
        absent = phrases.absent_phrase(scene.things, rng)
        assert there.fits(thing)
        assert not any(absent.fits(thing) for thing in scene.things)
        for phrase in (there, absent):
            assert phrases.Phrase.parse(phrase.words(rng)) == phrase


def test_a_phrase_that_contradicts_itself_is_refused(training):
    with pytest.raises(ValueError, match="red and blue"):
        training.phrases.Phrase.parse("a red blue star")


def test_a_new_shape_stands_in_place_of_an_old_one(training, draw):
    for shape in training.scenes.NEW_SHAPES:
        shapes = [shape if old == "star" else old for old in training.phrases.SHAPES]
        scenes = [draw(seed, shapes=shapes) for seed in range(40)]
        things = [thing for scene in scenes for thing in scene.things]
        assert {thing.shape for thing in things} == set(shapes)


def test_few_shot_draws_what_learns_and_scores_it(training, tmp_path, monkeypatch):
    options = ["--shape", "crescent", "--images", "3", "--test-images", "4"]
    monkeypatch.setattr(sys, "argv", ["few_shot.py", "draw", str(tmp_path), *options])
    training.few_shot.main()
    for place, images in (("new", 3), ("test", 4)):
        examples = read_data(tmp_path / place, "a crescent").examples
        assert len(examples) == images
    old = read_data(tmp_path / "old.jsonl").examples
    assert len({example.image for example in old}) == 64 and len(old) > 2 * 64
    segmenter = Segmenter.from_pretrained()
    found = training.few_shot.new_iou(segmenter, tmp_path / "test", "a shape")
    missed = training.few_shot.new_iou(segmenter, tmp_path / "test", "a square")
    assert missed + 0.1 < found < 0.8  # the other shapes are no crescents
    assert training.few_shot.old_iou(segmenter, 3) > 0.7
