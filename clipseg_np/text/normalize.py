"""Normalize a text, then cut it into the pieces in which byte pairs are merged.

Reference: normalizer and pre-tokenizer of transformers' CLIPTokenizer (5.23, with tokenizers 0.23).
They use three Unicode tables of different ages: composition (NFC) of Unicode 9, the classes of
letters and numbers of Unicode 16, lower case of Unicode 17. Each Python has tables of its own age
(3.10: Unicode 13, 3.11: 14, 3.12: 15.0, 3.13: 15.1, 3.14: 16). The constants below list the
characters added in between, so that ids are the same in every Python. `regex` must know Unicode 16,
as it does since 2024.9.11. Characters newer than Unicode 18 differ until they are listed here.
"""

import unicodedata
from itertools import chain

import regex


def _characters(ranges: str) -> str:
    """The inside of a regular expression's [class], from "A7CE-A7CF A7D2"."""
    return regex.sub("[0-9A-F]+", lambda code: chr(int(code[0], 16)), ranges).replace(" ", "")


# Characters newer than Unicode 9 that NFC composes or reorders: marks with a combining class, and
# the parts of composites. The reference leaves them alone.
_PLAIN_TO_NFC = _characters(
    "5C8-5C9 7FD 897-89F 8CA-8D3 9FE C3C D3B-D3C EBA 1715 1ABF-1AF0 1DF6-1DFA A82C 105C9 105D2"
    " 105DA 105E4 10D24-10D27 10D69-10D6D 10EAB-10EAC 10ECB-10ECF 10EF0-10EFB 10EFD-10EFF"
    " 10F46-10F50 10F82-10F85 11070 1133B 11380-113C9 113CE-113D0 1145E 11839-1183A 11930 11935"
    " 11938 1193D-1193E 11943 119E0 11A34 11A47 11A99 11D42 11D44-11D45 11D97 11F41-11F42"
    " 1611E-16129 1612F 16D63 16D67-16D6A 16FF0-16FF1 1D127-1D128 1D250-1D252 1D25B-1D25C 1D25F"
    " 1D280-1D281 1E08F 1E130-1E136 1E2AE 1E2EC-1E2EF 1E4EC-1E4EF 1E5EE-1E5EF 1E6E3 1E6E6"
    " 1E6EE-1E6EF 1E6F5"
)
# Letters and numbers newer than Unicode 16. The reference takes them for signs.
_NOT_LETTERS = _characters(
    "558 58B-58C 88F C5C CDC 208F 209D-209F A7CE-A7CF A7D2 A7D4 A7DD A7E2 A7F1 AB6C-AB6D"
    " 107BB-107BF 10940-10959 10EC5-10EC7 10ED9-10EEE 11B0A 11DB0-11DDB 11DF1 16EA0-16EB8"
    " 16EBB-16ED3 16FF2-16FF3 187F8-187FF 18CD6-18CDA 18D09-18D20 18D80-18DF2 18E00-19191"
    " 191A0-191D2 1B123-1B128 1B168 1D6A6 1DF1F-1DF24 1DF2B-1DF81 1DF90-1DF96 1DFCD-1DFFF"
    " 1E6C0-1E6DE 1E6E0-1E6E2 1E6E4-1E6E5 1E6E7-1E6ED 1E6F0-1E6F4 1E6FE-1E6FF 2B73A-2B73F 2B81E"
    " 2CEA2-2CEAD 323B0-33479 3D000-3FC3F"
)
_NOT_NUMBERS = _characters("11DE0-11DE9 1246F 12475-1247F 12550-12686 16FF4-16FF6")
# Upper case that Unicode 14 to 17 added: each letter alone, then runs at a distance to lower case.
_LOWER = {c: c + 1 for c in (0x1C89, 0xA7C0, *range(0xA7CC, 0xA7DB, 2))}
_LOWER |= {0x2C2F: 0x2C5F, 0xA7CB: 0x264, 0xA7DC: 0x19B}
_LOWER |= {c: c + 0x27 for c in (*range(0x10570, 0x1057B), *range(0x1057C, 0x1058B))}
_LOWER |= {c: c + 0x27 for c in (*range(0x1058C, 0x10593), 0x10594, 0x10595)}
_LOWER |= {c: c + 0x20 for c in range(0x10D50, 0x10D66)}
_LOWER |= {c: c + 0x1B for c in range(0x16EA0, 0x16EB9)}
# str.lower() writes ς at the end of a word; the reference lowers each character by itself.
_LOWER[ord("Σ")] = ord("σ")

_PLAIN = regex.compile(f"([{_PLAIN_TO_NFC}])")

_LETTER = rf"[\p{{L}}--[{_NOT_LETTERS}]]"
_NUMBER = rf"[\p{{N}}--[{_NOT_NUMBERS}]]"
# "<|ENDOFTEXT|>" becomes a special token only when lowered: the reference makes it three pieces.
_PIECE = regex.compile(
    r"(?V1)(<\|)((?:start|end)oftext)(\|>)"
    r"|'s|'t|'re|'ve|'m|'ll|'d"
    rf"|{_LETTER}+|{_NUMBER}|[^\s{_LETTER}{_NUMBER}]+"
)


def normalize(text: str) -> str:
    """Compose accents (NFC), turn each run of whitespace into one space, lower the case."""
    parts = _PLAIN.split(text)
    # The characters that NFC leaves alone stand at odd places.
    parts[::2] = [unicodedata.normalize("NFC", part) for part in parts[::2]]
    return regex.sub(r"\s+", " ", "".join(parts)).translate(_LOWER).lower()


def pieces(normalized: str) -> list[str]:
    """Cut into contractions, runs of letters, single numbers, and runs of other characters.

    >>> pieces("it's 42 cats!!")
    ['it', "'s", '4', '2', 'cats', '!!']
    """
    parts = (match.groups() if match[1] else [match[0]] for match in _PIECE.finditer(normalized))
    return [*chain.from_iterable(parts)]
