"""Segmenter: all kinds of prompts, one encoding of the image, results of the image's size."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipseg_np import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTokenizer,
    InputError,
    Segmenter,
    VisualPrompt,
    ViTImageProcessor,
    trace,
)

from ..helpers.checkpoints import checkpoint, stored_arrays


def expected_probabilities(segmenter, image, **prompt):
    """One prompt through the model's own forward, at the image's own size."""
    from clipseg_np.image.image_processor import resize_bilinear

    inputs = segmenter.processor(images=image, return_tensors="np", **prompt)
    logits = segmenter.model(**inputs).logits
    return 1 / (1 + np.exp(-resize_bilinear(logits, image.shape[:2]).astype(np.float64)))[0]


def test_a_mix_of_prompts_keeps_its_order(segmenter, image):
    other = image[::-1, ::-1].copy()
    result = segmenter(image, ["red", other, "a blue x"])
    assert result.probabilities.shape == (3, 40, 60)
    assert result.probabilities.dtype == np.float32
    expected = [
        expected_probabilities(segmenter, image, text="red"),
        expected_probabilities(segmenter, image, visual_prompt=other),
        expected_probabilities(segmenter, image, text="a blue x"),
    ]
    assert np.abs(expected[0] - expected[2]).max() > 1e-3
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-5)


@pytest.mark.parametrize("prompt", ["red", ["red"]])
def test_one_prompt_keeps_its_axis(segmenter, image, prompt):
    assert segmenter(image, prompt).masks().shape == (1, 40, 60)


def test_the_image_is_encoded_once_and_no_deeper_than_the_last_extracted_layer(segmenter, image):
    with trace() as activations:
        segmenter(image, ["red", "blue", "x"])
    layers = [name for name in activations if name.startswith("clip.vision_model.encoder.layers.")]
    assert len(activations.all["clip.vision_model.encoder.layers.2"]) == 1
    assert activations["clip.vision_model.encoder.layers.2"].shape[0] == 1
    assert not any(name.startswith("clip.vision_model.encoder.layers.3") for name in layers)


def test_P30_masks_are_probabilities_above_the_threshold(segmenter, image):
    result = segmenter(image, "red")
    assert np.array_equal(result.masks(0.25), result.probabilities > 0.25)
    assert result.masks(0).all() and not result.masks(1).any()
    with pytest.raises(InputError, match="threshold is 1.5"):
        result.masks(1.5)


def test_P05_a_turned_photo_gives_a_mask_as_a_person_sees_it(segmenter, image, tmp_path):
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    Image.fromarray(image).save(path, exif=exif, quality=95)
    result = segmenter(path, "red")
    assert result.probabilities.shape == (1, 60, 40)
    upright = np.rot90(np.asarray(Image.open(path)), -1)
    np.testing.assert_allclose(
        result.probabilities, segmenter(upright, "red").probabilities, atol=1e-6
    )


def test_white_is_said_for_the_image_and_for_image_prompts(segmenter, image):
    deep = image.astype(np.uint16) * 16
    mask = image[..., 0] > 99
    prompts = ["red", image, VisualPrompt(image, mask)]
    expected = segmenter(image, prompts).probabilities
    prompts = ["red", deep, VisualPrompt(deep, mask.astype(np.uint16) * 4080)]
    for call in (segmenter, segmenter.combine):
        found = call(deep, prompts, white_level=4080).probabilities
        np.testing.assert_array_equal(found, expected)
    query = segmenter.prepare(prompts, white_level=4080)
    found = segmenter.combine(deep, query, white_level=4080).probabilities
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "prompts, message",
    [
        ([], "no prompt"),
        (["red", "  "], "prompt 2 is empty"),
        (None, "prompt 1 is a NoneType; expected a text, a Path, a PIL image, an array of num"),
        (["red", 3], "prompt 2 is a int; expected a text"),
        (b"red", "prompt 1 is a bytes; expected a text"),
        (["red", ["blue"]], "prompt 2 is a list; expected a text"),
        ((text for text in ("red", "blue")), "prompt 1 is a generator; .*, or a list"),
        ({"red": 1}, "prompt 1 is a dict; .*, or a list"),
        (np.array(["red", "blue"]), "prompt 1 is a ndarray; .*, or a list"),
        (["red", np.array(["red", None])], "prompt 2 is a ndarray"),
        (np.zeros(3), r"an image prompt is an array of shape \(3,\)"),
        (np.zeros((0, 3)), "an image prompt has no pixels"),
        (VisualPrompt(None, np.ones((9, 9))), "an image prompt is a NoneType"),
    ],
)
def test_unusable_prompts_are_refused(segmenter, image, prompts, message):
    for call in (segmenter, segmenter.combine):
        with pytest.raises(InputError, match=message):
            call(image, prompts)


def test_too_long_a_prompt_is_cut_with_a_warning(segmenter, image):
    with pytest.warns(UserWarning, match="has 32 tokens; the model reads 16"):
        long = segmenter(image, "x" * 30)
    cut = segmenter(image, "x" * 14)
    # The 14 letters that fit, but without the end-of-word mark of a whole word.
    assert long.probabilities.shape == cut.probabilities.shape


def test_a_vocabulary_that_does_not_fit_is_refused(segmenter, tokenizer, config):
    small = segmenter.processor
    text = config.text_config
    from dataclasses import replace

    narrow = replace(config, text_config=replace(text, vocab_size=text.vocab_size - 1))
    with pytest.raises(InputError, match=f"{len(tokenizer)} tokens .* {text.vocab_size - 1}"):
        Segmenter(CLIPSegForImageSegmentation(narrow), small)
    ends = replace(config, text_config=replace(text, eos_token_id=1))
    with pytest.raises(InputError, match="eos_token_id is 1"):
        Segmenter(CLIPSegForImageSegmentation(ends), small)


def test_a_token_behind_the_vocabulary_matters_in_a_prompt_only(segmenter, checkpoint, image):
    tokenizer = CLIPTokenizer.from_pretrained(checkpoint, extra_special_tokens=["<toy>"])
    processor = CLIPSegProcessor(segmenter.processor.image_processor, tokenizer)
    more = Segmenter(segmenter.model, processor)
    expected = segmenter(image, "red").probabilities
    np.testing.assert_array_equal(more(image, "red").probabilities, expected)
    with pytest.raises(InputError, match=r"input_ids hold 192; .*vocab_size"):
        more(image, "a <toy>")


def test_non_square_input_size(segmenter, image):
    wide = CLIPSegProcessor(
        ViTImageProcessor(size={"height": 24, "width": 40}), segmenter.processor.tokenizer
    )
    assert Segmenter(segmenter.model, wide)(image, "red").probabilities.shape == (1, 40, 60)


def test_loaded_from_a_folder_it_gives_the_same(segmenter, checkpoint, image):
    again = Segmenter.from_pretrained(checkpoint)
    assert np.array_equal(
        again(image, ["red", image]).probabilities, segmenter(image, ["red", image]).probabilities
    )
    double = Segmenter.from_pretrained(checkpoint, dtype="float64")
    assert double.model.dtype == np.float64
    np.testing.assert_allclose(
        double(image, "red").probabilities, again(image, "red").probabilities, atol=1e-4
    )


def test_it_is_made_of_a_model_and_a_processor(segmenter):
    model, processor = segmenter.model, segmenter.processor
    with pytest.raises(InputError, match="got a CLIPSegProcessor; expected a CLIPSegForImageSeg"):
        Segmenter(processor, model)
    with pytest.raises(InputError, match="got a CLIPSegModel; expected a CLIPSegForImageSegm"):
        Segmenter(model.clip, processor)
    with pytest.raises(InputError, match="got a CLIPTokenizer; expected a CLIPSegProcessor"):
        Segmenter(model, processor.tokenizer)


def with_weights(segmenter, folder, change) -> Segmenter:
    """The same segmenter with weights that `change` has changed in a file."""
    segmenter.model.save_pretrained(folder / "sound")
    arrays = stored_arrays(folder / "sound")
    change(arrays)
    changed = checkpoint(folder / "changed", arrays, like=folder / "sound")
    model = CLIPSegForImageSegmentation.from_pretrained(changed)
    return Segmenter(model, segmenter.processor)


@pytest.mark.parametrize("stored", ["float16", "float32"])
def test_nan_in_the_masks_is_a_warning_that_names_the_damaged_weight(
    stored, segmenter, image, tmp_path
):
    name = "decoder.film_mul.weight"

    def damage(arrays):
        arrays[name][3, 4] = np.nan
        arrays[name] = arrays[name].astype(stored)

    damaged = with_weights(segmenter, tmp_path, damage)
    with pytest.warns(UserWarning, match=f"the masks hold NaN: the checkpoint's {name} holds NaN"):
        damaged(image, "red")


@pytest.mark.filterwarnings("error")
def test_infinite_weights_that_no_mask_depends_on_are_no_reason_to_warn(segmenter, image, tmp_path):
    def change(arrays):
        arrays["clip.logit_scale"][...] = np.inf

    with_weights(segmenter, tmp_path, change)(image, "red")


def mapped_kilobytes(file) -> int:
    """How much of a mapped file this process holds in memory, by /proc."""
    here, total = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:  # the head of a mapping, with its file's name
            here = line.endswith(str(file))
        elif here and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


@pytest.mark.skipif(
    not Path("/proc/self/smaps").exists(), reason="memory is measured in Linux's own way"
)
def test_keywords_of_transformers_load_a_segmenter(checkpoint):
    path, options = {"pretrained_model_name_or_path": checkpoint}, {"torch_dtype": "float64"}
    segmenter = Segmenter.from_pretrained(**path, **options, device_map="cpu", key_mapping=None)
    assert segmenter.model.config == CLIPSegConfig.from_pretrained(checkpoint)
    assert segmenter.model.dtype == np.float64
    with pytest.raises(InputError, match="write backend='cupy' for the GPU"):
        Segmenter.from_pretrained(device="cuda")
    with pytest.raises(InputError, match="nonsense is neither an argument of from_pretrained"):
        Segmenter.from_pretrained(nonsense=1)


def test_a_text_that_names_an_image_is_warned_of(segmenter, image, image_file, recwarn):
    for prompts in ("a photo of a jpg", image_file, "scene"):
        segmenter(image, prompts)
    assert not recwarn
    for call in (segmenter, segmenter.combine):
        with pytest.warns(UserWarning, match="is a text here; an image's path is a pathlib.Path"):
            call(image, str(image_file))
        with pytest.warns(UserWarning, match="'gone.JPG' is a text here"):
            call(image, "gone.JPG")


def test_the_memory_of_mapped_weights_can_be_given_back(segmenter, tmp_path):
    segmenter.model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    model = CLIPSegForImageSegmentation.from_pretrained(tmp_path)
    assert mapped_kilobytes(file) <= 8  # loading reads no more than scalars and the like
    expected = model.clip.text_model(np.array([[1, 2, 191]])).pooler_output
    assert mapped_kilobytes(file) > 8
    model.decoder.film_mul.weight.sum()
    read = mapped_kilobytes(file)  # the system reads some pages around an array, too
    model.clip.text_model.give_back_memory()
    assert 0 < mapped_kilobytes(file) < read
    again = model.clip.text_model(np.array([[1, 2, 191]])).pooler_output
    assert np.array_equal(again, expected)
    model.give_back_memory()
    assert mapped_kilobytes(file) == 0
    Segmenter(model, segmenter.processor).embed(["red"])
    text_alone = mapped_kilobytes(file)
    model.clip.text_model(np.array([[1, 2, 191]]))
    assert text_alone < mapped_kilobytes(file)  # Segmenter had given it back


def test_one_thread_repeats_a_call_to_the_last_bit():
    """Several threads do not, as the docstrings of `threads` say."""
    segmenter = Segmenter.from_pretrained(threads=1)
    first, *others = (segmenter("examples/shapes.png", ["a star", "red"]) for _ in range(4))
    for other in others:
        assert np.array_equal(first.probabilities, other.probabilities)
