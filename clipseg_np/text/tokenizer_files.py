"""The tokenizer's files: vocab.json with merges.txt, or tokenizer.json, and the special tokens.

Reference: the files that transformers 5.23 reads in a CLIP checkpoint's folder. tokenizer.json wins
over vocab.json and merges.txt; added_tokens_decoder of tokenizer_config.json wins over
special_tokens_map.json, added_tokens.json, and added_tokens of tokenizer.json. Further special
tokens get the ids after these. Refused here, not there: ids with gaps or repeats, a bos, eos, unk
or pad token that the vocabulary lacks, a tokenizer.json of another kind, and tokens that take the
spaces around them (lstrip, rstrip, single_word).
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..atomic_files import write_json
from ..checkpoints.locate import read_json
from ..errors import InputError
from .bpe import END_OF_WORD

START, END = "<|startoftext|>", "<|endoftext|>"
SPECIAL_NAMES = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
OTHER_NAMES = ("sep_token", "cls_token", "mask_token")
SIDES = ("padding_side", "truncation_side")
# transformers writes 10**30 for a model_max_length that it does not know.
MIN_UNKNOWN_LENGTH = 10**20
REFUSED_FLAGS = ("lstrip", "rstrip", "single_word")


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in a text as it stands, before any pair is merged.

    normalized: find it in the normalized text (also "<|ENDOFTEXT|>"), not in the given one.
    special: `decode(skip_special_tokens=True)` leaves it out.
    """

    content: str
    id: int
    normalized: bool = False
    special: bool = True


def read(folder: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """The arguments of CLIPTokenizer in a folder's files; overrides win over the files.

    Raises FileNotFoundError if the files are missing, InputError if they cannot be used.
    """
    path, whole = folder / "tokenizer.json", {}
    if path.is_file():
        whole = read_json(path)
        vocab, merges = _read_model(whole, path)
    else:
        vocab, merges = read_json(folder / "vocab.json"), _read_merges(folder / "merges.txt")
    config = _read_optional(folder / "tokenizer_config.json") | overrides
    extra = _extra_tokens(config, folder)
    if "added_tokens_decoder" in config:
        decoder = _expect(dict, config, "added_tokens_decoder", folder)
        entries = [{**_entry(entry), "id": number} for number, entry in decoder.items()]
    else:
        more = _read_optional(folder / "special_tokens_map.json")
        more = {name: value for name, value in more.items() if not overrides.get(name)}
        if "extra_special_tokens" in more:
            extra += _extra_tokens(more, folder)
        config |= more
        names = {_entry(config[n])["content"] for n in SPECIAL_NAMES if config.get(n)}
        names |= {entry["content"] for entry in extra}
        entries = []
        for content, number in _read_optional(folder / "added_tokens.json").items():
            flags = {"special": content in names, "normalized": content not in names}
            entries.append({"content": content, "id": number, **flags})
        entries += map(_entry, _expect(list, whole, "added_tokens", folder))
        extra = extra or _extra_tokens(more, folder)
    added = {entry["content"]: _added_token(entry, entry.get("id")) for entry in entries}
    arguments = {"vocab": vocab, "merges": merges}
    listed, descriptions = set(added), []
    for name, default in SPECIAL_NAMES.items():
        description = config.get(name) or default
        entry = _entry(description)
        arguments[name] = content = entry["content"]
        # If names describe one token differently, the reference takes the last new description.
        if description not in descriptions and content not in listed and content in vocab:
            descriptions.append(description)
            added[content] = _added_token(entry, vocab[content])
    names = [name for name in dict.fromkeys((*OTHER_NAMES, *config)) if name not in SPECIAL_NAMES]
    values = [config.get(name) for name in names if name.endswith("_token")]
    extra = [_entry(value) for value in values if value and isinstance(value, str | dict)] + extra
    for entry in extra:
        content, new = entry["content"], len(vocab.keys() | added.keys())
        added.setdefault(content, _added_token(entry, vocab.get(content, new)))
    arguments["extra_special_tokens"] = [entry["content"] for entry in extra]
    for name in SIDES:
        part = whole.get(name.removesuffix("_side"))
        direction = part.get("direction") if isinstance(part, dict) else None  # "Left", "Right"
        arguments[name] = str(config.get(name) or direction or "right").lower()
    if "model_input_names" in config:
        arguments["model_input_names"] = _expect(list, config, "model_input_names", folder)
    length = config.get("model_max_length")
    if length is not None and not (isinstance(length, int | float) and length > MIN_UNKNOWN_LENGTH):
        arguments["model_max_length"] = length
    return arguments | {"added_tokens": tuple(added.values())}


def check_vocabulary(vocab: dict[str, int], merges: list[tuple[str, str]]) -> None:
    """Raise InputError unless ids are 0, 1, 2, ... and each merge makes a token of two tokens."""
    if (
        not isinstance(vocab, dict)
        or not vocab
        or any(type(number) is not int for number in vocab.values())
    ):
        raise InputError("The vocabulary is no mapping of tokens to ids; expected whole numbers.")
    for i, number in enumerate(sorted(vocab.values())):
        if number != i:
            fault = f"id {number} twice" if number == i - 1 else f"no id {i}"
            expected = f"each id from 0 to {len(vocab) - 1} once"
            raise InputError(f"The vocabulary has {fault}; expected {expected}. Fetch it again.")
    for i, merge in enumerate(merges):
        if len(merge) != 2 or not all(isinstance(part, str) for part in merge):
            raise InputError(f"Merge {i} is {merge!r}; expected a pair of tokens. Fetch it again.")
        for token in (*merge, "".join(merge)):
            if token not in vocab:
                raise InputError(
                    f"Merge {i} is {merge!r} and the vocabulary has no token {token!r}; expected "
                    f"merges and vocabulary of the same tokenizer. Fetch both again."
                )


def require_no_other(folder: Path) -> None:
    """Raise InputError for a folder whose tokenizer.json would be read in place of `write`'s."""
    if (path := folder / "tokenizer.json").exists():
        raise InputError(
            f"{path} would be read in place of what is saved. Remove it, or save to another folder."
        )


def write(
    folder: Path, vocab: dict, merges: list, added_tokens: Iterable[AddedToken], config: dict
) -> None:
    """Write what `read` reads."""
    by_id = dict(sorted(vocab.items(), key=lambda item: item[1]))
    (folder / "vocab.json").write_text(json.dumps(by_id, ensure_ascii=False, indent=0), "utf-8")
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    entries = [asdict(token) | dict.fromkeys(REFUSED_FLAGS, False) for token in added_tokens]
    config = config | {
        "tokenizer_class": "CLIPTokenizer",
        "added_tokens_decoder": {str(entry.pop("id")): entry for entry in entries},
    }
    write_json(folder / "tokenizer_config.json", config)


def _read_model(whole: dict, path: Path) -> tuple[dict[str, int], list]:
    """Vocabulary and merges of a tokenizer.json, whose merges are "a b" or ["a", "b"]."""
    model = whole.get("model")
    model = model if isinstance(model, dict) else {}
    kind, suffix = model.get("type"), model.get("end_of_word_suffix")
    vocab, merges = model.get("vocab"), model.get("merges")
    if kind != "BPE":
        held = f"a model of type {kind!r}" if kind else "no model with a type, as before 2020"
        fault = f"holds {held}; expected type 'BPE'. Give a CLIP checkpoint's tokenizer.json, or "
        fault += "its vocab.json and merges.txt without it"
    elif not isinstance(vocab, dict) or not isinstance(merges, list):
        fault = "lacks model.vocab (an object) or model.merges (a list). Fetch it again"
    elif suffix != END_OF_WORD:
        fault = f"marks the end of a word by {suffix!r}; expected {END_OF_WORD!r}, as in CLIP's. "
        fault += "It belongs to another kind of model"
    else:
        split = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
        return vocab, [merge if isinstance(merge, list) else [merge] for merge in split]
    raise InputError(f"{path} {fault}.")


def _read_merges(path: Path) -> list[list[str]]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing. A tokenizer is vocab.json with merges.txt, or tokenizer.json."
        )
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}). Fetch it again.") from error
    return [line.split(" ") for line in lines if line and not line.startswith("#version")]


def _read_optional(path: Path) -> dict:
    return read_json(path) if path.is_file() else {}


def _expect(kind: type, config: dict, name: str, folder: Path) -> Any:
    value = config.get(name, kind())
    if isinstance(value, kind):
        return value
    found, expected = type(value).__name__, kind.__name__
    raise InputError(f"{name} in {folder} is a {found}; expected a {expected}. Fetch it again.")


def _extra_tokens(config: dict, folder: Path) -> list[dict]:
    """Descriptions of further special tokens: a list, or an object of names and tokens."""
    name = "extra_special_tokens"
    config = {name: config.get(name) or config.get("additional_special_tokens") or []}
    if isinstance(config[name], dict):
        config = {name: [*config[name].values()]}
    return [_entry(value) for value in _expect(list, config, name, folder)]


def _entry(value: Any) -> dict:
    """A special token's description, from its text or from a description."""
    if isinstance(value, str):
        return {"content": value}
    if isinstance(value, dict) and isinstance(value.get("content"), str) and value["content"]:
        return value
    raise InputError(
        f'A special token is given as {value!r}; expected its text, or {{"content": its text}}.'
    )


def _added_token(entry: dict, number: Any) -> AddedToken:
    content = entry["content"]
    for flag in filter(entry.get, REFUSED_FLAGS):
        raise InputError(
            f"The token {content!r} has {flag} set, and no CLIP checkpoint has it; expected false. "
            f"Change it in tokenizer.json and tokenizer_config.json."
        )
    flags = bool(entry.get("normalized")), bool(entry.get("special", True))
    try:
        return AddedToken(content, int(number), *flags)
    except (TypeError, ValueError, OverflowError):  # OverflowError: infinity
        message = f"The added token {content!r} has the id {number!r}; expected a number."
        raise InputError(message) from None
