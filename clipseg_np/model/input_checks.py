"""Checks of what a model is given: of shapes, and of ids in main memory, since to look at a GPU's numbers would wait for it."""

import warnings
from typing import Any

import numpy as np

from ..errors import InputError
from ..nn.ops import Array, in_main_memory
from .config import LEGACY_EOS_TOKEN_ID, CLIPSegConfig, CLIPSegTextConfig, CLIPSegVisionConfig


def checked_texts(
    input_ids: Any, attention_mask: Any, position_ids: Any, config: CLIPSegTextConfig
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Token ids and, where they are given, mask (P,T) and positions (P,T) or (1,T).

    One text may come without its axis: (T). Raises InputError for ids outside the vocabulary,
    positions outside the table, too long a text, or shapes that do not fit; warns of a text without
    an end token.
    """
    input_ids = in_main_memory(input_ids)
    if input_ids.ndim == 0 or input_ids.size == 0 or input_ids.dtype.kind not in "iu":
        raise InputError(
            f"input_ids are {input_ids.dtype} of shape {input_ids.shape}; expected whole numbers, "
            f"(prompts, tokens), with at least one token"
        )
    input_ids = input_ids.reshape(-1, input_ids.shape[-1])
    P, T = input_ids.shape
    longest = config.max_position_embeddings
    if T > longest:
        raise InputError(
            f"a text has {T} tokens; the model has {longest} positions "
            f"(max_position_embeddings). Tokenize with truncation=True."
        )
    low, high = input_ids.min(), input_ids.max()
    if low < 0 or high >= config.vocab_size:
        raise InputError(
            f"input_ids hold {low if low < 0 else high}; the vocabulary has ids 0 to "
            f"{config.vocab_size - 1} (vocab_size). Is the tokenizer this checkpoint's?"
        )
    eos = config.eos_token_id
    if eos != LEGACY_EOS_TOKEN_ID and not (input_ids == eos).any(axis=1).all():
        warnings.warn(
            f"a text without the end token {eos} (eos_token_id) is pooled at its first token; "
            f"expected ids that the checkpoint's own tokenizer made",
            stacklevel=6,
        )
    if attention_mask is not None:
        attention_mask = in_main_memory(attention_mask)
        if attention_mask.ndim == 1:
            attention_mask = attention_mask[None]
        if attention_mask.shape != (P, T):
            raise InputError(
                f"attention_mask has shape {attention_mask.shape}; expected that of input_ids, {(P, T)}"
            )
    if position_ids is not None:
        position_ids = in_main_memory(position_ids)
        if position_ids.shape not in ((T,), (1, T), (P, T)):
            raise InputError(
                f"position_ids have shape {position_ids.shape}; expected {(P, T)} or {(1, T)}"
            )
        if position_ids.min() < 0 or position_ids.max() >= longest:
            raise InputError(
                f"position_ids must lie in 0 to {longest - 1} (max_position_embeddings)"
            )
    return input_ids, attention_mask, position_ids


def checked_pixels(pixel_values: Array, config: CLIPSegVisionConfig) -> Array:
    """Pixel values (B,C,H,W), as they are. Raises InputError unless they hold an image and each image a patch."""
    C, p = config.num_channels, config.patch_size
    shape = pixel_values.shape
    if len(shape) != 4 or shape[0] < 1 or shape[1] != C or min(shape[2:]) < p:
        raise InputError(
            f"pixel values have shape {shape}; expected (images, {C}, height, width) with at least one "
            f"image and one patch of {p} by {p} pixels (num_channels and patch_size of config.json; "
            f"preprocessor_config.json has an image's size)"
        )
    return pixel_values


def require_own_size(pixel_values: Array, config: CLIPSegVisionConfig) -> None:
    """Raise InputError unless images (B,C,H,W) have the size that the positions were learned for."""
    side = config.image_size
    height, width = pixel_values.shape[-2:]
    if (height, width) != (side, side):
        raise InputError(
            f"the image is {height} by {width} pixels; without interpolate_pos_encoding it must be "
            f"{side} by {side} (image_size)"
        )


def require_one_kind_of_prompt(input_ids: Any, conditional_pixel_values: Any) -> None:
    """Raise InputError unless one of the two is given."""
    if (input_ids is None) == (conditional_pixel_values is None):
        raise InputError(
            "expected one kind of prompt: input_ids, or conditional_pixel_values; got "
            f"{'neither' if input_ids is None else 'both'}"
        )


def require_inputs(
    pixel_values: Any, conditional_embeddings: Any, input_ids: Any, conditional_pixel_values: Any
) -> None:
    """Raise InputError where there is no image, or another prompt beside conditional embeddings."""
    if pixel_values is None:
        raise InputError("pixel_values are missing: expected images, (B,C,H,W)")
    is_other = input_ids is not None or conditional_pixel_values is not None
    if conditional_embeddings is not None and is_other:
        raise InputError("conditional_embeddings are given, and another kind of prompt besides")


def require_batch_size(embeddings: Array, batch_size: int | None) -> None:
    """Raise InputError unless there are `batch_size` embeddings, where that is given."""
    if batch_size is not None and len(embeddings) != batch_size:
        raise InputError(
            f"got {len(embeddings)} prompts; expected {batch_size}, one for each image"
        )


def checked_embeddings(embeddings: Array, num_images: int, config: CLIPSegConfig) -> Array:
    """Conditional embeddings (P,projection_dim), as they are.

    Raises InputError for another shape, and unless there is one image or one for each prompt.
    """
    D, shape = config.projection_dim, embeddings.shape
    if len(shape) != 2 or shape[1] != D or shape[0] < 1:
        raise InputError(
            f"conditional embeddings have shape {shape}; expected (prompts, {D}) (projection_dim) "
            f"with at least one prompt"
        )
    if num_images not in (1, shape[0]):
        raise InputError(
            f"got {num_images} images and {shape[0]} prompts; expected as many prompts as images, or "
            f"one image"
        )
    return embeddings


def checked_labels(labels: Array, logits: Array) -> Array:
    """Labels, as they are. Raises InputError unless they have the logits' shape."""
    if labels.shape != logits.shape:
        raise InputError(f"labels have shape {labels.shape}; expected the logits', {logits.shape}")
    return labels


def require_pairs(logits: Array) -> None:
    """Raise InputError unless logits (P,B) are of as many texts as images."""
    P, B = logits.shape
    if P != B:
        raise InputError(f"return_loss takes as many texts as images, in pairs; got {P} and {B}")
