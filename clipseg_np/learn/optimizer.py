"""AdamW, and a rate that rises at the start and falls to the end.

Sources: Loshchilov and Hutter, "Decoupled weight decay regularization" (2019), algorithm 2, and
"SGDR: stochastic gradient descent with warm restarts" (2017), equation 5, without restarts.
"""

import math
from collections.abc import Mapping

from ..nn.ops import Array

BETAS, EPS = (0.9, 0.999), 1e-8


class AdamW:
    """Changes arrays of NumPy or CuPy in place, by the running means of their gradients.

    `means` holds those of the gradients, `squares` those of their squares, by the arrays' names. An
    array W with a matrix A in `coordinates` changes by W' A, where W' learns.
    """

    def __init__(
        self,
        arrays: Mapping[str, Array],
        weight_decay: float = 0.01,
        coordinates: Mapping[str, Array] | None = None,
    ):
        self.arrays, self.weight_decay = arrays, weight_decay
        self.coordinates, self.steps = coordinates or {}, 0
        self.means = {name: array * 0 for name, array in arrays.items()}
        self.squares = {name: array * 0 for name, array in arrays.items()}

    def step(self, gradients: Mapping[str, Array], rate: float) -> None:
        """One step against the gradients. An array without one stays as it is."""
        self.steps += 1
        beta1, beta2 = BETAS
        # Both running means start at 0, and are too small by these factors.
        part1, part2 = 1 - beta1**self.steps, 1 - beta2**self.steps
        for name, gradient in gradients.items():
            array, mean, square = self.arrays[name], self.means[name], self.squares[name]
            matrix = self.coordinates.get(name)
            gradient = gradient if matrix is None else gradient @ matrix.T
            mean += (1 - beta1) * (gradient - mean)
            square *= beta2
            square += (1 - beta2) * gradient * gradient
            change = rate / part1 * mean / ((square / part2) ** 0.5 + EPS)
            array *= 1 - rate * self.weight_decay
            array -= change if matrix is None else change @ matrix


def rate_at(step: int, steps: int, peak: float, warm_up: int, end: float = 0.1) -> float:
    """The rate of step 0, 1, ... steps - 1.

    It rises to `peak` in a line of `warm_up` steps, and falls to `end` of it by half a cosine.
    """
    if step < warm_up:
        return peak * (step + 1) / warm_up
    turn = math.pi * (step - warm_up) / max(1, steps - 1 - warm_up)
    return peak * (end + (1 - end) * (1 + math.cos(turn)) / 2)
