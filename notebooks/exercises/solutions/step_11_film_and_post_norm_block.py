"""11. FiLM and the post-norm block"""

from clipseg_np.pico import attention, layer_norm, linear, mlp


def film(x, prompts, w):
    x = x * linear(prompts, w, "decoder.film_mul")[:, None]
    return x + linear(prompts, w, "decoder.film_add")[:, None]


def decoder_layer(x, w, name, N, config):
    x = x + attention(x, w, f"{name}.self_attn", N)
    x = layer_norm(x, w, f"{name}.layer_norm1", config)
    x = x + mlp(x, w, f"{name}.mlp", "relu")
    return layer_norm(x, w, f"{name}.layer_norm2", config)
