"""Derivatives by finite differences, which know nothing of the formulas that they check."""

from collections.abc import Callable

import numpy as np

STEP = 1e-5
LIMIT = 1e-8  # of the largest derivative


def derivative(loss: Callable[[], float], array: np.ndarray, direction: np.ndarray) -> float:
    """Of `loss`, which reads `array`, along a direction. The error is of the order of STEP**4."""
    start, values = array.copy(), {}
    for steps in (-2, -1, 1, 2):
        array[...] = start + steps * STEP * direction
        values[steps] = float(loss())
    array[...] = start
    return (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * STEP)


def unit_directions(array: np.ndarray):
    """One for each number of the array."""
    for i in range(array.size):
        direction = np.zeros(array.size)
        direction[i] = 1
        yield direction.reshape(array.shape)


def deviations(
    loss: Callable[[], float],
    arrays: dict[str, np.ndarray],
    gradients: dict[str, np.ndarray],
    directions: int | None = None,
) -> dict[str, float]:
    """The worst deviation of each gradient, as a share of the largest derivative of all.

    Along each array's every number, or along so many drawn directions.
    """
    assert set(arrays) <= set(gradients), set(arrays) - set(gradients)
    found, size, rng = {}, 0.0, np.random.default_rng(0)
    for name, array in arrays.items():
        assert gradients[name].shape == array.shape, (name, gradients[name].shape, array.shape)
        ways = unit_directions(array)
        if directions is not None:
            ways = rng.normal(size=(directions, *array.shape)) / array.size**0.5
        found[name] = 0.0
        for way in ways:
            expected = derivative(loss, array, way)
            size = max(size, abs(expected))
            found[name] = max(found[name], abs((gradients[name] * way).sum() - expected))
    assert size > 0
    return {name: worst / size for name, worst in found.items()}


def assert_gradients(loss, arrays, gradients, directions: int | None = None) -> None:
    found = deviations(loss, arrays, gradients, directions)
    beyond = {name: f"{share:.1e}" for name, share in found.items() if not share <= LIMIT}
    assert not beyond, f"allowed {LIMIT:.0e}, found {beyond}"
