"""The official architectures at full size, with drawn weights, against float64 on the host."""

import numpy as np
import pytest

from clipseg_np import CLIPSegConfig
from clipseg_np.model.recorded import recorded

from .agreement import EXACT, assert_near, eager_logits, model_of

pytestmark = pytest.mark.gpu

OFFICIAL = {"rd64-refined": (64, True), "rd64": (64, False), "rd16": (16, False)}
START, END = 49406, 49407
INPUT_IDS = np.array([[START, 320, 2368, END, 0, 0, 0], [START, 518, 3638, 539, 320, 1615, END]])
PIXEL_VALUES = np.random.default_rng(0).normal(size=(1, 3, 352, 352))


@pytest.fixture(scope="module", params=OFFICIAL)
def architecture(request, weights):
    """A config, and the logits of a model with it in float64 on the host."""
    width, is_refined = OFFICIAL[request.param]
    config = CLIPSegConfig(
        text_config={"bos_token_id": 0, "eos_token_id": 2},
        vision_config={"patch_size": 16},
        reduce_dim=width,
        use_complex_transposed_convolution=is_refined,
    )
    exact = model_of(config, weights, "float64", on_gpu=False)
    return config, eager_logits(exact, PIXEL_VALUES, INPUT_IDS)


@pytest.fixture(scope="module", params=["float32", "float16"])
def case(request, architecture, weights):
    """A model on the GPU, the exact logits, and how far it may be off."""
    config, expected = architecture
    return model_of(config, weights, request.param), expected, EXACT[request.param]


def test_the_eager_pass(case):
    model, expected, limit = case
    assert_near(eager_logits(model, PIXEL_VALUES, INPUT_IDS), expected, limit)


def test_the_recorded_pass_from_token_ids(case):
    model, expected, limit = case
    run = recorded(model, np.zeros_like(PIXEL_VALUES), INPUT_IDS[::-1])
    assert_near(run(PIXEL_VALUES, INPUT_IDS), expected, limit)


def test_the_recorded_pass_from_embeddings(case):
    model, expected, limit = case
    embeddings = model.get_conditional_embeddings(input_ids=INPUT_IDS)
    run = recorded(model, np.zeros_like(PIXEL_VALUES), embeddings[::-1])
    assert_near(run(PIXEL_VALUES, embeddings), expected, limit)
