"""How much a heap gains in byte-pair encoding, for words and for long pieces of text.

    python benchmarks/bpe.py MERGES.txt

MERGES.txt is a CLIP checkpoint's merges.txt.
"""

import random
import sys
import timeit
from pathlib import Path

from clipseg_np.text.bpe import merge_pairs, merge_pairs_fast


def microseconds(merge, pieces) -> float:
    """The best time for a piece in three runs over all pieces."""
    times = timeit.repeat(lambda: [merge(piece, ranks) for piece in pieces], number=1, repeat=3)
    return 1e6 * min(times) / len(pieces)


merges = [tuple(line.split()) for line in Path(sys.argv[1]).read_text("utf-8").splitlines()[1:]]
ranks = {pair: rank for rank, pair in enumerate(merges)}
words = [[*(a + b).removesuffix("</w>")] for a, b in merges if b.endswith("</w>")]
draw = random.Random(0)
for length in (4, 10, 100, 1000, 3000):
    text = [symbol for word in draw.choices(words, k=200 * length) for symbol in word]
    pieces = [text[i : i + length] for i in range(0, max(4000, length), length)]
    simple, fast = (microseconds(merge, pieces) for merge in (merge_pairs, merge_pairs_fast))
    print(f"{length:5} bytes: {simple:9.1f} µs, {fast:7.1f} µs with a heap: {simple / fast:.1f} x")
