"""12. The heads, and the whole

A transposed convolution paints: each cell of a grid becomes a block of p x p cells.

    x (P,h,v,C)                     w["NAME.weight"]  (C,D,p,p),  w["NAME.bias"]  (D)
    +---+---+                       +-------+-------+
    | 1 | 2 |     p = 2             | 1a 1b | 2a 2b |     y (P,hp,vp,D)
    +---+---+   -------->           | 1c 1d | 2c 2d |
                                    +-------+-------+
    y[P, h * p + i, v * p + j, D] = sum over C of x[P, h, v, C] * weight[C, D, i, j],  + bias[D]

The grid has h rows and v columns; `w` is the dictionary.

There are two heads. The plain one is one transposed convolution, with w["NAME.weight"]. The refined
one has no such array, but three layers; a relu, np.maximum(x, 0), stands between them:

    x (P,h,v,C)
      |  "NAME.0"    a convolution of the 3 x 3 cells around each cell: weight (D,C,3,3), bias (D)
      |              padded is x with a rim of one 0 around the grid, (P,h+2,v+2,C)
      |              y[h, v, D] = sum of padded[h + i, v + j, C] * weight[D, C, i, j],  + bias[D]
      |  relu,  "NAME.2"   transposed
      |  relu,  "NAME.4"   transposed
      v
    (P,H,W,1) -> the only feature is taken: (P,H,W)

The whole decoder:

    outputs of the vision tower (step 10)
      |
      |  extract_layers [3, 6, 9] are taken deepest first: 9, 6, 3. For the i-th of them:
      |
      |    x = x + linear "decoder.reduces.i" of that output      x is 0 at first
      |    if i is conditional_layer: film (step 11)
      |    decoder_layer (step 11), "decoder.layers.i"
      v
    x (P,1+hv,D)
      |  the class token (the first) is dropped; the others fill the grid row by row, h = H / p
      v
    x (P,h,v,D)
      |  head, "decoder.transposed_convolution"
      v
    logits (P,H,W):  positive where the image shows what the prompt says
"""

import numpy as np

# In the page, these are a part of clipseg, and of a vision_tower that has embed inside.
from solutions.step_10_vision_tower import vision_tower
from solutions.step_11_film_and_post_norm_block import decoder_layer, film

from clipseg_np.pico import linear


def conv_transpose(x, w, name):
    """(P,h,v,C) -> (P,hp,vp,D)"""
    raise NotImplementedError


def head(x, w, name):
    """(P,h,v,C) -> (P,H,W)"""
    raise NotImplementedError


def clipseg(images, prompts, w, config):
    """(B,C,H,W), (P,projection) -> (P,H,W)"""
    vision, N = config["vision_config"], config.get("decoder_num_attention_heads", 4)
    extract_layers = config.get("extract_layers", [3, 6, 9])
    conditional_layer = config.get("conditional_layer", 0)
    p = vision.get("patch_size", 32)
    raise NotImplementedError
