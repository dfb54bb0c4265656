"""Two sets of arrays by name, compared in order of execution: which layer is the first to deviate, how, and how far.

The distance of two arrays is their largest difference, relative to the largest expected number. What is allowed
depends on the coarser of the two float types: see TOLERANCES.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Of the largest number of a layer. Measured over all layers of the official size with drawn weights, one right
# implementation differs from another by up to 3e-6 in float32 and 3e-14 in float64 (tests/oracle); this allows
# ten times as much, and leaves a fault of one part in 30,000 visible in float32.
TOLERANCES = {"float64": 3e-13, "float32": 3e-5, "float16": 2e-2}
# Trained attention can be so sharp that it amplifies rounding. A golden file tells how far float32 went astray in each
# layer when it was made; so many times that is allowed, where it is more.
MEASURED = 10
SAME = 1e-2  # a mistake of a known kind explains a deviation that it shrinks to this share
BEFORE = 3  # layers named before the first that deviates


@dataclass(frozen=True)
class Tolerance:
    """What is allowed, `relative` to the layer's largest number.

    Without `relative`: by the coarser float type, and by `float32_error`, what was measured for each name.
    """

    relative: float | None = None
    float32_error: Mapping[str, float] = field(default_factory=dict)

    def of(self, name: str, *types: str) -> float:
        if self.relative is not None:
            return self.relative
        allowed = max(TOLERANCES.get(kind, 0.0) for kind in types)
        if allowed < TOLERANCES["float32"]:
            return allowed
        return max(allowed, MEASURED * self.float32_error.get(name, 0.0))


@dataclass(frozen=True)
class Row:
    """One name: whether it is fine, the share of the tolerance used, and what to say of it."""

    name: str
    shape: tuple[int, ...]
    used: float  # of the tolerance; infinity where the arrays cannot be compared
    largest: float = 0.0  # difference, absolute
    relative: float = 0.0  # to the largest expected number
    said: str = ""

    @property
    def fine(self) -> bool:
        return self.used <= 1


def compare(
    golden: Mapping[str, Any], other: Mapping[str, Any], relative: float | None = None
) -> list[Row]:
    """A row for every golden name, in the golden's order; names that only `other` has do not matter.

    `relative` is the tolerance, instead of what the float types allow.
    """
    measured = getattr(golden, "about", {}).get("float32_error", {})
    tolerance = Tolerance(relative, measured)
    return [compare_one(name, golden, other, tolerance) for name in golden]


def compare_one(name: str, golden: Mapping, other: Mapping, tolerance: Tolerance) -> Row:
    expected = as_floats(golden[name])
    if name not in other:
        return Row(name, expected.shape, np.inf, said="is missing")
    found = as_floats(other[name])
    allowed = tolerance.of(name, golden[name].dtype.name, other[name].dtype.name)
    if found.shape != expected.shape:
        said = f"has shape {found.shape}; expected {expected.shape}"
        return Row(name, expected.shape, np.inf, said=said + fitting_axes(expected, found, allowed))
    if expected.size == 0:
        return Row(name, expected.shape, 0.0)
    same = (expected == found) | (np.isnan(expected) & np.isnan(found))
    bad = ~np.isfinite(found) & ~same
    if bad.any():
        where = np.argwhere(bad)[0].tolist()
        said = (
            f"holds {found[tuple(where)]} in {bad.sum():,} of {bad.size:,} places, first at {where}"
        )
        return Row(name, expected.shape, np.inf, np.inf, np.inf, said)
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(found - expected))
    largest = float(difference.max())
    relative = largest / scale(expected)
    used = relative / allowed if allowed else (0.0 if largest == 0 else np.inf)
    said = "" if used <= 1 else worst(golden[name], other[name], difference) + kind(expected, found)
    return Row(name, expected.shape, used, largest, relative, said)


def as_floats(array: Any) -> np.ndarray:
    """float64 numbers of any array, a GPU's too."""
    return np.asarray(array.get() if hasattr(array, "get") else array, np.float64)


def scale(expected: np.ndarray) -> float:
    """The largest finite number, or 1 where all are 0."""
    finite = np.abs(expected[np.isfinite(expected)])
    return float(finite.max(initial=0.0)) or 1.0


def worst(golden: Any, other: Any, difference: np.ndarray) -> str:
    """The element that is furthest off."""
    place = np.unravel_index(difference.argmax(), difference.shape)
    expected, found = float(golden[place]), float(other[place])
    coarser = min((golden.dtype, other.dtype), key=lambda dtype: dtype.itemsize)
    said = (
        f"is worst at {[int(i) for i in place]}: expected {expected:.9g}, got {found:.9g}; off by "
        f"{difference[place]:.3g}, {difference[place] / (abs(expected) or 1):.3g} of it"
    )
    if coarser.kind == "f":
        step = float(np.spacing(np.abs(coarser.type(expected))))
        said += f", {difference[place] / step:.3g} ULP of {coarser.name}"
    return said


def kind(expected: np.ndarray, found: np.ndarray) -> str:
    """What kind of mistake would explain the deviation, if one of the known kinds does."""
    before = np.abs(found - expected).max()

    def explains(mended: np.ndarray) -> bool:
        return bool(np.abs(mended - expected).max() <= SAME * before)

    if explains(-found):
        return ". Every sign is wrong"
    product = float((found * found).sum())
    if product == 0:
        return ". All of it is 0"
    factor = float((found * expected).sum()) / product
    if factor and explains(factor * found):
        return f". It is {1 / factor:.6g} times what is expected: a scale is missing or too many"
    for axis in range(found.ndim):
        others = tuple(other for other in range(found.ndim) if other != axis)
        if explains(found + (expected - found).mean(axis=others, keepdims=True)):
            return f". It is off by one number for each place of axis {axis}: a bias is missing or too many"
        if found.shape[axis] > 1 and explains(np.flip(found, axis)):
            return f". Axis {axis} is reversed"
    for axes in permutations(found.ndim):
        if found.transpose(axes).shape == expected.shape and explains(found.transpose(axes)):
            return f". Its axes are in another order: transpose{axes} fits"
    return ""


def fitting_axes(expected: np.ndarray, found: np.ndarray, allowed: float) -> str:
    """Which transposition or reshape gives the expected shape, and whether the numbers then are right."""
    fits = [a for a in permutations(found.ndim) if found.transpose(a).shape == expected.shape]
    for axes in fits:
        if np.abs(found.transpose(axes) - expected).max() <= allowed * scale(expected):
            return f". transpose{axes} fits, and makes the numbers right"
    if fits:
        return f". transpose{fits[0]} fits the shape, but not the numbers"
    if found.size == expected.size:
        right = np.abs(found.reshape(expected.shape) - expected).max() <= allowed * scale(expected)
        return f". A reshape fits{', and makes the numbers right' if right else ''}"
    return ""


def permutations(ndim: int) -> list[tuple[int, ...]]:
    """The orders of so many axes, without the one they are in; none where there are too many to try."""
    return [] if ndim > 5 else list(itertools.permutations(range(ndim)))[1:]


def report(rows: list[Row], table: bool = True) -> str:
    """The first name that deviates, with what came before it; then a line for each name."""
    wrong = [number for number, row in enumerate(rows) if not row.fine]
    if wrong:
        first = rows[wrong[0]]
        lines = [f"{first.name} is the first of {len(wrong)} that deviate(s): it {first.said}."]
        if np.isfinite(first.used):
            lines.append(f"It uses {first.used:.3g} times the tolerance.")
        before = [row.name for row in rows[max(0, wrong[0] - BEFORE) : wrong[0]]]
        lines.append(
            f"Before it, {wrong[0]} agree(s){', last ' + ', '.join(before) if before else ''}."
        )
    else:
        most = max(rows, key=lambda row: row.used, default=None)
        lines = [f"All {len(rows)} agree."]
        if most is not None:
            lines.append(f"{most.name} uses most of the tolerance: {most.used:.1%}.")
    if table:
        width = max((len(row.name) for row in rows), default=0)
        lines += ["", f"{'name':<{width}}  {'largest':>9}  {'relative':>9}  {'of tolerance':>12}"]
        for row in rows:
            mark = "" if row.fine else "  <-"
            lines.append(
                f"{row.name:<{width}}  {row.largest:9.2e}  {row.relative:9.2e}  {row.used:12.2%}{mark}"
            )
    return "\n".join(lines)
