"""8. The text tower"""

import numpy as np

from clipseg_np.pico import encoder, layer_norm, linear


def text_tower(input_ids, attention_mask, w, config):
    name, config = "clip.text_model", {"num_attention_heads": 8} | config["text_config"]
    P, T = input_ids.shape
    x = w[f"{name}.embeddings.token_embedding.weight"][input_ids]
    x = x + w[f"{name}.embeddings.position_embedding.weight"][:T]
    mask = np.tri(T, dtype=bool) & (attention_mask[:, None, None] != 0)
    x = encoder(x, w, f"{name}.encoder", config, mask)[-1]
    x = layer_norm(x, w, f"{name}.final_layer_norm", config)
    eos = config.get("eos_token_id", 49407)
    end = np.argmax(input_ids if eos == 2 else input_ids == eos, axis=-1)
    return linear(x[np.arange(P), end], w, "clip.text_projection")
