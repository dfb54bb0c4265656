"""Each whole layer of the NumPy backend against the layer's formula."""

import inspect

import numpy as np
import pytest

from clipseg_np.backends.numpy_layers import WHOLE_LAYERS
from clipseg_np.backends.numpy_ops import NumpyOps
from clipseg_np.nn.layers import MLP, Attention, Layer
from clipseg_np.nn.ops import Ops
from clipseg_np.nn.scope import Scope
from clipseg_np.nn.trace import trace

TOLERANCE = {"float32": 2e-6, "float64": 1e-14}
CAUSAL = np.tri(7, dtype=bool)[None, None]
PADDED = CAUSAL & (np.arange(7) < np.array([[4], [7]]))[:, None, None]
LONG = np.arange(150) < np.array([[[[99]]], [[[150]]]])


class DrawnWeights:
    """Random weights of a layer; `scale` is the deviation of its matrices."""

    def __init__(self, scale: float):
        self.scale, self.rng = scale, np.random.default_rng(0)

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        drawn = self.rng.normal(size=shape)
        return self.scale * drawn if len(shape) == 2 else 1 + 0.1 * drawn


def build(layer: type, ops: Ops, dtype: str, *sizes, scale: float = 1.0) -> Layer:
    return layer(Scope(DrawnWeights(scale), ops, np.dtype(dtype)), *sizes)


def features_first(x: np.ndarray) -> np.ndarray:
    """The same (B,T,D) array, (D,B,T) in memory."""
    return np.ascontiguousarray(x.transpose(2, 0, 1)).transpose(1, 2, 0)


# The shape of x, the layer's sizes, and what else it is given.
CASES = {
    Attention: [
        ((2, T, 120), (120, num_heads), *more)
        for T, num_heads, *more in (
            (7, 3, CAUSAL),
            (7, 3, PADDED),
            (150, 3),
            (150, 5),
            (150, 5, LONG),
        )
    ],
    MLP: [
        (shape, (shape[-1], width, activation))
        for *shape, width in (
            (2, 5, 4, 99),
            (2, 20, 4, 99),
            (2, 20, 4, 20),
            (3, 100, 8, 7),
            (3, 100, 8, 900),
            (1, 2100, 4, 300),
            (1, 1000, 70, 1200),
        )
        for activation in ("relu", "quick_gelu", "gelu")
    ],
}


def test_there_is_a_case_for_every_whole_layer():
    assert set(CASES) == set(WHOLE_LAYERS)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layer", WHOLE_LAYERS)
@pytest.mark.parametrize("threads", (1, 2, 5))
def test_it_gives_the_same_and_leaves_its_inputs_alone(threads, layer, dtype):
    for order in (np.asarray, features_first):
        for shape, sizes, *more in CASES[layer]:
            scale = shape[-1] ** -0.5
            fast, plain = (
                build(layer, ops, dtype, *sizes, scale=scale) for ops in (NumpyOps(threads), Ops())
            )
            x = order(np.random.default_rng(1).normal(size=shape).astype(dtype))
            before = x.copy()
            result, expected = fast(x, *more), plain(x, *more)
            assert result.dtype == expected.dtype == dtype and result.shape == expected.shape
            largest = np.abs(expected).max()
            np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE[dtype] * largest)
            np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("ones", [("fc1",), ("fc2",), ("fc1", "fc2")])
def test_an_mlp_without_biases(ones, dtype):
    for shape, sizes in CASES[MLP]:
        fast, plain = (build(MLP, ops, dtype, *sizes) for ops in (NumpyOps(2), Ops()))
        for layer in (fast, plain):
            for name in ones:
                getattr(layer, name).bias = None
        x = np.random.default_rng(1).normal(size=shape).astype(dtype)
        result, expected = fast(x), plain(x)
        largest = np.abs(expected).max()
        np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE[dtype] * largest)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj"])
def test_attention_without_a_bias(name, dtype):
    fast, plain = (build(Attention, ops, dtype, 120, 5, scale=0.1) for ops in (NumpyOps(2), Ops()))
    for layer in (fast, plain):
        getattr(layer, name).bias = None
    x = np.random.default_rng(1).normal(size=(2, 150, 120)).astype(dtype)
    result, expected = fast(x), plain(x)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE[dtype] * largest)


@pytest.mark.parametrize("T", (7, 150))
def test_the_attention_weights_are_the_same(T):
    fast, plain = (build(Attention, o, "float64", 120, 5, scale=0.1) for o in (NumpyOps(2), Ops()))
    x = np.random.default_rng(1).normal(size=(2, T, 120))
    result, expected = [], []
    np.testing.assert_allclose(fast(x, None, result), plain(x, None, expected), rtol=0, atol=1e-13)
    assert len(result) == len(expected) == 1
    np.testing.assert_allclose(result[0], expected[0], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("layer", WHOLE_LAYERS)
def test_a_trace_sees_its_children(layer):
    (shape, sizes, *_) = CASES[layer][-1]
    scale = shape[-1] ** -0.5
    fast, plain = (build(layer, o, "float64", *sizes, scale=scale) for o in (NumpyOps(2), Ops()))
    x = np.random.default_rng(1).normal(size=shape)
    seen = []
    for one in (fast, plain):
        with trace() as activations:
            one(x)
        seen.append(activations)
    children = [name for name, part in vars(plain).items() if isinstance(part, Layer)]
    assert seen[0].keys() == seen[1].keys() and len(seen[0]) == 1 + len(children) > 2
    for name, expected in seen[1].items():
        np.testing.assert_allclose(seen[0][name], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layer", WHOLE_LAYERS)
def test_its_arguments_are_the_formulas(layer):
    formula, whole = inspect.signature(layer.forward), inspect.signature(WHOLE_LAYERS[layer])
    assert list(whole.parameters)[:2] == ["ops", "layer"]
    assert list(whole.parameters.values())[2:] == list(formula.parameters.values())[1:]
