"""The three official architectures with drawn weights against transformers, in float32."""

import tempfile

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'oracle'")
transformers = pytest.importorskip("transformers", reason="needs the extra 'oracle'")

from clipseg_np import CLIPSegForImageSegmentation

from .reference import compare, reference_model

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-4  # relative to the largest value; twelve layers of 768 numbers in float32
OFFICIAL = {
    "rd64-refined": {"reduce_dim": 64, "use_complex_transposed_convolution": True},
    "rd64": {"reduce_dim": 64, "use_complex_transposed_convolution": False},
    "rd16": {"reduce_dim": 16, "use_complex_transposed_convolution": False},
}
START, END = 49406, 49407


@pytest.fixture(scope="module", params=OFFICIAL)
def models(request):
    """One architecture's name and both models; their 600 MB of files are deleted at once."""
    config = transformers.CLIPSegConfig(
        text_config={"eos_token_id": 2, "bos_token_id": 0},
        vision_config={"patch_size": 16},
        extract_layers=[3, 6, 9],
        **OFFICIAL[request.param],
    )
    theirs = reference_model(config, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        yield request.param, CLIPSegForImageSegmentation.from_pretrained(folder), theirs


def drawn_prompts() -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, START, (2, 77))
    mask = np.zeros((2, 77), dtype=np.int64)
    for row, length in enumerate((5, 9)):
        ids[row, 0], ids[row, length - 1 :], mask[row, :length] = START, END, 1
    return {
        "text": {"input_ids": ids, "attention_mask": mask},
        "image": {"conditional_pixel_values": rng.normal(size=(2, 3, 224, 224)).astype(np.float32)},
        "embedding": {"conditional_embeddings": rng.normal(size=(2, 512)).astype(np.float32)},
    }


@pytest.mark.parametrize("kind", ["text", "image", "embedding"])
def test_all_outputs_at_352_pixels(models, kind, agreement):
    name, ours, theirs = models
    prompts = drawn_prompts()[kind]
    images = np.random.default_rng(1).normal(size=(2, 3, 352, 352)).astype(np.float32)
    inputs = {"pixel_values": images, **prompts}
    with torch.no_grad():
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        expected = theirs(**tensors, output_hidden_states=True)
    got = ours(**inputs, output_hidden_states=True)
    assert got.logits.shape == (2, 352, 352)
    assert np.abs(got.logits[0] - got.logits[1]).max() > 0.1 * np.abs(got.logits).max()
    found = compare(got, expected)
    beyond = {name: f"{share:.2e}" for name, share in found.items() if not share <= TOLERANCE}
    assert found and not beyond
    agreement(
        f"all outputs of {name}, drawn weights, 352 x 352, float32, kinds of prompt",
        max(found.values()),
    )
