"""`Segmenter`: an image and prompts in, probabilities and masks of the image's own size out.

The image is encoded once for all prompts, and only up to the last layer that the decoder reads;
transformers encodes it once for each prompt, through all layers.
"""

import os
import re
import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..backends.cuda_graph import CannotRecord
from ..backends.cupy_ops import CupyOps
from ..checkpoints.hub import hub_options
from ..checkpoints.locate import checkpoint_path, demo_folder
from ..errors import InputError, naming
from ..habits import LOADING, understands
from ..image.load_image import image_name, load_image, read_numbers, to_colors
from ..image.plugins import has_image_suffix
from ..model.batched import in_parallel, unless_traced
from ..model.clipseg import CLIPSegForImageSegmentation
from ..model.config import LEGACY_EOS_TOKEN_ID
from ..model.learned_prompt import LearnedPrompt
from ..model.outputs import Features
from ..model.recorded import RecordedPasses
from ..nn.ops import Array
from .processor import CLIPSegProcessor
from .prompt_algebra import Expression, one_prompt, parse
from .segmentation import Segmentation
from .sliding_window import checked_scales, join, mean_of_scales, windows
from .visual_prompt import VisualPrompt

TEXT_LENGTHS = (8, 16, 32)  # tokens, to which texts are padded on a GPU
NOT_IN_NAMES = re.compile(r'[\s()!"]|^$')  # of learned prompts
MAX_PREVIEW = 640  # pixels of the longer side


@dataclass(frozen=True)
class Query:
    """Prompts whose expressions combine L texts, images and learned prompts.

    A name is a text, a learned prompt, or the number of another prompt.
    `embed` returns the embeddings (L,projection_dim); a recorded pass embeds `token_ids` (L,T).
    """

    prompts: tuple[Any, ...]
    expressions: tuple[Expression, ...]
    names: tuple[Hashable, ...]
    embed: Callable[[], Array]
    token_ids: np.ndarray | None = None


class Segmenter:
    """A model with its processor. Raises InputError where they are not of one checkpoint.

    With the backend "cupy", a pass is recorded as a CUDA graph once for each combination of shapes
    (model/recorded.py) and launched from then on; `record=False` turns that off.
    """

    def __init__(
        self, model: CLIPSegForImageSegmentation, processor: CLIPSegProcessor, record: bool = True
    ):
        expected = CLIPSegForImageSegmentation, CLIPSegProcessor
        for part, kind in zip((model, processor), expected):
            if not isinstance(part, kind):
                raise InputError(f"got a {type(part).__name__}; expected a {kind.__name__}")
        text, tokenizer = model.config.text_config, processor.tokenizer
        mismatch = "the tokenizer's files and the model are not of one checkpoint"
        # A token that was added behind the vocabulary is refused by the model, in a prompt only.
        if tokenizer.vocab_size > text.vocab_size:
            raise InputError(
                f"the vocabulary has {tokenizer.vocab_size} tokens and config.json a vocab_size of "
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
    @understands(LOADING)
    def from_pretrained(
        cls,
        folder_or_hub_id: str | os.PathLike | None = None,
        *,
        backend: str = "numpy",
        dtype: Any = "float32",
        threads: int | None = None,
        local_files_only: bool = False,
        record: bool = True,
        decoder: str | os.PathLike | None = None,
        **options: Any,
    ) -> "Segmenter":
        """Load a checkpoint: a folder, one .safetensors file or a hub id; None is the demo's.

        `decoder` is a file of `clipseg-np fine-tune --decoder-only` to put on top. For the options
        and errors see the model's from_pretrained; for `record`, the class. Only with threads=1 do
        equal calls give equal bits.
        """
        hub = hub_options(options) | {"local_files_only": local_files_only}
        path = checkpoint_or_demo(folder_or_hub_id, **hub)
        model = CLIPSegForImageSegmentation.from_pretrained(
            path, backend=backend, dtype=dtype, threads=threads, decoder=decoder, **options
        )
        processor = CLIPSegProcessor.from_pretrained(path, decoder=decoder)
        with naming(path):
            return cls(model, processor, record)

    def __call__(
        self,
        image: Any,
        prompts: Any,
        *,
        scales: Sequence[int] = (1,),
        input_data_format: str | None = None,
        white_level: float | None = None,
    ) -> Segmentation:
        """Segment one image by P prompts.

        image: a path, a PIL image or an array; see image.load_image, also for input_data_format.
        prompts: a string, an image, a VisualPrompt, a LearnedPrompt, or a list of these. A string
        is always a text; an image's path must be a pathlib.Path.
        scales: 1 is the whole image, s its windows of an s-th of its height and width; several are
        averaged. Each window costs as much as an image.
        white_level: the number that is white in the images and image prompts that are not of bytes.

        Raises InputError for no prompt, an empty text, a prompt learned with another decoder, unfit
        scales or an unusable image, and FileNotFoundError for a missing file.
        """
        query = self._query(prompts, white_level, combined=False)
        return self._segment(image, query, scales, input_data_format, white_level)

    def combine(
        self,
        image: Any,
        prompts: Any,
        *,
        scales: Sequence[int] = (1,),
        input_data_format: str | None = None,
        white_level: float | None = None,
        learned: Sequence[LearnedPrompt] = (),
    ) -> Segmentation:
        """As a call, but a text may combine several: "a cat - a collar" (see prompt_algebra.py).

        learned: the prompts that a text may mention by name: "@heart - a circle".
        `prompts` may be a Query of `prepare`. Raises InputError also if a text cannot be read.
        """
        is_ready = isinstance(prompts, Query)
        query = prompts if is_ready else self._query(prompts, white_level, learned=learned)
        return self._segment(image, query, scales, input_data_format, white_level)

    def prepare(
        self, prompts: Any, white_level: float | None = None, learned: Sequence[LearnedPrompt] = ()
    ) -> Query:
        """Read and embed the prompts of `combine` once, for many images."""
        query = self._query(prompts, white_level, learned=learned)
        embeddings = query.embed()
        return replace(query, embed=lambda: embeddings, token_ids=None)

    def _query(
        self,
        prompts: Any,
        white_level: float | None,
        combined: bool = True,
        learned: Sequence[LearnedPrompt] = (),
    ) -> Query:
        """A query whose prompts are tokenized now and embedded beside the first image."""
        prompts, expressions = read_prompts(prompts, combined, learned)
        names = tuple(dict.fromkeys(name for e in expressions for name in e.prompts))
        parts = [prompts[name] if isinstance(name, int) else name for name in names]
        self.processor.warn_of_unknown_words(part for part in parts if isinstance(part, str))
        inputs = self._inputs(parts, white_level)
        ids = inputs[0].get("input_ids") if self.graphs is not None and len(inputs) == 1 else None
        embed = cache(partial(self._embedded, parts, inputs))
        return Query(tuple(prompts), tuple(expressions), names, embed, ids)

    def _segment(
        self,
        image: Any,
        query: Query,
        scales: Sequence[int],
        input_data_format: str | None,
        white_level: float | None,
    ) -> Segmentation:
        name = image_name(image)
        numbers = read_numbers(image, input_data_format, name)
        # `load_image` would copy an array of 12 megapixels, of 36 MB.
        pixels = to_colors(numbers, white_level, name)
        ops, size = self.model.ops, pixels.shape[:2]
        maps = [self._scale_logits(s, pixels, query) for s in checked_scales(scales, size)]
        logits = mean_of_scales(maps, ops) if len(maps) > 1 else maps[0]
        if bool(ops.xp.isnan(logits).any()):
            # Loading does not look for NaN: it reads no weights.
            weights = self.model.scope.arrays.items()
            damaged = [name for name, weight in weights if bool(ops.xp.isnan(weight).any())]
            cause = f"the checkpoint's {damaged[0]} holds NaN" if damaged else "a number overflowed"
            warnings.warn(f"the masks hold NaN: {cause}. Fetch the checkpoint again.", stacklevel=3)
        step = -(-max(size) // MAX_PREVIEW)
        fields = query.prompts, logits, size, query.names, query.expressions
        return Segmentation(*fields, pixels[::step, ::step].copy(), image_name(image, "image"), ops)

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
        tasks = [lambda: self.model.encode_image(self._pixel_values([image])), query.embed]
        return self.model.decode(*in_parallel(self.model.ops, tasks))

    def embed(self, prompts: list) -> Array:
        """Prompts of all kinds, in any mix, to conditional embeddings.  -> (P,projection_dim)"""
        return self._embedded(prompts, self._inputs(prompts))

    def _inputs(self, prompts: list, white_level: float | None = None) -> list[dict]:
        """Arguments of get_conditional_embeddings for texts and for images; learned embeddings."""
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        learned = [p.check(self.model).vector for p in prompts if isinstance(p, LearnedPrompt)]
        mean = self.processor.image_processor.image_mean
        images = [
            prompt.prepared(mean, white_level)
            if isinstance(prompt, VisualPrompt)
            else load_image(prompt, None, image_name(prompt, "an image prompt"), white_level)
            for prompt in prompts
            if not isinstance(prompt, (str, LearnedPrompt))
        ]
        inputs = [self._token_ids(texts)] if texts else []
        if images:
            inputs.append({"conditional_pixel_values": self._pixel_values(images)})
        return [*inputs, {"learned": np.stack(learned)}] if learned else inputs

    def _embedded(self, prompts: list, inputs: list[dict]) -> Array:
        """The embeddings of what `_inputs` returned, in the order of the prompts."""
        model, parts = self.model, []
        for options in inputs:
            learned = options.get("learned")
            embed = model.get_conditional_embeddings
            parts.append(embed(**options) if learned is None else model.floats(learned))
            model.clip.text_model.give_back_memory()  # half as much as the vision tower's
        # A prompt's place among the kinds of `_inputs`, and so its row.
        kinds = [0 if isinstance(p, str) else 1 + isinstance(p, LearnedPrompt) for p in prompts]
        rows = np.argsort(np.argsort(kinds, kind="stable"))
        return model.ops.xp.concatenate(parts)[model.ops.asarray(rows)]

    def _pixel_values(self, images: list[np.ndarray]) -> np.ndarray:
        """Images (height,width,3) to (B,3,H,W). An image 3 pixels high could be (C,H,W), too."""
        return self.processor(images=images, input_data_format="channels_last")["pixel_values"]

    def _token_ids(self, texts: list[str]) -> Features:
        """Token ids and their mask, (P,T) each; a text that is too long is cut, with a warning.

        On a GPU, T is one of TEXT_LENGTHS or the model's maximum, so that few passes are recorded.
        """
        tokenizer = self.processor.tokenizer
        limit = self.model.config.text_config.max_position_embeddings
        lengths = [len(tokenizer.tokenize(text)) + 2 for text in texts]  # with start and end
        for text, length in zip(texts, lengths):
            if length > limit:
                warnings.warn(
                    f"the prompt {text[:40]!r}... has {length} tokens; the model reads {limit}, "
                    f"and the rest is not used",
                    stacklevel=5,
                )
        longest = min(max(lengths), limit)
        steps = (*TEXT_LENGTHS, limit) if self.on_gpu else (longest,)
        max_length = min(n for n in steps if longest <= n <= limit)
        return tokenizer(texts, "max_length", True, max_length, return_tensors="np")


def checkpoint_or_demo(name: str | os.PathLike | None, **options: Any) -> Path:
    """The path of a checkpoint, or of the demonstration checkpoint for None."""
    return demo_folder() if name is None else checkpoint_path(name, **options)


def by_name(learned: Iterable[LearnedPrompt]) -> dict[str, LearnedPrompt]:
    """Learned prompts by "@name". Raises InputError for two of one name, or one of no use."""
    named: dict[str, LearnedPrompt] = {}
    for prompt in learned if isinstance(learned, Iterable) else [learned]:
        if not isinstance(prompt, LearnedPrompt):
            raise InputError(f"learned holds {prompt!r}; expected a list of LearnedPrompt objects")
        if NOT_IN_NAMES.search(prompt.name):
            expected = "expected no spaces, quotes, parentheses or !: rename its file"
            raise InputError(f"no text can mention the learned prompt {str(prompt)!r}; {expected}")
        if named.setdefault(str(prompt), prompt) is not prompt:
            raise InputError(f"two learned prompts are named {str(prompt)!r}: rename a file")
    return named


def read_prompts(
    prompts: Any, combined: bool = True, learned: Iterable[LearnedPrompt] = ()
) -> tuple[list, list[Expression]]:
    """A list of the prompts and one of their expressions; unless `combined`, a text is one prompt.

    Raises InputError for no prompt, an empty text, a text that `parse` refuses, and as `by_name`.
    """
    named = by_name(learned)
    prompts = list(prompts) if isinstance(prompts, (list, tuple)) else [prompts]
    if not prompts:
        raise InputError("there is no prompt: give at least one text or image")
    for number, prompt in enumerate(prompts, start=1):
        if isinstance(prompt, str) and not prompt.strip():
            raise InputError(f"prompt {number} is empty: name what to look for, such as 'a cat'")
        kind = getattr(getattr(prompt, "dtype", None), "kind", None)
        is_numbers = hasattr(prompt, "__array__") and kind not in {*"OSUT"}
        kinds = str, os.PathLike, Image.Image, VisualPrompt, LearnedPrompt
        if not (is_numbers or isinstance(prompt, kinds)):
            expected = "expected a text, a Path, a PIL image, an array of numbers, a VisualPrompt"
            expected += ", a LearnedPrompt, or a list"
            raise InputError(f"prompt {number} is a {type(prompt).__name__}; {expected}")

    def read(number: int, prompt: Any) -> Expression:
        if not isinstance(prompt, str):
            return Expression("", number)
        if has_image_suffix(prompt):
            warnings.warn(
                f"the prompt {prompt!r} is a text here; an image's path is a pathlib.Path, or "
                f"follows --image-prompt",
                stacklevel=2,
            )
        return parse(prompt, named) if combined else one_prompt(prompt, number)

    return prompts, [read(number, prompt) for number, prompt in enumerate(prompts)]
