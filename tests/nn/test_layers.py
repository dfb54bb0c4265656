"""Layers by themselves, built from given arrays."""

import numpy as np

from clipseg_np.nn.layers import Embedding
from clipseg_np.nn.ops import Ops
from clipseg_np.nn.scope import Scope


class Given:
    """A source of arrays by their names."""

    def __init__(self, **arrays):
        self.arrays = arrays

    def take(self, name, shape):
        assert self.arrays[name].shape == shape
        return self.arrays[name]


def test_embedding_looks_rows_up():
    table = np.random.default_rng(0).normal(size=(5, 3))
    embedding = Embedding(Scope(Given(weight=table), Ops(), "float64"), 5, 3)
    expected = [table[[4, 0]], table[[2, 2]]]
    np.testing.assert_allclose(embedding(np.array([[4, 0], [2, 2]])), expected, rtol=0, atol=1e-12)
