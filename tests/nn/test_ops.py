"""The arithmetic against plain loops, closed forms and numbers worked out by hand, in float64."""

import math
import warnings

import numpy as np
import pytest

from clipseg_np.nn.ops import Ops, bicubic_weights

ops = Ops()


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def close(got, expected, tolerance=1e-12):
    assert got.shape == np.shape(expected)
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


def test_linear_is_x_times_the_transposed_weight_plus_bias():
    weight, bias = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), np.array([0.5, 0.0, -1.0])
    x = np.array([[10.0, 1.0]])
    close(ops.linear(x, weight, bias), [[12.5, 34.0, 55.0]])
    close(ops.linear(x, weight), [[12.0, 34.0, 56.0]])


@pytest.mark.parametrize("height, width", [(6, 6), (6, 9), (8, 7)])  # the last: pixels left over
def test_patch_conv2d_against_loops(height, width):
    x, weight = drawn(2, 4, height, width), drawn(5, 4, 3, 3, seed=1)
    expected = np.zeros((2, 5, height // 3, width // 3))
    for b, d, row, column in np.ndindex(expected.shape):
        patch = x[b, :, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        expected[b, d, row, column] = (patch * weight[d]).sum()
    close(ops.patch_conv2d(x, weight), expected)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_P18_conv2d_against_loops(kernel):
    x, weight, bias = drawn(2, 3, 4, 5), drawn(6, 3, kernel, kernel, seed=1), drawn(6, seed=2)
    expected = np.zeros((2, 6, 4, 5)) + bias[:, None, None]
    for b, d, row, column in np.ndindex(expected.shape):
        for i, j in np.ndindex(kernel, kernel):
            y, z = row + i - kernel // 2, column + j - kernel // 2
            if 0 <= y < 4 and 0 <= z < 5:
                expected[b, d, row, column] += x[b, :, y, z] @ weight[d, :, i, j]
    close(ops.conv2d(x, weight, bias), expected)


def test_P18_conv_transpose2d_paints_blocks_unflipped():
    x, weight, bias = drawn(2, 3, 4, 5), drawn(3, 6, 2, 2, seed=1), drawn(6, seed=2)
    expected = np.zeros((2, 6, 8, 10)) + bias[:, None, None]
    for b, c, row, column in np.ndindex(x.shape):
        block = x[b, c, row, column] * weight[c]
        expected[b, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += block
    close(ops.conv_transpose2d(x, weight, bias), expected)


def test_layer_norm_by_hand():
    x = np.array([[1.0, 2.0, 3.0, 6.0]])  # mean 3, biased variance 3.5
    got = ops.layer_norm(x, np.array([1.0, 1, 1, 2]), np.array([0.0, 0, 5, 0]), eps=0.5)
    close(got, [[-1, -0.5, 5, 3]])


def test_layer_norm_of_equal_numbers_is_the_bias():
    close(ops.layer_norm(np.full((2, 4), 7.0), np.ones(4), drawn(4), 1e-5), [drawn(4)] * 2)


def test_softmax():
    x = np.log([[1.0, 2, 5], [3, 3, 2]])
    close(ops.softmax(x), [[0.125, 0.25, 0.625], [0.375, 0.375, 0.25]])


def test_softmax_of_huge_numbers():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        close(ops.softmax(np.array([[1e308, 1e308], [-1e300, 1e300]])), [[0.5, 0.5], [0, 1]])
        assert np.isfinite(ops.softmax(np.array([[1e38, -1e38]], np.float32))).all()


def attention_by_loops(query, key, value, allowed):
    mixed = np.zeros_like(value)
    for b, h, t in np.ndindex(query.shape[:3]):
        seen = [s for s in range(key.shape[2]) if allowed[b, 0, t, s]] or list(range(key.shape[2]))
        if allowed[b, 0, t].any():
            scores = [query[b, h, t] @ key[b, h, s] / math.sqrt(query.shape[3]) for s in seen]
        else:  # nothing is allowed: all alike
            scores = [0.0] * len(seen)
        weights = np.exp(scores) / np.exp(scores).sum()
        mixed[b, h, t] = sum(w * value[b, h, s] for w, s in zip(weights, seen, strict=True))
    return mixed


def test_attention_against_loops_with_a_mask_and_a_row_that_sees_nothing():
    query, key, value = (drawn(2, 3, 4, 5, seed=seed) for seed in range(3))
    allowed = np.random.default_rng(3).integers(0, 2, (2, 1, 4, 4)).astype(bool)
    allowed[0, 0, 1] = False
    allowed[1, 0, 2] = True
    kept = []
    got = ops.attention(query, key, value, allowed, kept)
    close(got, attention_by_loops(query, key, value, allowed))
    close(kept[0] @ value, got)
    close(kept[0].sum(axis=-1), np.ones((2, 3, 4)))
    close(kept[0][0, :, 1], np.full((3, 4), 0.25))
    forbidden = ~np.broadcast_to(allowed, kept[0].shape) & allowed.any(-1, keepdims=True)
    assert forbidden.any() and (kept[0][forbidden] == 0).all()


def test_attention_without_a_mask_sees_all():
    query, key, value = (drawn(1, 2, 3, 4, seed=seed) for seed in range(3))
    everything = np.ones((1, 1, 3, 3), bool)
    close(ops.attention(query, key, value), attention_by_loops(query, key, value, everything))


WIDE = np.concatenate([np.linspace(-9, 9, 1801), [0.0, 1e-300, -1e-8, 30, -700, 1e4, -1e4]])


def test_erf_against_the_standard_library():
    close(ops.erf(WIDE), [math.erf(x) for x in WIDE], 1e-15)
    assert ops.erf(WIDE.astype(np.float32)).dtype == np.float32


def plain_sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


SCALE, ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
ACTIVATIONS = {
    "quick_gelu": lambda x: x * plain_sigmoid(1.702 * x),
    "gelu": lambda x: x * math.erfc(-x / math.sqrt(2)) / 2,
    "gelu_new": lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: max(x, 0.0),
    "selu": lambda x: SCALE * (x if x > 0 else ALPHA * math.expm1(x)),
}


@pytest.mark.parametrize("name", Ops.ACTIVATIONS)
def test_P09_activations_against_the_standard_library(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = ops.activation(name, WIDE)
    expected = [ACTIVATIONS[name](x) for x in WIDE]
    np.testing.assert_allclose(got, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", Ops.ACTIVATIONS)
def test_activations_keep_float32_and_do_not_overflow_in_it(name):
    x = np.array([-1e10, -200, -1, 0, 1, 200, 1e10], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = ops.activation(name, x)
    assert got.dtype == np.float32 and np.isfinite(got).all()
    np.testing.assert_allclose(got[2:], [ACTIVATIONS[name](float(v)) for v in x[2:]], rtol=1e-6)


def test_the_activations_differ_where_it_matters():
    """At 1 they lie within 0.01 and would pass a loose comparison for one another."""
    at_one = {name: float(ops.activation(name, np.array([1.0]))[0]) for name in Ops.ACTIVATIONS}
    assert at_one["gelu"] == pytest.approx(0.841344746, abs=1e-9)
    assert at_one["gelu_new"] == pytest.approx(0.841191991, abs=1e-9)
    assert at_one["quick_gelu"] == pytest.approx(0.845795766, abs=1e-9)
    assert at_one["selu"] == pytest.approx(1.050700987, abs=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sigmoid_at_both_ends(dtype):
    x = np.array([-1e30, -800, 0, 2, 800, 1e30], dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = ops.sigmoid(x)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, [0, 0, 0.5, 1 / (1 + math.exp(-2)), 1, 1], rtol=1e-6)


@pytest.mark.parametrize("old, new", [(1, 4), (2, 5), (7, 7), (7, 3), (14, 22), (5, 1), (3, 50)])
def test_P04_bicubic_weights_sum_to_one(old, new):
    close(bicubic_weights(old, new).sum(axis=1), np.ones(new))


@pytest.mark.parametrize("side", [1, 2, 7, 14])
def test_P04_bicubic_at_the_same_size_changes_nothing(side):
    close(bicubic_weights(side, side), np.eye(side))
    grid = drawn(side, side + 1, 3)
    close(ops.resize_bicubic(grid, (side, side + 1)), grid)


def test_P04_bicubic_by_hand():
    """Doubling: a quarter off each centre, the four weights are those of a = -0.75.

    W(1/4) = 1 - 2.25/16 + 1.25/64, W(3/4), W(5/4) and W(7/4) from Keys' formula; a = -0.5 gives
    -0.0234375 where -0.0351562 stands.
    """
    weights = bicubic_weights(8, 16)
    close(weights[8, 2:6], [-0.03515625, 0.26171875, 0.87890625, -0.10546875])
    close(weights[9, 3:7], [-0.10546875, 0.87890625, 0.26171875, -0.03515625])
    assert abs(bicubic_weights(8, 16, a=-0.5)[8, 2] + 0.0234375) < 1e-12
    # At the border, the first sample stands for those beyond it: half a pixel before the first
    # centre.
    close(weights[0, :3], [-0.03515625 + 0.26171875 + 0.87890625, -0.10546875, 0])


def test_P04_bicubic_shrinks_without_smoothing():
    """Each new sample sees four old ones, however many lie between: no antialiasing."""
    assert (np.count_nonzero(bicubic_weights(64, 8), axis=1) == 4).all()


def test_resize_bicubic_treats_rows_and_columns_apart():
    grid = drawn(3, 4, 2)
    rows, columns = bicubic_weights(3, 5), bicubic_weights(4, 2)
    expected = np.einsum("ik,jl,kld->ijd", rows, columns, grid)
    close(ops.resize_bicubic(grid, (5, 2)), expected)
    assert ops.resize_bicubic(grid.astype(np.float32), (5, 2)).dtype == np.float32


def test_binary_cross_entropy_by_hand():
    logits, labels = np.array([[0.0, 2.0], [-3.0, 1.0]]), np.array([[1.0, 0.0], [0.25, 1.0]])
    p = [plain_sigmoid(x) for x in logits.ravel()]
    expected = [
        -(y * math.log(q) + (1 - y) * math.log(1 - q))
        for q, y in zip(p, labels.ravel(), strict=True)
    ]
    assert ops.binary_cross_entropy(logits, labels) == pytest.approx(np.mean(expected), abs=1e-15)


def test_binary_cross_entropy_of_huge_logits():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = ops.binary_cross_entropy(np.array([1e4, -1e4, -1e4]), np.array([1.0, 0.0, 1.0]))
    assert loss == pytest.approx(1e4 / 3)


def test_cross_entropy_by_hand():
    logits = np.log([[1.0, 3.0], [4.0, 1.0]]) + 1e6
    got = ops.cross_entropy(logits, np.array([1, 1]))
    assert got == pytest.approx(-(math.log(0.75) + math.log(0.2)) / 2, abs=1e-9)
