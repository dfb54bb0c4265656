"""Learned prompts wherever a prompt is: alone, mixed with texts and images, by name in texts."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipseg_np import InputError, LearnedPrompt, VisualPrompt
from clipseg_np.model.learned_prompt import fingerprint
from clipseg_np.segment.batch import Job, run_batch
from clipseg_np.segment.prompt_algebra import parse
from clipseg_np.segment.segmenter import read_prompts


def learned(segmenter, name="heart", seed=0) -> LearnedPrompt:
    vector = np.random.default_rng(seed).normal(size=segmenter.model.config.projection_dim)
    return LearnedPrompt(vector.astype(np.float32), fingerprint(segmenter.model), name, {})


@pytest.fixture(scope="module")
def heart(segmenter):
    return learned(segmenter)


def of_vector(segmenter, image, prompt) -> np.ndarray:
    """The logits of the prompt's vector through the model's own forward."""
    pixels = segmenter.processor(images=image, return_tensors="np")["pixel_values"]
    return segmenter.model(None, pixels, conditional_embeddings=prompt.vector[None]).logits


def test_it_is_a_prompt_among_others_and_keeps_its_place(segmenter, heart, image):
    mask = np.zeros(image.shape[:2], bool)
    mask[5:20, 5:30] = True
    shown = VisualPrompt(image, mask)
    given = [image[::-1], heart, "red", shown, learned(segmenter, "star", 1), "a blue x"]
    result = segmenter(image, given)
    alone = [segmenter(image, prompt).probabilities[0] for prompt in given]
    np.testing.assert_allclose(result.probabilities, alone, atol=1e-5)
    np.testing.assert_allclose(result.logits[1:2], of_vector(segmenter, image, heart), atol=1e-5)
    assert len({a.tobytes() for a in alone}) == 6
    assert result.captions == ["image", "@heart", "red", "image", "@star", "a blue x"]
    np.testing.assert_array_equal(result[heart], result[1])
    np.testing.assert_array_equal(result["@heart"], result[1])


@pytest.mark.parametrize("scales", [(1,), (1, 2)])
def test_old_prompts_have_the_same_masks_beside_a_learned_one(segmenter, image, scales):
    old = ["red", image[::-1], "a blue x - red", "ab"]
    expected = segmenter.combine(image, old, scales=scales)
    found = segmenter.combine(image, [*old[:2], learned(segmenter), *old[2:]], scales=scales)
    rest = found.probabilities[[0, 1, 3, 4]]
    np.testing.assert_allclose(rest, expected.probabilities, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found.masks()[[0, 1, 3, 4]], expected.masks())


def test_windows_of_a_learned_prompt_are_joined_as_a_text_s(segmenter, image):
    """A prompt with a text's own embedding gives the text's maps."""
    vector = segmenter.embed(["red"])[0].astype(np.float32)
    same = replace(learned(segmenter), vector=vector)
    for scales in ((1,), (2,), (1, 2)):
        expected = segmenter(image, "red", scales=scales).probabilities
        found = segmenter(image, same, scales=scales).probabilities
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_texts_mention_it_by_its_name(segmenter, heart, image):
    texts = ["@heart", "@heart - red", "(red + @heart) & !@star", "red"]
    given = [heart, learned(segmenter, "star", 1)]
    for prompts in (texts, segmenter.prepare(texts, learned=given)):
        result = segmenter.combine(image, prompts, learned=given)
        a, b, red = segmenter(image, [*given, "red"]).probabilities
        assert len(result.logits) == 3  # each is decoded once
        expected = [a, np.minimum(a, 1 - red), np.minimum(np.maximum(red, a), 1 - b), red]
        np.testing.assert_allclose(result.probabilities, expected, atol=1e-5)
        assert result.captions == texts
    again = pickle.loads(pickle.dumps(result))
    np.testing.assert_allclose(again.probabilities, result.probabilities, atol=1e-6)
    assert again["@heart - red"].shape == image.shape[:2]


def test_a_name_in_quotes_is_a_text_and_an_unknown_one_an_error(segmenter, heart, image, recwarn):
    assert parse('"@heart" - @heart', {"@heart": heart}).prompts == ("@heart", heart)
    assert parse("home@heart", {"@heart": heart}).prompts == ("home@heart",)
    expected = segmenter(image, "@home").probabilities  # here, a string is always a text
    found = segmenter.combine(image, '"@home"', learned=[heart]).probabilities
    np.testing.assert_array_equal(found, expected)
    assert not recwarn.list
    for text in ("@star", "red - @star", "@heart@star", "@", "@Heart"):
        with pytest.raises(InputError, match=r"is no learned prompt.*; given: @heart\. .* quotes"):
            segmenter.combine(image, text, learned=[heart])
    with pytest.raises(InputError, match="given: none .*--prompt-file.*learned="):
        segmenter.combine(image, "@home")


@pytest.mark.parametrize("name", ["a heart", "heart(1)", "!", 'a"b', "", "a\tb"])
def test_names_that_no_text_can_mention(name, segmenter, heart, image):
    odd = replace(heart, name=name)
    assert segmenter(image, odd).captions == [f"@{name}"]
    with pytest.raises(InputError, match="no text can mention .*: rename its file"):
        segmenter.combine(image, "red", learned=[odd])


@pytest.mark.parametrize("name", ["heart-2", "हृदय", "e\u0301", "a+b", "2", "x.y_z", "-", "心"])
def test_names_that_texts_mention(name, segmenter, heart):
    odd = replace(heart, name=name)
    _, (expression,) = read_prompts([f"!@{name} & (a - @{name})"], learned=[odd])
    assert expression.prompts == (odd, "a")


def test_two_of_one_name_are_refused(segmenter, heart, image):
    with pytest.raises(InputError, match="two learned prompts are named '@heart'"):
        segmenter.prepare("@heart", learned=[heart, learned(segmenter, "heart", 1)])


@pytest.mark.parametrize("given", [None, ["heart.safetensors"], "heart.safetensors", 3])
def test_what_is_no_learned_prompt(given, segmenter, image):
    with pytest.raises(InputError, match="expected a list of LearnedPrompt objects"):
        segmenter.combine(image, "red", learned=given)


def test_one_learned_prompt_needs_no_list(segmenter, heart, image):
    one = segmenter.combine(image, "@heart", learned=heart)
    np.testing.assert_array_equal(one[0], segmenter.combine(image, "@heart", learned=[heart])[0])


def test_another_decoder_s_prompt_is_refused_before_the_image_is_read(segmenter, heart):
    other = replace(heart, fingerprint="0" * 64)
    for call in (segmenter, segmenter.combine):
        with pytest.raises(InputError, match="@heart does not fit this checkpoint"):
            call(Path("none.png"), ["red", other])
    with pytest.raises(InputError, match="@heart does not fit this checkpoint"):
        segmenter.prepare("red + @heart", learned=[other])
    short = replace(heart, vector=heart.vector[:-1])
    with pytest.raises(InputError, match="has shape"):
        segmenter(Path("none.png"), short)


def test_a_batch(segmenter, heart, checkpoint, image_file, tmp_path):
    """The same file name with another vector is another job, also within one process."""
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(image_file.read_bytes())
    file = str(tmp_path / "heart.safetensors")
    job = Job(("@heart - red", "red"), str(tmp_path / "out"), str(checkpoint))
    job = replace(job, prompt_files=(file,), kinds=("soft",))
    for number, prompt in enumerate((heart, learned(segmenter, "heart", 1))):
        prompt.save(file)
        (record,) = run_batch(replace(job, output=str(tmp_path / f"{number}")), images)
        expected = segmenter.combine(image_file, list(job.prompts), learned=[prompt])
        for found, probability in zip(record["prompts"], expected):
            assert found["presence"] == pytest.approx(float(probability.max()), abs=1e-3)
    with pytest.raises(InputError, match="other options or weights"):
        heart.save(file)
        run_batch(replace(job, output=str(tmp_path / "1")), images)


def test_a_batch_is_refused_as_a_whole(segmenter, heart, checkpoint, image_file, tmp_path):
    file = str(tmp_path / "heart.safetensors")
    replace(heart, fingerprint="0" * 64).save(file)
    job = Job(("@heart",), str(tmp_path / "out"), str(checkpoint), prompt_files=(file,))
    with pytest.raises(InputError, match="@heart does not fit this checkpoint"):
        run_batch(job, image_file.parent)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"'@star' is no learned prompt"):
        run_batch(replace(job, prompts=("@star",), force=True), image_file.parent)
    assert not (tmp_path / "out").exists()
    (record, *_) = run_batch(replace(job, force=True), image_file.parent)
    assert record["prompts"][0]["prompt"] == "@heart"
