"""CLIP's tokenizer: a text becomes the ids of byte pairs, and ids become text again.

A text is normalised and cut into pieces (text/normalize.py). A piece's UTF-8 bytes are written as one printable
symbol each, the last with "</w>". The pair of neighbours that stands first in the merge table becomes one symbol,
again and again, until no pair is in the table (text/bpe.py); what is left are the tokens. `explain` shows each step.

Ids and decoded text equal those of transformers' CLIPTokenizer (5.23, with tokenizers 0.23). Deviations:
- A folder that does not say how long a text may be gets 77, CLIP's length; transformers then never truncates.
- Refused instead of passed over: an id outside the vocabulary, a length too short for the start and end token.
- One text at a time or a list; no pairs of texts, no offsets (they would need NFC to be traced character by character).
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import regex

from ..checkpoints.hub import TEXTS
from ..checkpoints.locate import checkpoint_folder
from ..errors import InputError, naming
from ..model.outputs import Features
from .bpe import END_OF_WORD, bytes_of, join_pairs, symbols_of
from .normalize import normalise, pieces
from .tokenizer_files import (
    END,
    SPECIAL_NAMES,
    START,
    AddedToken,
    check_vocabulary,
    read_tokenizer,
    write_tokenizer,
)

CACHED_PIECES, CACHED_LENGTH = 20_000, 40  # pieces, characters each


@dataclass(frozen=True)
class ExplainedPiece:
    """One piece of a text: its byte symbols, the merges in order, and the tokens they end in."""

    piece: str
    symbols: list[str]
    merges: list[tuple[str, str]]
    tokens: list[str]
    ids: list[int]


@dataclass(frozen=True)
class Explanation:
    """Each step from a text to its ids. Printed, it shows them in order."""

    text: str
    normalised: str
    pieces: list[ExplainedPiece]
    tokens: list[str]
    ids: list[int]

    def __str__(self) -> str:
        lines = [f"text        {self.text!r}", f"normalised  {self.normalised!r}"]
        for part in self.pieces:
            lines.append(f"piece       {part.piece!r} = {' '.join(part.symbols)}")
            lines += [f"  merge     {left} + {right}" for left, right in part.merges]
            lines.append(f"  tokens    {' '.join(part.tokens)}")
        lines.append(f"tokens      {' '.join(self.tokens)}")
        lines.append(f"ids         {' '.join(map(str, self.ids))}")
        return "\n".join(lines)


class CLIPTokenizer:
    """Text to ids and back, by a vocabulary and a merge table.

    vocab: {token: id}, ids 0, 1, 2, ... each once. merges: pairs of tokens, the first to be merged first.
    bos_token, eos_token, unk_token, pad_token: their texts; found inside a text, they become their id. A symbol that
    the vocabulary lacks becomes unk_token. model_max_length: tokens that the text tower has positions for.
    added_tokens: AddedToken records that say otherwise of a special token, or add tokens behind the vocabulary.

    Raises InputError where vocabulary, merges and tokens do not belong together.
    """

    def __init__(
        self,
        vocab: dict[str, int],
        merges: Sequence[tuple[str, str]],
        bos_token: str = START,
        eos_token: str = END,
        unk_token: str = END,
        pad_token: str = END,
        model_max_length: int = 77,
        added_tokens: Sequence[AddedToken] = (),
    ):
        merges = [tuple(merge) for merge in merges]
        check_vocabulary(vocab, merges)
        if not isinstance(model_max_length, int) or model_max_length < 2:
            raise InputError(
                f"model_max_length is {model_max_length!r}; expected a whole number, 2 (start and end) or more."
            )
        self.model_max_length = model_max_length
        self.bos_token, self.eos_token = bos_token, eos_token
        self.unk_token, self.pad_token = unk_token, pad_token
        self._base_vocab, self._merges = dict(vocab), merges
        self._vocab = dict(vocab)
        for token in sorted(added_tokens, key=lambda token: token.id):
            if token.id != self._vocab.setdefault(token.content, len(self._vocab)):
                raise InputError(
                    f"The added token {token.content!r} has id {token.id}; expected "
                    f"{self._vocab[token.content]}, its place in or right behind the vocabulary."
                )
        self._added = {token.content: token for token in added_tokens}
        for name in SPECIAL_NAMES:
            content = getattr(self, name)
            if content not in self._vocab:
                raise InputError(
                    f"{name} is {content!r} and the vocabulary's {len(vocab)} tokens lack it. "
                    f"Name the token that the vocabulary has, or fetch the vocabulary again."
                )
            self._added.setdefault(content, AddedToken(content, self._vocab[content]))
        self._token_of = {number: token for token, number in self._vocab.items()}
        for token in self._added.values():
            if token.normalized:
                self._token_of[token.id] = normalise(token.content)
        self._ranks = {merge: rank for rank, merge in enumerate(merges)}
        given = {t.content: t.content for t in self._added.values() if not t.normalized}
        normalised = {normalise(t.content): t.content for t in self._added.values() if t.normalized}
        self._in_given, self._in_normalised = _finder(given), _finder(normalised)
        self._added_by_normalised = normalised
        self._cache: dict[str, list[int]] = {}

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | os.PathLike,
        *,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> "CLIPTokenizer":
        """Read vocab.json and merges.txt, or tokenizer.json, from a folder or the Hugging Face hub.

        overrides: bos_token, eos_token, unk_token, pad_token (texts) and model_max_length.
        Raises FileNotFoundError where the files are missing, InputError where they cannot be used.
        """
        known = {*SPECIAL_NAMES, "model_max_length"}
        _warn_of_unknown({name: v for name, v in overrides.items() if name not in known})
        used = {name: v for name, v in overrides.items() if name in known}
        folder = checkpoint_folder(
            folder_or_hub_id, local_files_only=local_files_only, needed=(TEXTS,)
        )
        with naming(folder):
            return cls(**read_tokenizer(folder, used))

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write vocab.json, merges.txt and tokenizer_config.json; transformers reads them too.

        Raises InputError where the folder holds a tokenizer.json, which would be read instead.
        """
        names = {name: getattr(self, name) for name in SPECIAL_NAMES}
        added = sorted(self._added.values(), key=lambda token: token.id)
        write_tokenizer(
            Path(folder), self._base_vocab, self._merges, added, names, self.model_max_length
        )

    def __call__(
        self,
        text: str | Sequence[str],
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
        add_special_tokens: bool = True,
        return_attention_mask: bool = True,
        **unknown: Any,
    ) -> Features:
        """The ids of one text or of a list of texts: `input_ids`, and `attention_mask` (1 token, 0 padding).

        padding: False; True or "longest", to the longest of the texts; "max_length", to max_length tokens.
        truncation: True cuts to max_length tokens and keeps the end token last. max_length without padding and
        truncation truncates too. max_length: None means model_max_length.
        return_tensors: None for lists, nested for a list of texts; "np" for int64 arrays (n_texts, n_tokens).

        Raises InputError for what is no text, a lone surrogate, no text at all, an unknown choice,
        or texts of unequal length that should become one array. Unknown keywords are warned of and not used.
        """
        _warn_of_unknown(unknown)
        texts = _list_of_texts(text)
        if truncation is None:
            truncation = max_length is not None and padding is False
        _check_choice("padding", padding, (False, True, "longest", "max_length", "do_not_pad"))
        _check_choice(
            "truncation",
            truncation,
            (False, True, "longest_first", "only_first", "do_not_truncate"),
        )
        _check_choice("return_tensors", return_tensors, (None, "np"))
        truncates = truncation not in (False, "do_not_truncate")
        if padding is True and max_length is not None and not truncates:
            warnings.warn(
                "max_length has no effect with padding=True and no truncation: pad to it with "
                "padding='max_length', or cut to it with truncation=True.",
                stacklevel=2,
            )
        length = self.model_max_length if max_length is None else max_length
        shortest = 2 if truncates and add_special_tokens else 0
        if not isinstance(length, int) or length < shortest:
            raise InputError(
                f"max_length is {max_length!r}; expected a whole number of at least {shortest}"
                f"{' (the start and the end token)' if shortest else ''}."
            )

        rows = [self._ids(one) for one in texts]
        if truncates:
            rows = [row[: length - shortest] for row in rows]
        if add_special_tokens:
            rows = [[self.bos_token_id, *row, self.eos_token_id] for row in rows]
        longest = max(map(len, rows))
        if not truncates and max_length is None and longest > self.model_max_length:
            warnings.warn(
                f"A text has {longest} tokens, more than the {self.model_max_length} that the model has "
                f"positions for: the model will refuse it. Cut it with truncation=True.",
                stacklevel=2,
            )
        if padding in (False, "do_not_pad"):
            width = 0
        else:
            width = length if padding == "max_length" else longest
        features = Features(
            input_ids=[row + [self.pad_token_id] * (width - len(row)) for row in rows]
        )
        if return_attention_mask:
            features["attention_mask"] = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        if return_tensors == "np":
            return _as_arrays(features)
        if isinstance(text, str):
            return Features({name: value[0] for name, value in features.items()})
        return features

    def encode(self, text: str, **options: Any) -> list[int]:
        """The ids of one text; options as for a call."""
        return self(text, **options)["input_ids"]

    def tokenize(self, text: str) -> list[str]:
        """The tokens of one text, without the start and the end token."""
        [text] = _list_of_texts(text)
        return self.convert_ids_to_tokens(self._ids(text))

    def decode(
        self, ids: int | Sequence[int] | np.ndarray, skip_special_tokens: bool = False
    ) -> str | list[str]:
        """The text of a row of ids, or a list of texts for rows of ids. Bytes that are no UTF-8 become U+FFFD.

        Raises InputError for an id that is not in the vocabulary.
        """
        if isinstance(ids, dict):
            ids = ids["input_ids"]
        ids = np.atleast_1d(ids).tolist() if isinstance(ids, int | np.integer | np.ndarray) else ids
        if len(ids) > 0 and isinstance(ids[0], list | tuple | np.ndarray):
            return [self.decode(row, skip_special_tokens) for row in ids]
        tokens = [self._token(number) for number in ids]
        if skip_special_tokens:
            skipped = {token.id for token in self._added.values() if token.special}
            tokens = [token for token, number in zip(tokens, ids) if number not in skipped]
        text = b"".join(map(bytes_of, tokens)).decode("utf-8", errors="replace")
        return text.replace(END_OF_WORD, " ").strip()

    def batch_decode(
        self, rows: Sequence | np.ndarray, skip_special_tokens: bool = False
    ) -> list[str]:
        """The text of each row of ids; one row alone gives a list of one text."""
        texts = self.decode(rows, skip_special_tokens)
        return [texts] if isinstance(texts, str) else texts

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        """A token's id, or the ids of several; of a token that the vocabulary lacks, the unk_token's."""
        if isinstance(tokens, str):
            return self._vocab.get(tokens, self.unk_token_id)
        return [self._vocab.get(token, self.unk_token_id) for token in tokens]

    def convert_ids_to_tokens(
        self, ids: int | Sequence[int], skip_special_tokens: bool = False
    ) -> str | list[str]:
        """An id's token, or the tokens of several ids. Raises InputError for an id outside the vocabulary."""
        if isinstance(ids, int | np.integer):
            return self._token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        return [self._token(number) for number in ids if number not in skipped]

    def explain(self, text: str) -> Explanation:
        """Show how a text becomes ids, for reading and teaching.

        >>> vocab = ["l", "o", "w", "e", "r", "w</w>", "r</w>", "lo", "low", "er</w>", "<s>", "</s>"]
        >>> vocab = {token: number for number, token in enumerate(vocab)}
        >>> merges = [("l", "o"), ("lo", "w"), ("e", "r</w>")]
        >>> tokenizer = CLIPTokenizer(vocab, merges, "<s>", "</s>", "</s>", "</s>")
        >>> print(tokenizer.explain("  Lower"))
        text        '  Lower'
        normalised  ' lower'
        piece       'lower' = l o w e r</w>
          merge     l + o
          merge     lo + w
          merge     e + r</w>
          tokens    low er</w>
        tokens      <s> low er</w> </s>
        ids         10 8 9 11
        """
        shown = []
        normalised = []
        for part, is_added in self._parts(text):
            normalised.append(part)
            for piece in [part] if is_added else pieces(part):
                symbols = [piece] if is_added else self._symbols(piece)
                tokens, merges = (symbols, []) if is_added else join_pairs(symbols, self._ranks)
                ids = [self._vocab[token] for token in tokens]
                shown.append(ExplainedPiece(piece, symbols, merges, tokens, ids))
        ids = self.encode(text)
        return Explanation(text, "".join(normalised), shown, self.convert_ids_to_tokens(ids), ids)

    def get_vocab(self) -> dict[str, int]:
        """{token: id}, added tokens included."""
        return dict(self._vocab)

    @property
    def vocab_size(self) -> int:
        """The number of tokens without those added behind the vocabulary; `len` counts them too."""
        return len(self._base_vocab)

    def __len__(self) -> int:
        return len(self._vocab)

    @property
    def bos_token_id(self) -> int:
        return self._vocab[self.bos_token]

    @property
    def eos_token_id(self) -> int:
        return self._vocab[self.eos_token]

    @property
    def unk_token_id(self) -> int:
        return self._vocab[self.unk_token]

    @property
    def pad_token_id(self) -> int:
        return self._vocab[self.pad_token]

    @property
    def all_special_tokens(self) -> list[str]:
        """The texts of bos, eos, unk and pad, each once."""
        return list(dict.fromkeys(getattr(self, name) for name in SPECIAL_NAMES))

    @property
    def all_special_ids(self) -> list[int]:
        return [self._vocab[token] for token in self.all_special_tokens]

    def _parts(self, text: str) -> list[tuple[str, bool]]:
        """Cut at the added tokens: (token, True) for one of them, (normalised text, False) in between."""
        found = []
        for place, given in enumerate(self._in_given.split(text)):
            if place % 2:
                found.append((given, True))
                continue
            for place, part in enumerate(self._in_normalised.split(normalise(given))):
                found.append(
                    (self._added_by_normalised[part], True) if place % 2 else (part, False)
                )
        return found

    def _ids(self, text: str) -> list[int]:
        ids = []
        for part, is_added in self._parts(text):
            if is_added:
                ids.append(self._vocab[part])
                continue
            for piece in pieces(part):
                ids += self._ids_of_piece(piece)
        return ids

    def _ids_of_piece(self, piece: str) -> list[int]:
        if piece in self._cache:
            return self._cache[piece]
        tokens, _ = join_pairs(self._symbols(piece), self._ranks)
        ids = [self._vocab[token] for token in tokens]
        if len(piece) <= CACHED_LENGTH:
            if len(self._cache) == CACHED_PIECES:
                self._cache.clear()
            self._cache[piece] = ids
        return ids

    def _symbols(self, piece: str) -> list[str]:
        """The piece's byte symbols, with unk_token for one that the vocabulary lacks."""
        return [s if s in self._base_vocab else self.unk_token for s in symbols_of(piece)]

    def _token(self, number: int) -> str:
        try:
            return self._token_of[index(number)]
        except (KeyError, TypeError):
            raise InputError(
                f"{number!r} is no id of this vocabulary; expected a whole number from 0 to {len(self) - 1}."
            ) from None


def _finder(tokens: dict[str, str]) -> regex.Pattern:
    """A pattern whose split() leaves the given texts at odd places; the longest wins where several begin."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return regex.compile("(" + ("|".join(map(regex.escape, longest_first)) or "(?!)") + ")")


def _as_arrays(features: Features) -> Features:
    lengths = {len(row) for row in features["input_ids"]}
    if len(lengths) > 1:
        raise InputError(
            f"The texts have {min(lengths)} to {max(lengths)} tokens and cannot be one array. "
            f"Pad them with padding=True (and cut long ones with truncation=True)."
        )
    return Features({name: np.array(rows, dtype=np.int64) for name, rows in features.items()})


def _list_of_texts(text: Any) -> list[str]:
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, list | tuple):
        raise InputError(f"A text or a list of texts is expected; got {type(text).__name__}.")
    if not texts:
        raise InputError("The list of texts is empty; expected at least one text.")
    for place, one in enumerate(texts):
        if not isinstance(one, str):
            raise InputError(
                f"Text {place} of the list is no text but {type(one).__name__}: {one!r}."
            )
        try:
            one.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"Text {place} has half a surrogate pair, {one[error.start]!r}, at character {error.start}: it "
                f"is no valid Unicode. Decode its bytes again, or take the character out."
            ) from error
    return list(texts)


def _check_choice(name: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        raise InputError(
            f"{name}={value!r} is not known; expected one of {', '.join(map(repr, choices))}."
        )


def _warn_of_unknown(unknown: dict[str, Any]) -> None:
    if unknown:
        warnings.warn(
            f"The tokenizer does not know {', '.join(sorted(unknown))}: not used.", stacklevel=3
        )
