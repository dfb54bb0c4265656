"""Each override of the NumPy backend against the readable method that it replaces."""

import inspect
import platform
import subprocess
import sys
from copy import deepcopy

import numpy as np
import pytest

from clipseg_np.backends.numpy_kernels import ELEMENTWISE
from clipseg_np.backends.numpy_ops import NumpyOps
from clipseg_np.backends.select import ops_for
from clipseg_np.nn.ops import Ops

plain = Ops()
TOLERANCE = {"float32": 2e-6, "float64": 1e-14}
ORDERS = ("parallel_for", "memoize")  # of work, whatever it is
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
        "layer_norm": [
            *((draw(2, 5, 8) * 3 + 1, draw(8), draw(8), eps) for eps in (1e-5, 1e-3)),
            *(
                (order(draw(2, 99, D) + mean), draw(D), draw(D), 1e-5)
                for order in (np.asarray, features_first)
                for D, mean in ((500, 0.1), (3000, 1), (500, 10))
            ),
            (features_first(draw(2, 99, 8)), draw(8), draw(8), 1e-5),
        ],
        "sigmoid": [(draw(4, 9) * 30,), (np.array([-1e30, -800, 0, 800, 1e30], dtype),)],
        "conv_transpose2d": [
            (x.transpose(0, 2, 1, 3), draw(3, D, p, p), draw(D))
            for x in (draw(1, 4, 3, 5), draw(2, 9, 3, 7))
            for D, p in ((1, 4), (2, 1), (5, 3))
        ],
        # Those below are for a GPU alone (test_cupy_kernels.py).
        "conv2d": [
            (x.transpose(0, 2, 1, 3), draw(4, 3, k, k), draw(4))
            for x in (draw(1, 4, 3, 5), draw(2, 1, 3, 7))
            for k in (1, 3, 5)
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
        result, expected = getattr(fast, name)(*given), getattr(plain, name)(*before)
        assert result.dtype == expected.dtype == dtype and result.shape == expected.shape
        finite = np.isfinite(expected)
        scale = np.abs(expected[finite]).max(initial=1e-30)
        np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE[dtype] * scale)
        for part, was in zip(given, before, strict=True):
            np.testing.assert_array_equal(part, was)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", (3, 7, 900))
@pytest.mark.parametrize("activation", (None, "quick_gelu", "relu"))
@pytest.mark.parametrize("threads", (1, 2, 5))
def test_a_linear_map_and_its_activation(threads, activation, width, dtype):
    rng, fast = np.random.default_rng(0), NumpyOps(threads)
    for shape, scale in (((2, 5, 8), 1), ((3, 100, 8), 1), ((3, 100, 8), 1e3)):
        for order in (np.asarray, features_first):
            x = order(scale * rng.normal(size=shape).astype(dtype))
            weight, before = rng.normal(size=(width, 8)).astype(dtype), x.copy()
            for bias in (rng.normal(size=width).astype(dtype), None):
                y = fast.activated_linear(x, weight, bias, ELEMENTWISE.get(activation))
                expected = plain.linear(x, weight, bias)
                if activation is not None:
                    expected = plain.activation(activation, expected)
                assert y.dtype == dtype and y.shape == expected.shape
                atol = TOLERANCE[dtype] * np.abs(expected).max()
                np.testing.assert_allclose(y, expected, rtol=0, atol=atol)
            np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("name", ["layer_norm", "linear"])
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
        }[name]
        result, expected = getattr(fast, name)(x, *given), getattr(plain, name)(x, *given)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", OVERRIDES)
def test_its_signature_is_that_of_the_method_it_replaces(name):
    assert inspect.signature(getattr(NumpyOps, name)) == inspect.signature(getattr(Ops, name))


def test_the_names_of_the_backends():
    assert type(ops_for("numpy")) is NumpyOps
    assert ops_for("numpy", 3).threads.count == 3
    assert type(ops_for("numpy-reference")) is Ops


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other systems keep memory otherwise")
def test_the_system_is_not_asked_for_the_memory_of_each_pass_anew():
    """The pages that a few wide products need, in a process whose malloc is new."""
    program = """
import resource
import numpy as np
from clipseg_np.backends.numpy_ops import NumpyOps

ops, x, weight = NumpyOps(1), np.ones((1, 485, 768), "f4"), np.ones((3072, 768), "f4")
for number in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    results = [ops.linear(x, weight) for _ in range(4)]
    del results
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(pages)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert int(result.stdout) < 200
