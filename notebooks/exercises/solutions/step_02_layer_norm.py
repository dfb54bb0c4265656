"""2. Layer norm"""

import numpy as np


def layer_norm(x, w, name, config):
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + config.get("layer_norm_eps", 1e-5))
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]
