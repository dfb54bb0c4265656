"""Learning on a GPU: the loss, every gradient and a step are the host's."""

import numpy as np
import pytest

from clipseg_np.learn.optimizer import AdamW
from clipseg_np.learn.step import cross_entropy_and_dice, focal_and_dice, one_pass
from clipseg_np.nn.ops import in_main_memory

from .agreement import assert_near, gpu_ops, model_of

pytestmark = pytest.mark.gpu

LIMIT = {"float32": 1e-4, "float64": 1e-10}


@pytest.mark.parametrize("loss", [cross_entropy_and_dice, focal_and_dice])
@pytest.mark.parametrize("is_reduced", [True, False])
@pytest.mark.parametrize("dtype", LIMIT)
def test_a_pass_is_the_hosts(config, weights, dtype, is_reduced, loss):
    rng, passes = np.random.default_rng(0), []
    pixels, embeddings = (
        rng.normal(size=(5, 3, 32, 32)),
        rng.normal(size=(5, config.projection_dim)),
    )
    for model in (
        model_of(config, weights, dtype),
        model_of(config, weights, "float64", on_gpu=False),
    ):
        features = model.encode_image(pixels)
        tokens, embedded = features.activations, model.floats(embeddings)
        tokens = model.decoder.reduce(tokens) if is_reduced else tokens
        labels = np.zeros(model.decode(features, embedded).shape)
        labels[:, 5:], labels[0, 3:9] = 1, np.nan
        given = model.decoder, tokens, embedded, model.floats(labels), features.grid
        passes.append(one_pass(*given, is_reduced=is_reduced, loss=loss))
    found, expected = passes
    assert abs(found.loss - expected.loss) < LIMIT[dtype]
    assert_near(found.d_embeddings, expected.d_embeddings, LIMIT[dtype])
    assert found.gradients.keys() == expected.gradients.keys()
    # Relative to the largest: that of a key's bias is 0.
    for name, gradient in expected.gradients.items():
        assert found.gradients[name].shape == gradient.shape
    found, expected = (
        np.concatenate([in_main_memory(one.gradients[name]).ravel() for name in expected.gradients])
        for one in passes
    )
    assert_near(found, expected, LIMIT[dtype])


def test_steps_are_the_hosts():
    rng, xp = np.random.default_rng(0), gpu_ops().xp
    start, *gradients = rng.normal(size=(4, 3, 5))
    ends = []
    for module in (xp, np):
        optimizer = AdamW({"weight": module.asarray(start)})
        for gradient in gradients:
            optimizer.step({"weight": module.asarray(gradient)}, 0.1)
        ends.append(optimizer.arrays["weight"])
    assert_near(*ends, 1e-12)
