"""7. Byte pairs

A network takes numbers; a text is cut into tokens, each of which has a number. Byte pairs do that
so that no word is unknown and frequent words are short: begin with letters, and merge neighbors.

    "stars"
        |          each letter is a symbol; the last one carries "</w>", the word's end
        v
    s  t  a  r  s</w>
        |          of all pairs of neighbors that have a rank, merge the one of lowest rank;
        |          if it occurs more than once, merge the leftmost
        v
    st  a  r  s</w>               ("s", "t") has rank 0
    st  ar  s</w>                 ("a", "r") has rank 1
    star  s</w>                   ("st", "ar") has rank 3
        |          no pair of neighbors has a rank: these are the tokens
        v
    ["star", "s</w>"]

`ranks` is a dictionary: a pair of symbols (a tuple) to its rank. CLIP's own works on bytes, which
are letters where a text is English.
"""


def byte_pairs(word, ranks):
    """A word, to the list of its tokens. "stars" -> ["star", "s</w>"]"""
    raise NotImplementedError
