"""The NumPy backend's kernels against the readable operations, at the ends of the range too."""

import numpy as np
import pytest

from clipseg_np.backends.numpy_kernels import ELEMENTWISE, attend
from clipseg_np.nn.ops import Ops

plain = Ops()
TOLERANCE = {"float32": 2e-6, "float64": 1e-14}
CAUSAL = np.tri(7, dtype=bool)[None, None]
PADDED = CAUSAL & (np.arange(7) < np.array([[4], [7]]))[:, None, None]
MASKS = {
    7: [None, CAUSAL, PADDED, np.zeros((2, 1, 7, 7), bool)],
    150: [None, np.tri(150, dtype=bool)[None, None], np.zeros((2, 1, 150, 150), bool)],
}


def attention(q, k, v, mask, kept=None) -> np.ndarray:
    B, N, T, d = q.shape
    mask = None if mask is None else np.broadcast_to(mask, (B, 1, T, T))
    context = np.empty((N, d, B, T), q.dtype)
    attend(q, k, v, mask, context, kept)
    return context.transpose(2, 0, 3, 1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_an_activation_in_place(name, dtype):
    x = np.array([[-1e30, -800, -1, -0.0, 0, 0.5, 800, 1e30], [np.inf, np.nan, *range(6)]], dtype)
    with np.errstate(invalid="ignore"):
        expected = plain.activation(name, x)
    ELEMENTWISE[name](x)
    assert x.dtype == dtype
    np.testing.assert_allclose(x, expected, rtol=TOLERANCE[dtype], atol=0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("T, mask", [(T, mask) for T in MASKS for mask in MASKS[T]])
def test_attention_and_its_weights(T, mask, dtype):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 3, T, 4)).astype(dtype) for _ in range(3))
    given, kept, expected_weights = [x.copy() for x in (q, k, v)], np.empty((2, 3, T, T), dtype), []
    context = attention(q, k, v, mask, kept)
    expected = plain.attention(q, k, v, mask, expected_weights)
    scale = np.abs(expected).max()
    assert context.dtype == dtype
    np.testing.assert_allclose(context, expected, rtol=0, atol=TOLERANCE[dtype] * scale)
    if dtype == "float64":
        np.testing.assert_allclose(kept, expected_weights[0], rtol=1e-13, atol=1e-15)
    for before, after in zip(given, (q, k, v)):
        np.testing.assert_array_equal(before, after)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mask", [None, MASKS[150][1]])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("factor, shift", [(300, 0), (-1, -200), (1e-30, 0)])
def test_attention_where_powers_would_overflow_or_vanish(factor, shift, dtype, mask):
    """Unless the largest score is subtracted first; for some queries, or all, or none."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 3, 150, 4)).astype(dtype) for _ in range(3))
    q[:, :, ::2] = factor * abs(q[:, :, ::2]) + shift
    context, expected = attention(q, abs(k), v, mask), plain.attention(q, abs(k), v, mask)
    scores = abs(q).max() * abs(k).max() * 2  # their rounding is the result's
    atol = TOLERANCE[dtype] * max(1, scores / 100)
    np.testing.assert_allclose(context, expected, rtol=0, atol=atol)
