"""Checks of what a model is given, in main memory: to look at a GPU's numbers would wait for it."""

import warnings
from typing import Any

import numpy as np

from .config import LEGACY_EOS_TOKEN_ID, CLIPSegTextConfig
from .errors import InputError
from .ops import in_main_memory


def checked_texts(
    input_ids: Any, attention_mask: Any, position_ids: Any, config: CLIPSegTextConfig
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Token ids and, where they are given, mask (P,T) and positions (P,T) or (1,T).

    One text may come without its axis: (T). Raises InputError for ids outside the vocabulary, positions outside the
    table, too long a text, or shapes that do not fit; warns of a text without an end token.
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
            stacklevel=5,
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
