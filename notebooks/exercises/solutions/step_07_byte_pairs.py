"""7. Byte pairs"""

from itertools import pairwise


def byte_pairs(word, ranks):
    symbols = [*word[:-1], word[-1] + "</w>"]
    while ranked := [pair for pair in pairwise(symbols) if pair in ranks]:
        i = list(pairwise(symbols)).index(min(ranked, key=ranks.get))
        symbols[i : i + 2] = ["".join(symbols[i : i + 2])]
    return symbols
