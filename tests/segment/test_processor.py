"""CLIPSegProcessor: what it returns for each combination, and where each keyword goes."""

import json
import warnings

import numpy as np
import pytest

from clipseg_np import CLIPSegProcessor, InputError


@pytest.fixture
def processor(segmenter):
    return segmenter.processor


def test_text_and_images_come_in_the_references_order(processor, image):
    inputs = processor(
        text=["red", "a red x"], images=[image] * 2, padding=True, return_tensors="np"
    )
    assert list(inputs) == ["input_ids", "attention_mask", "pixel_values"]
    assert inputs.input_ids.shape == inputs.attention_mask.shape == (2, 5)
    assert inputs.pixel_values.shape == (2, 3, 32, 32)


def test_white_is_said_for_images_and_visual_prompts(processor, image):
    expected = processor(images=image, visual_prompt=image[::-1])
    deep = image.astype(np.uint16) * 16
    found = processor(images=deep, visual_prompt=deep[::-1], white_level=4080)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_images_and_visual_prompt(processor, image):
    named = processor(images=image, visual_prompt=image[::-1], return_tensors="np")
    assert list(named) == ["pixel_values", "conditional_pixel_values"]
    assert not np.array_equal(named.pixel_values, named.conditional_pixel_values)
    by_place = processor(None, image, image[::-1])
    assert np.array_equal(by_place.conditional_pixel_values, named.conditional_pixel_values)


def test_each_part_alone_gives_what_the_part_gives(processor, image):
    assert processor(text="a red x") == processor.tokenizer("a red x")
    alone = processor(images=image)
    assert list(alone) == ["pixel_values"]
    assert np.array_equal(alone.pixel_values, processor.image_processor(image).pixel_values)
    assert list(processor(visual_prompt=image)) == ["conditional_pixel_values"]


def test_keywords_go_to_the_part_that_knows_them_without_a_warning(processor, image):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inputs = processor(
            text="a red x",
            images=image,
            padding="max_length",
            size=16,
            do_normalize=False,
            text_kwargs={"max_length": 9},
            images_kwargs={"do_rescale": False},
            return_tensors="np",
        )
    assert inputs.input_ids.shape == (1, 9)
    assert inputs.pixel_values.shape == (1, 3, 16, 16)
    assert inputs.pixel_values.max() > 100


def test_unknown_keyword_is_named_in_a_warning(processor):
    with pytest.warns(UserWarning, match="colour"):
        processor(text="red", colour=1)


def test_none_is_no_option(processor, image):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = processor(text="red", images=image, padding=None, size=None, videos=None)
    assert given.input_ids == processor(text="red").input_ids


def test_nothing_and_two_kinds_of_prompt_are_refused(processor, image):
    with pytest.raises(InputError, match="nothing to process"):
        processor()
    with pytest.raises(InputError, match="both text and visual_prompt"):
        processor(text="red", images=image, visual_prompt=image)


def test_an_option_given_twice_is_refused(processor, image):
    """As in transformers, whichever of the two ways would win."""
    for given in (
        {"do_rescale": False, "images_kwargs": {"do_rescale": True}},
        {"padding": True, "text_kwargs": {"padding": True}},
        {"return_tensors": "np", "images_kwargs": {"return_tensors": "np"}},
    ):
        with pytest.raises(InputError, match=f"{next(iter(given))} is given twice"):
            processor(text="red", images=image, **given)


def test_common_kwargs_are_used_where_nothing_else_is_given(processor, image):
    common = {"return_tensors": "np", "padding": "max_length", "max_length": 9, "do_rescale": False}
    inputs = processor(text="red", images=image, common_kwargs=common)
    assert inputs.input_ids.shape == (1, 9) and inputs.pixel_values.max() > 100
    inputs = processor(
        text="red",
        images=image,
        common_kwargs=common,
        max_length=8,
        images_kwargs={"do_rescale": True},
    )
    assert inputs.input_ids.shape == (1, 8) and inputs.pixel_values.max() <= 1
    with pytest.warns(UserWarning, match="does not know colour"):
        processor(text="red", common_kwargs={"colour": 1})


def test_settings_of_an_image_that_are_no_fields_reach_it_too(processor, image, tmp_path):
    with pytest.raises(InputError, match="do_center_crop must be False"):
        processor(images=image, do_center_crop=True)
    processor.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="do_center_crop must be False"):
        CLIPSegProcessor.from_pretrained(tmp_path, do_center_crop=True)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_center_crop": True}))
    kept = CLIPSegProcessor.from_pretrained(tmp_path, do_center_crop=False, size=32)
    assert kept(images=image).pixel_values.shape == (1, 3, 32, 32)


def test_inputs_go_to_any_device_by_themselves(processor, image):
    inputs = processor(text="red", images=image, return_tensors="np")
    assert inputs.to("cuda") is inputs.to(device="cpu", dtype="float16") is inputs


def test_all_of_a_processor_is_saved_or_nothing(processor, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    old = json.dumps({"image_processor": {"size": {"height": 9, "width": 9}}})
    (tmp_path / "processor_config.json").write_text(old)
    with pytest.raises(InputError, match=r"tokenizer\.json would be read in place"):
        processor.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json", "processor_config.json"}
    assert (tmp_path / "processor_config.json").read_text() == old
    (tmp_path / "tokenizer.json").unlink()
    processor.save_pretrained(tmp_path)
    again = CLIPSegProcessor.from_pretrained(tmp_path)
    assert again.image_processor.to_dict() == processor.image_processor.to_dict()


def test_it_is_made_of_an_image_processor_and_a_tokenizer(processor):
    images, texts = processor.image_processor, processor.tokenizer
    assert CLIPSegProcessor(feature_extractor=images, tokenizer=texts).image_processor is images
    with pytest.raises(InputError, match="got a CLIPTokenizer and a ViTImageProcessor"):
        CLIPSegProcessor(texts, images)


def test_decode_and_batch_decode(processor):
    ids = processor(text=["a red x", "red"]).input_ids
    assert processor.decode(ids[0], skip_special_tokens=True) == "a red x"
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["a red x", "red"]


def test_saved_and_loaded_it_gives_the_same(processor, image, tmp_path):
    processor.save_pretrained(tmp_path)
    again = CLIPSegProcessor.from_pretrained(tmp_path)
    before = processor(text="a red x", images=image, return_tensors="np")
    after = again(text="a red x", images=image, return_tensors="np")
    assert all(np.array_equal(before[name], after[name]) for name in before)
    changed = CLIPSegProcessor.from_pretrained(tmp_path, do_normalize=False, model_max_length=5)
    assert changed.image_processor.do_normalize is False
    assert changed.tokenizer.model_max_length == 5
