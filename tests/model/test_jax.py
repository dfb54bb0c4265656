"""The readable code on JAX: whole models, eager and compiled. It needs the extra "jax"."""

import numpy as np
import pytest

from clipseg_np import CLIPSegForImageSegmentation
from clipseg_np.model.clipseg import ImageFeatures
from clipseg_np.nn.ops import Ops

from ..helpers.checkpoints import PLAIN, REFINED

jax = pytest.importorskip("jax")

FOLDERS = pytest.mark.parametrize("folder", [PLAIN, REFINED], ids=["plain", "refined"])
GRIDS = pytest.mark.parametrize("grid", [(2, 2), (3, 5)], ids=["learned grid", "resized grid"])
LIMIT = 1e-5  # of the largest logit


def models(folder) -> tuple[CLIPSegForImageSegmentation, CLIPSegForImageSegmentation]:
    """The model on JAX in float32, and on NumPy in float64."""
    load = CLIPSegForImageSegmentation.from_pretrained
    return load(folder, ops=Ops(jax.numpy)), load(folder, dtype="float64")


def drawn_inputs(config, grid, seed=0):
    """An image (1,C,H,W), another as a prompt, and two texts, the first padded, with their mask."""
    rng = np.random.default_rng(seed)
    p, C = config.vision_config.patch_size, config.vision_config.num_channels
    image, prompt = rng.normal(size=(2, 1, C, grid[0] * p, grid[1] * p)).astype("float32")
    ids = rng.integers(3, config.text_config.vocab_size - 1, (2, 5))
    # The highest id ends a text, for the old way of pooling too.
    ids[:, -1] = ids[0, 2:] = config.text_config.vocab_size - 1
    return image, prompt, ids, np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])


def assert_near(found, expected):
    assert isinstance(found, jax.Array) and found.dtype == "float32"
    found = np.asarray(found)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= LIMIT * np.abs(expected).max()


@pytest.mark.filterwarnings("ignore:a text without the end token")
@FOLDERS
@GRIDS
def test_a_whole_model(folder, grid):
    model, exact = models(folder)
    image, prompt, ids, mask = drawn_inputs(model.config, grid)
    for prompts in (
        {"input_ids": ids, "attention_mask": mask},
        {"conditional_pixel_values": prompt},
    ):
        found, expected = (m(pixel_values=image, **prompts) for m in (model, exact))
        assert_near(found.logits, expected.logits)
        assert_near(found.conditional_embeddings, expected.conditional_embeddings)


@pytest.mark.filterwarnings("ignore:a text without the end token")
@FOLDERS
@GRIDS
def test_a_compiled_pass_is_called_twice(folder, grid):
    model, exact = models(folder)

    @jax.jit
    def logits(pixel_values, embeddings):
        return model.decode(model.encode_image(pixel_values), embeddings)

    for seed in (0, 1):
        image, _, ids, mask = drawn_inputs(model.config, grid, seed)
        embeddings = exact.get_conditional_embeddings(input_ids=ids, attention_mask=mask)
        expected = exact.decode(exact.encode_image(image), embeddings)
        assert_near(logits(image, embeddings.astype("float32")), expected)
    # Nothing of the compilation is left in the model.
    image, *_ = drawn_inputs(model.config, grid)
    features = model.encode_image(image)
    assert isinstance(features, ImageFeatures) and isinstance(features.activations[0], jax.Array)
    assert_near(
        model.decode(features, embeddings), exact.decode(exact.encode_image(image), embeddings)
    )
