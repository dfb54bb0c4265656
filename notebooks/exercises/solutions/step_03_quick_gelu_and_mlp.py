"""3. quick_gelu and the MLP"""

import numpy as np

from clipseg_np.pico import ACTIVATIONS, linear


def quick_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


def mlp(x, w, name, activation):
    return linear(ACTIVATIONS[activation](linear(x, w, f"{name}.fc1")), w, f"{name}.fc2")
