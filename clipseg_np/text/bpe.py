"""Byte-pair encoding itself: a piece of text as byte symbols, and the merging of neighbours.

Sources: Sennrich et al. 2016 (byte pairs for words), Radford et al. 2019 (over bytes, so that nothing is unknown).
As in the reference, one pair is joined at a time: where all equal pairs are joined at once (OpenAI's code), a merge
table that was not made by training may give other tokens.
"""

from heapq import heappop, heappush

END_OF_WORD = "</w>"


def _byte_symbols() -> dict[int, str]:
    """A printable character for each byte: itself where Latin-1 has one, else the next from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


BYTE_SYMBOLS = _byte_symbols()
_BYTE_OF = {symbol: byte for byte, symbol in BYTE_SYMBOLS.items()}


def symbols_of(piece: str) -> list[str]:
    """A symbol for each UTF-8 byte of a piece, the last with the mark of a word's end.

    >>> symbols_of("né")
    ['n', 'Ã', '©</w>']
    """
    symbols = [BYTE_SYMBOLS[byte] for byte in piece.encode("utf-8")]
    symbols[-1] += END_OF_WORD
    return symbols


def bytes_of(token: str) -> bytes:
    """The bytes that a token's symbols stand for; its own UTF-8 where a character is no byte symbol."""
    if all(symbol in _BYTE_OF for symbol in token):
        return bytes(_BYTE_OF[symbol] for symbol in token)
    return token.encode("utf-8")


def join_pairs(
    symbols: list[str], ranks: dict[tuple[str, str], int]
) -> tuple[list[str], list[tuple[str, str]]]:
    """Join neighbours: always the pair of lowest rank, the leftmost of equals, until none has a rank.

    Returns the tokens, and the joined pairs in order. A heap of candidates keeps long pieces fast.

    >>> join_pairs(["l", "o", "w"], {("o", "w"): 0, ("l", "o"): 1, ("l", "ow"): 2})
    (['low'], [('o', 'w'), ('l', 'ow')])
    """
    symbols = [*symbols, None]  # None: the end, and later every place that was joined to its left
    after = list(range(1, len(symbols) + 1))
    before = list(range(-1, len(symbols) - 1))
    candidates, joined = [], []

    def consider(place: int) -> None:
        if place >= 0:
            pair = symbols[place], symbols[after[place]]
            if pair in ranks:
                heappush(candidates, (ranks[pair], place, pair))

    for place in range(len(symbols) - 1):
        consider(place)
    while candidates:
        _, place, pair = heappop(candidates)
        right = after[place]
        if symbols[place] is None or (symbols[place], symbols[right]) != pair:
            continue  # one of the two has been joined to something else since
        joined.append(pair)
        symbols[place], symbols[right] = "".join(pair), None
        after[place] = after[right]
        before[after[right]] = place
        consider(before[place])
        consider(place)
    return [symbol for symbol in symbols if symbol is not None], joined
