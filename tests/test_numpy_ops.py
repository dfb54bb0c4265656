"""Each override of the NumPy backend against the readable method that it replaces."""

import inspect
import threading
import time
from copy import deepcopy

import numpy as np
import pytest

from clipseg_np.backends import ops_for
from clipseg_np.numpy_ops import NumpyOps
from clipseg_np.ops import Ops
from clipseg_np.trace import Activations, record, trace

plain = Ops()
TOLERANCE = {"float32": 2e-6, "float64": 1e-14}
ORDERS = ("each", "aside", "memoize")  # of work, whatever it is
OVERRIDES = [
    name
    for name, part in vars(NumpyOps).items()
    if callable(part) and not name.startswith("_") and name not in ORDERS
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
        "linears": [
            (x, [(draw(width, 8), draw(width)), (draw(width, 8), None), (draw(5, 8), draw(5))])
            for x in (draw(2, 5, 8), draw(3, 100, 8), features_first(draw(3, 100, 8)))
            for width in (7, 900)
        ],
        "linear_activated": [
            (*shapes, activation)
            for activation in ("quick_gelu", "relu", "gelu")
            for shapes in (
                (draw(2, 5, 8), draw(3, 8), draw(3)),
                (draw(3, 100, 8), draw(7, 8), draw(7)),
                (features_first(draw(3, 100, 8)), draw(900, 8), draw(900)),
                (1e3 * draw(3, 100, 8), draw(900, 8), None),
            )
        ],
        "mlp": [
            (order(draw(*tokens, D)), (draw(hidden, D), bias), (draw(3, hidden), last), activation)
            for *tokens, D, hidden, order in (
                (2, 5, 4, 99, np.asarray),
                (2, 20, 4, 99, features_first),
                (2, 20, 4, 20, np.asarray),
                (2100, 4, 300, np.asarray),
                (1000, 150, 1200, np.asarray),
            )
            for bias, last in ((None, None), (draw(hidden), draw(3)))
            for activation in ("relu", "quick_gelu", "gelu")
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
        "residual": [
            (draw(2, 5, 8), draw(2, 5, 8)),
            (features_first(draw(2, 50, 8)), draw(2, 50, 8)),
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
        "multi_head_attention": [
            (
                draw(2, T, 96),
                [(0.1 * draw(120, 96), bias) for bias in (draw(120), None, draw(120))],
                heads,
                *more,
            )
            for T, heads, *more in (
                (7, 3, causal),
                (7, 3, padded),
                (150, 3),
                (150, 5),
                (150, 5, np.arange(150) < np.array([[[[99]]], [[[150]]]])),
            )
        ],
        "quick_gelu": [
            (draw(4, 9) * 5,),
            (draw(50, 3000),),
            (np.array([-1e30, -800, 0, 800, 1e30], dtype),),
        ],
    }[name]


def joined(y: np.ndarray | list) -> np.ndarray:
    return np.concatenate(y, axis=-1) if isinstance(y, list) else y


def leaves(given: object) -> list:
    nested = isinstance(given, (tuple, list))
    return [leaf for part in given for leaf in leaves(part)] if nested else [given]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", OVERRIDES)
@pytest.mark.parametrize("threads", (1, 2, 5))
def test_it_gives_the_same_and_leaves_its_inputs_alone(threads, name, dtype):
    fast = NumpyOps(threads)
    for given in arguments(name, dtype):
        before = deepcopy(given)
        found, expected = joined(getattr(fast, name)(*given)), joined(getattr(plain, name)(*before))
        assert found.dtype == expected.dtype == dtype and found.shape == expected.shape
        finite = np.isfinite(expected)
        scale = np.abs(expected[finite]).max(initial=1e-30)
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype] * scale)
        kept = 1 if name == "residual" else None  # the branch's place is the sum's
        for part, was in zip(leaves(given)[:kept], leaves(before)[:kept], strict=True):
            np.testing.assert_array_equal(part, was)


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


@pytest.mark.parametrize("at_once", (1, 2, 5))
@pytest.mark.parametrize("length", (0, 1, 2, 5, 6, 17))
@pytest.mark.parametrize("threads", (1, 2, 3))
def test_each_part_is_done_once_and_the_results_are_in_order(threads, length, at_once):
    parts = NumpyOps(threads).each(lambda part: part, length, at_once)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(length))
    assert all(part.stop - part.start <= at_once for part in parts)


def test_parts_are_done_at_the_same_time():
    meeting = threading.Barrier(3, timeout=20)  # breaks if one waits for another to end
    NumpyOps(3).each(lambda part: meeting.wait(), 6, 2)


def test_who_is_done_with_fewer_parts_helps_with_more():
    """Of 3 parts, two threads take 2 and 1; as a rule the caller is first, and takes 2."""
    fast, meeting, mine = NumpyOps(2), threading.Barrier(2, timeout=20), []

    def work(part):
        length = part.stop - part.start
        if threading.current_thread() is threading.main_thread():
            mine.append(length)
        meeting.wait()  # so that each has its own
        end = time.monotonic() + 20
        while length == mine[-1] == 2 and fast.threads.free == 1 and time.monotonic() < end:
            time.sleep(0.001)
        if length == mine[-1] == 2:
            fast.threads.share(lambda _: meeting.wait(), 2)

    for _ in range(5):
        fast.each(work, 3, 2)
    assert 2 in mine


def test_a_trace_sees_parts_in_their_order_and_work_aside_when_it_is_asked_for():
    fast, seen = NumpyOps(2), Activations()
    with trace(seen):
        fast.each(lambda part: record("part", part.start), 6, 2)
        aside = fast.aside(lambda: record("aside", threading.get_ident()))
        time.sleep(0.1)  # for a thread that must not begin
        assert "aside" not in seen
        aside()
    assert seen.all == {"part": [0, 2, 4], "aside": [threading.get_ident()]}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("allowed", [None, np.tri(150, dtype=bool)[None, None]])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("factor, shift", [(300, 0), (-1, -200), (1e-30, 0)])
def test_attention_where_powers_would_overflow_or_vanish(factor, shift, dtype, allowed):
    """Unless the largest is subtracted from them first; some queries alone, or all, or none."""
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(2, 3, 150, 4)).astype(dtype) for _ in range(3))
    query[:, :, ::2] = factor * abs(query[:, :, ::2]) + shift
    found = NumpyOps(2).attention(query, abs(key), value, allowed)
    expected = plain.attention(query, abs(key), value, allowed)
    scores = abs(query).max() * abs(key).max() * 2  # their rounding is the result's
    atol = TOLERANCE[dtype] * max(1, scores / 100)
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def test_a_sum_stands_in_its_branchs_place_unless_a_trace_holds_the_branch():
    x, branch = np.ones((2, 5, 8)), np.ones((2, 5, 8))
    with trace():
        NumpyOps().residual(x, branch)
    assert (branch == 1).all()
    assert NumpyOps().residual(x, branch) is branch


@pytest.mark.parametrize("number", range(7))
def test_the_attention_weights_are_the_same(number):
    given = arguments("attention", "float64")[number]
    allowed = given[3] if len(given) > 3 else None
    found, expected = [], []
    NumpyOps().attention(*given[:3], allowed, found)
    plain.attention(*given[:3], allowed, expected)
    assert len(found) == 1
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", OVERRIDES)
def test_its_signature_is_that_of_the_method_it_replaces(name):
    assert inspect.signature(getattr(NumpyOps, name)) == inspect.signature(getattr(Ops, name))


def test_the_names_of_the_backends():
    assert type(ops_for("numpy")) is NumpyOps
    assert ops_for("numpy", 3).threads.count == 3
    assert type(ops_for("numpy-reference")) is Ops
