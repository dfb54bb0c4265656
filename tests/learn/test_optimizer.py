"""AdamW by hand: its formula on one number, PyTorch's own, and the rate's curve."""

import numpy as np
import pytest

from clipseg_np.learn.optimizer import AdamW, rate_at


def test_the_first_step_is_the_rate_long_whatever_the_gradient():
    x = np.array([1.0, 1.0, 1.0])
    AdamW({"x": x}, weight_decay=0).step({"x": np.array([1e-3, -5, 700])}, rate=0.1)
    np.testing.assert_allclose(x, [0.9, 1.1, 0.9], atol=1e-6)


def test_weights_decay_by_their_size_and_apart_from_the_gradient():
    x = np.array([2.0, -4.0])
    AdamW({"x": x}, weight_decay=0.5).step({"x": np.zeros(2)}, rate=0.1)
    np.testing.assert_allclose(x, [2 * 0.95, -4 * 0.95], rtol=1e-12)


def test_an_array_without_a_gradient_stays_as_it_is():
    x, y = np.ones(2), np.ones(2)
    AdamW({"x": x, "y": y}).step({"y": np.ones(2)}, rate=0.1)
    assert (x == 1).all() and (y != 1).all()


def test_a_small_valley_is_found():
    x = np.array([3.0, -2.0], np.float32)
    optimizer = AdamW({"x": x}, weight_decay=0)
    for step in range(300):
        optimizer.step({"x": 2 * (x - [1, 5])}, rate_at(step, 300, 0.3, 10))
    np.testing.assert_allclose(x, [1, 5], atol=0.02)
    assert x.dtype == optimizer.means["x"].dtype == np.float32


def test_the_rate_rises_in_a_line_and_falls_by_a_cosine():
    rates = [rate_at(step, 101, 2.0, 10, end=0.25) for step in range(101)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) * 0.2)
    assert rates[10] == 2.0 and rates[55] == pytest.approx(1.25) and rates[100] == 0.5
    assert (np.diff(rates[10:]) < 0).all()
    assert rate_at(0, 1, 2.0, 0) == 2.0


@pytest.mark.oracle
@pytest.mark.parametrize("weight_decay", [0, 0.3])
def test_many_steps_are_those_of_pytorch(weight_decay):
    import torch

    rng = np.random.default_rng(0)
    start = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5)}
    own = {name: array.copy() for name, array in start.items()}
    theirs = {name: torch.tensor(array, requires_grad=True) for name, array in start.items()}
    optimizer = AdamW(own, weight_decay)
    reference = torch.optim.AdamW(theirs.values(), weight_decay=weight_decay)
    for step in range(50):
        rate = reference.param_groups[0]["lr"] = rate_at(step, 50, 0.1, 5)
        gradients = {name: rng.normal(size=array.shape) for name, array in own.items()}
        for name, tensor in theirs.items():
            tensor.grad = torch.tensor(gradients[name])
        reference.step()
        optimizer.step(gradients, rate)
    for name, tensor in theirs.items():
        np.testing.assert_allclose(own[name], tensor.detach().numpy(), rtol=1e-12, atol=1e-14)


def test_an_array_learns_in_other_coordinates():
    """W of W = W' A moves as W' would."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(4, 4))
    start, *gradients = rng.normal(size=(4, 3, 4))
    own = AdamW({"w": start.copy()}, coordinates={"w": matrix})
    other = AdamW({"w": start @ np.linalg.inv(matrix)})
    for gradient in gradients:
        own.step({"w": gradient}, 0.1)
        other.step({"w": gradient @ matrix.T}, 0.1)
    np.testing.assert_allclose(own.arrays["w"], other.arrays["w"] @ matrix, rtol=1e-9)
    assert abs(own.arrays["w"] - start).max() > 0.1
