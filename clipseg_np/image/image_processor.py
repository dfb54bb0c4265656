"""Images in and masks out: an image to `pixel_values`, logits to a mask at the image's size.

`ViTImageProcessor` has the fields and the numbers of the reference's ViTImageProcessor with the
Pillow backend (its default backend, on torchvision, resizes by other arithmetic; the reference's
own test grants the two a difference of 0.1). Deviations:

- Images always become RGB, whatever do_convert_rgb says: by default, the reference fails on grey.
- Float arrays in 0..1 count as rescaled already, with do_rescale or without.
- pixel_values are one float32 array in main memory, whatever return_tensors says.
- data_format is obeyed. An unknown keyword is a warning, where the reference's call raises.
- Cropping, padding and the box and Hamming filters are refused: the mask has to cover the whole
  image.
"""

import json
import os
import warnings
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..atomic_files import write_json, written_together
from ..checkpoints.hub import IMAGES, hub_options
from ..checkpoints.locate import checkpoint_folder, read_json
from ..errors import InputError, naming
from ..habits import LOADING, SAVING, Habits, understands
from ..model.outputs import Features
from ..nn.ops import Ops
from .load_image import LAYOUTS, image_name, read_numbers, to_colors, usual_white
from .resize import BILINEAR, RESAMPLINGS, resize, resize_bilinear

REFERENCE = Ops()

# Larger numbers as settings overflow.
MAX_NUMBER = 1e30
# Pixels of an image resized for the model: 34 times what CLIPSeg takes, and attention squares them.
MAX_PIXELS = 2**22

CONFIG_FILE = "preprocessor_config.json"
# Newer checkpoints: all processors in one file.
COMBINED_FILE = "processor_config.json"

# Fields of old and new files that do not change the numbers.
IGNORED = {
    "image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys",
    "crop_size", "pad_size", "image_seq_length", "disable_grouping", "device", "return_tensors",
    "data_format", "input_data_format",
}  # fmt: skip

# The keys of `size`, sorted.
SIZES = ("height width", "shortest_edge", "longest_edge shortest_edge", "max_height max_width")


def _number(value, kind=Real, above: float = -np.inf, limit: float = MAX_NUMBER):
    """The number, if it is of this kind, is above the one number and at most the other."""
    is_kind = isinstance(value, kind) and not isinstance(value, bool)
    if is_kind and above < value and abs(value) <= limit:
        return int(value) if kind is Integral else float(value)
    return None


_whole = partial(_number, kind=Integral, above=0, limit=MAX_PIXELS)


def _per_channel(value, above: float = -np.inf) -> float | tuple[float, ...] | None:
    if not isinstance(value, (list, tuple, np.ndarray)):
        return _number(value, above=above)
    numbers = tuple(_number(part, above=above) for part in value)
    return numbers if len(numbers) == 3 and None not in numbers else None


def _size(value) -> dict[str, int] | None:
    if isinstance(value, Integral):
        value = (value, value)
    if isinstance(value, (list, tuple)) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    if not isinstance(value, dict) or " ".join(sorted(map(str, value))) not in SIZES:
        return None
    lengths = Features({key: _whole(length) for key, length in value.items()})
    return lengths if all(lengths.values()) else None


def _flag(value) -> bool | None:
    return bool(value) if isinstance(value, (bool, np.bool_)) else None


def _one_of(*choices):
    return lambda value: value if value in choices else None


_FLAG = (_flag, "True or False")

# The rule of each setting: a function that returns the value in its own type, or None where the
# value is impossible; and what was expected.
RULES = {
    "do_resize": _FLAG,
    "size": (_size, f"H, (H, W) or a dict of {' or '.join(SIZES)}, from 1 to {MAX_PIXELS}"),
    "resample": (partial(_whole, above=-1, limit=max(RESAMPLINGS)), f"one of {RESAMPLINGS}"),
    "do_rescale": _FLAG,
    "rescale_factor": (partial(_number, above=0), f"a number in 0..{MAX_NUMBER:g}, not 0"),
    "do_normalize": _FLAG,
    "image_mean": (_per_channel, f"1 or 3 numbers, at most {MAX_NUMBER:g}"),
    "image_std": (partial(_per_channel, above=0), f"1 or 3 numbers in 0..{MAX_NUMBER:g}, not 0"),
    "do_convert_rgb": _FLAG,
    "do_center_crop": (_one_of(False), "False, for the mask must cover the whole image"),
    "do_pad": (_one_of(False), "False, for the mask must cover the whole image"),
    "default_to_square": (_one_of(True), "True, for the mask must cover the whole image"),
    "return_tensors": (_one_of("np"), '"np" or None'),
    "data_format": (_one_of(*LAYOUTS), f"one of {', '.join(LAYOUTS)}"),
}


def checked(name: str, value):
    """The value of a setting in its own type, or None. Raises InputError for an impossible one."""
    read, expected = RULES[name]
    result = None if value is None else read(value)
    if result is None and value is not None:
        raise InputError(f"{name} must be {expected}; got {value!r}.")
    return result


class ViTImageProcessor(Habits):
    """Resize, rescale to 0..1, normalize: images to pixel_values.

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
        do_resize=True,
        size=224,
        resample=BILINEAR,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
        do_convert_rgb=None,
        **others,
    ):
        settings = locals()
        for name, value in others.items():
            if name in RULES and name not in IGNORED:
                checked(name, value)
            elif value is not None and name not in IGNORED:
                warnings.warn(f"ViTImageProcessor ignores the unknown {name!r}.", stacklevel=2)
        for name in DEFAULTS:
            setattr(self, name, settings[name])

    def __setattr__(self, name, value):
        """An assigned setting keeps the rules of the constructor, too."""
        if name in RULES:
            value = checked(name, DEFAULTS.get(name) if value is None else value)
        super().__setattr__(name, value)

    def __call__(self, images, **options) -> Features:
        return self.preprocess(images, **options)

    def preprocess(
        self,
        images,
        return_tensors: str | None = None,
        data_format: str | None = "channels_first",
        input_data_format: str | None = None,
        white_level: float | None = None,
        **overrides,
    ) -> Features:
        """Prepare images: one, a list in any mix of sizes and kinds, or an array of them.

        images, white_level: see load_image; an array of images is (B,H,W,C) or (B,C,H,W).
        overrides: any setting of the constructor, for this call alone.
        Returns Features with pixel_values, float32 (B,3,height,width), or (B,height,width,3) for
        data_format "channels_last". Raises InputError for unusable images or settings,
        FileNotFoundError for a missing file.
        """
        checked("return_tensors", return_tensors)
        checked("data_format", data_format)
        changed = {name: value for name, value in overrides.items() if value is not None}
        processor = ViTImageProcessor(**{**vars(self), **changed}) if changed else self
        options = input_data_format, white_level
        batch = [processor._pixels(*named, *options) for named in _named(images)]
        sizes = {pixels.shape[:2] for pixels in batch}
        if len(sizes) > 1:
            raise InputError(
                f"The images have different sizes (height, width): {sorted(sizes)}; expected one. "
                f'Set do_resize=True, size={{"height", "width"}}, or prepare them one by one.'
            )
        pixel_values = np.stack(batch)  # (B,height,width,3)
        if data_format != "channels_last":
            pixel_values = np.ascontiguousarray(np.moveaxis(pixel_values, 3, 1))
        return Features(pixel_values=pixel_values)

    def _pixels(self, image, name, input_data_format, white_level):
        """One image -> (height,width,3) float32"""
        numbers = read_numbers(image, input_data_format, name)
        pixels = to_colors(numbers, white_level, name)
        if self.do_resize:
            size = output_size(self.size, *pixels.shape[:2])
            if not (min(size) >= 1 and size[0] * size[1] <= MAX_PIXELS):
                raise InputError(
                    f"size={self.size} ({CONFIG_FILE}) makes {size[1]} x {size[0]} of an image of "
                    f"{pixels.shape[1]} x {pixels.shape[0]}; expected 1 to {MAX_PIXELS:,} pixels."
                )
            pixels = resize(pixels, size, self.resample)
        if self.do_rescale or usual_white(numbers) == 1:
            factor = self.rescale_factor if self.do_rescale else 1 / 255
            pixels = pixels.astype(np.float64) * factor
        pixels = pixels.astype(np.float32)
        if self.do_normalize:
            pixels = (pixels - np.float32(self.image_mean)) / np.float32(self.image_std)
        return pixels

    @classmethod
    @understands(LOADING)
    def from_pretrained(cls, folder_or_hub_id: str | os.PathLike, **options) -> "ViTImageProcessor":
        """Read a checkpoint's preprocessor_config.json, or its part in processor_config.json.

        options: those of checkpoint_path, and settings, which win over the file's.
        Raises FileNotFoundError where neither is there, InputError for an impossible value.
        """
        folder = checkpoint_folder(folder_or_hub_id, needed=(IMAGES,), **hub_options(options))
        path = folder / COMBINED_FILE
        settings = _combined(folder).get("image_processor")
        if not isinstance(settings, dict):
            path = folder / CONFIG_FILE
            settings = read_json(path)
        with naming(path):
            return cls.from_dict(settings, **options)

    @classmethod
    def from_dict(cls, settings: dict, **overrides) -> "ViTImageProcessor":
        return cls(**{**settings, **overrides})

    @understands(SAVING)
    def save_pretrained(self, folder: str | os.PathLike) -> list[str]:
        """Write preprocessor_config.json into `folder`, made if missing; return [its path].

        If the folder has a processor_config.json, from which images' settings are read first, its
        part for images is replaced as well.
        """
        with written_together(Path(folder)) as part:
            self.write(part, Path(folder))
        return [os.path.join(folder, CONFIG_FILE)]

    def write(self, part: Path, folder: Path) -> None:
        """Write the files into `part`, whose files will be moved to `folder`."""
        write_json(part / CONFIG_FILE, self.to_dict())
        combined = _combined(folder)
        if isinstance(combined.get("image_processor"), dict):
            write_json(part / COMBINED_FILE, {**combined, "image_processor": self.to_dict()})

    def to_dict(self) -> dict:
        """The settings that are not None, and the reference's class name."""
        settings = {name: value for name, value in vars(self).items() if value is not None}
        return {**settings, "image_processor_type": "ViTImageProcessor"}

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def __repr__(self) -> str:
        return f"ViTImageProcessor {self.to_json_string()}"


# The first rules are those of the constructor's arguments, in order.
DEFAULTS = dict(zip(RULES, ViTImageProcessor.__init__.__defaults__))


def output_size(size: dict[str, int], height: int, width: int) -> tuple[int, int]:
    """The (height, width) that the setting `size` gives an image of height x width."""
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
    """Logits to probabilities at the image's own size: (P,h,w) -> (P,height,width), float32.

    rows: a slice of the height; only these rows are computed.
    The logits are interpolated before the sigmoid. A mask's edge then stays where the logits cross
    zero, and probabilities do not blur.
    """
    return ops.sigmoid(resize_bilinear(logits.astype(np.float32), size, ops.xp, rows))


def _combined(folder: Path) -> dict:
    """The settings of all processors of a folder, where they are in one file."""
    return read_json(folder / COMBINED_FILE) if (folder / COMBINED_FILE).is_file() else {}


def _named(images) -> list[tuple]:
    """Pairs of each image and its name in error messages."""
    if getattr(images, "ndim", None) == 4:
        images = list(images)
    if not isinstance(images, (list, tuple)):
        return [(images, image_name(images))]
    if not images:
        raise InputError("The list of images is empty; give at least one.")
    return [(image, image_name(image, f"images[{index}]")) for index, image in enumerate(images)]
