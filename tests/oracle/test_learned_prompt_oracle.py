"""A learned prompt gives the same masks in transformers, as the documentation shows it."""

import re

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'oracle'")
transformers = pytest.importorskip("transformers", reason="needs the extra 'oracle'")

from clipseg_np import LearnedPrompt, Segmenter
from clipseg_np.model.learned_prompt import fingerprint

from ..helpers.documents import TRANSFORMERS

pytestmark = pytest.mark.oracle


def test_the_file_s_vector_is_transformers_conditional_embedding(image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    segmenter = Segmenter.from_pretrained()
    segmenter.model.save_pretrained("clipseg")
    # Between two texts that the demonstration checkpoint knows, so that something is marked.
    vector = segmenter.embed(["a star", "a circle"]).mean(axis=0)
    LearnedPrompt(vector, fingerprint(segmenter.model), "heart", {}).save("heart.safetensors")
    heart = LearnedPrompt.load("heart.safetensors")
    result = segmenter.combine(image, ["a star", "@heart"], learned=[heart])

    pixels = segmenter.processor(images=image, return_tensors="np")["pixel_values"]
    model = transformers.CLIPSegForImageSegmentation.from_pretrained("clipseg").eval()
    names = {"model": model, "pixels": torch.from_numpy(pixels)}
    section = TRANSFORMERS.read_text("utf-8").partition("## A learned prompt")[2]
    with torch.no_grad():
        for code in re.findall("`([^`]+)`", section.partition("\n## ")[0]):
            exec(code, names)  # noqa: S102
    found = names["logits"].numpy()
    scale = np.abs(result.logits[1]).max()
    assert scale > 1 and found.shape == result.logits[1:].shape
    np.testing.assert_allclose(found, result.logits[1:], rtol=0, atol=1e-5 * scale)
    probabilities = [1 / (1 + np.exp(-x)) for x in (found, result.logits[1:])]
    np.testing.assert_allclose(*probabilities, rtol=0, atol=1e-5)
