"""A small vocabulary of the demonstration checkpoint's own, in CLIP's layout.

Byte-level byte-pair encoding as CLIP's: 256 symbols for the bytes, the same 256 for a word's last
byte ("</w>"), one entry for each merge, then the start and end tokens. The merges are counted on
the words of the generated phrases, so that each of these is one token; any other word falls into
pieces, down to bytes, and is never unknown.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

from clipseg_np.text.bpe import BYTE_SYMBOLS, END_OF_WORD

START, END = "<|startoftext|>", "<|endoftext|>"


def learn_merges(words) -> list[tuple[str, str]]:
    """The merges, of the most frequent pair first, that make each word one symbol."""
    split = [[*word[:-1], word[-1] + END_OF_WORD] for word in words]
    merges = []
    while True:
        pairs = Counter(pair for word in split for pair in itertools.pairwise(word))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word in split:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
                i += 1


def write_vocabulary(folder: Path, words, max_tokens: int) -> int:
    """Write vocab.json, merges.txt, words.txt and the tokenizer's settings.

    Returns the number of tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    symbols = list(BYTE_SYMBOLS.values())
    merges = learn_merges(words)
    tokens = [
        *symbols,
        *(s + END_OF_WORD for s in symbols),
        *(a + b for a, b in merges),
        START,
        END,
    ]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    assert len(vocabulary) == len(tokens)
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {
        **special,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": max_tokens,
        "tokenizer_class": "CLIPTokenizer",
    }
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    texts = {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "\n".join(lines) + "\n",
        "words.txt": "\n".join(words) + "\n",
        "special_tokens_map.json": json.dumps(special, indent=2) + "\n",
        "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return len(tokens)
