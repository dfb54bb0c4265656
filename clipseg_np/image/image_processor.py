"""Images in and masks out: an image to `pixel_values`, logits to a mask at the image's size.

`ViTImageProcessor` has the fields and the numbers of the reference's ViTImageProcessor with the
Pillow backend (its default backend, on torchvision, resizes by other arithmetic; the reference's
own test grants the two a difference of 0.1). Deviations:

- Images always become RGB, whatever do_convert_rgb says: a grey one fails in the reference by
  default.
- Float arrays in 0..1 count as rescaled already: they are brought to 0..1 once, with do_rescale or
  without.
- pixel_values are one float32 array, whatever return_tensors says, and data_format is obeyed.
- An unknown keyword is warned of, where the reference's call raises.
- All happens in main memory, a GPU's images included: pixel_values are a fraction of a photograph.
- Cropping, padding and the box and Hamming filters are refused: the mask has to cover the whole
  image.
"""

import json
import os
import warnings
from typing import ClassVar

import numpy as np

from ..atomic_files import write_json
from ..checkpoints.hub import IMAGES
from ..checkpoints.locate import checkpoint_folder, read_json
from ..errors import InputError, naming
from ..model.outputs import Features
from ..nn.ops import Ops
from .load_image import LAYOUTS, is_unit_float, load_image
from .resize import BILINEAR, RESAMPLINGS, resize, resize_bilinear

REFERENCE = Ops()

LARGEST = 1e30  # of the settings' numbers: more overflows
# Pixels of an image resized for the model: 34 times what CLIPSeg takes, and attention squares them.
MOST_PIXELS = 2**22

CONFIG_FILE = "preprocessor_config.json"
COMBINED_FILE = "processor_config.json"  # newer checkpoints: all processors in one file

DEFAULTS = {
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": BILINEAR,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
    "do_convert_rgb": None,
}

# Fields of other processors in old and new files: these say nothing about the numbers ...
IGNORED = {
    "image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys",
    "crop_size", "pad_size", "image_seq_length", "disable_grouping", "device", "return_tensors",
    "data_format", "input_data_format",
}  # fmt: skip
# ... and these must have the value that does nothing.
FIXED = {"do_center_crop": False, "do_pad": False, "default_to_square": True}

SIZE_KEYS = (
    {"height", "width"},
    {"shortest_edge"},
    {"shortest_edge", "longest_edge"},
    {"max_height", "max_width"},
)


class ViTImageProcessor:
    """Resize, rescale to 0..1, normalise: images to pixel_values.

    size: {"height", "width"}, an int for a square, or (height, width); also {"shortest_edge"}, with
    or without "longest_edge", or {"max_height", "max_width"}, which keep the aspect ratio.
    resample: 0 nearest, 1 lanczos, 2 bilinear, 3 bicubic. image_mean, image_std: three numbers in
    0..1 for red, green, blue, or one for all. A setting of None is the default. Raises InputError
    for an impossible value, naming the field.
    Source: the reference's ViTImageProcessor; CLIPSeg's checkpoints set 352 x 352 and ImageNet's
    mean and std.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values"]

    def __init__(
        self,
        /,  # "self" may be an unknown setting's name
        do_resize=None,
        size=None,
        resample=None,
        do_rescale=None,
        rescale_factor=None,
        do_normalize=None,
        image_mean=None,
        image_std=None,
        do_convert_rgb=None,
        **others,
    ):
        _check_others(others)

        def given(field, value):
            return DEFAULTS[field] if value is None else value

        self.do_resize = _flag("do_resize", given("do_resize", do_resize))
        self.size = _size(given("size", size))
        self.resample = _resample(given("resample", resample))
        self.do_rescale = _flag("do_rescale", given("do_rescale", do_rescale))
        self.rescale_factor = _positive("rescale_factor", given("rescale_factor", rescale_factor))
        self.do_normalize = _flag("do_normalize", given("do_normalize", do_normalize))
        self.image_mean = _per_channel("image_mean", given("image_mean", image_mean), _number)
        self.image_std = _per_channel("image_std", given("image_std", image_std), _positive)
        self.do_convert_rgb = None
        if do_convert_rgb is not None:
            self.do_convert_rgb = _flag("do_convert_rgb", do_convert_rgb)

    def __call__(self, images, **options) -> Features:
        return self.preprocess(images, **options)

    def preprocess(
        self,
        images,
        return_tensors: str | None = None,
        data_format: str | None = "channels_first",
        input_data_format: str | None = None,
        **overrides,
    ) -> Features:
        """Prepare images: one, a list in any mix of sizes and kinds, or an array of them.

        images: see load_image; an array of images is (B,H,W,C) or (B,C,H,W).
        overrides: any setting of the constructor, for this call alone.
        Returns Features with pixel_values, float32 (B,3,height,width), or (B,height,width,3) for
        data_format "channels_last". Raises InputError for unusable images or settings,
        FileNotFoundError for a missing file.
        """
        if return_tensors not in (None, "np"):
            raise InputError(f'return_tensors must be "np" or None here; got {return_tensors!r}.')
        if data_format not in (None, *LAYOUTS):
            raise InputError(
                f"data_format must be one of {', '.join(LAYOUTS)}; got {data_format!r}."
            )
        changed = {name: value for name, value in overrides.items() if value is not None}
        use = ViTImageProcessor(**{**self._settings(), **changed}) if changed else self
        batch = [
            use._pixels(image, input_data_format, name) for image, name in zip(*_listed(images))
        ]
        sizes = {pixels.shape[:2] for pixels in batch}
        if len(sizes) > 1:
            raise InputError(
                f"The images have different sizes (height, width): {sorted(sizes)}. "
                f'One batch needs one size: keep do_resize=True with size={{"height", "width"}}, '
                f"or prepare the images one by one."
            )
        pixel_values = np.stack(batch)  # (B,height,width,3)
        if data_format != "channels_last":
            pixel_values = np.ascontiguousarray(np.moveaxis(pixel_values, 3, 1))
        return Features(pixel_values=pixel_values)

    def _pixels(self, image, input_data_format, name):
        """One image -> (height,width,3) float32"""
        pixels = load_image(image, input_data_format, name)
        if self.do_resize:
            size = output_size(self.size, *pixels.shape[:2])
            if not (min(size) >= 1 and size[0] * size[1] <= MOST_PIXELS):
                raise InputError(
                    f"size={self.size} (preprocessor_config.json) makes {size[0]} x {size[1]} of an image of "
                    f"{pixels.shape[0]} x {pixels.shape[1]}; expected 1 to {MOST_PIXELS:,} pixels."
                )
            pixels = resize(pixels, size, self.resample)
        if self.do_rescale:
            pixels = pixels.astype(np.float64) * self.rescale_factor
        elif is_unit_float(image):
            pixels = pixels.astype(np.float64) * (1 / 255)
        pixels = pixels.astype(np.float32)
        if self.do_normalize:
            mean = np.asarray(self.image_mean, dtype=np.float32)
            std = np.asarray(self.image_std, dtype=np.float32)
            pixels = (pixels - mean) / std
        return pixels

    @classmethod
    def from_pretrained(
        cls, folder_or_hub_id: str | os.PathLike, *, local_files_only: bool = False, **overrides
    ) -> "ViTImageProcessor":
        """Read a checkpoint's preprocessor_config.json, or its part in processor_config.json.

        Raises FileNotFoundError where neither is there, InputError for an impossible value.
        """
        folder = checkpoint_folder(
            folder_or_hub_id, local_files_only=local_files_only, needed=(IMAGES,)
        )
        combined = folder / COMBINED_FILE
        if combined.is_file():
            settings = read_json(combined).get("image_processor")
            if isinstance(settings, dict):
                with naming(combined):
                    return cls.from_dict(settings, **overrides)
        with naming(folder / CONFIG_FILE):
            return cls.from_dict(read_json(folder / CONFIG_FILE), **overrides)

    @classmethod
    def from_dict(cls, settings: dict, **overrides) -> "ViTImageProcessor":
        return cls(**{**settings, **overrides})

    def save_pretrained(self, folder: str | os.PathLike) -> list[str]:
        """Write preprocessor_config.json into `folder`, made if missing; returns [its path]."""
        path = os.path.join(folder, CONFIG_FILE)
        write_json(path, self.to_dict())
        return [path]

    def to_dict(self) -> dict:
        """The settings that are not None, and the reference's class name."""
        settings = {name: value for name, value in self._settings().items() if value is not None}
        return {**settings, "image_processor_type": "ViTImageProcessor"}

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def __repr__(self) -> str:
        return f"ViTImageProcessor {self.to_json_string()}"

    def _settings(self) -> dict:
        return {name: getattr(self, name) for name in DEFAULTS}


def output_size(size: dict[str, int], height: int, width: int) -> tuple[int, int]:
    """The (height, width) that the processor's `size` makes of an image of height x width."""
    if "height" in size:
        return size["height"], size["width"]
    if "max_height" in size:
        scale = min(size["max_height"] / height, size["max_width"] / width)
        return int(height * scale), int(width * scale)
    short, long = min(height, width), max(height, width)
    edge = new_short = size["shortest_edge"]
    if "longest_edge" in size and long / short * edge > size["longest_edge"]:
        edge = size["longest_edge"] * short / long
        new_short = round(edge)
    new_long = long if new_short == short else int(edge * long / short)
    return (new_short, new_long) if height <= width else (new_long, new_short)


def probabilities_at(logits, size: tuple[int, int], ops: Ops = REFERENCE, rows=slice(None)):
    """Logits of masks to probabilities at the image's own size: (P,h,w) -> (P,height,width), float32.

    Of these, only `rows` are made.

    The logits are interpolated first and squashed after: an edge between a sure yes and a sure no then stays
    where the logits cross zero, and probabilities do not blur.
    """
    return ops.sigmoid(resize_bilinear(logits.astype(np.float32), size, ops.xp, rows))


def _listed(images) -> tuple[list, list]:
    """The images and what to call each of them."""
    if getattr(images, "ndim", None) == 4:
        images = list(images)
    if not isinstance(images, (list, tuple)):
        return [images], [None]
    if not images:
        raise InputError("The list of images is empty; give at least one.")
    return list(images), [f"images[{index}]" for index in range(len(images))]


def _check_others(others: dict) -> None:
    """Warn of unknown settings; refuse the known ones that are not supported."""
    for name, value in others.items():
        if value is None or name in IGNORED:
            continue
        if name not in FIXED:
            warnings.warn(f"ViTImageProcessor ignores the unknown {name!r}.", stacklevel=3)
        elif value != FIXED[name]:
            raise InputError(
                f"{name}={value!r} is not supported, only {FIXED[name]}: "
                f"the mask must cover the whole image."
            )


def _size(value) -> dict[str, int]:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        value = {"height": value, "width": value}
    elif isinstance(value, (list, tuple)) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    if not isinstance(value, dict) or set(value) not in SIZE_KEYS:
        raise InputError(
            f'size must be {{"height": H, "width": W}}, (H, W), an int, or have the keys '
            f"shortest_edge, shortest_edge and longest_edge, "
            f"or max_height and max_width; got {value!r}."
        )
    for key, length in value.items():
        whole = isinstance(length, (int, np.integer)) and not isinstance(length, bool)
        if not whole or not 1 <= length <= MOST_PIXELS:
            raise InputError(
                f"size[{key!r}] must be a whole number of 1 or more, at most {MOST_PIXELS}; got {length!r}."
            )
    return {key: int(length) for key, length in value.items()}


def _resample(value) -> int:
    if type(value) is bool or not isinstance(value, (int, np.integer)) or value not in RESAMPLINGS:
        raise InputError(f"resample must be one of {RESAMPLINGS}; got {value!r}.")
    return int(value)


def _flag(name: str, value) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(f"{name} must be True or False; got {value!r}.")
    return bool(value)


def _number(name: str, value) -> float:
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not number or not abs(value) <= LARGEST:
        raise InputError(f"{name} must be a number of at most {LARGEST:g}; got {value!r}.")
    return float(value)


def _positive(name: str, value) -> float:
    if _number(name, value) <= 0:
        raise InputError(f"{name} must be greater than 0; got {value!r}.")
    return float(value)


def _per_channel(name: str, value, check) -> float | tuple[float, ...]:
    if not isinstance(value, (list, tuple, np.ndarray)):
        return check(name, value)
    if len(value) != 3:
        raise InputError(f"{name} must have 3 numbers, for red, green and blue; got {len(value)}.")
    return tuple(check(name, part) for part in value)
