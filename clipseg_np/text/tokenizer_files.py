"""The tokenizer's files: vocab.json with merges.txt, or tokenizer.json alone, and the special tokens' names.

Reference: what transformers 5.23 takes from a CLIP checkpoint's folder. tokenizer.json wins over vocab.json and
merges.txt; tokenizer_config.json's added_tokens_decoder wins over special_tokens_map.json and tokenizer.json's
added_tokens. Stricter here: ids with gaps or doubles, special tokens that the vocabulary lacks, a tokenizer.json
of another kind, and tokens that swallow spaces (lstrip, rstrip, single_word) are refused.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic_files import write_json, written_whole
from ..checkpoints.locate import read_json
from ..errors import InputError
from .bpe import END_OF_WORD

START, END = "<|startoftext|>", "<|endoftext|>"
SPECIAL_NAMES = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
UNSET_LENGTH = 10**20  # transformers writes 10**30 where it knows no longest text


@dataclass(frozen=True)
class AddedToken:
    """A token found as it stands in a text, before any byte pair is merged.

    normalized: looked for in the normalised text (so "<|ENDOFTEXT|>" is found too), not in the given one.
    special: left out by `decode(skip_special_tokens=True)`.
    """

    content: str
    id: int
    normalized: bool = False
    special: bool = True


def read_tokenizer(folder: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """The arguments of CLIPTokenizer that a folder's files hold; overrides win over what they say.

    Raises FileNotFoundError where there are no such files, InputError where they cannot be used.
    """
    whole = None
    if (folder / "tokenizer.json").is_file():
        whole = read_json(folder / "tokenizer.json")
        vocab, merges = _model_of(whole, folder / "tokenizer.json")
    else:
        vocab = read_json(folder / "vocab.json")
        merges = _read_merges(folder / "merges.txt")
    config = _optional(folder / "tokenizer_config.json")
    if "added_tokens_decoder" in config:
        listing = _of_type(dict, config["added_tokens_decoder"], "added_tokens_decoder", folder)
        entries = [{**_entry(entry), "id": number} for number, entry in listing.items()]
    else:
        config |= _optional(folder / "special_tokens_map.json")
        listing = _of_type(list, (whole or {}).get("added_tokens", []), "added_tokens", folder)
        entries = [_entry(entry) for entry in listing]
    config |= overrides
    added = {entry["content"]: _added(entry, entry.get("id")) for entry in entries}
    arguments = {"vocab": vocab, "merges": merges}
    listed, described = set(added), []
    for name, usual in SPECIAL_NAMES.items():
        description = config.get(name) or usual
        entry = _entry(description)
        arguments[name] = content = entry["content"]
        # Where several names share a text and describe it differently, the reference goes by the last description.
        if description not in described and content not in listed and content in vocab:
            described.append(description)
            added[content] = _added(entry, vocab[content])
    longest = config.get("model_max_length")
    if longest is not None and not (isinstance(longest, int | float) and longest > UNSET_LENGTH):
        arguments["model_max_length"] = longest
    return arguments | {"added_tokens": tuple(added.values())}


def check_vocabulary(vocab: dict[str, int], merges: list[tuple[str, str]]) -> None:
    """Raise InputError unless the ids are 0, 1, 2, ... and every merge joins two known tokens to a known one."""
    if not vocab or any(type(number) is not int for number in vocab.values()):
        raise InputError(
            "The vocabulary is no mapping of tokens to whole numbers: expected {token: id}, as in a vocab.json."
        )
    ids = sorted(vocab.values())
    if ids != list(range(len(ids))):
        wrong = next(place for place, number in enumerate(ids) if number != place)
        raise InputError(
            f"The vocabulary's {len(ids)} ids are not 0 to {len(ids) - 1}, each once: id "
            f"{f'{ids[wrong]} is given twice' if ids[wrong] == wrong - 1 else f'{wrong} is missing'}. "
            f"Fetch the vocabulary again."
        )
    for place, merge in enumerate(merges):
        if len(merge) != 2 or not all(isinstance(part, str) for part in merge):
            raise InputError(
                f"Merge {place} is {merge!r}; expected a pair of tokens. The merges may be cut off or of "
                f"another kind: fetch them again."
            )
        for token in (*merge, merge[0] + merge[1]):
            if token not in vocab:
                raise InputError(
                    f"Merge {place} is {merge!r} and the vocabulary has no token {token!r}: merges and "
                    f"vocabulary are not of the same tokenizer. Fetch both again."
                )


def write_tokenizer(
    folder: Path,
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    added_tokens: list[AddedToken],
    names: dict[str, str],
    model_max_length: int,
) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json, which transformers reads too.

    Raises InputError where the folder holds a tokenizer.json, which would be read instead of them.
    """
    if (folder / "tokenizer.json").exists():
        raise InputError(
            f"{folder} holds a tokenizer.json, which would be read in place of the files to be written. "
            f"Take it away, or save to another folder."
        )
    by_id = dict(sorted(vocab.items(), key=lambda item: item[1]))
    with written_whole(folder / "vocab.json") as temporary:
        temporary.write_text(json.dumps(by_id, ensure_ascii=False, indent=0), "utf-8")
    with written_whole(folder / "merges.txt") as temporary:
        lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
        temporary.write_text("\n".join(lines) + "\n", "utf-8")
    plain = {"lstrip": False, "rstrip": False, "single_word": False}
    decoder = {
        str(t.id): {"content": t.content, "normalized": t.normalized, "special": t.special, **plain}
        for t in added_tokens
    }
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": model_max_length,
        "added_tokens_decoder": decoder,
    }
    write_json(folder / "tokenizer_config.json", config | names)


def _model_of(whole: dict, path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a tokenizer.json, whose merges are "a b" or ["a", "b"]."""
    model = whole.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if kind != "BPE":
        found = (
            f"a model of type {kind!r}"
            if kind
            else "no model with a type, as in files of before 2020"
        )
        raise InputError(
            f"{path} is not a byte-pair tokenizer: it holds {found}; expected type 'BPE'. "
            f"Give a CLIP checkpoint's tokenizer.json, or its vocab.json and merges.txt without it."
        )
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise InputError(
            f"{path} lacks model.vocab (an object) or model.merges (a list). Fetch it again."
        )
    if model.get("end_of_word_suffix") != END_OF_WORD:
        raise InputError(
            f"{path} marks the end of a word by {model.get('end_of_word_suffix')!r}; CLIP's tokenizer has "
            f"{END_OF_WORD!r}. It belongs to another kind of model."
        )
    split = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    return vocab, [tuple(merge) if isinstance(merge, list) else (merge,) for merge in split]


def _read_merges(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing. A tokenizer is vocab.json with merges.txt, or tokenizer.json."
        )
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}). Fetch it again.") from error
    lines = [line for line in lines if line and not line.startswith("#version")]
    return [tuple(line.split(" ")) for line in lines]


def _optional(path: Path) -> dict:
    return read_json(path) if path.is_file() else {}


def _of_type(kind: type, value: Any, name: str, folder: Path) -> Any:
    if not isinstance(value, kind):
        raise InputError(
            f"{name} in {folder} is a {type(value).__name__}; expected a {kind.__name__}. Fetch it again."
        )
    return value


def _entry(value: Any) -> dict:
    """A special token's description, from its text or from a description."""
    if isinstance(value, str):
        return {"content": value, "normalized": False, "special": True}
    if isinstance(value, dict) and isinstance(value.get("content"), str) and value["content"]:
        return value
    raise InputError(
        f'A special token is given as {value!r}; expected its text, or {{"content": its text}}.'
    )


def _added(entry: dict, number: Any) -> AddedToken:
    for habit in ("lstrip", "rstrip", "single_word"):
        if entry.get(habit):
            raise InputError(
                f"The token {entry['content']!r} has {habit} set, which no CLIP checkpoint has and this package "
                f"does not do. Set it to false in tokenizer.json and tokenizer_config.json."
            )
    try:
        number = int(number)
    except (TypeError, ValueError, OverflowError):  # the last of infinity
        raise InputError(
            f"The added token {entry['content']!r} has the id {number!r}; expected a number."
        ) from None
    return AddedToken(
        entry["content"], number, bool(entry.get("normalized")), bool(entry.get("special", True))
    )
