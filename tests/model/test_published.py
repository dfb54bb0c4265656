"""Numbers that others published for the official checkpoints and one photo.

Runs where the environment variable CLIPSEG_NP_CHECKPOINTS names a folder with the checkpoints as
subfolders, clipseg-rd64-refined, clipseg-rd64 and clipseg-rd16 (see weights/README.md), and
000000039769.jpg: two cats, from COCO's val2017. Logits and vectors were published to within 1e-3.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipseg_np import CLIPSegForImageSegmentation, CLIPSegProcessor

VARIABLE = "CLIPSEG_NP_CHECKPOINTS"
IMAGE = "000000039769.jpg"
TOLERANCE = 1e-3


def run(name: str, texts: list[str], padding: bool | str, **settings):
    """The official checkpoint's outputs for a photo and texts; skips without its files."""
    if VARIABLE not in os.environ:
        pytest.skip(f"{VARIABLE} is not set: it names a folder with {name}/ and {IMAGE}")
    folder = Path(os.environ[VARIABLE])
    for needed in (folder / IMAGE, folder / name / "config.json"):
        if not needed.is_file():
            pytest.skip(f"{needed} is missing")
    processor = CLIPSegProcessor.from_pretrained(folder / name, **settings)
    image = Image.open(folder / IMAGE)
    inputs = processor(
        text=texts, images=[image] * len(texts), padding=padding, return_tensors="np"
    )
    return CLIPSegForImageSegmentation.from_pretrained(folder / name)(**inputs)


def near(got, expected):
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


def test_the_integration_test_of_transformers():
    """tests/models/clipseg/test_modeling_clipseg.py there, with ImageNet's mean and std."""
    out = run("clipseg-rd64-refined", ["a cat", "a remote", "a blanket"], padding=True)
    assert out.logits.shape == (3, 352, 352)
    near(
        out.logits[0, :3, :3],
        [[-7.4613, -7.4785, -7.3628], [-7.3268, -7.0899, -7.1333], [-6.9838, -6.7900, -6.8913]],
    )
    near(out.conditional_embeddings[0, :3], [0.5601, -0.0314, 0.1980])
    near(out.pooled_output[0, :3], [0.5036, -0.2681, -0.2644])


CONVERTED = {
    "clipseg-rd64-refined": [
        [-10.0407, -9.9431, -10.2646],
        [-9.9751, -9.7064, -9.9586],
        [-9.6891, -9.5645, -9.9618],
    ],
    "clipseg-rd64": [
        [-7.2877, -7.2711, -7.2463],
        [-7.2652, -7.2780, -7.2520],
        [-7.2239, -7.2204, -7.2001],
    ],
    "clipseg-rd16": [
        [-6.3955, -6.4055, -6.4151],
        [-6.3911, -6.4033, -6.4100],
        [-6.3474, -6.3702, -6.3762],
    ],
}


@pytest.mark.parametrize("name", CONVERTED)
def test_P01_the_conversion_script_of_transformers(name):
    """convert_clipseg_original_pytorch_to_hf.py there: mean and std of 0.5, as first published."""
    texts = ["a glass", "something to fill", "wood", "a jar"]
    half = [0.5, 0.5, 0.5]
    out = run(name, texts, padding="max_length", image_mean=half, image_std=half)
    near(out.logits[0, :3, :3], CONVERTED[name])
    near(out.conditional_embeddings[0, :3], [0.1110, -0.1882, 0.1645])
    near(out.pooled_output[0, :3], [0.2692, -0.7197, -0.1328])
