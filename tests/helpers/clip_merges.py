"""A merge table of the size of CLIP's, and CLIP's own where a checkout has it beside it."""

from itertools import product
from pathlib import Path

import pytest

from clipseg_np.text.bpe import BYTE_SYMBOLS, Pair

CLIP_MERGES = Path(__file__).parents[3] / "shared" / "clip-bpe" / "merges.txt"
N_MERGES = 48_894
# The merges that the published texts of tests/text/test_tokenizer.py need, each with its place in
# CLIP's table (OpenAI's, MIT license).
EXCERPT = """
0 i n, 1 t h, 2 a n, 3 r e, 4 a r, 5 e r, 7 in g</w>, 8 o u, 9 o n, 11 o r, 13 o n</w>,
19 t o</w>, 21 i s</w>, 24 a t</w>, 27 o f</w>, 28 c h, 30 e s</w>, 31 i l, 32 e l, 33 s t</w>,
34 a c, 35 o m, 38 a n</w>, 40 s h, 46 ð Ł, 51 v e</w>, 52 s i, 54 a l</w>, 56 ' s</w>, 60 l a,
62 o o, 65 m a, 73 i t</w>, 74 y o, 76 s p, 77 th is</w>, 80 yo u</w>, 88 t e, 93 s u, 94 h o,
100 er s</w>, 105 m o, 110 c o, 112 v er, 113 a r</w>, 120 s s</w>, 125 on e</w>, 127 d o,
129 w or, 131 k e, 148 il l</w>, 154 q u, 156 ðŁ ĺ, 186 c i, 190 a f, 201 ' t</w>, 216 â Ģ,
218 l d</w>, 222 s om, 226 oo d</w>, 241 c an</w>, 244 t e</w>, 304 p ho, 314 el l, 321 b l,
335 d on</w>, 347 ou ld</w>, 364 sp e, 434 th ing</w>, 446 i l</w>, 490 wor ld</w>,
503 si on</w>, 542 ch ar, 585 n a, 613 pho to</w>, 620 som e, 631 ci al</w>, 653 ðŁ İ,
688 ' ve</w>, 724 ke t</w>, 1011 g la, 1023 sh ould</w>, 1116 te st</w>, 1177 spe cial</w>,
1188 d one</w>, 1192 w ood</w>, 1225 t ers</w>, 1237 w on</w>, 1351 o t, 1417 do g</w>,
1493 âĢ Ķ</w>, 1494 some thing</w>, 1856 c at</w>, 1952 co m</w>, 2000 ell o</w>, 2054 a u</w>,
2102 ma il</w>, 2185 j i</w>, 2280 char ac, 2761 ver sion</w>, 2794 h ello</w>, 2801 gla ss</w>,
2947 Ã ©, 2959 c af, 3226 e mo, 3552 re mo, 3654 Ã ©</w>, 3950 e mail</w>, 4097 bl an,
4940 qu ot, 5296 quot es</w>, 5765 f ill</w>, 6052 charac ters</w>, 6542 su m, 6822 ðŁĺ Ģ</w>,
7112 ðŁĺ Ħ</w>, 7963 ( )</w>, 8008 ðŁĺ ĥ</w>, 9175 remo te</w>, 10325 j ar</w>,
12366 blan ket</w>, 12949 ðŁİ ¨</w>, 14792 caf Ã©</w>, 15815 emo ji</w>, 18765 æ ľ, 19247 ä ¸,
21753 æ Ĺ, 28594 r Ã©, 28778 å ¥, 33490 è ª, 35177 Ã ¯, 38609 æĹ ¥, 43841 æľ ¬, 46954 ä ½
"""
# Bytes that no text in UTF-8 has.
UNUSED = [BYTE_SYMBOLS[byte] for byte in (0xC0, 0xC1, *range(0xF5, 0x100))]


def excerpt() -> dict[int, Pair]:
    parts = (entry.split() for entry in EXCERPT.split(","))
    return {int(rank): (left, right) for rank, left, right in parts}


def made_merges() -> list[Pair]:
    """The excerpt in its places; in all others, merges that no text in UTF-8 needs."""
    merges = excerpt()
    words = ("".join(w) for length in range(1, 5) for w in product(UNUSED, repeat=length))
    others = product(words, UNUSED)
    return [merges.get(rank) or next(others) for rank in range(N_MERGES)]


def clip_merges() -> list[Pair]:
    if not CLIP_MERGES.is_file():
        pytest.skip("needs the whole of CLIP's merge table, ../shared/clip-bpe/merges.txt")
    lines = CLIP_MERGES.read_text(encoding="utf-8").split("\n")[1:]
    return [tuple(line.split(" ")) for line in lines if line]
