"""Checks of a model's input: shapes, and token ids in main memory, so that no GPU is waited for.

Each raises InputError. Those that return something return it unchanged, or as a NumPy array.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import InputError
from ..nn.ops import Array, in_main_memory
from .config import LEGACY_EOS_TOKEN_ID, CLIPSegConfig, CLIPSegTextConfig, CLIPSegVisionConfig


def require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def checked_texts(
    input_ids: Any, attention_mask: Any, position_ids: Any, config: CLIPSegTextConfig
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Token ids (P,T) and, if given, their mask (P,T) and positions (P,T) or (1,T).

    One text may come without its axis: (T). A text without an end token is warned of.
    """
    input_ids = in_main_memory(input_ids)
    fits = input_ids.ndim > 0 and input_ids.size > 0 and input_ids.dtype.kind in "iu"
    given = f"{input_ids.dtype} of shape {input_ids.shape}"
    expected = "whole numbers, (prompts, tokens), with at least one token"
    require(fits, f"input_ids are {given}; expected {expected}")
    input_ids = input_ids.reshape(-1, input_ids.shape[-1])
    P, T = input_ids.shape
    max_T, eos = config.max_position_embeddings, config.eos_token_id
    require(T <= max_T, f"a text has {T} tokens; the model has {max_T} positions: truncate it")
    low, high, last = input_ids.min(), input_ids.max(), config.vocab_size - 1
    fault = f"input_ids hold {low if low < 0 else high}; the vocabulary has ids 0 to {last}"
    require(low >= 0 and high <= last, f"{fault} (vocab_size). Is the tokenizer this checkpoint's?")
    if eos != LEGACY_EOS_TOKEN_ID and not (input_ids == eos).any(axis=1).all():
        fault = f"a text without the end token {eos} (eos_token_id) is pooled at its first token"
        warnings.warn(f"{fault}; expected ids of the checkpoint's own tokenizer", stacklevel=7)
    if attention_mask is not None:
        attention_mask = np.atleast_2d(in_main_memory(attention_mask))
        shape = attention_mask.shape
        require(shape == (P, T), f"attention_mask has shape {shape}; expected the ids', {(P, T)}")
    if position_ids is not None:
        position_ids = np.atleast_2d(in_main_memory(position_ids))
        shape = position_ids.shape
        fits = shape in ((P, T), (1, T))
        require(fits, f"position_ids have shape {shape}; expected {(P, T)} or {(1, T)}")
        is_whole = position_ids.dtype.kind in "iu"
        fits = is_whole and position_ids.min() >= 0 and position_ids.max() < max_T
        expected = f"whole numbers in 0 to {max_T - 1} (max_position_embeddings)"
        require(fits, f"position_ids must be {expected}")
    return input_ids, attention_mask, position_ids


def checked_pixels(pixel_values: Array, config: CLIPSegVisionConfig) -> Array:
    C, p, shape = config.num_channels, config.patch_size, pixel_values.shape
    require(
        len(shape) == 4 and shape[0] >= 1 and shape[1] == C and min(shape[2:]) >= p,
        f"pixel values have shape {shape}; expected (images, {C}, height, width) with at least "
        f"one image and one patch of {p} by {p} pixels (num_channels and patch_size of "
        "config.json; preprocessor_config.json has an image's size)",
    )
    return pixel_values


def require_own_size(pixel_values: Array, config: CLIPSegVisionConfig) -> None:
    side, (height, width) = config.image_size, pixel_values.shape[-2:]
    expected = f"{side} by {side} (image_size), or interpolate_pos_encoding"
    fits = (height, width) == (side, side)
    require(fits, f"the image is {height} by {width} pixels; expected {expected}")


def require_one_kind_of_prompt(input_ids: Any, conditional_pixel_values: Any) -> None:
    is_one = (input_ids is None) != (conditional_pixel_values is None)
    got = "neither" if input_ids is None else "both"
    require(is_one, f"expected one of input_ids and conditional_pixel_values; got {got}")


def require_inputs(pixel_values: Any, conditional_embeddings: Any, *others: Any) -> None:
    require(pixel_values is not None, "pixel_values are missing: expected images, (B,C,H,W)")
    fits = conditional_embeddings is None or all(other is None for other in others)
    require(fits, "conditional_embeddings are given, and another kind of prompt besides")


def require_batch_size(embeddings: Array, batch_size: int | None) -> None:
    P = len(embeddings)
    require(batch_size in (None, P), f"got {P} prompts; expected {batch_size}, one for each image")


def checked_embeddings(embeddings: Array, num_images: int, config: CLIPSegConfig) -> Array:
    D, shape = config.projection_dim, embeddings.shape
    fits = len(shape) == 2 and shape[1] == D and shape[0] >= 1
    expected = f"(prompts, {D}) (projection_dim) with at least one prompt"
    require(fits, f"conditional embeddings have shape {shape}; expected {expected}")
    numbers = f"{num_images} images and {shape[0]} prompts"
    require(num_images in (1, shape[0]), f"got {numbers}; expected one image, or as many of both")
    return embeddings


def checked_labels(labels: Array, logits: Array) -> Array:
    shape, expected = labels.shape, logits.shape
    require(shape == expected, f"labels have shape {shape}; expected the logits', {expected}")
    return labels


def require_loss(d_y: Mapping[str, Any], is_there: bool, name: str) -> None:
    fits = is_there or "loss" not in d_y
    require(fits, f"a derivative by the loss is given, and there is no loss: no {name} was given")


def require_pairs(logits: Array) -> None:
    P, B = logits.shape
    require(P == B, f"return_loss takes as many texts as images, in pairs; got {P} and {B}")
