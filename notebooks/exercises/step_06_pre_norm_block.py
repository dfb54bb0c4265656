"""6. The pre-norm block

A tower is a pile of equal blocks. In each, the tokens look at each other (attention), then each
thinks for itself (MLP). Both results are added to x, which runs through: a branch only changes it.
Each branch begins with a norm (hence pre-norm); the sum is not normed.

    x (B,T,D) ----.
      |           |
      |     "LAYER.layer_norm1"
      |           |
      |     "LAYER.self_attn"      attention, with the mask
      |           |
      + <---------'
      |-----------.
      |           |
      |     "LAYER.layer_norm2"
      |           |
      |     "LAYER.mlp"
      |           |
      + <---------'
      |
    x (B,T,D)                      kept in `outputs`, and the next block's input

The loop over the blocks is there. Write one block, with the functions of the earlier steps:

    layer_norm(x, w, "LAYER.layer_norm1", config)
    attention(x, w, "LAYER.self_attn", N, mask)
    mlp(x, w, "LAYER.mlp", activation)
"""

import numpy as np

from clipseg_np.pico import attention, layer_norm, mlp


def encoder(x, w, name, config, mask=True):
    """(B,T,D) -> a list with the (B,T,D) after each block"""
    N, activation = config["num_attention_heads"], config.get("hidden_act", "quick_gelu")
    outputs = []
    for layer in (f"{name}.layers.{i}" for i in range(config.get("num_hidden_layers", 12))):
        raise NotImplementedError  # Write the block here, with N and activation; LAYER is `layer`.
        outputs.append(x)
    return outputs
