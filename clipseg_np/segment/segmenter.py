"""`Segmenter`: an image and prompts in, probabilities and masks of the image's own size out.

The image is encoded once for all prompts, and only up to the last layer that the decoder reads;
transformers encodes it once for each prompt, through all layers.
"""

import os
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ..backends.cuda_graph import CannotRecord
from ..backends.cupy_ops import CupyOps
from ..checkpoints.locate import checkpoint_path, demo_folder
from ..errors import InputError, naming
from ..image.load_image import load_image
from ..model.batched import in_parallel, unless_traced
from ..model.clipseg import CLIPSegForImageSegmentation, ImageFeatures
from ..model.config import LEGACY_EOS_TOKEN_ID
from ..model.outputs import Features
from ..model.recorded import RecordedPasses
from ..nn.ops import Array
from .processor import CLIPSegProcessor
from .prompt_algebra import Expression, parse
from .segmentation import Segmentation
from .sliding_window import checked_scales, join, mean_of_scales, windows
from .visual_prompt import VisualPrompt

TEXT_LENGTHS = (8, 16, 32)  # tokens, to which texts are padded on a GPU


@dataclass(frozen=True)
class Query:
    """Prompts that are read, for any number of images."""

    prompts: tuple[Any, ...]
    # of each prompt
    expressions: tuple[Expression, ...]
    # of the L texts and images that the expressions combine: a text, or a prompt's number
    names: tuple[Hashable, ...]
    # returns their embeddings (L,projection_dim)
    embed: Callable[[], Array]
    # (L,T), where all are texts that a recorded pass embeds
    token_ids: np.ndarray | None = None


class Segmenter:
    """A model with its processor.

    With the backend "cupy", a pass is recorded as a CUDA graph once for each combination of shapes
    (model/recorded.py) and launched from then on; `record=False` turns that off. Raises InputError
    where the tokenizer does not fit the model's vocabulary.
    """

    def __init__(
        self, model: CLIPSegForImageSegmentation, processor: CLIPSegProcessor, record: bool = True
    ):
        text, tokenizer = model.config.text_config, processor.tokenizer
        mismatch = "the tokenizer's files and the model are not of one checkpoint"
        if len(tokenizer) > text.vocab_size:
            raise InputError(
                f"the vocabulary has {len(tokenizer)} tokens and config.json a vocab_size of "
                f"{text.vocab_size}: {mismatch}"
            )
        if text.eos_token_id not in (LEGACY_EOS_TOKEN_ID, tokenizer.eos_token_id):
            raise InputError(
                f"the tokenizer ends a text with id {tokenizer.eos_token_id} and config.json's "
                f"eos_token_id is {text.eos_token_id}: {mismatch}"
            )
        self.model = model
        self.processor = processor
        self.on_gpu = isinstance(model.ops, CupyOps)
        self.graphs = RecordedPasses(model) if record and self.on_gpu else None

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | os.PathLike | None = None,
        *,
        backend: str = "numpy",
        dtype: str = "float32",
        threads: int | None = None,
        local_files_only: bool = False,
        record: bool = True,
    ) -> "Segmenter":
        """Load a checkpoint: a folder, a hub id or, without an argument, the demonstration checkpoint.

        One .safetensors file is a checkpoint too, with the other files beside it. A hub id is
        fetched unless it is in the hub's cache; with `local_files_only` it must be there. `threads`
        is for the backend "numpy", by default one for each core; `record` is for "cupy", as above.

        Raises as CLIPSegForImageSegmentation.from_pretrained and CLIPSegProcessor.from_pretrained do.
        """
        path = checkpoint_or_demo(folder_or_hub_id, local_files_only=local_files_only)
        model = CLIPSegForImageSegmentation.from_pretrained(
            path, backend=backend, dtype=dtype, threads=threads
        )
        processor = CLIPSegProcessor.from_pretrained(path)
        with naming(path):
            return cls(model, processor, record)

    def __call__(
        self,
        image: Any,
        prompts: Any,
        *,
        scales: Sequence[int] = (1,),
        input_data_format: str | None = None,
    ) -> Segmentation:
        """Segment one image by P prompts.

        image: a path, a PIL image or an array (see image.load_image); a file is turned upright by
            its EXIF orientation.
        prompts: a string, an image, a VisualPrompt, or a list of these. A string is always a text;
            an image's path must be a pathlib.Path. A single prompt gives P = 1.
        scales: 1 is the whole image, s its windows of an s-th of its height and width; several are
            averaged. Each window costs as much as an image.
        input_data_format: "channels_first" or "channels_last", for an array that could be either,
            such as (3,5,3).

        Raises InputError for no prompt, an empty text, unfit scales or an unusable image, and
        FileNotFoundError for a missing file.
        """
        prompts = read_prompts(prompts, combined=False)
        return self._segment(load_image(image, input_data_format), self._query(*prompts), scales)

    def combine(
        self,
        image: Any,
        prompts: Any,
        *,
        scales: Sequence[int] = (1,),
        input_data_format: str | None = None,
    ) -> Segmentation:
        """As a call, but a text may combine prompts: "a cat - a collar" (segment/prompt_algebra.py).

        A prompt that is named twice is computed once. `prompts` may also be a Query that `prepare`
        returned. Raises InputError also for a text that cannot be read.
        """
        read = None if isinstance(prompts, Query) else read_prompts(prompts)
        pixels = load_image(image, input_data_format)
        return self._segment(pixels, self._query(*read) if read else prompts, scales)

    def prepare(self, prompts: Any) -> Query:
        """Read and embed the prompts of `combine` once, for many images."""
        query = self._query(*read_prompts(prompts))
        embeddings = query.embed()
        return replace(query, embed=lambda: embeddings, token_ids=None)

    def _query(self, prompts: list, expressions: list[Expression]) -> Query:
        """A query whose prompts are tokenized now and embedded beside the first image."""
        names = tuple(dict.fromkeys(name for e in expressions for name in e.prompts))
        parts = [name if isinstance(name, str) else prompts[name] for name in names]
        texts, pixels = self._inputs(parts)
        ids = None if pixels is not None or self.graphs is None else texts["input_ids"]
        embed = cache(partial(self._embedded, parts, texts, pixels))
        return Query(tuple(prompts), tuple(expressions), names, embed, ids)

    def _segment(self, image: np.ndarray, query: Query, scales: Sequence[int]) -> Segmentation:
        ops, size = self.model.ops, image.shape[:2]
        maps = [self._scale_logits(s, image, query) for s in checked_scales(scales, size)]
        logits = mean_of_scales(maps, ops) if len(maps) > 1 else maps[0]
        if bool(ops.xp.isnan(logits).any()):
            self._warn_of_nan()
        return Segmentation(query.prompts, logits, size, query.names, query.expressions, ops)

    def _scale_logits(self, scale: int, image: np.ndarray, query: Query) -> Array:
        """The logits of all windows of one scale, joined: (L,scale*h,scale*w)."""
        if scale == 1:
            return self._logits(image, query)
        query = replace(query, token_ids=None)  # texts are embedded once for all windows
        parts = (
            (row, column, self._logits(image[window], query))
            for row, column, window in windows(image.shape[:2], scale)
        )
        return join(parts, scale, self.model.ops)

    def _logits(self, image: np.ndarray, query: Query) -> Array:
        """The decoder's logits of an image or a window: (L,h,w)."""
        passes = unless_traced(self.graphs)  # another thread may set `graphs` to None
        if passes is not None:
            pixels = self._pixel_values([image])
            try:
                return passes(pixels, query.embed() if query.token_ids is None else query.token_ids)
            except CannotRecord as error:
                warnings.warn(f"passes are not recorded: {error}", stacklevel=6)
                self.graphs = None

        def features() -> ImageFeatures:
            return self.model.encode_image(self._pixel_values([image]))

        return self.model.decode(*in_parallel(self.model.ops, [features, query.embed]))

    def _warn_of_nan(self) -> None:
        """Name the first weight that holds NaN. Loading does not check: it would read every weight."""
        xp = self.model.ops.xp
        damaged = [name for name, w in self.model.scope.arrays.items() if bool(xp.isnan(w).any())]
        cause = f"the checkpoint's {damaged[0]} holds NaN" if damaged else "a number overflowed"
        warnings.warn(f"the masks hold NaN: {cause}. Fetch the checkpoint again.", stacklevel=4)

    def embed(self, prompts: list) -> Array:
        """Texts and images, in any mix, to conditional embeddings.  -> (P,projection_dim)"""
        return self._embedded(prompts, *self._inputs(prompts))

    def _inputs(self, prompts: list) -> tuple[Features | None, np.ndarray | None]:
        """The texts' token ids and mask, and the images' pixel values; None where there are none."""
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        ids = self._token_ids(texts) if texts else None
        mean = self.processor.image_processor.image_mean
        images = [
            prompt.prepared(mean) if isinstance(prompt, VisualPrompt) else load_image(prompt)
            for prompt in prompts
            if not isinstance(prompt, str)
        ]
        return ids, self._pixel_values(images) if images else None

    def _embedded(self, prompts: list, texts: Features | None, pixels: np.ndarray | None) -> Array:
        """The embeddings of what `_inputs` returned, in the order of the prompts."""
        model, parts = self.model, []
        if texts is not None:
            parts.append(model.get_conditional_embeddings(**texts))
            model.clip.text_model.give_back_memory()  # half as much as the vision tower's
        if pixels is not None:
            parts.append(model.get_conditional_embeddings(conditional_pixel_values=pixels))
        if len(parts) == 1:
            return parts[0]
        is_image = [not isinstance(prompt, str) for prompt in prompts]
        rows = np.argsort(np.argsort(is_image, kind="stable"))  # of each prompt, texts first
        return model.ops.xp.concatenate(parts)[model.ops.asarray(rows)]

    def _pixel_values(self, images: list[np.ndarray]) -> np.ndarray:
        """Images (height,width,3) to (B,3,H,W). An image 3 pixels high could be (C,H,W), too."""
        return self.processor.image_processor(images, input_data_format="channels_last")[
            "pixel_values"
        ]

    def _token_ids(self, texts: list[str]) -> Features:
        """Token ids and their mask, (P,T) each; a text that is too long is cut, with a warning.

        On a GPU, T is one of TEXT_LENGTHS or the model's maximum, so that few passes are recorded.
        """
        tokenizer = self.processor.tokenizer
        limit = self.model.config.text_config.max_position_embeddings
        # with the start token and the end token
        lengths = [len(tokenizer.tokenize(text)) + 2 for text in texts]
        for text, length in zip(texts, lengths):
            if length > limit:
                warnings.warn(
                    f"the prompt {text[:40]!r}... has {length} tokens; the model reads {limit}, "
                    f"and the rest is not used",
                    stacklevel=5,
                )
        padding, max_length = True, limit
        if self.on_gpu:
            longest = min(max(lengths), limit)
            padding = "max_length"
            max_length = min(n for n in (*TEXT_LENGTHS, limit) if longest <= n <= limit)
        return tokenizer(
            texts, padding=padding, truncation=True, max_length=max_length, return_tensors="np"
        )


def checkpoint_or_demo(folder_or_hub_id: str | os.PathLike | None, **options: Any) -> Path:
    """`checkpoint_path` of a checkpoint, or of the demonstration checkpoint for None."""
    return (
        demo_folder() if folder_or_hub_id is None else checkpoint_path(folder_or_hub_id, **options)
    )


def read_prompts(prompts: Any, combined: bool = True) -> tuple[list, list[Expression]]:
    """One prompt or several, as a list, and the expression of each.

    Unless `combined`, a text is one prompt. Raises InputError for no prompt, an empty text and a
    text that `parse` refuses.
    """
    prompts = list(prompts) if isinstance(prompts, (list, tuple)) else [prompts]
    if not prompts:
        raise InputError("there is no prompt: give at least one text or image")
    for number, prompt in enumerate(prompts, start=1):
        if isinstance(prompt, str) and not prompt.strip():
            raise InputError(f"prompt {number} is empty: name what to look for, such as 'a cat'")
    return prompts, [
        parse(prompt) if combined and isinstance(prompt, str) else Expression("", number)
        for number, prompt in enumerate(prompts)
    ]
