"""The comparison of two sets of arrays: names, numbers, and the mistake if it is a known one."""

import numpy as np
import pytest

from clipseg_np.errors import InputError
from clipseg_np.golden.compare import FLOAT32_ERROR_MULTIPLE, TOLERANCES, compare, report

rng = np.random.default_rng(0)
EXPECTED = rng.normal(size=(2, 3, 5)) * 4
GOLDEN = {"first": rng.normal(size=(4,)), "second": EXPECTED, "third": rng.normal(size=(2, 2))}


def first_line(actual) -> str:
    """The report's first line if "second" is `actual` in float64."""
    return report(compare(GOLDEN, GOLDEN | {"second": actual}), table=False).splitlines()[0]


def test_equal_arrays_agree():
    rows = compare(GOLDEN, dict(GOLDEN))
    assert [row.name for row in rows] == list(GOLDEN)
    assert all(row.fine and row.used == 0 for row in rows)
    assert report(rows).startswith("All 3 agree.")


@pytest.mark.parametrize(
    ("actual", "mistake"),
    [
        (-EXPECTED, "Every sign is wrong"),
        (8 * EXPECTED, "It is 8 times what is expected"),
        (EXPECTED / 64**0.5, "It is 0.125 times what is expected"),
        (-2 * EXPECTED, "It is -2 times"),
        (0 * EXPECTED, "All of it is 0"),
        (EXPECTED + np.arange(5), "one number for each place of axis 2: a bias"),
        (EXPECTED + np.arange(3)[:, None], "one number for each place of axis 1: a bias"),
        (EXPECTED[:, ::-1], "Axis 1 is reversed"),
        (EXPECTED.transpose(0, 2, 1), r"transpose(0, 2, 1) fits, and makes the numbers right"),
        (EXPECTED.transpose(2, 0, 1), r"transpose(1, 2, 0) fits, and makes the numbers right"),
        (EXPECTED.transpose(0, 2, 1) + 1, "fits the shape, but not the numbers"),
        (EXPECTED.reshape(2, 15), "A reshape fits, and makes the numbers right"),
        (EXPECTED[:, :2], "has shape (2, 2, 5); expected (2, 3, 5)."),
        (np.where(EXPECTED > 4, np.nan, EXPECTED), "it holds nan in "),
        (np.where(EXPECTED > 4, np.inf, EXPECTED), "it holds inf in "),
    ],
)
def test_a_mistake_of_a_known_kind_is_named(actual, mistake):
    line = first_line(actual)
    assert line.startswith("second is the first of 1 that deviate(s): it ")
    assert mistake in line


@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
@pytest.mark.filterwarnings("error")
def test_an_expected_number_that_is_not_finite(special):
    (row,) = compare({"x": np.array([special, 1.0])}, {"x": np.array([2.0, 1.0])})
    message = f"holds 2.0 in 1 of 2 places, first at [0]; expected {special} there"
    assert (row.message, row.used, row.largest) == (message, np.inf, np.inf)
    (row,) = compare({"x": np.array([special, 1.0])}, {"x": np.array([special, 3.0])})
    assert row.message.startswith("is worst at [1]: expected 1, got 3; off by 2")
    assert row.largest == 2 and row.message.endswith("ULP of float64")
    (row,) = compare({"x": np.array([[special, 1.0]])}, {"x": np.array([[special], [1.0]])})
    assert "transpose(1, 0) fits" in row.message


def test_square_axes_in_another_order_are_seen_by_their_numbers():
    square = rng.normal(size=(4, 4))
    (row,) = compare({"x": square}, {"x": square.T})
    assert "transpose(1, 0) fits" in row.message == row.said


def test_a_deviation_of_no_known_kind_is_given_by_its_worst_element():
    actual = EXPECTED.copy()
    actual[1, 2, 3] += 1e-6
    line = first_line(actual)
    assert "it is worst at [1, 2, 3]: expected " in line and "off by 1e-06" in line
    assert "ULP of float64" in line and "a bias" not in line


def test_a_name_that_is_missing_does_not_deviate():
    """Nor do names hide that only the port has."""
    port = {"third": GOLDEN["third"], "more": EXPECTED}
    rows = compare(GOLDEN, port)
    assert [(row.name, row.fine, row.missing) for row in rows] == [
        ("first", True, True),
        ("second", True, True),
        ("third", True, False),
    ]
    assert report(rows, table=False).splitlines() == [
        "All 1 agree.",
        "third uses most of the tolerance: 0.0%.",
        "2 are not there yet, last second.",
    ]
    text = report(compare(GOLDEN, port | {"third": GOLDEN["third"] + 1}))
    assert text.startswith("third is the first of 1 that deviate(s): it ")
    assert "Before it, 0 agree(s).\n2 before it are not there yet, last second.\n" in text
    assert "inf" not in text and text.count("  <-") == 1
    assert "\nfirst   is not there yet\nsecond  is not there yet\nthird " in text


def test_a_misspelled_name_is_offered_where_one_is_missing():
    golden = {"vision.pre_layrnorm": np.ones(2), "vision.layers.0": np.ones(2)}
    port = {"vision.pre_layernorm": np.ones(2), "vision.layers.0": np.ones(2), "more": np.ones(2)}
    missing, _ = compare(golden, port)
    assert missing.message == "is not there yet; or is it vision.pre_layernorm"


@pytest.mark.parametrize(("port", "got"), [({}, "none"), ({"b": EXPECTED, "a": 1}, "a, b")])
def test_a_port_with_no_golden_name_is_refused(port, got):
    with pytest.raises(InputError, match=f"expected names such as third, got {got}."):
        compare(GOLDEN, port)
    assert compare({}, port) == []


def test_arrays_that_cannot_be_compared_show_no_numbers():
    text = report(compare(GOLDEN, GOLDEN | {"second": EXPECTED[:, :2]}))
    assert "\nsecond  has shape (2, 2, 5); expected (2, 3, 5)  <-\n" in text


def with_errors(*shares: float) -> str:
    """The report of arrays whose errors are these shares of the tolerance of float32."""
    golden = {f"layer {i}": np.ones(1) for i in range(len(shares))}
    port = {n: a + TOLERANCES["float32"] * s for (n, a), s in zip(golden.items(), shares)}
    tolerance = TOLERANCES["float32"]
    return report(compare(golden, port, tolerance), table=False)


def test_the_first_jump_is_named_beside_the_first_excess():
    """Rounding hides a small mistake at its layer; it grows until a later layer exceeds."""
    text = with_errors(0.004, 0.01, 0.63, 0.6, 0.9, 5, 7)
    assert text.startswith("layer 5 is the first of 2 that deviate(s)")
    assert "The error jumps before, at layer 2: from 1.0% of the tolerance to 63.0%." in text
    for shares in [(0.01, 0.02, 5), (0.01, 0.04, 0.1, 0.3, 2), (0.01, 0.63, 0.9)]:
        assert "jumps" not in with_errors(*shares)


def test_the_report_names_the_layers_before_and_marks_all_that_deviate():
    text = report(
        compare(GOLDEN, {n: a + 1 for n, a in GOLDEN.items()} | {"first": GOLDEN["first"]})
    )
    assert "second is the first of 2" in text and "Before it, 1 agree(s), last first." in text
    assert [line.split()[0] for line in text.splitlines() if line.endswith("<-")] == [
        "second",
        "third",
    ]


@pytest.mark.parametrize(
    ("types", "allowed"),
    [
        (("float64", "float64"), TOLERANCES["float64"]),
        (("float64", "float32"), TOLERANCES["float32"]),
        (("float16", "float32"), TOLERANCES["float16"]),
    ],
)
def test_the_coarser_type_decides_what_is_allowed(types, allowed):
    for share in (0.5, 2):
        x = np.ones(3) * 1024
        off = x + 1024 * share * allowed
        (row,) = compare({"x": x.astype(types[0])}, {"x": off.astype(types[1])})
        assert row.fine == (share < 1), row


def test_whole_numbers_must_be_equal():
    ids = np.array([5, 6])
    assert compare({"ids": ids}, {"ids": ids.astype(np.int32)})[0].fine
    assert not compare({"ids": ids}, {"ids": ids + [0, 1]})[0].fine


def test_a_tolerance_that_is_given_is_the_one():
    off = {"x": np.array([1.0, 1.001])}
    assert not compare({"x": np.ones(2)}, off)[0].fine
    assert compare({"x": np.ones(2)}, off, 2e-3)[0].fine
    assert not compare({"x": np.ones(2)}, off, 5e-4)[0].fine


def test_where_rounding_is_amplified_more_is_allowed():
    class Measured(dict):
        """As a golden file: a mapping that knows what made it."""

    golden = Measured(x=np.ones(2), y=np.ones(2))
    golden.about = {"float32_error": {"x": 1e-4}}
    off = np.ones(2) + 0.9e-4 * FLOAT32_ERROR_MULTIPLE
    single = {"x": off.astype(np.float32), "y": off.astype(np.float32)}
    assert [row.fine for row in compare(golden, single)] == [True, False]
    assert [row.fine for row in compare(golden, {"x": off, "y": off})] == [False, False]
    # 2**-29 of that in float64; integers are equal, or differ.
    for share, fine in (0.9, True), (1.1, False):
        off = np.ones(2) + share * 1e-4 * FLOAT32_ERROR_MULTIPLE * 2**-29
        assert [row.fine for row in compare(golden, {"x": off, "y": off})] == [fine, False]
    golden = Measured(x=np.full(2, 10**6))
    golden.about = {"float32_error": {"x": 1e-4}}
    assert not compare(golden, {"x": golden["x"] + 1})[0].fine


def test_nan_that_is_expected_is_fine():
    x = np.array([1.0, np.nan, np.inf])
    assert compare({"x": x}, {"x": x.copy()})[0].fine
