"""Compare two sets of arrays by name: the first layer that deviates, how, and how far.

The distance of two arrays is their largest difference, relative to the largest expected number. The
coarser of the two float types decides the tolerance: see TOLERANCES.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np

from ..errors import InputError

# Relative to a layer's largest number. Over all layers of the official size with random weights,
# correct implementations differ by up to 3e-6 in float32 and 3e-14 in float64 (tests/oracle). Ten
# times that is allowed; an error of one part in 30,000 stays visible in float32.
TOLERANCES = {"float64": 3e-13, "float32": 3e-5, "float16": 2e-2}
# Sharp attention amplifies rounding. A golden file gives the float32 error of each layer, measured
# when the file was made; this multiple of it is allowed if it is more, and in float64 as much less
# as its rounding is finer.
FLOAT32_ERROR_MULTIPLE = 10
FINER = 2.0**-29
# A known mistake explains a deviation if its correction shrinks the deviation to this share.
MAX_UNEXPLAINED = 1e-2
# The number of layers that the report names before the first that deviates.
MAX_NAMED = 3
# An error is a jump if it is this multiple of each before it, and this share of the tolerance. A
# wrong epsilon in float32 makes it 40 times as large, and exceeds the tolerance layers later.
MIN_JUMP, MIN_JUMP_SHARE = 5, 0.05
# How alike two names are, of which one may be the other's misspelling.
MIN_LIKENESS = 0.9


@dataclass(frozen=True)
class Row:
    """The comparison of one array.

    used: the share of the tolerance; infinity if the arrays cannot be compared, 0 if it is missing.
    largest: the largest absolute difference. relative: that, over the largest expected number.
    message: how the array deviates, or that it is missing; "" if it agrees.
    """

    name: str
    shape: tuple[int, ...]
    used: float
    largest: float = 0.0
    relative: float = 0.0
    message: str = ""

    said = property(lambda self: self.message)  # its name in 0.1

    @property
    def fine(self) -> bool:
        return self.used <= 1

    missing = property(lambda self: self.fine and bool(self.message))


def compare(
    golden: Mapping[str, Any], other: Mapping[str, Any], relative: float | None = None
) -> list[Row]:
    """A row for each golden name, in golden order; names that only `other` has are ignored.

    An array that `other` lacks is missing, and does not deviate: a port may be unfinished.
    relative: the tolerance, in place of the float types' one. Raises InputError if all are missing.
    """
    errors = getattr(golden, "about", {}).get("float32_error", {})
    names, spare = set(other), sorted(set(other).difference(golden))
    if golden and len(spare) == len(names):
        raise InputError(
            f"None of the port's {len(names)} arrays has a name of the golden file; expected names "
            f"such as {list(golden)[-1]}, got {', '.join(spare[:MAX_NAMED]) or 'none'}."
        )
    rows = []
    for name, expected in golden.items():
        if name not in names:
            near = get_close_matches(name, spare, 1, MIN_LIKENESS)
            message = "; or is it ".join(["is not there yet", *near])
            rows.append(Row(name, expected.shape, 0.0, message=message))
            continue
        actual, tolerance = other[name], relative
        if tolerance is None:
            types = expected.dtype.name, actual.dtype.name
            tolerance = max(TOLERANCES.get(kind, 0.0) for kind in types)
            if tolerance:
                finer = FINER if tolerance == TOLERANCES["float64"] else 1
                tolerance = max(tolerance, finer * FLOAT32_ERROR_MULTIPLE * errors.get(name, 0.0))
        rows.append(compare_one(name, expected, actual, tolerance))
    return rows


# Infinite numbers that agree have the difference NaN.
@np.errstate(invalid="ignore")
def compare_one(name: str, golden: Any, other: Any, tolerance: float) -> Row:
    expected, actual = as_floats(golden), as_floats(other)
    shape = expected.shape
    if actual.shape != shape:
        message = f"has shape {actual.shape}; expected {shape}"
        message += reshaping(expected, actual, tolerance)
        return Row(name, shape, np.inf, message=message)
    if expected.size == 0:
        return Row(name, shape, 0.0)
    same = (expected == actual) | (np.isnan(expected) & np.isnan(actual))
    bad = ~(np.isfinite(actual) & np.isfinite(expected)) & ~same
    if bad.any():
        place = tuple(np.argwhere(bad)[0].tolist())
        message = f"holds {actual[place]} in {bad.sum():,} of {bad.size:,} places"
        message += f", first at {list(place)}; expected {expected[place]} there"
        return Row(name, shape, np.inf, np.inf, np.inf, message)
    difference = np.where(same, 0.0, np.abs(actual - expected))
    largest = float(difference.max())
    relative = largest / scale(expected)
    used = relative / tolerance if tolerance else (0.0 if largest == 0 else np.inf)
    message = "" if used <= 1 else worst(golden, other, difference) + mistake(expected, actual)
    return Row(name, shape, used, largest, relative, message)


def as_floats(array: Any) -> np.ndarray:
    """float64 numbers of any array, also of a GPU's."""
    return np.asarray(array.get() if hasattr(array, "get") else array, np.float64)


def scale(expected: np.ndarray) -> float:
    """The largest finite absolute value, or 1 if all are 0."""
    finite = np.abs(expected[np.isfinite(expected)])
    return float(finite.max(initial=0.0)) or 1.0


def worst(golden: Any, other: Any, difference: np.ndarray) -> str:
    """The element with the largest difference."""
    place = np.unravel_index(difference.argmax(), difference.shape)
    expected, actual, off = float(golden[place]), float(other[place]), difference[place]
    message = (
        f"is worst at {[int(i) for i in place]}: expected {expected:.9g}, got {actual:.9g}; "
        f"off by {off:.3g}, {off / (abs(expected) or 1):.3g} of it"
    )
    coarser = min((golden.dtype, other.dtype), key=lambda dtype: dtype.itemsize)
    if coarser.kind == "f":
        ulp = float(np.spacing(np.abs(coarser.type(expected))))
        message += f", {off / ulp:.3g} ULP of {coarser.name}"
    return message


def mistake(expected: np.ndarray, actual: np.ndarray) -> str:
    """The first known mistake whose correction explains the deviation, or ""."""
    if not (actual * actual).any():
        return ". All of it is 0"
    allowed = MAX_UNEXPLAINED * np.abs(actual - expected).max()
    for message, corrected in corrections(expected, actual):
        if np.abs(corrected - expected).max() <= allowed:
            return f". {message}"
    return ""


def corrections(expected: np.ndarray, actual: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Each known mistake, and the array without it."""
    yield "Every sign is wrong", -actual
    factor = float((actual * expected).sum()) / float((actual * actual).sum())
    if factor:
        message = f"It is {1 / factor:.6g} times what is expected: a scale is missing or too many"
        yield message, factor * actual
    for axis in range(actual.ndim):
        others = tuple(other for other in range(actual.ndim) if other != axis)
        message = f"It is off by one number for each place of axis {axis}"
        message += ": a bias is missing or too many"
        yield message, actual + (expected - actual).mean(axis=others, keepdims=True)
        if actual.shape[axis] > 1:
            yield f"Axis {axis} is reversed", np.flip(actual, axis)
    for axes in permutations(actual, expected.shape):
        yield f"Its axes are in another order: transpose{axes} fits", actual.transpose(axes)


def reshaping(expected: np.ndarray, actual: np.ndarray, tolerance: float) -> str:
    """The transposition or reshape that gives the expected shape, and if the numbers then agree."""
    fits = [(f"transpose{a}", actual.transpose(a)) for a in permutations(actual, expected.shape)]
    if actual.size == expected.size:
        fits.append(("A reshape", actual.reshape(expected.shape)))
    for name, reshaped in fits:
        if np.abs(reshaped - expected).max(initial=0.0) <= tolerance * scale(expected):
            return f". {name} fits, and makes the numbers right"
    return f". {fits[0][0]} fits the shape, but not the numbers" if fits else ""


def permutations(actual: np.ndarray, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The orders of up to 5 axes, other than the present one, that give this shape."""
    orders = [*itertools.permutations(range(actual.ndim))][1:] if actual.ndim <= 5 else []
    return [axes for axes in orders if actual.transpose(axes).shape == shape]


def report(rows: list[Row], table: bool = True) -> str:
    """The first name that deviates, and those before it; then a line for each name."""
    wrong = [i for i, row in enumerate(rows) if not row.fine]
    before = rows[: wrong[0]] if wrong else rows
    present = [row for row in before if not row.missing]
    if wrong:
        first = rows[wrong[0]]
        lines = [f"{first.name} is the first of {len(wrong)} that deviate(s): it {first.message}."]
        if np.isfinite(first.used):
            lines.append(f"It uses {first.used:.3g} times the tolerance.")
        last = ", ".join(row.name for row in present[-MAX_NAMED:])
        lines.append(f"Before it, {len(present)} agree(s){last and f', last {last}'}.")
        peaks = itertools.accumulate((row.used for row in present), max, initial=0.0)
        for row, peak in zip(present, peaks):
            if row.used >= max(MIN_JUMP_SHARE, MIN_JUMP * peak):
                share = f"from {peak:.1%} of the tolerance to {row.used:.1%}"
                lines.append(f"The error jumps before, at {row.name}: {share}. Look there first.")
                break
    else:
        lines = [f"All {len(present)} agree."]
        if present:
            most = max(present, key=lambda row: row.used)
            lines.append(f"{most.name} uses most of the tolerance: {most.used:.1%}.")
    if missing := [row for row in before if row.missing]:
        number = f"{len(missing)} before it" if wrong else len(missing)
        lines.append(f"{number} are not there yet, last {missing[-1].name}.")
    if table:
        width = max((len(row.name) for row in rows), default=0)
        lines += ["", f"{'name':<{width}}  {'largest':>9}  {'relative':>9}  {'of tolerance':>12}"]
        for row in rows:
            numbers = f"{row.largest:9.2e}  {row.relative:9.2e}  {row.used:12.2%}"
            numbers = row.message if row.message and not row.largest else numbers
            lines.append(f"{row.name:<{width}}  {numbers}{'' if row.fine else '  <-'}")
    return "\n".join(lines)
