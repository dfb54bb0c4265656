"""What a change of an operation's result makes of its inputs: the derivatives of `Ops`, in order.

`d_y` is the derivative of the loss by `y`: an array of y's shape. Each function is pure, and works
on any array module.
"""

from .ops import Array


def linear(d_y: Array, weight: Array) -> Array:
    """By x, of y = x Wᵀ + b.  (..., out) -> (..., in)"""
    return d_y @ weight


def linear_weight(d_y: Array, x: Array) -> Array:
    """By W.  (..., out), (..., in) -> (out, in)"""
    return d_y.reshape(-1, d_y.shape[-1]).T @ x.reshape(-1, x.shape[-1])


def sum_rows(d_y: Array) -> Array:
    """By b, which every row was added to.  (..., out) -> (out)"""
    return d_y.reshape(-1, d_y.shape[-1]).sum(axis=0)
