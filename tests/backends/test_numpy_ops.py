"""Each override of the NumPy backend against the readable method that it replaces."""

import inspect
from copy import deepcopy

import numpy as np
import pytest

from clipseg_np.backends.numpy_kernels import ELEMENTWISE
from clipseg_np.backends.numpy_ops import NumpyOps
from clipseg_np.backends.select import ops_for
from clipseg_np.nn.ops import Ops

plain = Ops()
TOLERANCE = {"float32": 2e-6, "float64": 1e-14}
ORDERS = ("run", "parallel_for", "memoize")  # of work, whatever it is
OVERRIDES = [
    name
    for name, part in vars(NumpyOps).items()
    if callable(part) and hasattr(Ops, name) and not name.startswith("_") and name not in ORDERS
]


def features_first(x: np.ndarray) -> np.ndarray:
    """The same (B,T,D) array, (D,B,T) in memory."""
    return np.ascontiguousarray(x.transpose(2, 0, 1)).transpose(1, 2, 0)


def arguments(name: str, dtype: str) -> list[tuple]:
    """Inputs for a method, in several shapes."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(dtype)

    heads = [draw(2, 3, 7, 4) for _ in range(3)]
    many = [draw(2, 3, 150, 4) for _ in range(3)]
    causal = np.tril(np.ones((7, 7), bool))[None, None]
    padded = causal & (np.arange(7) < np.array([[4], [7]]))[:, None, None]
    return {
        "linear": [
            (draw(2, 5, 8), draw(3, 8), draw(3)),
            (draw(5, 8), draw(300, 8)),
            (draw(5, 8), draw(300, 8), draw(300)),
            (draw(3, 100, 8), draw(7, 8), draw(7)),
            (draw(3, 100, 8), draw(900, 8), draw(900)),
            (features_first(draw(3, 100, 8)), draw(7, 8), draw(7)),
            (draw(20, 700), draw(510, 700), draw(510)),
            (draw(20, 700), draw(509, 700)),
            (features_first(draw(2, 40, 700)), draw(70, 700), draw(70)),
        ],
        "conv2d": [
            (x.transpose(0, 2, 1, 3), draw(4, 3, k, k), draw(4))
            for x in (draw(1, 4, 3, 5), draw(2, 1, 3, 7))
            for k in (1, 3, 5)
        ],
        "conv_transpose2d": [
            (x.transpose(0, 2, 1, 3), draw(3, D, p, p), draw(D))
            for x in (draw(1, 4, 3, 5), draw(2, 9, 3, 7))
            for D, p in ((1, 4), (2, 1), (5, 3))
        ],
        "relu": [
            (draw(3, 4, 5, 6),),
            (features_first(draw(3, 100, 999)),),
            (draw(9, 9, 9)[:, ::2, 1:],),
            (np.array([np.nan, -0.0, np.inf], dtype),),
        ],
        "layer_norm": [
            *((draw(2, 5, 8) * 3 + 1, draw(8), draw(8), eps) for eps in (1e-5, 1e-3)),
            *(
                (order(draw(2, 99, D) + mean), draw(D), draw(D), 1e-5)
                for order in (np.asarray, features_first)
                for D, mean in ((500, 0.1), (3000, 1), (500, 10))
            ),
            (features_first(draw(2, 99, 8)), draw(8), draw(8), 1e-5),
        ],
        "softmax": [(draw(2, 5, 8) * 30,), (np.full((3, 4), -1e30, dtype),), (draw(9, 9, 999),)],
        "attention": [
            (*heads,),
            (*heads, causal),
            (*heads, padded),
            (*heads, np.zeros((2, 1, 7, 7), bool)),
            many,
            (*many, np.tri(150, dtype=bool)[None, None]),
            (*many, np.zeros((2, 1, 150, 150), bool)),
        ],
        "quick_gelu": [
            (draw(4, 9) * 5,),
            (draw(50, 3000),),
            (np.array([-1e30, -800, 0, 800, 1e30], dtype),),
        ],
    }[name]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", OVERRIDES)
@pytest.mark.parametrize("threads", (1, 2, 5))
def test_it_gives_the_same_and_leaves_its_inputs_alone(threads, name, dtype):
    fast = NumpyOps(threads)
    for given in arguments(name, dtype):
        before = deepcopy(given)
        found, expected = getattr(fast, name)(*given), getattr(plain, name)(*before)
        assert found.dtype == expected.dtype == dtype and found.shape == expected.shape
        finite = np.isfinite(expected)
        scale = np.abs(expected[finite]).max(initial=1e-30)
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype] * scale)
        for part, was in zip(given, before, strict=True):
            np.testing.assert_array_equal(part, was)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", (3, 7, 900))
@pytest.mark.parametrize("activation", (None, "quick_gelu", "relu"))
@pytest.mark.parametrize("threads", (1, 2, 5))
def test_several_linear_maps_of_the_same(threads, activation, width, dtype):
    rng, fast = np.random.default_rng(0), NumpyOps(threads)
    for shape, scale in (((2, 5, 8), 1), ((3, 100, 8), 1), ((3, 100, 8), 1e3)):
        for order in (np.asarray, features_first):
            x = order(scale * rng.normal(size=shape).astype(dtype))
            weights = [rng.normal(size=(n, 8)).astype(dtype) for n in (width, width, 5)]
            biases = [rng.normal(size=width).astype(dtype), None, rng.normal(size=5).astype(dtype)]
            maps, before = list(zip(weights, biases)), x.copy()
            found = fast.linears(x, maps, ELEMENTWISE.get(activation))
            for y, (weight, bias) in zip(found, maps, strict=True):
                expected = plain.linear(x, weight, bias)
                expected = (
                    expected if activation is None else plain.activation(activation, expected)
                )
                assert y.dtype == dtype and y.shape == expected.shape
                atol = TOLERANCE[dtype] * np.abs(expected).max()
                np.testing.assert_allclose(y, expected, rtol=0, atol=atol)
            np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("name", ["relu", "quick_gelu", "layer_norm", "linear"])
def test_however_the_numbers_lie_in_memory(name):
    """Axes in any order, turned round, with gaps, or spread from one number."""
    rng, fast = np.random.default_rng(0), NumpyOps(2)
    for _ in range(300):
        axes = int(rng.integers(1, 5))
        x = rng.normal(size=rng.integers(1, 9, axes)).transpose(rng.permutation(axes))
        x = x[tuple(slice(None, None, int(step)) for step in rng.choice([1, 1, 2, -1, -2], axes))]
        if rng.random() < 0.3:
            x = np.broadcast_to(x[:1], (40, *x.shape[1:]))
        D = x.shape[-1]
        given = {
            "layer_norm": (rng.normal(size=D), rng.normal(size=D), 1e-5),
            "linear": (rng.normal(size=(3, D)), rng.normal(size=3)),
        }.get(name, ())
        found, expected = getattr(fast, name)(x, *given), getattr(plain, name)(x, *given)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_what_an_activation_returns_lies_in_memory_as_what_it_was_given(axes):
    x = np.ones((20, 30, 40), "float32").transpose(axes)
    assert NumpyOps(2).relu(x).strides == x.strides


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mask", [None, np.tri(150, dtype=bool)[None, None]])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("factor, shift", [(300, 0), (-1, -200), (1e-30, 0)])
def test_attention_where_powers_would_overflow_or_vanish(factor, shift, dtype, mask):
    """Unless the largest is subtracted from them first; some queries alone, or all, or none."""
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(2, 3, 150, 4)).astype(dtype) for _ in range(3))
    query[:, :, ::2] = factor * abs(query[:, :, ::2]) + shift
    found = NumpyOps(2).attention(query, abs(key), value, mask)
    expected = plain.attention(query, abs(key), value, mask)
    scores = abs(query).max() * abs(key).max() * 2  # their rounding is the result's
    atol = TOLERANCE[dtype] * max(1, scores / 100)
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("number", range(7))
def test_the_attention_weights_are_the_same(number):
    given = arguments("attention", "float64")[number]
    mask = given[3] if len(given) > 3 else None
    found, expected = [], []
    NumpyOps().attention(*given[:3], mask, found)
    plain.attention(*given[:3], mask, expected)
    assert len(found) == 1
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", OVERRIDES)
def test_its_signature_is_that_of_the_method_it_replaces(name):
    assert inspect.signature(getattr(NumpyOps, name)) == inspect.signature(getattr(Ops, name))


def test_the_names_of_the_backends():
    assert type(ops_for("numpy")) is NumpyOps
    assert ops_for("numpy", 3).threads.count == 3
    assert type(ops_for("numpy-reference")) is Ops
