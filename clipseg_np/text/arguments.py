"""Checks of a tokenizer's arguments."""

from typing import Any

import numpy as np

from ..errors import InputError
from .tokenizer_files import SIDES

CHOICES = {
    "padding": (False, True, "longest", "max_length", "do_not_pad"),
    "truncation": (False, True, "longest_first", "only_first", "do_not_truncate"),
    "return_tensors": (None, "np"),
    **dict.fromkeys(SIDES, ("right", "left")),
}


def check_choice(name: str, value: Any) -> None:
    if value not in CHOICES[name]:
        known = str(CHOICES[name])[1:-1]
        raise InputError(f"{name}={value!r} is not known; expected one of {known}.")


def check_length(name: str, length: Any, least: int) -> None:
    if not isinstance(length, int | np.integer) or length < least:
        ends = " (the start and the end token)" if least else ""
        raise InputError(
            f"{name} is {length!r}; expected a whole number of at least {least}{ends}."
        )


def one_text(text: Any) -> str:
    if not isinstance(text, str):
        raise InputError(f"Got {type(text).__name__}; expected one text.")
    return list_of_texts(text)[0]


def list_of_texts(text: Any) -> list[str]:
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, list | tuple) or not texts:
        found = "an empty list" if isinstance(texts, list | tuple) else type(text).__name__
        raise InputError(f"Got {found}; expected a text or a list of texts.")
    for i, one in enumerate(texts):
        if not isinstance(one, str):
            raise InputError(f"Text {i} of the list is {one!r}; expected a text.")
        try:
            one.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"Text {i} has half a surrogate pair, {one[error.start]!r}, at character "
                f"{error.start}: it is not valid Unicode. Decode its bytes again, or remove it."
            ) from error
    return list(texts)
