"""How near a GPU's numbers must be to the exact ones, and the models that are compared."""

import math
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from clipseg_np import CLIPSegConfig, CLIPSegForImageSegmentation
from clipseg_np.backends.select import ops_for
from clipseg_np.golden.compare import as_floats, scale
from clipseg_np.nn.ops import Array, Ops
from clipseg_np.nn.scope import Scope

# Of the largest number: against float64 on the host, and of a recorded pass against the eager one.
EXACT = {"float16": 2e-2, "float32": 1e-5, "float64": 1e-12}
EAGER = {"float16": 5e-3, "float32": 1e-6, "float64": 1e-12}


def assert_near(found: Array, expected: Array, limit: float) -> None:
    """Raise AssertionError unless the shapes agree and no number is further off than `limit`."""
    found, expected = as_floats(found), as_floats(expected)
    assert found.shape == expected.shape
    off = np.abs(found - expected).max() / scale(expected)
    assert off <= limit, f"off by {off:.3g} of the largest number; allowed {limit:.3g}"


class DrawnWeights:
    """A model's weights, drawn by name in float32: the same for each float type and architecture.

    Biases and norms are drawn too, so that none can be left out unseen. Attention with these
    weights neither chooses one token nor takes the mean of all.
    """

    def __init__(self):
        self.arrays: dict[tuple, np.ndarray] = {}

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if (name, shape) not in self.arrays:
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            drawn = rng.standard_normal(shape, np.float32)
            if name.endswith(".bias"):
                drawn *= 0.1
            elif "norm" in name:
                drawn = 1 + 0.1 * drawn
            else:
                drawn *= 0.7 / math.prod(shape[1:]) ** 0.5
            self.arrays[name, shape] = drawn
        return self.arrays[name, shape]


@cache
def gpu_ops() -> Ops:
    """The GPU's operations, checked and compiled once."""
    return ops_for("cupy")


def model_of(
    config: CLIPSegConfig, weights: Any, dtype: str, on_gpu: bool = True
) -> CLIPSegForImageSegmentation:
    """A model with these weights, on the GPU or with NumPy on the host."""
    ops = gpu_ops() if on_gpu else ops_for("numpy")
    return CLIPSegForImageSegmentation(config, Scope(weights, ops, np.dtype(dtype)))


@cache
def loaded(folder: Path, dtype: str, backend: str = "cupy") -> CLIPSegForImageSegmentation:
    """A checkpoint's model, loaded once."""
    return CLIPSegForImageSegmentation.from_pretrained(folder, backend=backend, dtype=dtype)


def eager_logits(model: CLIPSegForImageSegmentation, pixel_values: Any, input_ids: Any) -> Array:
    """Images (B,C,H,W) and texts (P,T) to logits (P,H,W), by the model's three steps."""
    embeddings = model.get_conditional_embeddings(input_ids=input_ids)
    return model.decode(model.encode_image(pixel_values), embeddings)
