"""ViTImageProcessor: its numbers, fields, files and errors, and probabilities at a size."""

import json
import warnings

import numpy as np
import pytest
from PIL import Image

from clipseg_np.errors import InputError
from clipseg_np.image.image_processor import ViTImageProcessor, output_size, probabilities_at

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = {"image_mean": MEAN, "image_std": STD}


def drawn(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# numbers


def test_P01_P02_pixel_values_from_first_principles():
    """A red-to-blue ramp of 2 pixels, doubled: bytes, then 0..1, then ImageNet's mean and std."""
    image = np.array([[[200, 0, 0], [0, 0, 100]]], np.uint8)
    processor = ViTImageProcessor(size=(1, 4), **IMAGENET)
    pixel_values = processor(Image.fromarray(image)).pixel_values
    assert pixel_values.shape == (1, 3, 1, 4)
    assert pixel_values.dtype == np.float32
    levels = np.array([[200, 150, 50, 0], [0, 0, 0, 0], [0, 25, 75, 100]])
    for channel in range(3):
        expected = (levels[channel] / 255 - MEAN[channel]) / STD[channel]
        np.testing.assert_allclose(pixel_values[0, channel, 0], expected, rtol=0, atol=2e-7)


def test_the_resize_is_rounded_to_bytes_before_the_rest():
    image = np.array([[0, 255]], np.uint8)
    pixel_values = ViTImageProcessor(size=1, do_normalize=False)(image).pixel_values
    assert pixel_values[0, 0, 0, 0] == np.float32(128 / 255)


def test_each_step_can_be_left_out():
    image = drawn(5, 6)
    planes = image.transpose(2, 0, 1)[None].astype(np.float32)
    bare = {"do_resize": False, "do_rescale": False, "do_normalize": False}
    np.testing.assert_array_equal(ViTImageProcessor(**bare)(image).pixel_values, planes)
    scaled = ViTImageProcessor(**{**bare, "do_rescale": True, "rescale_factor": 0.5})
    np.testing.assert_array_equal(scaled(image).pixel_values, planes * 0.5)
    shifted = ViTImageProcessor(**{**bare, "do_normalize": True, "image_mean": 3, "image_std": 2})
    np.testing.assert_array_equal(shifted(image).pixel_values, (planes - 3) / 2)


def test_floats_in_0_to_1_are_not_rescaled_twice():
    image = drawn(5, 6)
    expected = ViTImageProcessor(size=5)(image).pixel_values
    for floats in (image / 255, (image / 255).astype(np.float32)):
        for do_rescale in (True, False):
            processor = ViTImageProcessor(size=5, do_rescale=do_rescale)
            np.testing.assert_array_equal(processor(floats).pixel_values, expected)


def test_data_format_channels_last():
    image = drawn(5, 6)
    first = ViTImageProcessor(size=5)(image).pixel_values
    last = ViTImageProcessor(size=5)(image, data_format="channels_last").pixel_values
    np.testing.assert_array_equal(last, first.transpose(0, 2, 3, 1))


# images


def test_one_image_is_a_batch_of_one_and_a_list_may_mix_everything(tmp_path):
    Image.fromarray(drawn(9, 3)).save(tmp_path / "a.png")
    rgba = Image.fromarray(drawn(5, 5)).convert("RGBA")
    grey = drawn(6, 2)[:, :, 0]
    images = [drawn(7, 8), rgba, grey, str(tmp_path / "a.png"), tmp_path / "a.png", grey > 100]
    processor = ViTImageProcessor(size=18)
    batch = processor(images, return_tensors="np")
    assert list(batch) == ["pixel_values"]
    assert batch["pixel_values"].shape == (6, 3, 18, 18)
    for index, image in enumerate(images):
        alone = processor.preprocess(image).pixel_values
        assert alone.shape == (1, 3, 18, 18)
        np.testing.assert_array_equal(alone[0], batch.pixel_values[index])


def test_an_array_of_images():
    images = np.stack([drawn(6, 7, seed) for seed in range(3)])
    expected = ViTImageProcessor(size=5)(list(images)).pixel_values
    for array in (images, images.transpose(0, 3, 1, 2)):
        np.testing.assert_array_equal(ViTImageProcessor(size=5)(array).pixel_values, expected)


def test_four_channels_with_their_layout_named():
    rgba = np.concatenate([drawn(7, 8), np.full((7, 8, 1), 255, np.uint8)], axis=2)
    processor = ViTImageProcessor(size=18, image_mean=0, image_std=1)
    pixel_values = processor(rgba, input_data_format="channels_last").pixel_values
    np.testing.assert_array_equal(pixel_values, processor(rgba[:, :, :3]).pixel_values)


def test_images_of_one_size_need_no_resizing_and_others_are_named():
    processor = ViTImageProcessor(do_resize=False)
    assert processor([drawn(5, 6), drawn(5, 6)]).pixel_values.shape == (2, 3, 5, 6)
    with pytest.raises(InputError, match=r"\(5, 6\), \(6, 5\)"):
        processor([drawn(5, 6), drawn(6, 5)])


def test_a_bad_image_in_a_list_is_named(tmp_path):
    with pytest.raises(InputError, match=r"images\[1\]"):
        ViTImageProcessor()([drawn(5, 6), np.full((5, 6), np.nan)])
    with pytest.raises(InputError, match="empty"):
        ViTImageProcessor()([])
    (tmp_path / "b.png").touch()
    with pytest.raises(InputError, match=r"b.png is empty \(0 bytes\)"):
        ViTImageProcessor()([drawn(5, 6), tmp_path / "b.png"])


# settings


def test_defaults():
    processor = ViTImageProcessor()
    assert vars(processor) == {
        "do_resize": True,
        "size": {"height": 224, "width": 224},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.5, 0.5, 0.5),
        "do_convert_rgb": None,
    }
    assert ViTImageProcessor.model_input_names == ["pixel_values"]
    processor.size["height"] = 1
    assert ViTImageProcessor().size["height"] == 224


def test_settings_for_one_call_leave_the_processor_as_it_was():
    processor = ViTImageProcessor(size=8)
    before = processor.to_dict()
    once = processor(drawn(5, 5), size={"height": 3, "width": 4}, resample=0, do_normalize=False)
    other = ViTImageProcessor(size=(3, 4), resample=0, do_normalize=False)
    np.testing.assert_array_equal(once.pixel_values, other(drawn(5, 5)).pixel_values)
    assert processor.to_dict() == before
    same = processor(drawn(5, 5), size=None)  # None is "as it is"
    assert same.pixel_values.shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("size", "before", "after"),
    [
        ({"height": 3, "width": 9}, (50, 60), (3, 9)),
        ({"shortest_edge": 20}, (31, 57), (20, 36)),
        ({"shortest_edge": 20}, (57, 31), (36, 20)),
        ({"shortest_edge": 20, "longest_edge": 30}, (40, 80), (15, 30)),
        ({"shortest_edge": 20, "longest_edge": 90}, (40, 80), (20, 40)),
        ({"max_height": 40, "max_width": 40}, (100, 50), (40, 20)),
    ],
)
def test_forms_of_size(size, before, after):
    assert output_size(size, *before) == after
    assert ViTImageProcessor(size=size)(drawn(*before)).pixel_values.shape == (1, 3, *after)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": -1},
        {"size": 0},
        {"size": True},
        {"size": "352"},
        {"size": (1, 2, 3)},
        {"size": {"height": 3}},
        {"size": {"height": 3, "width": 0}},
        {"size": {"height": 3, "width": 2.5}},
        {"resample": 4},
        {"resample": -1},
        {"resample": "bilinear"},
        {"resample": [2]},
        {"do_resize": "yes"},
        {"do_rescale": 1},
        {"do_normalize": "no"},
        {"do_convert_rgb": 3},
        {"rescale_factor": 0},
        {"rescale_factor": float("nan")},
        {"rescale_factor": "1/255"},
        {"image_mean": [0.5] * 4},
        {"image_mean": [0.5, 0.5, float("inf")]},
        {"image_mean": "0.5"},
        {"image_std": [0.5, 0.0, 0.5]},
        {"image_std": 0},
        {"image_std": [-1, 1, 1]},
        {"do_center_crop": True},
        {"do_pad": True},
        {"default_to_square": False},
    ],
)
def test_impossible_settings_are_refused_by_name(wrong):
    (field,) = wrong
    with pytest.raises(InputError, match=field):
        ViTImageProcessor(**wrong)
    with pytest.raises(InputError, match=field):
        ViTImageProcessor()(drawn(6, 6), **wrong)


def test_options_of_a_call_that_are_refused():
    for wrong in ({"return_tensors": "pt"}, {"data_format": "HWC"}, {"input_data_format": "HWC"}):
        (field,) = wrong
        with pytest.raises(InputError, match=field):
            ViTImageProcessor()(drawn(6, 6), **wrong)


def test_only_an_unknown_keyword_is_a_warning():
    with pytest.warns(UserWarning, match="'colour'"):
        ViTImageProcessor(colour=3)
    with pytest.warns(UserWarning, match="'colour'"):
        ViTImageProcessor()(drawn(6, 6), colour=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ViTImageProcessor(
            feature_extractor_type="ViTFeatureExtractor",
            image_processor_type="ViTImageProcessorFast",
            processor_class="CLIPSegProcessor",
            crop_size=None,
            do_center_crop=False,
            data_format="channels_first",
            default_to_square=True,
            disable_grouping=None,
            something_new=None,
        )


# files


def test_json_and_files_round_trip(tmp_path):
    processor = ViTImageProcessor(size=(30, 40), resample=3, do_normalize=False, **IMAGENET)
    as_dict = processor.to_dict()
    assert as_dict["image_processor_type"] == "ViTImageProcessor"
    assert "do_convert_rgb" not in as_dict
    assert ViTImageProcessor.from_dict(as_dict).to_dict() == as_dict
    assert ViTImageProcessor.from_dict(json.loads(processor.to_json_string())).to_dict() == as_dict
    (path,) = processor.save_pretrained(tmp_path / "new" / "folder")
    assert path == str(tmp_path / "new" / "folder" / "preprocessor_config.json")
    with open(path, encoding="utf-8") as file:
        assert file.read() == processor.to_json_string()
    assert ViTImageProcessor.from_pretrained(tmp_path / "new" / "folder").to_dict() == as_dict
    changed = ViTImageProcessor.from_pretrained(tmp_path / "new" / "folder", size=9, resample=0)
    assert (changed.size, changed.resample) == ({"height": 9, "width": 9}, 0)
    assert changed.image_mean == MEAN


OLD = {
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ViTFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 2,
    "size": 352,
}
FAST = {
    **{name: OLD[name] for name in ("do_normalize", "do_resize", "image_mean", "image_std")},
    "crop_size": None,
    "data_format": "channels_first",
    "default_to_square": True,
    "device": None,
    "disable_grouping": None,
    "do_center_crop": None,
    "do_convert_rgb": None,
    "do_rescale": True,
    "image_processor_type": "ViTImageProcessorFast",
    "input_data_format": None,
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "return_tensors": None,
    "size": {"height": 352, "width": 352},
}
COMBINED = {"image_processor": FAST, "processor_class": "CLIPSegProcessor"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("preprocessor_config.json", OLD),
        ("preprocessor_config.json", FAST),
        ("processor_config.json", COMBINED),
    ],
)
def test_old_and_new_files(tmp_path, name, content):
    (tmp_path / name).write_text(json.dumps(content))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = ViTImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == ViTImageProcessor(size=352, **IMAGENET).to_dict()


def test_the_combined_file_comes_first_where_it_speaks_of_images(tmp_path):
    ViTImageProcessor(size=7).save_pretrained(tmp_path)
    combined = tmp_path / "processor_config.json"
    combined.write_text(json.dumps({"processor_class": "CLIPSegProcessor"}))
    assert ViTImageProcessor.from_pretrained(tmp_path).size["height"] == 7
    combined.write_text(json.dumps(COMBINED))
    assert ViTImageProcessor.from_pretrained(tmp_path).size["height"] == 352


def test_what_is_saved_is_what_is_read(tmp_path):
    """Where transformers 5 has left a processor_config.json, which is read first."""
    combined = tmp_path / "processor_config.json"
    combined.write_text(json.dumps({**COMBINED, "processor_class": "CLIPSegProcessor"}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(OLD))
    saved = ViTImageProcessor(size=64, do_rescale=False)
    saved.save_pretrained(tmp_path)
    assert ViTImageProcessor.from_pretrained(tmp_path).to_dict() == saved.to_dict()
    assert json.loads(combined.read_text())["processor_class"] == "CLIPSegProcessor"
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["do_rescale"] is False
    combined.write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        ViTImageProcessor(size=9).save_pretrained(tmp_path)
    kept = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert kept["size"] == {"height": 64, "width": 64} and combined.read_text() == "{"


def test_an_assigned_setting_keeps_the_rules(image):
    processor = ViTImageProcessor()
    processor.size, processor.resample, processor.image_mean = 16, 3, None
    assert processor.size == {"height": 16, "width": 16}
    assert processor(image).pixel_values.shape == (1, 3, 16, 16)
    assert processor.to_dict() == ViTImageProcessor(size=16, resample=3).to_dict()
    for name, value in (("size", "large"), ("do_resize", 1), ("do_center_crop", True)):
        with pytest.raises(InputError, match=f"{name} must be"):
            setattr(processor, name, value)


def test_a_folder_without_settings_and_one_with_impossible_settings(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json"):
        ViTImageProcessor.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**OLD, "image_std": [0, 0, 0]}))
    with pytest.raises(InputError, match="image_std"):
        ViTImageProcessor.from_pretrained(tmp_path)


# masks


def test_probabilities_at_the_image_s_size():
    logits = np.array([[[-4.0, 4.0]], [[0.0, 0.0]]])
    probabilities = probabilities_at(logits, (2, 4))
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (2, 2, 4)
    # logits -4, -2, 2, 4: interpolated before the sigmoid, not after
    row = 1 / (1 + np.exp(-np.array([-4.0, -2.0, 2.0, 4.0])))
    np.testing.assert_allclose(probabilities[0], [row, row], rtol=1e-6)
    np.testing.assert_array_equal(probabilities[1], 0.5)
