"""A prompt is learned: from the best text, by what is not held out, the same every time."""

import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from clipseg_np import CLIPSegForImageSegmentation, InputError, LearnedPrompt, Segmenter
from clipseg_np.learn import Data, learn_prompt, read_data
from clipseg_np.learn.features import turned
from clipseg_np.learn.learn_prompt import BATCH, FOLDS, PLAIN_TEXTS, PromptLessons
from clipseg_np.learn.lessons import ABSENT
from clipseg_np.learn.progress import unseen
from clipseg_np.learn.step import cross_entropy_and_dice
from clipseg_np.masks.metrics import image_iou
from clipseg_np.model.learned_prompt import fingerprint
from clipseg_np.nn.ops import Ops

from ..helpers.device_array import DeviceModule

SETTINGS = sys.modules[PromptLessons.__module__]


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
def lessons(segmenter, new_model, tmp_path):
    def lessons(data, dtype="float32") -> PromptLessons:
        segmenter_ = Segmenter(new_model(dtype=dtype), segmenter.processor)
        given = {"seed": 0, "folder": tmp_path, "progress": unseen}
        return PromptLessons(segmenter_, data, **given)

    return lessons


@pytest.fixture
def mean_iou(segmenter, new_model, data):
    """The mean IoU of an embedding in all images and turns."""
    model = new_model()
    images = [str(example.image) for example in data.examples]
    pixels = segmenter.processor(images=images)["pixel_values"]
    features = [model.encode_image(np.ascontiguousarray(turned(pixels, t))) for t in range(8)]
    masks = np.stack([example.read() for example in data.examples])

    def mean_iou(embedding: np.ndarray, turns=range(8), seen: slice = slice(None)) -> float:
        """Where only the columns `seen` of the masks are known"""
        known = np.zeros(masks.shape, bool)
        known[..., seen] = True
        ious = []
        for turn in turns:
            marked = model.decode(features[turn], np.tile(embedding, (8, 1))) > 0
            labels, is_known = turned(masks, turn), turned(known, turn)
            ious += [*map(image_iou, marked & is_known, labels & is_known)]
        return np.mean(ious)

    return mean_iou


@pytest.fixture
def scripted(monkeypatch):
    """Let PromptLessons.score return these in turn; a list of the embeddings that it was given."""

    def script(*ious: float | tuple[float, ...]) -> list:
        scores, given = iter(ious), []

        def score(_, embeddings):
            given.append(embeddings.copy())
            return np.ones(2) * next(scores)

        monkeypatch.setattr(PromptLessons, "score", score)
        return given

    return script


def test_the_prompt_marks_what_the_masks_mark(learn, segmenter, mean_iou):
    prompt, start = learn(starts=["red"], steps=100), segmenter.embed(["red"])[0]
    made = prompt.made
    assert made["start_iou"] == pytest.approx(mean_iou(start), abs=0.01)
    assert mean_iou(prompt.vector, turns=[0]) > mean_iou(start, turns=[0]) + 0.1
    assert made["held_out_iou"] > made["start_iou"] + 0.02


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


def test_a_run_that_learns_nothing_says_so(learn, scripted):
    scripted(0.2, 0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn(starts=["red"], steps=20)
    scripted(0.2, 0.2)
    with pytest.warns(UserWarning, match="nothing was learned: held-out images say so"):
        learn(starts=["red"], steps=20)


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


def test_a_held_out_image_teaches_nothing_in_any_turn(lessons, data):
    """Nor does another thing in it: an image's examples are held out from the same embedding."""
    again = [replace(example) for example in data.examples[1:5]]
    made = lessons(Data([*data.examples, *again], []))
    assert sorted(made.folds.values()) == [0, 0, 1, 1, 2, 2, 3, 3]
    for fold in range(FOLDS):
        rng = np.random.default_rng(0)
        entries = [e for step in range(30) for e in made.entries(made.data, BATCH, fold, step, rng)]
        learned = [e for e in made.data.examples if made.folds[e.image] != fold]
        # All others, each as often as any other
        assert {e.example for e in entries} == {*learned}
        assert {entry.turn for entry in entries} == {*range(8)}
        counts = [sum(entry.example is example for entry in entries) for example in learned]
        assert max(counts) - min(counts) <= 2
        assert len({entry.example for entry in entries[:8]}) > 1  # shuffled


def test_an_example_is_scored_by_the_embedding_that_has_not_seen_it(lessons, data):
    made, rng = lessons(data), np.random.default_rng(0)
    embeddings = rng.standard_normal((FOLDS, 12)).astype(np.float32)
    ious, others = made.score(embeddings), embeddings.copy()
    others[2] += 9
    changed = made.score(others) != ious
    is_held_out = np.array([made.folds[entry.example.image] == 2 for entry in made.scored])
    assert changed.any() and not (changed & ~is_held_out).any() and is_held_out.sum() == 16


def test_each_embedding_gets_the_gradient_of_its_own_batch(lessons, data):
    """By finite differences in float64; masks are turned as their images are."""
    made, rng = lessons(data, "float64"), np.random.default_rng(0)
    batches = [made.held_out(data, fold, BATCH) for fold in (1, 3, 0, 2)]
    made.entries = lambda data, count, fold, step, rng: batches[fold]
    embeddings, direction = rng.standard_normal((2, FOLDS, 12))

    def loss(fold: int, step: float) -> float:
        batch, embedding = batches[fold], embeddings[fold] + step * direction[fold]
        labels = [turned(e.example.target((32, 32)), e.turn) for e in batch]
        logits = made.logits(made.model.decoder, batch, np.tile(embedding, (BATCH, 1)))
        return cross_entropy_and_dice(made.model.ops, logits, np.array(labels))[0]

    changes = [(loss(fold, 1e-5) - loss(fold, -1e-5)) / 2e-5 for fold in range(FOLDS)]
    gradients = FOLDS * made.gradient(embeddings, 1)  # of the mean over all batches
    np.testing.assert_allclose((gradients * direction).sum(axis=1), changes, rtol=1e-6)


def test_ignored_pixels_count_neither_way(learn, data, segmenter, mean_iou):
    """The right half is ignored, and unknown: the IoU is the left half's."""

    def half(example):
        marks = example.read().astype(np.uint8)
        marks[:, 16:] = 255
        return replace(example, read=lambda: marks)

    prompt = learn(data=Data([half(example) for example in data.examples], []), starts=["red"])
    assert np.isfinite(prompt.vector).all()
    assert (prompt.vector != learn(starts=["red"]).vector).any()
    expected = mean_iou(segmenter.embed(["red"])[0], seen=slice(16))
    assert prompt.made["start_iou"] == pytest.approx(expected, abs=0.01)


def test_images_without_the_thing_are_learned_from_where_they_are_known(lessons, data):
    """To mark nothing in them is right."""
    nothing = [replace(e, read=lambda: np.zeros((32, 32), np.uint8)) for e in data.examples]
    made, rng = lessons(Data(data.examples, nothing)), np.random.default_rng(0)
    entries = [e for step in range(50) for e in made.entries(made.data, BATCH, 0, step, rng)]
    absent = [entry for entry in entries if entry.example in nothing]
    assert len(absent) == pytest.approx(ABSENT * len(entries), rel=0.2)
    assert not made.labels(absent).any() and not {*nothing} & {e.example for e in made.scored}


def test_several_things_are_refused(learn, data, folder, tmp_path):
    rows = [f"{folder}/images/{n}.png,{folder}/masks/{n}.png,{n % 2} thing" for n in range(8)]
    (tmp_path / "data.csv").write_text("\n".join(["image,mask,prompt", *rows]))
    with pytest.raises(InputError, match="mark 2 things, '0 thing', '1 thing': choose one with"):
        learn(read_data(tmp_path / "data.csv"))
    assert learn(read_data(tmp_path / "data.csv", "1 thing"), steps=1).made["images"] == 4


def test_data_that_were_not_read_are_refused(learn):
    with pytest.raises(InputError, match=r"the data are 'hearts'; expected .*read_data\(\.\.\.\)"):
        learn("hearts")


@pytest.mark.parametrize("starts", ["a heart", [""], ["a heart", " "], [3], None])
def test_starts_are_a_list_of_texts(learn, starts, tmp_path):
    with pytest.raises(
        InputError, match=r"starts \(--start\) are .*; expected a list of texts that are not"
    ):
        learn(starts=starts)
    assert not [*tmp_path.glob("*.features")]


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"steps": 0}, "steps is 0; expected a whole number above 0"),
        ({"steps": 2.5}, "steps is 2.5; expected a whole number above 0"),
        ({"rate": -1}, "rate is -1; expected a number above 0"),
        ({"rate": float("nan")}, "rate is nan; expected a number above 0"),
        ({"seed": "x"}, "seed is 'x'; expected a whole number"),
    ],
)
def test_options_out_of_range_are_refused(learn, options, expected):
    with pytest.raises(InputError, match=f"^{expected}$"):
        learn(**options)


def test_numbers_may_be_of_numpy(learn, tmp_path):
    prompt = learn(steps=np.int64(20), rate=np.float32(0.5), seed=np.int64(3))
    prompt.save(tmp_path / "a.safetensors")
    assert prompt.made == learn(steps=20, rate=0.5, seed=3).made


def test_few_images_are_refused(learn, data):
    few = Data([*data.examples[:3], *data.examples[:3]], [])
    with pytest.raises(InputError, match="3 images; expected 4 or more"):
        learn(few)


def test_a_device_learns_the_same(learn, tmp_path):
    here, there = learn(steps=20), learn(steps=20, xp=DeviceModule(), cache=tmp_path / "there")
    assert isinstance(there.vector, np.ndarray)
    np.testing.assert_allclose(there.vector, here.vector, atol=1e-5)
