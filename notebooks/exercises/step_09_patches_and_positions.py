"""9. Patches and positions

An image becomes tokens: it is cut into patches of p x p pixels, and each patch becomes a vector by
one product with a learned kernel. Then each gets the vector of its place.

    images (B,C,H,W)              h = H / p rows and v = W / p columns (`w` is the dictionary)
    +----+----+
    | 1  | 2  |   (B,C,p,p) each     x[B, h, v] = sum over C and p x p of patch * kernel
    +----+----+                      kernel = w["NAME.patch_embedding.weight"]   (D,C,p,p)
    | 3  | 4  |
    +----+----+                      (B,h,v,D), then row by row: tokens 1, 2, 3, ...
    | 5  | 6  |
    +----+----+                      before them, token 0, the class token, the same for all images:
                                     w["NAME.class_embedding"]  (D)

    positions = w["NAME.position_embedding.weight"]   (1 + side * side, D)
        row 0 is added to the class token; the others were learned on a square grid, side x side

        +---+---+                +---+---+           (side,side,D) -> (h,v,D)
        | a | b |   bicubic      |   |   |           rows by the matrix bicubic(side, h),
        +---+---+   ------->     +---+---+           columns by the matrix bicubic(side, v)
        | c | d |                |   |   |
        +---+---+                +---+---+           beyond its border, the grid goes on with its
                                 |   |   |           outermost values: np.pad(..., mode="edge")
                                 +---+---+

bicubic(old, new) is a matrix: result = bicubic(old, new) @ samples, where the `old` samples have 2
more beyond each border. Its row i makes the new sample i, which lies at

    place = (i + 0.5) * old / new - 0.5            old samples lie at 0, 1, ..., old - 1

Column j belongs to the old sample j - 2. Its weight depends on its distance d = |j - 2 - place|:

    d <= 1:       (a + 2) d^3 - (a + 3) d^2 + 1
    1 < d <= 2:   a (d^3 - 5 d^2 + 8 d - 4)               else 0
"""

import math

import numpy as np


def bicubic(old, new, a=-0.75):
    """-> (new,2+old+2)"""
    raise NotImplementedError


def embed(images, w, name):
    """(B,C,H,W) -> (B,1+hv,D)"""
    kernel = w[f"{name}.patch_embedding.weight"]  # (D,C,p,p)
    positions = w[f"{name}.position_embedding.weight"]  # (1+side*side,D)
    (B, C, H, W), (D, _, p, _) = images.shape, kernel.shape
    side = math.isqrt(len(positions) - 1)
    raise NotImplementedError
