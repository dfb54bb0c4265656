"""`CLIPSegProcessor`: the tokenizer and the image processor in one call.

Reference: the class of the same name in transformers. Deviation: a keyword goes only to the part
that knows it, such as `padding` to the tokenizer; one that neither knows is warned of.
"""

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from ..atomic_files import written_together
from ..checkpoints.hub import TEXTS, WORDS_NAME, hub_options
from ..checkpoints.locate import checkpoint_folder
from ..errors import InputError
from ..habits import LOADING, SAVING, TEXT, Habits, understands
from ..image.image_processor import IGNORED, RULES, ViTImageProcessor
from ..model.outputs import Features
from ..text.known_words import known_words, unknown_words
from ..text.tokenizer import CLIPTokenizer

TEXT_OPTIONS = {"padding", "truncation", "max_length", "padding_side", "return_tensors"}
TEXT_OPTIONS |= {"add_special_tokens", "return_attention_mask"}
ADVISED = "CIDAS/clipseg-rd64-refined"
IMAGE_OPTIONS = {*RULES, *IGNORED, "white_level"}


class CLIPSegProcessor(Habits):
    """Texts and images to a model's inputs, and ids to texts."""

    model_input_names: ClassVar[list[str]] = ["pixel_values", "input_ids", "attention_mask"]
    # The tokenizer's methods.
    decode = property(lambda self: self.tokenizer.decode)
    batch_decode = property(lambda self: self.tokenizer.batch_decode)

    @understands({"feature_extractor": "image_processor"})
    def __init__(
        self,
        image_processor: ViTImageProcessor,
        tokenizer: CLIPTokenizer,
        words: frozenset[str] = frozenset(),
    ):
        """For `words` see known_words."""
        if not (
            isinstance(image_processor, ViTImageProcessor) and isinstance(tokenizer, CLIPTokenizer)
        ):
            given = f"{type(image_processor).__name__} and a {type(tokenizer).__name__}"
            raise InputError(f"expected a ViTImageProcessor and a CLIPTokenizer; got a {given}")
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.words = words

    @classmethod
    @understands(LOADING)
    def from_pretrained(
        cls,
        folder_or_hub_id: str | os.PathLike,
        *,
        decoder: str | os.PathLike | None = None,
        **options: Any,
    ) -> "CLIPSegProcessor":
        """Read both parts from a checkpoint, and the words of a `decoder` on top of it.

        `options` are those of checkpoint_path, and settings of either part. Raises
        FileNotFoundError where a file is missing, InputError where one cannot be used.
        """
        hub = hub_options(options)
        images = {name: options.pop(name) for name in IMAGE_OPTIONS & options.keys()}
        image_processor = ViTImageProcessor.from_pretrained(folder_or_hub_id, **hub, **images)
        tokenizer = CLIPTokenizer.from_pretrained(folder_or_hub_id, **hub, **options)
        folder = checkpoint_folder(folder_or_hub_id, needed=(TEXTS,), **hub)
        return cls(image_processor, tokenizer, known_words(folder, decoder))

    def warn_of_unknown_words(self, texts: Iterable[str]) -> None:
        if unknown := unknown_words(self.words, texts):
            warnings.warn(
                f"the checkpoint does not know {', '.join(map(repr, unknown))}: it was trained on "
                f"drawn shapes, as in 'a red circle', and other prompts' masks mean nothing. For "
                f"photographs: `clipseg-np download {ADVISED} FOLDER`, then --model FOLDER, in "
                f"Python from_pretrained(FOLDER)",
                stacklevel=4,
            )

    @understands(SAVING)
    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write both parts' files, all or none; transformers can read them."""
        with written_together(Path(folder)) as part:
            self.image_processor.write(part, Path(folder))
            self.tokenizer.write(part, Path(folder))
            if self.words:
                (part / WORDS_NAME).write_text("\n".join(sorted(self.words)) + "\n", "utf-8")

    @understands(TEXT)
    def __call__(
        self,
        text: str | list[str] | None = None,
        images: Any = None,
        visual_prompt: Any = None,
        *,
        text_kwargs: dict | None = None,
        images_kwargs: dict | None = None,
        common_kwargs: dict | None = None,
        **options: Any,
    ) -> Features:
        """Prompts, as texts or as images, and the images to segment, to arrays.

        Returns those that were asked for: input_ids and attention_mask (P,T), pixel_values
        (B,3,H,W) and conditional_pixel_values (P,3,H,W). Without return_tensors="np", ids are
        lists. `options` go to the part that knows them, text_kwargs and images_kwargs to one part;
        all win over common_kwargs. Raises InputError where nothing is given, both text and
        visual_prompt, or an option twice, and as the tokenizer and the image processor do.
        """
        if text is None and images is None and visual_prompt is None:
            raise InputError("nothing to process: give images, text or visual_prompt")
        if text is not None and visual_prompt is not None:
            raise InputError("both text and visual_prompt are given; expected one kind of prompt")
        for more in (text_kwargs or {}, images_kwargs or {}):
            for name in more.keys() & options.keys():
                raise InputError(f"{name} is given twice; write it as an argument or in the kwargs")
        options = {**(common_kwargs or {}), **options}
        options = {name: value for name, value in options.items() if value is not None}
        unknown = ", ".join(sorted(set(options) - TEXT_OPTIONS - IMAGE_OPTIONS))
        if unknown:
            warnings.warn(f"CLIPSegProcessor does not know {unknown}: not used.", stacklevel=3)

        def known(names: set[str], more: dict | None) -> dict:
            return {**{name: options[name] for name in names & options.keys()}, **(more or {})}

        image_options, features = known(IMAGE_OPTIONS, images_kwargs), Features()
        if text is not None:
            self.warn_of_unknown_words([text] if isinstance(text, str) else text)
            features |= self.tokenizer(text, **known(TEXT_OPTIONS, text_kwargs))
        if images is not None:
            features |= self.image_processor(images, **image_options)
        if visual_prompt is not None:
            prompts = self.image_processor(visual_prompt, **image_options)
            features["conditional_pixel_values"] = prompts["pixel_values"]
        return features
