"""Each whole layer's backward on the NumPy backend against the layer's own, the readable one."""

import inspect

import numpy as np
import pytest

from clipseg_np.backends import numpy_gradients
from clipseg_np.backends.numpy_gradients import WHOLE_BACKWARDS
from clipseg_np.backends.numpy_ops import NumpyOps
from clipseg_np.backends.select import ops_for
from clipseg_np.nn.layers import MLP, Attention, Layer
from clipseg_np.nn.learning import learning
from clipseg_np.nn.ops import Ops

from .test_numpy_layers import CAUSAL, LONG, PADDED, build, features_first

TOLERANCE = {"float32": 4e-6, "float64": 1e-14}
# The second text's first queries see no key at all.
UNSEEN = PADDED & (np.arange(7) > np.array([[-1], [2]]))[:, None, None]
# The shape of x, the layer's sizes, and what else it is given.
CASES = {
    Attention: [
        ((2, 7, 12), (12, 3)),
        *(((2, 7, 12), (12, 3), mask) for mask in (CAUSAL, PADDED, UNSEEN)),
        ((2, 150, 20), (20, 5)),
        ((2, 150, 20), (20, 5), LONG),
    ],
    MLP: [
        (shape, (shape[-1], width, activation))
        for *shape, width in ((2, 5, 4, 99), (2, 20, 4, 20), (1, 1000, 70, 600))
        for activation in ("relu", "quick_gelu")
    ],
}


def taken_back(layer: Layer, x, more=(), learns=lambda name: True) -> dict:
    """The gradients of the layer's arrays that learn, and of x."""
    d_y = np.random.default_rng(2).normal(size=x.shape).astype(x.dtype)
    with learning(learns) as found:
        layer(x, *more)
        found["x"] = layer.propagate(d_y)
    return dict(found)


def assert_same(result: dict, expected: dict, dtype: str) -> None:
    assert result.keys() == expected.keys()
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert result[name].dtype == dtype and result[name].shape == gradient.shape
        atol = TOLERANCE[dtype] * largest
        np.testing.assert_allclose(result[name], gradient, rtol=0, atol=atol, err_msg=name)


def test_there_is_a_case_for_every_whole_backward():
    assert set(CASES) == set(WHOLE_BACKWARDS) == set(NumpyOps.whole_backwards)


def test_the_readable_backends_run_the_readable_backwards():
    assert not Ops.whole_backwards and not ops_for("numpy-reference").whole_backwards


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layer", WHOLE_BACKWARDS)
def test_it_gives_the_same_and_leaves_its_inputs_alone(layer, dtype):
    for order in (np.asarray, features_first):
        for shape, sizes, *more in CASES[layer]:
            scale = shape[-1] ** -0.5
            fast, plain = (
                build(layer, ops, dtype, *sizes, scale=scale) for ops in (NumpyOps(2), Ops())
            )
            x = order(np.random.default_rng(1).normal(size=shape).astype(dtype))
            before = x.copy()
            assert_same(taken_back(fast, x, more), taken_back(plain, x, more), dtype)
            np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("learned", ["", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"])
def test_an_mlp_of_which_one_array_learns(learned):
    fast, plain = (build(MLP, ops, "float64", 4, 99, "relu") for ops in (NumpyOps(1), Ops()))
    x = np.random.default_rng(1).normal(size=(2, 20, 4))
    result, expected = (taken_back(layer, x, (), learned.__eq__) for layer in (fast, plain))
    assert result.keys() == {"x", learned} - {""}
    assert_same(result, expected, "float64")


@pytest.mark.parametrize(("kind", "place"), [(MLP, "fc1"), (MLP, "fc2"), (Attention, "q_proj")])
def test_a_layer_without_a_bias(kind, place):
    shape, sizes, *more = CASES[kind][0]
    fast, plain = (build(kind, ops, "float64", *sizes) for ops in (NumpyOps(1), Ops()))
    for layer in (fast, plain):
        getattr(layer, place).bias = None
    x = np.random.default_rng(1).normal(size=shape)
    assert_same(taken_back(fast, x, more), taken_back(plain, x, more), "float64")


@pytest.mark.parametrize("size", [1, 30, 1 << 30])
def test_the_pieces_of_an_mlp_add_up(size, monkeypatch):
    monkeypatch.setattr(numpy_gradients, "MAX_HIDDEN", size)
    fast, plain = (build(MLP, ops, "float64", 4, 23, "relu") for ops in (NumpyOps(1), Ops()))
    x = np.random.default_rng(1).normal(size=(2, 5, 4))
    assert_same(taken_back(fast, x), taken_back(plain, x), "float64")


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_large_scores_do_not_overflow(dtype):
    fast, plain = (build(Attention, ops, dtype, 12, 3) for ops in (NumpyOps(1), Ops()))
    # Scores of up to 1e5.
    x = 30 * np.random.default_rng(1).normal(size=(2, 40, 12)).astype(dtype)
    result, expected = taken_back(fast, x), taken_back(plain, x)
    assert all(np.isfinite(gradient).all() for gradient in result.values())
    if dtype == "float64":
        # float32 has two digits of a power left.
        for name, gradient in expected.items():
            np.testing.assert_allclose(result[name], gradient, rtol=0, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("layer", WHOLE_BACKWARDS)
def test_its_arguments_are_the_formulas(layer):
    formula, whole = inspect.signature(layer.backward), inspect.signature(WHOLE_BACKWARDS[layer])
    assert list(whole.parameters)[:2] == ["ops", "layer"]
    assert list(whole.parameters.values())[2:] == list(formula.parameters.values())[1:]
