"""`Segmenter`: the everyday face. An image and prompts in, probabilities and masks at the image's own size out.

The image is encoded once, whatever the number of prompts, and only as far as the last layer that the decoder
looks at; transformers encodes it once for each prompt, and to the end.
"""

import os
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np

from ..backends.cuda_graph import CannotRecord
from ..backends.cupy_ops import CupyOps
from ..checkpoints.locate import checkpoint_path, demo_folder
from ..errors import InputError, naming
from ..image.load_image import load_image
from ..model.batched import in_parallel
from ..model.clipseg import CLIPSegForImageSegmentation, ImageFeatures
from ..model.config import LEGACY_EOS_TOKEN_ID
from ..model.outputs import Features
from ..model.recorded import RecordedPasses
from ..nn.ops import Array
from ..nn.trace import is_traced
from .processor import CLIPSegProcessor
from .prompt_algebra import Expression, parse
from .segmentation import Segmentation
from .sliding_window import checked_scales, join, mean_of_scales, windows
from .visual_prompt import VisualPrompt

TEXT_LENGTHS = (8, 16, 32)  # tokens, to which texts are padded on a GPU


@dataclass(frozen=True)
class Query:
    """Prompts that are read, for many images; made by `Segmenter.prepare`, which embeds them too."""

    prompts: tuple[Any, ...]
    expressions: tuple[Expression, ...]  # of each prompt
    names: tuple[Hashable, ...]  # of what to look for: a text, or a prompt's number
    embeddings: Array | None = None  # of these, (L,projection_dim); None where `embed` makes them
    embed: Callable[[], Array] | None = None
    token_ids: np.ndarray | None = None  # (L,T), where all are texts that are not embedded yet

    def embedded(self) -> Array:
        return self.embed() if self.embeddings is None else self.embeddings


class Segmenter:
    """A model with its processor.

    With the backend "cupy", a pass of each combination of shapes is recorded as a CUDA graph once (model/recorded.py) and
    launched from then on; `record=False` turns that off. Raises InputError where the tokenizer's ids do not fit the
    model's vocabulary.
    """

    def __init__(
        self, model: CLIPSegForImageSegmentation, processor: CLIPSegProcessor, record: bool = True
    ):
        text, tokenizer = model.config.text_config, processor.tokenizer
        if len(tokenizer) > text.vocab_size:
            raise InputError(
                f"the vocabulary has {len(tokenizer)} tokens and config.json a vocab_size of {text.vocab_size}: "
                f"the tokenizer's files and the model are not of one checkpoint"
            )
        if text.eos_token_id not in (LEGACY_EOS_TOKEN_ID, tokenizer.eos_token_id):
            raise InputError(
                f"the tokenizer ends a text with id {tokenizer.eos_token_id} and config.json's eos_token_id is "
                f"{text.eos_token_id}: the tokenizer's files and the model are not of one checkpoint"
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
        """Load a checkpoint: a folder, a hub id, or, without an argument, the demonstration checkpoint.

        One .safetensors file is a checkpoint too, with the other files beside it. With `local_files_only`, a hub id
        must be in the hub's cache; without, it is fetched if it is not. `threads` share out the work of the backend
        "numpy"; by default, as many as there are cores. `record` is for the backend "cupy", as above.

        Raises what CLIPSegForImageSegmentation.from_pretrained and CLIPSegProcessor.from_pretrained raise.
        """
        if folder_or_hub_id is None:
            path = demo_folder()
        else:
            path = checkpoint_path(folder_or_hub_id, local_files_only=local_files_only)
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

        image: a path, a PIL image or an array (see image.load_image); a path's image is turned upright.
        prompts: a string, an image, a VisualPrompt (an image with a mask of what is meant in it), or a list of
        these. A string is always a text; an image's path must be a pathlib.Path. One prompt keeps its axis: the
        result then has P = 1.
        scales: 1 looks at the image as a whole, s at overlapping windows of an s-th of its height and width; of
        several, the mean counts. Each window costs as much as an image.
        input_data_format: "channels_first" or "channels_last", of an array that could be either, as (3,5,3).

        Raises InputError for no prompt, an empty text, unfit scales or an unusable image, FileNotFoundError for a
        missing file.
        """
        prompts = _listed(prompts)
        pixels = load_image(image, input_data_format)
        each = [Expression("", number) for number in range(len(prompts))]
        return self._found(pixels, self._query(prompts, each), scales)

    def combine(
        self,
        image: Any,
        prompts: Any,
        *,
        scales: Sequence[int] = (1,),
        input_data_format: str | None = None,
    ) -> Segmentation:
        """As a call, save that a text may join several: "a cat - a collar" (see segment/prompt_algebra.py).

        What is named more than once is looked for once. `prompts` may also be what `prepare` returned. Raises
        InputError, besides, for what cannot be read.
        """
        read = None if isinstance(prompts, Query) else _read(prompts)
        pixels = load_image(image, input_data_format)
        return self._found(pixels, self._query(*read) if read else prompts, scales)

    def prepare(self, prompts: Any) -> Query:
        """Read and embed the prompts of `combine` once, for many images."""
        query = self._query(*_read(prompts))
        return replace(query, embeddings=query.embed(), embed=None, token_ids=None)

    def _query(self, prompts: list, expressions: list[Expression]) -> Query:
        """Read the prompts, which are embedded beside the first image."""
        names = tuple(dict.fromkeys(name for one in expressions for name in one.prompts))
        things = [name if isinstance(name, str) else prompts[name] for name in names]
        texts, pixels = self._read_things(things)
        ids = None if pixels is not None or self.graphs is None else texts["input_ids"]
        embed = cache(partial(self._embedded, things, texts, pixels))
        return Query(tuple(prompts), tuple(expressions), names, None, embed, ids)

    def _found(self, image: np.ndarray, query: Query, scales: Sequence[int]) -> Segmentation:
        size = image.shape[:2]
        scales = checked_scales(scales, size)
        maps = [self._logits_at(scale, image, query) for scale in scales]
        logits = mean_of_scales(maps, self.model.ops) if len(maps) > 1 else maps[0]
        if bool(self.model.ops.xp.isnan(logits).any()):
            self._warn_of_nan()
        return Segmentation(
            query.prompts, logits, size, query.names, query.expressions, self.model.ops
        )

    def _logits_at(self, scale: int, image: np.ndarray, query: Query) -> Array:
        """The decoder's maps of the whole image, from its windows of one scale: (P,scale*h,scale*w)."""
        if scale == 1:
            return self._logits(image, query)
        query = replace(query, token_ids=None)  # texts are embedded once for all windows
        places = windows(image.shape[:2], scale)
        parts = ((down, right, self._logits(image[w], query)) for down, right, w in places)
        return join(parts, scale, self.model.ops)

    def _logits(self, image: np.ndarray, query: Query) -> Array:
        """The decoder's maps of one image as a whole: (P,h,w)."""
        graphs = self.graphs  # another thread may give them up
        if graphs is not None and not is_traced():
            pixels = self._pixel_values([image])
            prompts = query.embedded() if query.token_ids is None else query.token_ids
            try:
                return graphs(pixels, prompts)
            except CannotRecord as error:
                warnings.warn(f"passes are not recorded: {error}", stacklevel=6)
                self.graphs = None

        def features() -> ImageFeatures:
            return self.model.encode_image(self._pixel_values([image]))

        return self.model.decode(*in_parallel(self.model.ops, [features, query.embedded]))

    def _warn_of_nan(self) -> None:
        """Say which weight is to blame. Not looked for at load, which would read the whole file."""
        xp = self.model.ops.xp
        damaged = [name for name, w in self.model.scope.arrays.items() if bool(xp.isnan(w).any())]
        cause = f"the checkpoint's {damaged[0]} holds NaN" if damaged else "a number overflowed"
        warnings.warn(f"the masks hold NaN: {cause}. Fetch the checkpoint again.", stacklevel=4)

    def embed(self, prompts: list) -> Array:
        """Texts and images, in any mix, to conditional embeddings, in their order.  -> (P,projection_dim)"""
        return self._embedded(prompts, *self._read_things(prompts))

    def _read_things(self, prompts: list) -> tuple[Features | None, np.ndarray | None]:
        """Token ids and mask of the texts among prompts, and pixel values of the images; None where there are none."""
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        ids = self._ids(texts) if texts else None
        mean = self.processor.image_processor.image_mean
        images = [
            prompt.prepared(mean) if isinstance(prompt, VisualPrompt) else load_image(prompt)
            for prompt in prompts
            if not isinstance(prompt, str)
        ]
        return ids, self._pixel_values(images) if images else None

    def _embedded(self, prompts: list, texts: Features | None, pixels: np.ndarray | None) -> Array:
        """What `_read_things` returned, embedded, in the order of the prompts."""
        model, parts = self.model, []
        if texts is not None:
            parts.append(model.get_conditional_embeddings(**texts))
            model.clip.text_model.give_back_memory()  # as large as half of the vision tower
        if pixels is not None:
            parts.append(model.get_conditional_embeddings(conditional_pixel_values=pixels))
        if len(parts) == 1:
            return parts[0]
        is_image = [not isinstance(prompt, str) for prompt in prompts]
        place = np.argsort(np.argsort(is_image, kind="stable"))  # of each prompt, texts first
        return model.ops.xp.concatenate(parts)[model.ops.asarray(place)]

    def _pixel_values(self, images: list[np.ndarray]) -> np.ndarray:
        """Of images (height,width,3): said, since one that is 3 pixels high could be (C,H,W) too."""
        return self.processor.image_processor(images, input_data_format="channels_last")[
            "pixel_values"
        ]

    def _ids(self, texts: list[str]) -> Features:
        """Token ids and their mask, (P,T) each; a text that is too long is cut, with a warning.

        On a GPU, T is one of TEXT_LENGTHS or the model's longest, so that few passes have to be recorded.
        """
        longest = self.model.config.text_config.max_position_embeddings
        needed = 0
        for text in texts:
            tokens = len(self.processor.tokenizer.tokenize(text)) + 2  # with the start and the end
            needed = max(needed, min(tokens, longest))
            if tokens > longest:
                warnings.warn(
                    f"the prompt {text[:40]!r}... has {tokens} tokens; the model reads {longest}, and what "
                    f"follows is not used",
                    stacklevel=5,
                )
        padding = True
        if self.on_gpu:
            lengths = (*(n for n in TEXT_LENGTHS if n < longest), longest)
            padding, longest = "max_length", min(n for n in lengths if n >= needed)
        return self.processor.tokenizer(
            texts, padding=padding, truncation=True, max_length=longest, return_tensors="np"
        )


def _listed(prompts: Any) -> list:
    """One prompt or several, as a list without empty texts."""
    prompts = list(prompts) if isinstance(prompts, (list, tuple)) else [prompts]
    if not prompts:
        raise InputError("there is no prompt: give at least one text or image")
    for place, prompt in enumerate(prompts):
        if isinstance(prompt, str) and not prompt.strip():
            raise InputError(f"prompt {place + 1} is empty: name what to look for, such as 'a cat'")
    return prompts


def _read(prompts: Any) -> tuple[list, list[Expression]]:
    """Prompts, and the expression of each: a text's own, or an image's number."""
    prompts = _listed(prompts)
    return prompts, [
        parse(p) if isinstance(p, str) else Expression("", i) for i, p in enumerate(prompts)
    ]
