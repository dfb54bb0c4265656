"""A seeded random start: arrays drawn from the distributions that transformers gives a new model.

All are normal with mean 0; biases are 0 and norms' weights 1. The table holds the standard
deviations. The numbers themselves differ from torch's, which has another generator.

Found in the reference's own initialisation (modeling_clipseg.py, `_init_weights`, and the library's
default for layers that it does not name): the decoder's linear layers and convolutions have no
entry of their own and get `initializer_factor`, 1.0, where the towers' would get 0.02.
"""

from fnmatch import fnmatch

import numpy as np

from .config import CLIPSegConfig, CLIPSegTextConfig, CLIPSegVisionConfig


class RandomStart:
    """Arrays for a model of `config`, by dotted name, drawn in the order in which they are taken."""

    def __init__(
        self, config: CLIPSegConfig | CLIPSegTextConfig | CLIPSegVisionConfig, seed: int = 0
    ):
        self.generator = np.random.default_rng(seed)
        self.config = config

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith("logit_scale"):
            return np.full(shape, self.config.logit_scale_init_value)
        if name.endswith(".bias"):
            return np.zeros(shape)
        if fnmatch(name, "*norm*.weight"):
            return np.ones(shape)
        return self.generator.normal(0.0, self._deviation(name), shape)

    def _deviation(self, name: str) -> float:
        config = self.config
        if isinstance(config, CLIPSegConfig):
            if "text_model." in name:
                return tower_deviation(name, config.text_config)
            if "vision_model." in name:
                return tower_deviation(name, config.vision_config)
            if name.endswith("text_projection.weight"):
                return config.text_config.hidden_size**-0.5 * config.initializer_factor
            if name.endswith("visual_projection.weight"):
                return config.vision_config.hidden_size**-0.5 * config.initializer_factor
            return decoder_deviation(name, config)
        return tower_deviation(name, config)


def tower_deviation(name: str, config: CLIPSegTextConfig | CLIPSegVisionConfig) -> float:
    """The standard deviation of a tower's array."""
    if name.endswith("class_embedding"):
        return config.hidden_size**-0.5 * config.initializer_factor
    if "embedding" in name:
        text = isinstance(config, CLIPSegTextConfig)
        return (0.02 if text else config.initializer_range) * config.initializer_factor
    return layer_deviation(
        name, config.hidden_size, config.num_hidden_layers, config.initializer_factor
    )


def decoder_deviation(name: str, config: CLIPSegConfig) -> float:
    """The standard deviation of a decoder's array; its layers count the vision tower's depth as theirs."""
    if ".layers." in name:
        depth = config.vision_config.num_hidden_layers
        return layer_deviation(name, config.reduce_dim, depth, config.initializer_factor)
    return config.initializer_factor


def layer_deviation(name: str, width: int, depth: int, factor: float) -> float:
    """The standard deviation inside a transformer layer."""
    if "out_proj" in name:
        return width**-0.5 * factor
    if "fc1" in name:
        return (2 * width) ** -0.5 * factor
    return width**-0.5 * (2 * depth) ** -0.5 * factor  # q_proj, k_proj, v_proj, fc2
