"""Work on a large image some rows at a time, so that what is made in between stays small.

A map of 100 megapixels takes 400 MB in float32, and an expression like `0.6 * image + glow` several times as much.
"""

from collections.abc import Callable, Iterator

import numpy as np

MAX_PIXELS_PER_BLOCK = 1 << 21  # in a band


def row_blocks(height: int, width: int) -> Iterator[slice]:
    """The rows from top to bottom, so many at a time as hold about `MAX_PIXELS_PER_BLOCK`; a small image is one band."""
    rows = max(1, MAX_PIXELS_PER_BLOCK // max(1, width))
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


def map_row_blocks(function: Callable, first: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """`function(first, *others)`, of bands of rows, put together: for work in which each pixel is by itself.

    All are (height,width,...); the result is what the function returns of them, (height,...).
    """
    whole = None
    for rows in row_blocks(*first.shape[:2]):
        part = function(first[rows], *(other[rows] for other in others))
        if whole is None:
            whole = np.empty((first.shape[0], *part.shape[1:]), part.dtype)
        whole[rows] = part
    return whole
