"""A prompt is learned: from the best text, by what is not held out, the same every time."""

import sys

import numpy as np
import pytest
from PIL import Image

from clipseg_np import CLIPSegForImageSegmentation, InputError, LearnedPrompt, Segmenter
from clipseg_np.learn import Data, learn_prompt, read_data
from clipseg_np.learn.learn_prompt import BATCH, FOLDS, PLAIN_TEXTS, Lessons
from clipseg_np.masks.metrics import image_iou
from clipseg_np.model.learned_prompt import fingerprint
from clipseg_np.nn.ops import Ops

from ..helpers.device_array import DeviceArray, DeviceModule

SETTINGS = sys.modules[Lessons.__module__]


def save(folder, number: int, pixels: np.ndarray, mask: np.ndarray) -> None:
    for name, numbers in {"images": pixels, "masks": mask}.items():
        (folder / name).mkdir(exist_ok=True)
        Image.fromarray(numbers).save(folder / name / f"{number}.png")


@pytest.fixture(scope="session")
def folder(segmenter, tmp_path_factory):
    """8 images of 32 x 32, and the masks that a certain embedding marks in them."""
    folder, rng = tmp_path_factory.mktemp("taught"), np.random.default_rng(5)
    embedding = rng.standard_normal((1, 12))
    for number in range(8):
        pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
        features = segmenter.model.encode_image(segmenter.processor(images=pixels)["pixel_values"])
        save(folder, number, pixels, segmenter.model.decode(features, embedding)[0] > 0)
    return folder


@pytest.fixture
def data(folder) -> Data:
    return read_data(folder, ["a thing|a thingy"])


@pytest.fixture
def learn(tmp_path, segmenter, data):
    """learn_prompt by the readable arithmetic, in few steps, with a cache of the test's own."""

    def learn(data=data, xp=np, **options) -> LearnedPrompt:
        model = CLIPSegForImageSegmentation(segmenter.model.config, seed=3, ops=Ops(xp))
        options = {"steps": 40, "cache": tmp_path, **options}
        return learn_prompt(Segmenter(model, segmenter.processor), data, **options)

    return learn


@pytest.fixture
def scripted(monkeypatch):
    """Let Lessons.iou return these numbers in turn; a list of the embeddings that it was given."""

    def script(*ious: float) -> list:
        numbers, given = iter(ious), []

        def iou(_, embeddings):
            given.append(embeddings.copy())
            return next(numbers)

        monkeypatch.setattr(Lessons, "iou", iou)
        return given

    return script


def test_the_prompt_marks_what_the_masks_mark(learn, segmenter, data):
    prompt = learn(steps=160)
    images = [str(example.image) for example in data.examples]
    features = segmenter.model.encode_image(segmenter.processor(images=images)["pixel_values"])
    masks = [example.marks() == 1 for example in data.examples]

    def iou(embedding):
        marked = segmenter.model.decode(features, np.tile(embedding, (8, 1))) > 0
        return np.mean([*map(image_iou, marked, masks)])

    made = prompt.made
    assert iou(prompt.vector) > 0.8 and made["held_out_iou"] > 0.7
    assert made["start_iou"] == pytest.approx(iou(segmenter.embed([made["start"]])[0])) < 0.5


def test_it_is_a_prompt_of_this_decoder_that_says_how_it_was_made(learn, segmenter):
    prompt = learn()
    assert prompt.check(segmenter.model) and prompt.fingerprint == fingerprint(segmenter.model)
    assert prompt.name == "a thing" and prompt.vector.shape == (12,)
    made = dict(prompt.made)
    assert made.pop("start") in ("a thing", "a thingy", *PLAIN_TEXTS)
    assert made.pop("start_iou") <= made.pop("held_out_iou") <= 1
    assert made.pop("steps") in (0, 20, 40) and made.pop("version")
    assert made == {
        "prompts": ("a thing", "a thingy"),
        "images": 8,
        "rate": SETTINGS.RATE,
        "seed": 0,
    }


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


def test_a_start_that_marks_best_is_kept(learn, scripted, segmenter):
    scripted(0.6, 0.1, 0.5)
    prompt = learn(starts=["red"])
    assert prompt.made["steps"] == 0
    np.testing.assert_allclose(prompt.vector, segmenter.embed(["red"])[0], atol=1e-6)


def test_it_stops_where_nothing_gets_better(learn, scripted):
    given = scripted(0.2, 0.3, *[0.1] * 99)
    assert learn(starts=["red"], steps=1000).made["steps"] == 20
    assert len(given) == 2 + SETTINGS.PATIENCE // SETTINGS.STEPS_BETWEEN


def test_the_rate_is_relative_to_the_start(learn, scripted):
    """Adam's first steps are the rate long: the sum of the warm-up's rates, but for its mean."""
    given = scripted(0.2, 0.3)
    learn(starts=["red"], steps=20, rate=1e-4)
    start, mean = given
    moved = abs(mean - start).max() / np.sqrt((start**2).mean())
    assert 1e-4 < moved < 1e-4 * 20


def test_a_held_out_image_teaches_nothing_in_any_turn(learn, data, monkeypatch):
    """Nor do other things in it: an image's examples are held out from the same embedding."""
    seen = []
    load = SETTINGS.CachedFeatures.load
    monkeypatch.setattr(
        SETTINGS.CachedFeatures,
        "load",
        lambda self, entries: seen.append(entries) or load(self, entries),
    )
    lessons = []
    init = Lessons.__init__
    monkeypatch.setattr(
        Lessons, "__init__", lambda self, *a: lessons.append(self) or init(self, *a)
    )
    doubled = Data([*data.examples, *data.examples], [], False)
    learn(data=doubled, steps=60, starts=["red"])
    fold = lessons[0].fold
    assert (fold[:8] == fold[8:]).all()
    assert sorted(np.bincount(fold)) == [4, 4, 4, 4]
    batches = np.array([entries for entries in seen if len(entries) == FOLDS * BATCH])
    assert len(batches) == 60
    for number, drawn in enumerate(batches.reshape(60, FOLDS, BATCH, 2).swapaxes(0, 1)):
        assert (fold[drawn[..., 0]] != number).all()
        # 12 others, in 8 turns each: as often as each other
        pairs, counts = np.unique(drawn.reshape(-1, 2), axis=0, return_counts=True)
        assert len(pairs) == 96 and set(counts) == {2, 3}
    # For each embedding, in an order of its own
    assert (
        len({drawn.tobytes() for drawn in batches.reshape(60, FOLDS, -1).swapaxes(0, 1)}) == FOLDS
    )


def test_ignored_pixels_count_neither_way(segmenter, folder, tmp_path):
    """In a label map, 255 is ignored: the IoU and the gradient are those of the rest."""
    (tmp_path / "labels").mkdir()
    (tmp_path / "images").symlink_to(folder / "images")
    (tmp_path / "labels.csv").write_text("id,prompt\n1,a thing\n")
    rng = np.random.default_rng(0)
    for number in range(4, 8):
        mask = np.asarray(Image.open(folder / "masks" / f"{number}.png")).astype(np.uint8)
        mask[:, 16:] = 255
        Image.fromarray(mask).save(tmp_path / "labels" / f"{number}.png")
    ...


def test_several_things_are_refused(learn, data, folder, tmp_path):
    rows = [f"{folder}/images/{n}.png,{folder}/masks/{n}.png,{n % 2} thing" for n in range(8)]
    (tmp_path / "data.csv").write_text("\n".join(["image,mask,prompt", *rows]))
    with pytest.raises(InputError, match="mark 2 things, '0 thing', '1 thing': choose one with"):
        learn(read_data(tmp_path / "data.csv"))
    assert learn(read_data(tmp_path / "data.csv", "1 thing"), steps=1).made["images"] == 4


def test_few_images_are_refused(learn, data):
    few = Data([*data.examples[:3], *data.examples[:3]], [], False)
    with pytest.raises(InputError, match="there are 3 images; expected 4 or more"):
        learn(few)


def test_a_device_learns_the_same(learn, tmp_path):
    here, there = learn(steps=20), learn(steps=20, xp=DeviceModule(), cache=tmp_path / "there")
    assert isinstance(there.vector, np.ndarray)
    np.testing.assert_allclose(there.vector, here.vector, atol=1e-5)
