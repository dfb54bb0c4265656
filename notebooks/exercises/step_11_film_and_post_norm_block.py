"""11. FiLM and the post-norm block

This is where the prompt meets the image. Feature-wise linear modulation: the prompt scales each
feature of every token, then shifts it.

    prompts (P,projection) -- linear "decoder.film_mul" --> (P,reduced)    the factors
                           -- linear "decoder.film_add" --> (P,reduced)    the shifts

    x (B,T,reduced)   one token of prompt 0:    [  x0    x1    x2  ]
                      times its factors         [ *m0   *m1   *m2  ]
                      plus its shifts           [ +s0   +s1   +s2  ]
        |
        v
      (P,T,reduced)   B is P, or 1: then every prompt looks at the same image

The decoder's block differs from the towers': the norm comes after each sum (post-norm), and the
activation is "relu".

    x (P,T,D) ----.
      |           |
      |     "NAME.self_attn"           N heads, no mask
      |           |
      + <---------'
      |
    "NAME.layer_norm1"
      |-----------.
      |           |
      |     "NAME.mlp"
      |           |
      + <---------'
      |
    "NAME.layer_norm2"
      |
    (P,T,D)

The functions are layer_norm(x, w, "NAME.layer_norm1", config), attention(x, w, "NAME.self_attn", N)
and mlp(x, w, "NAME.mlp", "relu").
"""

import numpy as np

from clipseg_np.pico import attention, layer_norm, linear, mlp


def film(x, prompts, w):
    """(B,T,D), (P,projection) -> (P,T,D)"""
    raise NotImplementedError


def decoder_layer(x, w, name, N, config):
    """(P,T,D) -> (P,T,D)"""
    raise NotImplementedError
