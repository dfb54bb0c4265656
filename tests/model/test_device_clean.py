"""The arithmetic never mixes its arrays with NumPy's: it runs on a device's arrays."""

import numpy as np
import pytest

from clipseg_np import CLIPSegForImageSegmentation, CLIPSegProcessor, Segmenter, ViTImageProcessor
from clipseg_np.model import pretrained as pretrained_module
from clipseg_np.nn.ops import Ops

from ..helpers.checkpoints import PLAIN, REFINED
from ..helpers.device_array import DeviceArray, DeviceModule


@pytest.fixture
def device(monkeypatch):
    """The device under the name of a backend."""
    ops = Ops(DeviceModule())
    here = pretrained_module.ops_for
    monkeypatch.setattr(
        pretrained_module,
        "ops_for",
        lambda name, *rest: ops if name == "device" else here(name, *rest),
    )
    return ops


def test_the_device_refuses_what_cupy_refuses():
    xp = DeviceModule()
    x = xp.asarray(np.ones(3))
    for mix in (
        lambda: x + np.ones(3),
        lambda: np.ones(3) * x,
        lambda: np.asarray(x),
        lambda: xp.exp(np.ones(3)),
        lambda: xp.where(x > 0, x, np.ones(3)),
        lambda: x[np.array([0, 1])],
    ):
        with pytest.raises(TypeError):
            mix()
    assert isinstance(x * 2.0, DeviceArray)


def outputs_of(model, rng):
    config = model.config
    C, p = config.vision_config.num_channels, config.vision_config.patch_size
    images = rng.normal(size=(2, C, 3 * p, 2 * p))
    ids = rng.integers(0, config.text_config.vocab_size, (2, 5))
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    record = {"output_attentions": True, "output_hidden_states": True}
    labels = model(pixel_values=images, input_ids=ids).logits > 0
    both = model(pixel_values=images, input_ids=ids, attention_mask=mask, labels=labels, **record)
    visual = model(pixel_values=images, conditional_pixel_values=images[::-1])
    clip = model.clip(input_ids=ids, pixel_values=images, return_loss=True, **record)
    return [both, visual, clip]


def flat(value):
    if isinstance(value, (tuple, list)):
        return [leaf for part in value for leaf in flat(part)]
    return flat(value.to_tuple()) if hasattr(value, "to_tuple") else [value]


@pytest.mark.filterwarnings("ignore:a text without the end token")
@pytest.mark.parametrize("folder", [PLAIN, REFINED], ids=["plain", "refined"])
def test_every_output_is_on_the_device_and_the_same(folder, device):
    there = CLIPSegForImageSegmentation.from_pretrained(folder, backend="device", dtype="float64")
    here = CLIPSegForImageSegmentation.from_pretrained(folder, dtype="float64")
    found = flat(outputs_of(there, np.random.default_rng(0)))
    expected = flat(outputs_of(here, np.random.default_rng(0)))
    assert len(found) == len(expected) > 30
    for a, b in zip(found, expected):
        assert isinstance(a, DeviceArray)
        np.testing.assert_allclose(device.to_numpy(a), b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", Ops.ACTIVATIONS)
def test_every_activation(name, device):
    x = np.linspace(-4, 4, 9)
    found = device.activation(name, device.asarray(x))
    np.testing.assert_array_equal(device.to_numpy(found), Ops().activation(name, x))


@pytest.mark.parametrize("resample", [0, 1, 2, 3])
def test_from_image_to_probabilities(device, checkpoint, tokenizer, image, resample):
    processor = CLIPSegProcessor(ViTImageProcessor(size=32, resample=resample), tokenizer)
    load = CLIPSegForImageSegmentation.from_pretrained
    there = load(checkpoint, backend="device", dtype="float64")
    here = load(checkpoint, dtype="float64")
    prompts = ["red", image[::-1], "a blue x"]
    found = Segmenter(there, processor)(image, prompts, scales=(1, 2)).probabilities
    assert isinstance(found, np.ndarray)
    expected = Segmenter(here, processor)(image, prompts, scales=(1, 2)).probabilities
    np.testing.assert_allclose(found, expected, atol=1e-7)
