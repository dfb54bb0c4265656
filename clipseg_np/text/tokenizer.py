"""CLIP's tokenizer: a text becomes the ids of its tokens, and ids become text again.

A text is normalized and cut into pieces (text/normalize.py). Each UTF-8 byte of a piece is written
as one printable symbol, the last with "</w>". Neighboring symbols are merged in the order of the
merge table (text/bpe.py); the symbols that remain are the tokens. `explain` shows each step.

Reference: transformers' CLIPTokenizer (5.23, with tokenizers 0.23), with equal ids and texts, but:
- A folder without a model_max_length gets 77, CLIP's; transformers then never truncates.
- An id outside the vocabulary and a max_length too short for start and end token are refused.
- One text or a list of texts; no pairs of texts, no offsets (NFC would have to be traced).
- An assigned bos_token or eos_token is used; there, texts keep the old one.
"""

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import regex

from ..atomic_files import written_together
from ..checkpoints.hub import TEXTS, hub_options
from ..checkpoints.locate import checkpoint_folder
from ..errors import InputError, naming
from ..habits import LOADING, NEW_TOKENS, SAVING, TEXT, Habits, understands
from ..model.outputs import Features
from ..nn.ops import in_main_memory
from . import tokenizer_files
from .arguments import CHOICES, check_choice, check_length, list_of_texts, one_text
from .bpe import END_OF_WORD, bytes_of, merge_pairs_fast, symbols_of
from .explanation import ExplainedPiece, Explanation
from .normalize import normalize, pieces
from .tokenizer_files import END, SIDES, SPECIAL_NAMES, START, AddedToken, check_vocabulary

Ids = int | Sequence | np.ndarray

# Settings that from_pretrained and an assignment may change.
SETTINGS = (*SPECIAL_NAMES, *SIDES, "model_max_length", "model_input_names")


class CLIPTokenizer(Habits):
    """Text to ids and back, by a vocabulary and a merge table.

    vocab: {token: id}, ids 0, 1, 2, ... each once. merges: pairs of tokens, in order of merging.
    bos_token, eos_token, unk_token, pad_token: special tokens; inside a text, each becomes its id.
    unk_token replaces a symbol that the vocabulary lacks.
    model_max_length: the number of tokens that the text tower has positions for.
    added_tokens: settings of special tokens, and tokens with ids after the vocabulary's.
    extra_special_tokens: further special tokens; a new one gets the next id.
    padding_side, truncation_side: the end of a text where padding is added or tokens are cut.
    model_input_names: the arrays that a call returns.

    Raises InputError if vocabulary, merges and tokens do not fit together.
    """

    @understands(TEXT)
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
        extra_special_tokens: Sequence[str] = (),
        padding_side: str = "right",
        truncation_side: str = "right",
        model_input_names: Sequence[str] = ("input_ids", "attention_mask"),
    ):
        merges = [tuple(merge) for merge in merges]
        check_vocabulary(vocab, merges)
        self._base_vocab, self._vocab, self._merges = dict(vocab), dict(vocab), merges
        for token in sorted(added_tokens, key=lambda token: token.id):
            expected = self._vocab.setdefault(token.content, len(self._vocab))
            if token.id != expected:
                raise InputError(
                    f"The added token {token.content!r} has id {token.id}; expected {expected}, "
                    f"its place in or right after the vocabulary."
                )
        self._added = {token.content: token for token in added_tokens}
        self.model_max_length = model_max_length
        self.padding_side, self.truncation_side = padding_side, truncation_side
        self.bos_token, self.eos_token = bos_token, eos_token
        self.unk_token, self.pad_token = unk_token, pad_token
        self.model_input_names = list(model_input_names)
        vars(self)["extra_special_tokens"] = list(extra_special_tokens)
        for content in self.extra_special_tokens:
            self._vocab.setdefault(content, len(self._vocab))
        for content in self.all_special_tokens:
            self._added.setdefault(content, AddedToken(content, self._vocab[content]))
        plain = [token.content for token in self._added.values() if not token.normalized]
        normalized = [token.content for token in self._added.values() if token.normalized]
        self._content_of = {normalize(content): content for content in normalized}
        self._plain_pattern = _splitter(plain)
        self._normalized_pattern = _splitter(self._content_of)
        self._token_of = {number: token for token, number in self._vocab.items()}
        self._token_of |= {self._vocab[content]: normalize(content) for content in normalized}
        self._ranks = {merge: rank for rank, merge in enumerate(merges)}

    def __setattr__(self, name: str, value: Any) -> None:
        if name.endswith("_token_id"):
            name, value = name.removesuffix("_id"), self._token(value)
        if name in ("extra_special_tokens", "additional_special_tokens"):
            raise InputError(f"{name} cannot be assigned: {NEW_TOKENS}")
        if name == "model_max_length":
            check_length(name, value, 2)
            value = int(value)
        if name in CHOICES:
            check_choice(name, value)
        if name in SPECIAL_NAMES and not (isinstance(value, str) and value in self._vocab):
            raise InputError(
                f"{name} is {value!r} and the vocabulary's {len(self)} tokens lack it. "
                f"Name a token of the vocabulary, or fetch the vocabulary again."
            )
        super().__setattr__(name, value)

    @classmethod
    @understands(LOADING)
    def from_pretrained(
        cls, folder_or_hub_id: str | os.PathLike, **options: Any
    ) -> "CLIPTokenizer":
        """Read vocab.json and merges.txt, or tokenizer.json, from a folder or the Hugging Face hub.

        options: those of checkpoint_path, and of the constructor: bos_token, eos_token, unk_token,
        pad_token, model_max_length, extra_special_tokens, padding_side, truncation_side; further
        special tokens also by a name of their own that ends in _token. Warns of others.
        Raises FileNotFoundError if the files are missing, InputError if they cannot be used.
        """
        folder = checkpoint_folder(folder_or_hub_id, needed=(TEXTS,), **hub_options(options))
        known = {*SETTINGS, "extra_special_tokens", "additional_special_tokens"}
        known |= {name for name in options if name.endswith("_token")}
        _warn_of_unknown(options.keys() - known)
        overrides = {name: value for name, value in options.items() if name in known}
        with naming(folder):
            return cls(**tokenizer_files.read(folder, overrides))

    @understands(SAVING)
    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write vocab.json, merges.txt and tokenizer_config.json; transformers reads them too.

        All are written or none. Raises InputError if the folder holds a tokenizer.json, which would
        be read instead of them.
        """
        with written_together(Path(folder)) as part:
            self.write(part, Path(folder))

    def write(self, part: Path, folder: Path) -> None:
        """Write the files into `part`, whose files will be moved to `folder`."""
        tokenizer_files.require_no_other(folder)
        config = {name: getattr(self, name) for name in (*SETTINGS, "extra_special_tokens")}
        vocab, added = self._base_vocab, self._added.values()
        tokenizer_files.write(part, vocab, self._merges, added, config)

    @understands(TEXT)
    def __call__(
        self,
        text: str | Sequence[str],
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
        add_special_tokens: bool = True,
        return_attention_mask: bool | None = None,
        padding_side: str | None = None,
        **unknown: Any,
    ) -> Features:
        """The input_ids and the attention_mask (1 token, 0 padding) of a text or a list of texts.

        padding: False; True or "longest", to the longest text; "max_length", to max_length tokens;
        on the right or left, by padding_side.
        truncation: True cuts to max_length tokens and keeps the end token last. max_length without
        padding and truncation truncates too.
        max_length: model_max_length if None.
        return_tensors: None for lists; "np" for int64 arrays (n_texts, n_tokens).

        Raises InputError for a value that is no text, a lone surrogate, an empty list, an unknown
        choice, or an array of texts of unequal length. Warns of unknown keywords and ignores them.
        """
        _warn_of_unknown([name for name, value in unknown.items() if value is not None])
        texts = list_of_texts(text)
        padding, side = padding or False, padding_side or self.padding_side
        if truncation is None:
            truncation = max_length is not None and padding is False
        for name, value in zip(CHOICES, (padding, truncation, return_tensors, side)):
            check_choice(name, value)
        truncates = truncation not in (False, "do_not_truncate")
        if padding is True and max_length is not None and not truncates:
            warnings.warn(
                "max_length has no effect with padding=True and no truncation: pad to it with "
                "padding='max_length', or cut to it with truncation=True.",
                stacklevel=3,
            )
        length = self.model_max_length if max_length is None else max_length
        reserved = 2 if truncates and add_special_tokens else 0
        check_length("max_length", length, reserved)

        rows = [self._ids(one) for one in texts]
        if truncates:
            rows = [self._cut(row, length - reserved) for row in rows]
        if add_special_tokens:
            rows = [[self.bos_token_id, *row, self.eos_token_id] for row in rows]
        longest = max(map(len, rows))
        if not truncates and max_length is None and longest > self.model_max_length:
            warnings.warn(
                f"A text has {longest} tokens, more than the {self.model_max_length} that the model"
                f" has positions for: the model will refuse it. Cut it with truncation=True.",
                stacklevel=3,
            )
        width = {False: 0, "do_not_pad": 0, "max_length": length}.get(padding, longest)

        def padded(row: list[int], value: int) -> list[int]:
            fill = [value] * (width - len(row))
            return row + fill if side == "right" else fill + row

        features = Features(input_ids=[padded(row, self.pad_token_id) for row in rows])
        if return_attention_mask is None:
            return_attention_mask = "attention_mask" in self.model_input_names
        if return_attention_mask:
            features["attention_mask"] = [padded([1] * len(row), 0) for row in rows]
        if return_tensors == "np":
            if len(set(map(len, features.input_ids))) > 1:
                raise InputError(
                    f"The texts have {min(map(len, rows))} to {longest} tokens and cannot be one "
                    f"array. Pad them with padding=True (and cut long ones with truncation=True)."
                )
            return Features({name: np.array(ids, np.int64) for name, ids in features.items()})
        if isinstance(text, str):
            return Features({name: value[0] for name, value in features.items()})
        return features

    def encode(
        self, text: str, text_pair: None = None, add_special_tokens: bool = True, **options: Any
    ) -> list[int]:
        """The ids of one text; options as for a call."""
        options["add_special_tokens"] = add_special_tokens
        return self(text, text_pair=text_pair, **options)["input_ids"]

    @understands(TEXT)
    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str]:
        """The tokens of one text, with the start and the end token if they are asked for.

        Raises InputError for what is no text.
        """
        tokens = self.convert_ids_to_tokens(self._ids(one_text(text)))
        return [self.bos_token, *tokens, self.eos_token] if add_special_tokens else tokens

    @understands(TEXT)
    def decode(self, ids: Ids, skip_special_tokens: bool = False) -> str | list[str]:
        """The text of a row of ids, or a list of texts of rows. Bytes that are not UTF-8: U+FFFD.

        Raises InputError for an id outside the vocabulary.
        """
        if isinstance(ids, dict):
            ids = ids["input_ids"]
        if not isinstance(ids, list | tuple):  # a number, or an array of any library
            ids = np.atleast_1d(in_main_memory(ids)).tolist()
        if len(ids) > 0 and isinstance(ids[0], list | tuple | np.ndarray):
            return [self.decode(row, skip_special_tokens) for row in ids]
        tokens = [self._token(number) for number in ids]
        if skip_special_tokens:
            skipped = {token.id for token in self._added.values() if token.special}
            tokens = [token for token, number in zip(tokens, ids) if number not in skipped]
        text = b"".join(map(bytes_of, tokens)).decode("utf-8", errors="replace")
        return text.replace(END_OF_WORD, " ").strip()

    @understands(TEXT)
    def batch_decode(self, rows: Ids, skip_special_tokens: bool = False) -> list[str]:
        """The text of each row of ids; a single row gives a list of one text."""
        texts = self.decode(rows, skip_special_tokens)
        return [texts] if isinstance(texts, str) else texts

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        """The id of a token, or the ids of several; unk_token's for an unknown token."""
        if isinstance(tokens, str):
            return self._vocab.get(tokens, self.unk_token_id)
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Ids, skip_special_tokens: bool = False) -> str | list[str]:
        """The token of an id, or the tokens of several. Raises InputError for an unknown id."""
        if isinstance(ids, int | np.integer):
            return self._token(ids)
        skipped = self.all_special_ids if skip_special_tokens else ()
        return [self._token(number) for number in ids if number not in skipped]

    def explain(self, text: str) -> Explanation:
        """Show how a text becomes ids, for reading and teaching.

        >>> tokens = [*"lower", "w</w>", "r</w>", "lo", "low", "er</w>", "<s>", "</s>"]
        >>> vocab = {token: number for number, token in enumerate(tokens)}
        >>> merges = [("l", "o"), ("lo", "w"), ("e", "r</w>")]
        >>> tokenizer = CLIPTokenizer(vocab, merges, "<s>", "</s>", "</s>", "</s>")
        >>> print(tokenizer.explain("  Lower"))
        text        '  Lower'
        normalized  ' lower'
        piece       'lower' = l o w e r</w>
          merge     l + o
          merge     lo + w
          merge     e + r</w>
          tokens    low er</w>
        tokens      <s> low er</w> </s>
        ids         10 8 9 11
        """
        ids = self.encode(one_text(text))
        normalized = "".join(part for part, _ in self._parts(text))
        tokens = self.convert_ids_to_tokens(ids)
        return Explanation(text, normalized, list(self._explained_pieces(text)), tokens, ids)

    def get_vocab(self) -> dict[str, int]:
        """{token: id}, added tokens included."""
        return dict(self._vocab)

    @property
    def vocab_size(self) -> int:
        """The number of tokens without those added after the vocabulary; `len` counts them too."""
        return len(self._base_vocab)

    def __len__(self) -> int:
        return len(self._vocab)

    @property
    def all_special_tokens(self) -> list[str]:
        """The bos, eos, unk and pad token and the extra ones, each text once."""
        named = (getattr(self, name) for name in SPECIAL_NAMES)
        return list(dict.fromkeys((*named, *self.extra_special_tokens)))

    all_special_ids = property(lambda self: self.convert_tokens_to_ids(self.all_special_tokens))
    bos_token_id = property(lambda self: self._vocab[self.bos_token])
    eos_token_id = property(lambda self: self._vocab[self.eos_token])
    unk_token_id = property(lambda self: self._vocab[self.unk_token])
    pad_token_id = property(lambda self: self._vocab[self.pad_token])

    def _parts(self, text: str) -> Iterator[tuple[str, bool]]:
        """Cut at the added tokens: (token, True), and (normalized text, False) between them."""
        for i, plain in enumerate(self._plain_pattern.split(text)):
            if i % 2:
                yield plain, True
                continue
            for j, part in enumerate(self._normalized_pattern.split(normalize(plain))):
                yield (self._content_of[part], True) if j % 2 else (part, False)

    def _explained_pieces(self, text: str) -> Iterator[ExplainedPiece]:
        """Merge the byte symbols of each piece; an added token is one piece and one symbol."""
        for part, is_added in self._parts(text):
            for piece in [part] if is_added else pieces(part):
                symbols = [piece] if is_added else self._symbols(piece)
                tokens, merges = merge_pairs_fast(symbols, self._ranks)
                ids = [self._vocab[token] for token in tokens]
                yield ExplainedPiece(piece, symbols, merges, tokens, ids)

    def _symbols(self, piece: str) -> list[str]:
        return [s if s in self._base_vocab else self.unk_token for s in symbols_of(piece)]

    def _ids(self, text: str) -> list[int]:
        return [number for piece in self._explained_pieces(text) for number in piece.ids]

    def _cut(self, row: list[int], length: int) -> list[int]:
        return row[:length] if self.truncation_side == "right" else row[max(0, len(row) - length) :]

    def _token(self, number: int) -> str:
        try:
            return self._token_of[index(number)]
        except (KeyError, TypeError):
            known = f"expected a whole number from 0 to {len(self) - 1}"
            raise InputError(f"{number!r} is not an id of this vocabulary; {known}.") from None


def _splitter(tokens: Iterable[str]) -> regex.Pattern:
    """A pattern whose split() puts the tokens at odd places; the longest match wins."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return regex.compile("(" + ("|".join(map(regex.escape, longest_first)) or "(?!)") + ")")


def _warn_of_unknown(names: Iterable[str]) -> None:
    if names:
        listed = ", ".join(sorted(names))
        warnings.warn(f"The tokenizer does not know {listed}: ignored.", stacklevel=4)
