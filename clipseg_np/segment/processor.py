"""`CLIPSegProcessor`: the tokenizer and the image processor in one call.

Reference: the class of the same name in transformers. Deviation: a keyword goes only to the part
that knows it, such as `padding` to the tokenizer; one that neither knows is warned of.
"""

import os
import warnings
from typing import Any, ClassVar

from ..errors import InputError
from ..image.image_processor import DEFAULTS, ViTImageProcessor
from ..model.outputs import Features
from ..text.tokenizer import CLIPTokenizer

TEXT_OPTIONS = {"padding", "truncation", "max_length"}
TEXT_OPTIONS |= {"add_special_tokens", "return_attention_mask"}
IMAGE_OPTIONS = {*DEFAULTS, "data_format", "input_data_format"}


class CLIPSegProcessor:
    """Texts and images to a model's inputs, and ids to texts."""

    model_input_names: ClassVar[list[str]] = ["pixel_values", "input_ids", "attention_mask"]
    # The tokenizer's methods.
    decode = property(lambda self: self.tokenizer.decode)
    batch_decode = property(lambda self: self.tokenizer.batch_decode)

    def __init__(self, image_processor: ViTImageProcessor, tokenizer: CLIPTokenizer):
        self.image_processor = image_processor
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(
        cls, folder_or_hub_id: str | os.PathLike, *, local_files_only: bool = False, **settings: Any
    ) -> "CLIPSegProcessor":
        """Read both parts from a checkpoint; `settings` are settings of either.

        Raises FileNotFoundError where a file is missing, InputError where one cannot be used.
        """
        source = {"folder_or_hub_id": folder_or_hub_id, "local_files_only": local_files_only}
        image_settings = {name: settings.pop(name) for name in DEFAULTS if name in settings}
        return cls(
            ViTImageProcessor.from_pretrained(**source, **image_settings),
            CLIPTokenizer.from_pretrained(**source, **settings),
        )

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write both parts' files; transformers can read them."""
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def __call__(
        self,
        text: str | list[str] | None = None,
        images: Any = None,
        visual_prompt: Any = None,
        *,
        return_tensors: str | None = None,
        text_kwargs: dict | None = None,
        images_kwargs: dict | None = None,
        **options: Any,
    ) -> Features:
        """Prompts, as texts or as images, and the images to segment, to arrays.

        Returns those that were asked for: input_ids and attention_mask (P,T), pixel_values
        (B,3,H,W) and conditional_pixel_values (P,3,H,W). Without return_tensors="np", ids are
        lists. Raises InputError where nothing is given, or both text and visual_prompt, and as the
        tokenizer and the image processor do.
        """
        if text is None and images is None and visual_prompt is None:
            raise InputError("nothing to process: give images, text or visual_prompt")
        if text is not None and visual_prompt is not None:
            raise InputError("both text and visual_prompt are given; expected one kind of prompt")
        unknown = ", ".join(sorted(set(options) - TEXT_OPTIONS - IMAGE_OPTIONS))
        if unknown:
            warnings.warn(f"CLIPSegProcessor does not know {unknown}: not used.", stacklevel=2)

        def known(names: set[str], more: dict | None) -> dict:
            chosen = {name: options[name] for name in options if name in names}
            return {**chosen, "return_tensors": return_tensors, **(more or {})}

        image_options, features = known(IMAGE_OPTIONS, images_kwargs), Features()
        if text is not None:
            features |= self.tokenizer(text, **known(TEXT_OPTIONS, text_kwargs))
        if images is not None:
            features |= self.image_processor(images, **image_options)
        if visual_prompt is not None:
            prompts = self.image_processor(visual_prompt, **image_options)
            features["conditional_pixel_values"] = prompts["pixel_values"]
        return features
