"""The words of a checkpoint that was trained on few: words.txt, and those of a decoder's file."""

import os
from collections.abc import Iterable
from pathlib import Path
from string import punctuation

from ..checkpoints.decoder_file import decoder_words
from ..checkpoints.hub import WORDS_NAME


def words_of(texts: Iterable[str]) -> list[str]:
    """Each word once, in lower case, without punctuation around it."""
    words = (word.strip(punctuation) for text in texts for word in text.lower().split())
    return list(dict.fromkeys(filter(None, words)))


def known_words(folder: Path, decoder: str | os.PathLike | None = None) -> frozenset[str]:
    """All words that a checkpoint was trained on; empty if it reads any language."""
    file = folder / WORDS_NAME
    if not file.is_file():
        return frozenset()
    own = decoder_words(decoder) if decoder else frozenset()
    return own | frozenset(file.read_text("utf-8").split())


def unknown_words(known: frozenset[str], texts: Iterable[str]) -> list[str]:
    """The words of the texts that are not known; none if `known` is empty: any language is read."""
    return [word for word in words_of(texts) if known and word not in known]
