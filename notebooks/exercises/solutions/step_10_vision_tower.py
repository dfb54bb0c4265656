"""10. The vision tower"""

from solutions.step_09_patches_and_positions import embed

from clipseg_np.pico import encoder, layer_norm, linear


def vision_tower(images, w, config):
    name, config = "clip.vision_model", {"num_attention_heads": 12} | config["vision_config"]
    x = embed(images, w, f"{name}.embeddings")
    x = layer_norm(x, w, f"{name}.pre_layrnorm", config)
    outputs = encoder(x, w, f"{name}.encoder", config)
    x = layer_norm(outputs[-1][:, 0], w, f"{name}.post_layernorm", config)
    return outputs, linear(x, w, "clip.visual_projection")
