"""CLIPSeg on CLIP's other vision towers, ViT-B/32 and ViT-L/14, against transformers.

Widths, heads and patches are the real ones; layers are fewer, and the vocabulary is small.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'oracle'")
transformers = pytest.importorskip("transformers", reason="needs the extra 'oracle'")

from clipseg_np import CLIPSegForImageSegmentation, CLIPSegProcessor, Segmenter, ViTImageProcessor

from .reference import compare, draw_ids, reference_model, worst

pytestmark = pytest.mark.oracle

TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
TOWERS = {
    "ViT-B/32": {
        "vision": {"hidden_size": 768, "num_attention_heads": 12, "patch_size": 32},
        "text": {"hidden_size": 512, "num_attention_heads": 8},
        "projection_dim": 512,
    },
    "ViT-L/14": {
        "vision": {"hidden_size": 1024, "num_attention_heads": 16, "patch_size": 14},
        "text": {"hidden_size": 768, "num_attention_heads": 12},
        "projection_dim": 768,
    },
}
# Sides of images, in pixels, and of the logits, after the plain head and the refined one. The plain
# head paints whole patches (25 of 14 pixels in 352), the refined one (patch // 4)² pixels for each.
SIDES = {
    ("ViT-B/32", "plain"): {224: 224, 352: 352},
    ("ViT-B/32", "refined"): {224: 7 * 64, 352: 11 * 64},
    ("ViT-L/14", "plain"): {224: 224, 336: 336, 352: 350},
    ("ViT-L/14", "refined"): {224: 16 * 9},
}


@pytest.fixture(scope="module", params=SIDES, ids="-".join)
def saved(request, tokenizer, tmp_path_factory):
    """A tower and head, the reference with drawn weights, and the folder with it."""
    tower, head = request.param
    sizes = TOWERS[tower]
    config = transformers.CLIPSegConfig(
        vision_config={
            **sizes["vision"],
            "intermediate_size": 4 * sizes["vision"]["hidden_size"],
            "num_hidden_layers": 4,
        },
        text_config={
            **sizes["text"],
            "intermediate_size": 4 * sizes["text"]["hidden_size"],
            "num_hidden_layers": 2,
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        projection_dim=sizes["projection_dim"],
        extract_layers=[0, 1, 2],
        use_complex_transposed_convolution=head == "refined",
    )
    theirs = reference_model(config, seed=0)
    folder = tmp_path_factory.mktemp("towers")
    theirs.save_pretrained(folder)
    side = max(SIDES[request.param])
    CLIPSegProcessor(ViTImageProcessor(size=side), tokenizer).save_pretrained(folder)
    yield tower, head, theirs, folder
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_all_outputs_agree(saved, dtype, agreement):
    tower, head, theirs, folder = saved
    ours = CLIPSegForImageSegmentation.from_pretrained(folder, dtype=dtype)
    theirs = theirs.to(getattr(torch, dtype))
    found = {}
    for side, logits_side in SIDES[tower, head].items():
        rng = np.random.default_rng(side)
        ids, mask = draw_ids(rng, theirs.config, prompts=2)
        inputs = {
            "pixel_values": rng.normal(size=(2, 3, side, side)).astype(dtype),
            "input_ids": ids,
            "attention_mask": mask,
        }
        with torch.no_grad():
            tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
            expected = theirs(**tensors, output_hidden_states=True)
        got = ours(**inputs, output_hidden_states=True)
        assert got.logits.shape == (2, logits_side, logits_side)
        assert np.abs(got.logits[0] - got.logits[1]).max() > 0.1 * np.abs(got.logits).max()
        found |= compare(got, expected, str(side))
    theirs.to(torch.float32)
    beyond = {
        name: f"{share:.2e}" for name, share in found.items() if not share <= TOLERANCE[dtype]
    }
    assert found and not beyond
    agreement(
        f"all outputs of ViT-B/32 and ViT-L/14, 4 layers, drawn weights, {dtype}, heads and sizes",
        max(found.values()),
        len(SIDES[tower, head]),
    )


def test_a_segmenter(saved):
    """An image that is not square, from the file of its model to probabilities of its own size."""
    _, _, theirs, folder = saved
    image = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    prompts = ["red", "a blue thing"]
    segmenter = Segmenter.from_pretrained(folder)
    result = segmenter(image, prompts)
    inputs = segmenter.processor(
        text=prompts, images=[image] * 2, padding=True, return_tensors="np"
    )
    with torch.no_grad():
        logits = theirs(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits
        expected = torch.nn.functional.interpolate(logits[:, None], (90, 130), mode="bilinear")
    assert worst(result.probabilities, expected[:, 0].sigmoid()) < TOLERANCE["float32"]
