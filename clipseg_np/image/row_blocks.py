"""Work on a large image in blocks of rows, so that temporary arrays stay small."""

from collections.abc import Callable, Iterator

import numpy as np

MAX_PIXELS_PER_BLOCK = 1 << 21


def row_blocks(height: int, width: int) -> Iterator[slice]:
    """Slices of the rows, in order, of at most MAX_PIXELS_PER_BLOCK pixels or one row each."""
    rows = max(1, MAX_PIXELS_PER_BLOCK // max(1, width))
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


def map_row_blocks(function: Callable, *images: np.ndarray) -> np.ndarray:
    """Apply a pixelwise function to each block of (height,width,...) arrays: (height,...)."""
    whole = None
    for rows in row_blocks(*images[0].shape[:2]):
        block = function(*(image[rows] for image in images))
        if whole is None:
            whole = np.empty((images[0].shape[0], *block.shape[1:]), block.dtype)
        whole[rows] = block
    return whole
