"""12. The heads, and the whole"""

import numpy as np
from solutions.step_10_vision_tower import vision_tower
from solutions.step_11_film_and_post_norm_block import decoder_layer, film

from clipseg_np.pico import linear


def conv_transpose(x, w, name):
    x = np.einsum("PhwC,CDij->PhiwjD", x, w[f"{name}.weight"]) + w[f"{name}.bias"]
    P, h, p, _, _, D = x.shape
    return x.reshape(P, h * p, -1, D)


def head(x, w, name):
    if f"{name}.weight" in w:
        return conv_transpose(x, w, name)[..., 0]
    x = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    x = np.einsum("PhwCij,DCij->PhwD", x, w[f"{name}.0.weight"]) + w[f"{name}.0.bias"]
    x = conv_transpose(np.maximum(x, 0), w, f"{name}.2")
    return conv_transpose(np.maximum(x, 0), w, f"{name}.4")[..., 0]


def clipseg(images, prompts, w, config):
    outputs, _ = vision_tower(images, w, config)
    vision, N = config["vision_config"], config.get("decoder_num_attention_heads", 4)
    x = 0
    for i, layer in enumerate(reversed(config.get("extract_layers", [3, 6, 9]))):
        x = x + linear(outputs[layer], w, f"decoder.reduces.{i}")
        if i == config.get("conditional_layer", 0):
            x = film(x, prompts, w)
        x = decoder_layer(x, w, f"decoder.layers.{i}", N, vision)
    p = vision.get("patch_size", 32)
    x = x[:, 1:].reshape(len(x), images.shape[2] // p, -1, x.shape[2])
    return head(x, w, "decoder.transposed_convolution")
