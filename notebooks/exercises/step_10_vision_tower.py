"""10. The vision tower

An image's tokens go through a pile of blocks. The decoder later takes the tokens after some of the
blocks (taps); a vector for the whole image is read at the class token.

    images (B,C,H,W)
        |
        |  embed (step 9), "NAME.embeddings"
        |  layer norm "NAME.pre_layrnorm"           misspelled in every checkpoint
        v
    x (B,1+hv,D)
        |  encoder (step 6), "NAME.encoder"
        v
    [ x after block 0,  x after block 1,  ... ]     the taps, class token and all: returned
                            |
                            |  of the last, the class token, which is the first token
                            v
                          (B,D)
                            |  layer norm "NAME.post_layernorm"
                            |  linear "clip.visual_projection"
                            v
                          (B,projection)            returned, too
"""

import numpy as np
from solutions.step_09_patches_and_positions import embed  # in the page, a part of vision_tower

from clipseg_np.pico import encoder, layer_norm, linear


def vision_tower(images, w, config):
    """(B,C,H,W) -> a list with the (B,1+hv,D) after each block, and (B,projection)"""
    name, config = "clip.vision_model", {"num_attention_heads": 12} | config["vision_config"]
    raise NotImplementedError
