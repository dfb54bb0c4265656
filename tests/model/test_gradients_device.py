"""Gradients on a device: the arrays never mix with NumPy's, and a stand-in for CuPy has the same.

A layer that learns is not read from a copy of its old weights afterwards.
"""

import numpy as np
import pytest

from clipseg_np import CLIPSegConfig, CLIPSegForImageSegmentation, learning

from ..helpers.checkpoints import PLAIN, REFINED
from ..helpers.device_array import DeviceArray
from .test_device_clean import device  # noqa: F401
from .test_recorded import inputs, ops  # noqa: F401

FOLDERS = pytest.mark.parametrize("folder", [PLAIN, REFINED], ids=["plain", "refined"])
LIMITS = {"float64": 1e-12, "float32": 1e-5}  # of the largest gradient
pytestmark = pytest.mark.filterwarnings("ignore:a text without the end token")


def loaded(folder, backend, dtype="float64"):
    load = CLIPSegForImageSegmentation.from_pretrained
    return load(folder, backend=backend, dtype=dtype)


def gradients_of(model, as_images=False):
    pixels, ids = inputs(model, np.random.default_rng(0))
    prompts = {"conditional_pixel_values": np.concatenate([pixels, -pixels])}
    given = {"pixel_values": pixels, **(prompts if as_images else {"input_ids": ids})}
    shape = model(**given).logits.shape
    labels = np.random.default_rng(1).uniform(size=shape)
    with learning() as found:
        model(**given, labels=labels)
        found["pixels"], found["prompts"] = model.propagate({"loss": 1.0})
        text_ids = {"input_ids": ids, "pixel_values": np.concatenate([pixels, -pixels])}
        model.clip(**text_ids, return_loss=True)
        model.clip.propagate({"loss": 1.0})
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def assert_agree(found, expected, dtype):
    assert found.keys() == expected.keys()
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for name, gradient in found.items():
        assert isinstance(gradient, DeviceArray) and gradient.dtype == dtype, name
        share = np.abs(gradient.get() - expected[name]).max() / largest
        assert share <= LIMITS[dtype], (name, share)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("as_images", [False, True], ids=["texts", "images"])
@FOLDERS
def test_on_a_device(folder, as_images, dtype, device):  # noqa: F811
    expected = gradients_of(loaded(folder, "numpy-reference"), as_images)
    assert_agree(gradients_of(loaded(folder, "device", dtype), as_images), expected, dtype)


@pytest.mark.parametrize("dtype", LIMITS)
@FOLDERS
def test_on_a_stand_in_for_cupy(folder, dtype, ops):  # noqa: F811
    expected = gradients_of(loaded(folder, "numpy-reference"))
    assert_agree(gradients_of(loaded(folder, "cupy", dtype)), expected, dtype)


def test_a_step_is_seen_by_the_next_pass(ops):  # noqa: F811
    config = CLIPSegConfig.from_pretrained(REFINED)
    backends = "cupy", "numpy-reference"
    model, readable = (CLIPSegForImageSegmentation(config, backend=name) for name in backends)
    pixels, ids = inputs(model, np.random.default_rng(0))
    before = model(pixel_values=pixels, input_ids=ids).logits
    with learning() as gradients:
        labels = np.ones(before.shape)
        model(pixel_values=pixels, input_ids=ids, labels=labels)
        model.propagate({"loss": 1.0})
    for name, gradient in gradients.items():
        step = 3e-2 * gradient.get()
        array, other = model.scope.arrays[name], readable.scope.arrays[name]
        array.set(array.get() - step)
        other -= step
    after = model(pixel_values=pixels, input_ids=ids).logits.get()
    expected = readable(pixel_values=pixels, input_ids=ids).logits
    assert np.abs(after - before.get()).max() > 0.01 * np.abs(expected).max()
    assert np.abs(after - expected).max() <= 1e-5 * np.abs(expected).max()
