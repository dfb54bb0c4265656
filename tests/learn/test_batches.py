"""The batches of a decoder that learns: new, old and kept prompts, and what scores it."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from clipseg_np import Segmenter
from clipseg_np.errors import InputError
from clipseg_np.learn.batches import Batches, far_apart, old_prompts
from clipseg_np.learn.data import Data, Example, read_data
from clipseg_np.learn.features import turned
from clipseg_np.learn.lessons import ABSENT
from clipseg_np.learn.progress import unseen

from ..helpers.discs import discs


def test_half_of_a_batch_is_old_prompts(batches):
    entries = batches().batch(0, 3)
    assert [entry.example.read is None for entry in entries] == [True] * 10 + [False] * 10
    assert {entry.text for entry in entries[10:]} <= {"a disc", "the disc"}


def test_most_of_the_old_prompts_mark_something(batches, monkeypatch):
    def decoded(self, decoder, entries):
        """Nothing, a single pixel, and many are marked, by turns."""
        counts = np.resize([0, 1, 300], len(entries))
        return np.where(np.arange(1024) < counts[:, None], 1, -1).reshape(-1, 32, 32)

    monkeypatch.setattr(Batches, "decoded", decoded)
    made = batches()
    # 96 entries, in two parts
    assert (len(made.old.examples), len(made.old.absent)) == (31, 65)
    marked, entries = set(made.old.examples), [e for s in range(50) for e in made.batch(0, s)[:10]]
    share = np.mean([entry.example in marked for entry in entries])
    assert share == pytest.approx(1 - ABSENT, abs=0.06)


def test_labels_of_old_prompts_are_the_old_decoders_and_others_the_masks(batches):
    made = batches()
    entries = made.batch(0, 0)
    labels = made.targets(entries)
    logits = made.decoded(made.model.decoder, entries[:10])
    np.testing.assert_allclose(labels[:10], 1 / (1 + np.exp(-logits)), atol=1e-6)
    for entry, label in zip(entries[10:], labels[10:]):
        expected = turned(entry.example.target(made.size), entry.turn)
        np.testing.assert_array_equal(label, expected)


def test_examples_that_are_kept_are_a_part_of_what_is_old(batches, keep):
    entries = batches(keep=keep).batch(0, 0)
    assert [entry.example.read is None for entry in entries] == [True] * 5 + [False] * 15
    texts = [entry.text for entry in entries[5:]]
    assert set(texts[:5]) == {"a background"} and set(texts[5:]) == {"a disc", "the disc"}


def test_a_fifth_of_the_new_prompts_name_what_is_known_to_be_absent(batches, data):
    empty = [Example(e.image, ("a cat",), lambda e=e: 0 * e.read()) for e in data.examples]
    made = batches(Data(data.examples, empty))
    entries = [entry for step in range(100) for entry in made.batch(0, step)[10:]]
    absent = [entry for entry in entries if entry.text == "a cat"]
    assert len(absent) == pytest.approx(ABSENT * 100 * 10, rel=0.2)
    assert not made.label(absent[0].example).any()


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_fold_does_not_learn_from_what_it_is_scored_by(batches, keep, is_kept):
    made, held_out = batches(keep=keep if is_kept else None), []
    for fold in range(4):
        learned = [e.example.image for step in range(50) for e in made.batch(fold, step)]
        tests = [{entry.example.image for entry in entries} for entries, _ in made.tests(fold)]
        assert len(set(learned)) == 9 and not set(learned) & (tests[0] | tests[1])
        assert len(tests[0]) == 3 and tests[1]
        held_out += tests[0]
    assert len(set(held_out)) == 12


def test_a_fold_without_anything_to_keep_is_reported(batches, tmp_path):
    folder = discs(tmp_path, 16)
    data, keep = read_data(folder, "a disc"), read_data(folder, "a background")
    folds = batches(data).folds
    kept = Data([e for e in keep.examples if folds[e.image] == 2], [])
    with pytest.raises(InputError, match="all images to keep are in one fold; expected more"):
        batches(data, kept).batch(2, 0)


def test_every_turn_and_wording_is_learned(batches):
    made = batches()
    for part in (slice(10), slice(10, 20)):
        entries = [entry for step in range(20) for entry in made.batch(0, step)[part]]
        assert {entry.turn for entry in entries} == set(range(8))
    assert {entry.text for entry in entries} == {"a disc", "the disc"}


def test_each_example_is_learned_as_often_as_any_other(batches):
    made = batches()
    counts = Counter(e.example.image for step in range(9) for e in made.batch(0, step)[10:])
    assert set(counts.values()) == {10} and len(counts) == 9


def test_pixels_to_ignore_do_not_count(batches, data):
    def marks_of(example):
        marks = example.read().astype(np.uint8)
        marks[:8] = 255
        return marks

    examples = [replace(e, read=lambda e=e: marks_of(e)) for e in data.examples]
    made = batches(Data(examples, []))
    assert np.isnan(made.label(examples[0])[:8]).all()
    made.logits = lambda decoder, entries, rows: np.ones((len(entries), 32, 32))
    labels = made.tests(0)[0][1]
    expected = np.mean([(label > 0.5).sum() / (32 * 24) for label in labels])
    assert made.scores(made.model.decoder, 0)["new_iou"] == pytest.approx(expected, abs=1e-4)


def test_any_other_mask_makes_another_run(batches, data, keep):
    def mark(new, kept, absent=()):
        return batches(Data(new, [*absent]), Data(kept, [])).mark()

    new, kept = data.examples[:8], keep.examples[:8]
    first = mark(new, kept)
    assert mark(new, kept) == first
    others = [replace(e, read=lambda e=e: 1 - e.read()) for e in (*new, *kept)]
    for number, other in enumerate(others):
        both = [*new, *kept]
        both[number] = other
        assert mark(both[:8], both[8:]) != first, number
    assert mark(new[:7], kept, [new[7]]) != first


def test_prompts_lie_apart_in_other_coordinates():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(40, 8)) * np.linspace(1, 5, 8) @ np.tri(8) + 3
    matrix, mean = far_apart(embeddings)
    apart = (embeddings - mean) @ matrix.T
    np.testing.assert_allclose(np.cov(apart.T), 400 * np.eye(8), atol=20)
    assert abs(apart.mean(axis=0)).max() < 1e-9


def test_only_where_few_words_are_known(batches, data, tmp_path):
    given = {"seed": 0, "folder": tmp_path, "progress": unseen}
    demo = Batches(Segmenter.from_pretrained(threads=1), data, None, 8, **given)
    assert batches().coordinates is None and demo.coordinates[0].shape == (96, 96)


def test_half_of_the_old_prompts_hold_words_that_are_like_the_new_one():
    segmenter, rng = Segmenter.from_pretrained(), np.random.default_rng(0)
    words = sorted(segmenter.processor.words)
    texts = old_prompts(segmenter, words, ["a heart"], rng)
    assert {f"a {word}" for word in words} <= set(texts)
    assert all(set(text.split()) <= set(words) for text in texts)
    near = Counter(text.split()[-1] for text in texts[len(texts) // 2 :])
    assert len(near) == 4 and "star" in near
    assert old_prompts(segmenter, [], ["a heart"], rng) == []
