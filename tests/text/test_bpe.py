"""Byte-pair encoding: the algorithm, and its fast form against it on drawn and real words."""

import doctest
import random

import pytest

from clipseg_np.text import bpe
from clipseg_np.text.bpe import bytes_of, merge_pairs, merge_pairs_fast, symbols_of

from ..helpers.clip_merges import clip_merges, made_merges

BOTH = pytest.mark.parametrize("merge", [merge_pairs, merge_pairs_fast])


@BOTH
def test_pairs_are_merged_one_at_a_time(merge):
    ranks = {("ab", "a"): 0, ("a", "b"): 1}
    merges = [("a", "b"), ("ab", "a")]
    assert merge(list("abab"), ranks) == (["aba", "b"], merges)


@BOTH
def test_the_leftmost_of_equal_pairs_is_merged_first(merge):
    assert merge(list("aaa"), {("a", "a"): 0}) == (["aa", "a"], [("a", "a")])


@BOTH
@pytest.mark.parametrize("symbols", [[], ["a"], ["a", "a"]])
def test_nothing_to_merge(merge, symbols):
    given = list(symbols)
    assert merge(symbols, {("a", "b"): 0}) == (given, []) and symbols == given


def test_the_fast_form_on_drawn_words_and_tables():
    """In half of the tables a merge may stand before the merges that make its parts."""
    draw = random.Random(0)
    for case in range(300):
        tokens, pairs = list("abcd"), {}
        for _ in range(draw.randrange(30)):
            pair = draw.choice(tokens), draw.choice(tokens)
            pairs[pair] = None
            tokens.append("".join(pair))
        table = list(pairs)
        if case % 2:
            draw.shuffle(table)
        ranks = {pair: rank for rank, pair in enumerate(table)}
        for _ in range(20):
            word = draw.choices("abcd", k=draw.randrange(1, 40))
            assert merge_pairs_fast(word, ranks) == merge_pairs(word, ranks), (word, table)


@pytest.mark.parametrize("read_merges", [made_merges, clip_merges])
def test_the_fast_form_on_clips_words(read_merges):
    """Each word of a vocabulary, and runs of several words."""
    draw = random.Random(0)
    merges = read_merges()
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    tokens = [a + b.removesuffix("</w>") for a, b in merges if b.endswith("</w>")]
    words = [bytes_of(token).decode("utf-8", "ignore") for token in tokens]
    runs = ["".join(draw.sample(words, 12)) for _ in range(300)]
    for word in filter(None, words + runs):
        symbols = symbols_of(word)
        assert merge_pairs_fast(symbols, ranks) == merge_pairs(symbols, ranks), word


def test_examples_in_docstrings():
    result = doctest.testmod(bpe)
    assert result.attempted > 0 and result.failed == 0
