"""Every output of every model against transformers, over drawn architectures and inputs."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'oracle'")
pytest.importorskip("transformers", reason="needs the extra 'oracle'")

from .reference import compare, draw_ids, drawn_pair

pytestmark = pytest.mark.oracle

ARCHITECTURES = 240
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
ALL = {"output_attentions": True, "output_hidden_states": True}


def tensors(**arrays):
    return {name: torch.from_numpy(array) for name, array in arrays.items() if array is not None}


def assert_all_within(found: dict[str, float], dtype: str) -> None:
    assert found
    beyond = {
        name: f"{share:.2e}" for name, share in found.items() if not share <= TOLERANCE[dtype]
    }
    assert not beyond, f"allowed {TOLERANCE[dtype]:.0e}, found {beyond}"


@pytest.fixture(params=range(ARCHITECTURES))
def drawn(request, tmp_path):
    """A drawn architecture as both models, in float64 for every other draw, with its generator."""
    rng = np.random.default_rng(request.param)
    config, theirs, ours, dtype = drawn_pair(rng, request.param, tmp_path)
    return rng, config, ours, theirs, dtype


def test_all_outputs_agree(drawn, agreement):
    rng, config, ours, theirs, dtype = drawn
    vision, B = config.vision_config, int(rng.integers(1, 4))
    # In float32 an image of one patch may have nothing but a value that is near zero by accident.
    side = vision.patch_size * int(rng.integers({"float32": 3, "float64": 1}[dtype], 6))
    images = rng.normal(size=(B, vision.num_channels, side, side)).astype(dtype)
    ids, mask = draw_ids(rng, config, prompts=B)
    prompt_side = vision.patch_size * int(rng.integers(1, 4))
    prompts = rng.normal(size=(B, vision.num_channels, prompt_side, prompt_side)).astype(dtype)
    embeddings = rng.normal(size=(B, config.projection_dim)).astype(dtype)
    positions = rng.integers(0, config.text_config.max_position_embeddings, ids.shape)

    kinds = [
        {"input_ids": ids, "attention_mask": mask},
        {"input_ids": ids, "position_ids": positions},
        {"conditional_pixel_values": prompts},
        {"conditional_embeddings": embeddings},
    ]
    found = {}
    with torch.no_grad():
        for number, kind in enumerate(kinds):
            logits = ours(pixel_values=images, **kind).logits
            labels = rng.uniform(size=logits.shape).astype(dtype)
            expected = theirs(**tensors(pixel_values=images, labels=labels, **kind), **ALL)
            got = ours(pixel_values=images, labels=labels, **kind, **ALL)
            found |= compare(got, expected, f"prompt kind {number}")
        # Eight pairs, so that not all of their cosines are near zero, where digits cancel in both
        # models.
        ids, mask = draw_ids(rng, config, prompts=8)
        images = rng.normal(size=(8, *images.shape[1:])).astype(dtype)
        together = {"input_ids": ids, "attention_mask": mask, "pixel_values": images}
        expected = theirs.clip(**tensors(**together), return_loss=True, **ALL)
        found |= compare(ours.clip(**together, return_loss=True, **ALL), expected, "clip")
    assert_all_within(found, dtype)
    agreement(f"all outputs of drawn small architectures, {dtype}", max(found.values()))
