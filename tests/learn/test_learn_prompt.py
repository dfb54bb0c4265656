"""A prompt is learned: from the best text, by what is not held out, the same every time."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from clipseg_np import CLIPSegForImageSegmentation, InputError, LearnedPrompt, Segmenter
from clipseg_np.learn import Data, learn_prompt, read_data
from clipseg_np.learn.features import CachedFeatures, turned, unseen
from clipseg_np.learn.learn_prompt import BATCH, FOLDS, PLAIN_TEXTS, Lessons
from clipseg_np.learn.step import cross_entropy_and_dice
from clipseg_np.masks.metrics import image_iou
from clipseg_np.model.learned_prompt import fingerprint
from clipseg_np.nn.ops import Ops

from ..helpers.device_array import DeviceModule

SETTINGS = sys.modules[Lessons.__module__]


def save(folder, number: int, pixels: np.ndarray, mask: np.ndarray) -> None:
    for name, numbers in {"images": pixels, "masks": mask}.items():
        (folder / name).mkdir(exist_ok=True)
        Image.fromarray(numbers).save(folder / name / f"{number}.png")


@pytest.fixture(scope="session")
def new_model(segmenter):
    """A model whose last layer hears the prompt: in a random decoder, that changes more."""

    def new_model(xp=np, dtype="float32") -> CLIPSegForImageSegmentation:
        config = segmenter.model.config.with_values(conditional_layer=1)
        return CLIPSegForImageSegmentation(config, seed=3, ops=Ops(xp), dtype=dtype)

    return new_model


@pytest.fixture(scope="session")
def folder(segmenter, new_model, tmp_path_factory):
    """8 images of 32 x 32, and the masks that a certain embedding marks in them."""
    folder, rng, model = tmp_path_factory.mktemp("taught"), np.random.default_rng(5), new_model()
    embedding = rng.standard_normal((1, 12))
    for number in range(8):
        pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
        features = model.encode_image(segmenter.processor(images=pixels)["pixel_values"])
        save(folder, number, pixels, model.decode(features, embedding)[0] > 0)
    return folder


@pytest.fixture
def data(folder) -> Data:
    return read_data(folder, ["a thing|a thingy"])


@pytest.fixture
def learn(tmp_path, segmenter, new_model, data):
    """learn_prompt by the readable arithmetic, in few steps, with a cache of the test's own."""

    def learn(data=data, xp=np, **options) -> LearnedPrompt:
        options = {"steps": 40, "cache": tmp_path, **options}
        return learn_prompt(Segmenter(new_model(xp), segmenter.processor), data, **options)

    return learn


@pytest.fixture
def scripted(monkeypatch):
    """Let Lessons.ious return these in turn; a list of the embeddings that it was given."""

    def script(*ious: float | tuple[float, ...]) -> list:
        scores, given = iter(ious), []

        def scripted_ious(_, embeddings):
            given.append(embeddings.copy())
            return np.ones(2) * next(scores)

        monkeypatch.setattr(Lessons, "ious", scripted_ious)
        return given

    return script


def test_the_prompt_marks_what_the_masks_mark(learn, segmenter, new_model, data):
    prompt, model = learn(starts=["red"], steps=100), new_model()
    images = [str(example.image) for example in data.examples]
    features = model.encode_image(segmenter.processor(images=images)["pixel_values"])
    masks = [example.marks() == 1 for example in data.examples]

    def iou(embedding):
        marked = model.decode(features, np.tile(embedding, (8, 1))) > 0
        return np.mean([*map(image_iou, marked, masks)])

    start = iou(segmenter.embed(["red"])[0])
    assert prompt.made["start_iou"] == pytest.approx(start, abs=0.01)
    assert iou(prompt.vector) > start + 0.1 and prompt.made["held_out_iou"] > start + 0.05


def test_it_is_a_prompt_of_this_decoder_that_says_how_it_was_made(learn, new_model):
    prompt = learn()
    assert prompt.fingerprint == fingerprint(new_model())
    assert prompt.name == "a thing" and prompt.vector.shape == (12,)
    made = dict(prompt.made)
    assert made.pop("start") in ("a thing", "a thingy", *PLAIN_TEXTS)
    assert made.pop("start_iou") <= made.pop("held_out_iou") <= 1
    assert made.pop("steps") in (0, 20, 40) and made.pop("version")
    assert made == {"prompt": "a thing", "images": 8, "rate": SETTINGS.RATE, "seed": 0}


def test_a_run_repeats_bit_for_bit(learn, tmp_path):
    first, again = learn(), learn(cache=tmp_path / "another")
    assert (first.vector == again.vector).all() and first.made == again.made
    assert (learn(seed=-1).vector != first.vector).any()


def test_it_starts_from_the_text_that_marks_best(learn, segmenter, scripted):
    texts = ["red", "a thing", "blue", "x"]
    given = scripted(0.1, 0.3, 0.4, 0.4)
    prompt = learn(starts=texts, steps=1)
    embeddings = segmenter.embed(texts)
    for embedding, rows in zip(embeddings, given):
        assert rows.shape == (FOLDS, 12)
        np.testing.assert_allclose(rows, np.tile(embedding, (FOLDS, 1)), atol=1e-6)
    assert prompt.made["start"] == "blue" and prompt.made["start_iou"] == 0.4
    np.testing.assert_allclose(prompt.vector, embeddings[2], atol=1e-6)


def test_the_names_and_plain_texts_are_tried(learn, segmenter, scripted):
    given = scripted(*[0.5] * 9)
    learn(steps=1)
    expected = segmenter.embed(["a thing", "a thingy", *(set(PLAIN_TEXTS) - {"a thing"})])
    assert len(given) == len(expected)
    found = sorted(rows[0].tolist() for rows in given)
    np.testing.assert_allclose(found, sorted(expected.tolist()), atol=1e-6)


def test_the_mean_of_the_best_step_is_kept(learn, scripted):
    given = scripted(0.2, 0.1, 0.5, 0.4, 0.3)
    prompt = learn(starts=["red"], steps=80)
    assert (prompt.made["steps"], prompt.made["held_out_iou"]) == (40, 0.5)
    start, best = given[0], given[2]
    assert (prompt.vector == best.mean(axis=0)).all()
    # All have learned, each from other images.
    assert len(np.unique(np.concatenate([start[:1], best]), axis=0)) == 1 + FOLDS


def test_the_last_step_that_is_as_good_is_kept(learn, scripted):
    """A mean that is below the best by 0.1, where the standard error of this is 0.1, and 0.09."""
    scripted((0.1, 0.2), (0.6, 0.7), (0.6, 0.5), (0.6, 0.52), (0.58, 0.54))
    made = learn(starts=["red"], steps=80).made
    assert (made["steps"], made["held_out_iou"]) == (60, 0.56)


def test_a_start_that_marks_best_is_kept(learn, scripted, segmenter):
    scripted(0.6, 0.1, 0.5)
    prompt = learn(starts=["red"])
    assert prompt.made["steps"] == 0
    np.testing.assert_allclose(prompt.vector, segmenter.embed(["red"])[0], atol=1e-6)


def test_it_stops_where_nothing_gets_better(learn, scripted):
    given = scripted(0.2, 0.3, *[0.1] * 99)
    assert learn(starts=["red"], steps=1000).made["steps"] == 20
    assert len(given) == 2 + SETTINGS.PATIENCE // SETTINGS.STEPS_BETWEEN


def test_the_rate_is_relative_to_the_start_and_rises(learn, scripted, monkeypatch):
    """Adam's steps are at most the rate long: the mean of 20 positions, 3.85 rates."""
    embed = Segmenter.embed
    monkeypatch.setattr(Segmenter, "embed", lambda self, texts: 5 * embed(self, texts))
    given = scripted(0.2, 0.3)
    learn(starts=["red"], steps=20, rate=1e-4)
    start, mean = given
    moved = abs(mean - start).max() / np.sqrt((start**2).mean())
    assert 1.5e-4 < moved < 3.9e-4


def test_a_held_out_image_teaches_nothing_in_any_turn(learn, data, monkeypatch):
    """Nor does another thing in it: an image's examples are held out from the same embedding."""
    lessons, loaded = [], []
    init, load = Lessons.__init__, CachedFeatures.load
    monkeypatch.setattr(
        Lessons, "__init__", lambda self, *a: lessons.append(self) or init(self, *a)
    )
    monkeypatch.setattr(
        CachedFeatures, "load", lambda self, entries: loaded.append(entries) or load(self, entries)
    )
    learn(data=Data([*data.examples, *data.examples[1:5]], [], False), steps=24, starts=["red"])
    fold = lessons[0].fold
    assert (fold[1:5] == fold[8:]).all() and (np.bincount(fold[:8]) == [2, 2, 2, 2]).all()
    batches = np.array([entries for entries in loaded if len(entries) == FOLDS * BATCH])
    assert batches.shape == (24, FOLDS * BATCH, 2)
    drawn = batches.reshape(24, FOLDS, BATCH, 2).swapaxes(0, 1).reshape(FOLDS, 24 * BATCH, 2)
    for number, pairs in enumerate(drawn):
        others = np.flatnonzero(fold != number)
        different, counts = np.unique(pairs, axis=0, return_counts=True)
        # All others in all turns, each as often as any other
        assert set(map(tuple, different)) == {(n, turn) for n in others for turn in range(8)}
        assert counts.max() - counts.min() <= 1
        assert len(set(pairs[:8, 0])) > 1  # shuffled


def test_an_example_is_scored_by_the_embedding_that_has_not_seen_it(
    segmenter, new_model, data, tmp_path
):
    rng = np.random.default_rng(0)
    lessons = Lessons(Segmenter(new_model(), segmenter.processor), data, rng, tmp_path, unseen)
    embeddings = rng.standard_normal((FOLDS, 12)).astype(np.float32)
    ious, others = lessons.ious(embeddings), embeddings.copy()
    others[2] += 9
    changed = lessons.ious(others) != ious
    assert (changed == (lessons.fold[lessons.scored] == 2)).all() and changed.sum() == 2


def test_each_embedding_gets_the_gradient_of_its_own_batch(segmenter, new_model, data, tmp_path):
    """By finite differences in float64; masks are turned as their images are."""
    model, rng = new_model(dtype="float64"), np.random.default_rng(0)
    lessons = Lessons(Segmenter(model, segmenter.processor), data, rng, tmp_path, unseen)
    entries = np.stack([rng.integers(0, 8, (FOLDS, BATCH)) for _ in range(2)], axis=-1)
    lessons.drawn = [iter(batch) for batch in entries]
    embeddings, direction = rng.standard_normal((2, FOLDS, 12))

    def loss(fold: int, step: float) -> float:
        tokens = lessons.features.load(entries[fold])
        labels = [turned(data.examples[n].target((32, 32))[0], turn) for n, turn in entries[fold]]
        embedding = embeddings[fold] + step * direction[fold]
        logits = model.decoder(tokens, np.tile(embedding, (BATCH, 1)), lessons.features.grid).logits
        return cross_entropy_and_dice(model.ops, logits, np.array(labels))[0]

    changes = [(loss(fold, 1e-5) - loss(fold, -1e-5)) / 2e-5 for fold in range(FOLDS)]
    gradients = FOLDS * lessons.gradient(embeddings)  # of the mean over all batches
    np.testing.assert_allclose((gradients * direction).sum(axis=1), changes, rtol=1e-6)


def test_ignored_pixels_count_neither_way(learn, data, segmenter, new_model):
    """The right half is ignored, whatever lies there: the IoU is the left half's."""

    def half(example, value):
        marks = example.marks()
        marks[:, 16:] = 255
        example = replace(example, source=lambda: marks)
        share, ignored = example.target((32, 32))
        target = np.where(ignored, np.float32(value), share), ignored
        return SimpleNamespace(image=example.image, prompts=("x",), target=lambda size: target)

    zeros, ones = ([half(example, value) for example in data.examples] for value in (0, 1))
    first, second = (learn(data=Data(e, [], False), starts=["red"]) for e in (zeros, ones))
    assert (first.vector == second.vector).all() and first.made == second.made
    assert (first.vector != learn(starts=["red"]).vector).any()
    images, model = [str(example.image) for example in data.examples], new_model()
    features = model.encode_image(segmenter.processor(images=images)["pixel_values"])
    marked = model.decode(features, segmenter.embed(["red"] * 8)) > 0
    pairs = [(m[:, :16], e.marks()[:, :16]) for m, e in zip(marked, data.examples)]
    expected = np.mean([image_iou(*pair) for pair in pairs])
    assert first.made["start_iou"] == pytest.approx(expected, abs=0.01)


def test_images_without_the_thing_are_learned_from_where_they_are_known(learn, data, monkeypatch):
    """One for four images with it; to mark nothing in it is right."""
    lessons, init = [], Lessons.__init__
    monkeypatch.setattr(
        Lessons, "__init__", lambda self, *a: lessons.append(self) or init(self, *a)
    )
    nothing = [replace(e, source=lambda: np.zeros((32, 32), np.uint8)) for e in data.examples]
    for examples in (data.examples[:4], data.examples):
        learn(data=Data(examples, nothing, True), steps=1, starts=["red"])
    assert [len(one.examples) for one in lessons] == [5, 10]
    absent = lessons[1].examples[8:]
    assert set(absent) <= set(nothing) and len(set(absent)) == 2
    assert all(lessons[1].label(number).sum() == 0 for number in (8, 9))


def test_several_things_are_refused(learn, data, folder, tmp_path):
    rows = [f"{folder}/images/{n}.png,{folder}/masks/{n}.png,{n % 2} thing" for n in range(8)]
    (tmp_path / "data.csv").write_text("\n".join(["image,mask,prompt", *rows]))
    with pytest.raises(InputError, match="mark 2 things, '0 thing', '1 thing': choose one with"):
        learn(read_data(tmp_path / "data.csv"))
    assert learn(read_data(tmp_path / "data.csv", "1 thing"), steps=1).made["images"] == 4


def test_few_images_are_refused(learn, data):
    few = Data([*data.examples[:3], *data.examples[:3]], [], False)
    with pytest.raises(InputError, match="got 3 images; expected 4 or more"):
        learn(few)


def test_a_device_learns_the_same(learn, tmp_path):
    here, there = learn(steps=20), learn(steps=20, xp=DeviceModule(), cache=tmp_path / "there")
    assert isinstance(there.vector, np.ndarray)
    np.testing.assert_allclose(there.vector, here.vector, atol=1e-5)
