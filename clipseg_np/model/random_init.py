"""A seeded random start, from the normal distributions that transformers gives a new model.

The standard deviations are the reference's (modeling_clipseg.py, `_init_weights`, and the library's
default for the decoder's linear layers and convolutions, which that does not name). The numbers
differ from torch's, which has another generator.
"""

from fnmatch import fnmatch

import numpy as np

from .config import CLIPSegConfig, CLIPSegTextConfig, CLIPSegVisionConfig

Config = CLIPSegConfig | CLIPSegTextConfig | CLIPSegVisionConfig


class RandomStart:
    """Arrays for a model of `config`, by dotted name, drawn in the order of the calls."""

    def __init__(self, config: Config, seed: int = 0):
        self.generator = np.random.default_rng(seed)
        self.config = config

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith("logit_scale"):
            return np.full(shape, self.config.logit_scale_init_value)
        if name.endswith(".bias"):
            return np.zeros(shape)
        if fnmatch(name, "*norm*.weight"):
            return np.ones(shape)
        return self.generator.normal(0.0, deviation(name, self.config), shape)


def deviation(name: str, config: Config) -> float:
    factor = config.initializer_factor
    if isinstance(config, CLIPSegConfig):
        tower = config.text_config if "text_" in name else config.vision_config
        if "_model." in name:
            return deviation(name, tower)
        if name.endswith("_projection.weight"):
            return tower.hidden_size**-0.5 * factor
        if ".layers." not in name:
            return factor
        # The depth is the vision tower's, not the decoder's own.
        width, depth = config.reduce_dim, config.vision_config.num_hidden_layers
    else:
        width, depth = config.hidden_size, config.num_hidden_layers
        if "embedding" in name and "class" not in name:
            is_text = isinstance(config, CLIPSegTextConfig)
            return (0.02 if is_text else config.initializer_range) * factor
    if "out_proj" in name or "class_embedding" in name:
        return width**-0.5 * factor
    if "fc1" in name:
        return (2 * width) ** -0.5 * factor
    return width**-0.5 * (2 * depth) ** -0.5 * factor  # q_proj, k_proj, v_proj, fc2
