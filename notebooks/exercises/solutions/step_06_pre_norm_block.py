"""6. The pre-norm block"""

from clipseg_np.pico import attention, layer_norm, mlp


def encoder(x, w, name, config, mask=True):
    outputs = []
    for layer in (f"{name}.layers.{i}" for i in range(config.get("num_hidden_layers", 12))):
        y = layer_norm(x, w, f"{layer}.layer_norm1", config)
        x = x + attention(y, w, f"{layer}.self_attn", config["num_attention_heads"], mask)
        y = layer_norm(x, w, f"{layer}.layer_norm2", config)
        x = x + mlp(y, w, f"{layer}.mlp", config.get("hidden_act", "quick_gelu"))
        outputs.append(x)
    return outputs
