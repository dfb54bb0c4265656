"""Segmenter on a GPU: recording changes no result, few passes are kept, pixels are Pillow's."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipseg_np import CLIPSegProcessor, Segmenter, VisualPrompt, ViTImageProcessor, trace
from clipseg_np.golden.compare import as_floats
from clipseg_np.image.resize import RESAMPLINGS
from clipseg_np.model.recorded import MAX_GRAPHS

from .agreement import EAGER, EXACT, assert_near, model_of

pytestmark = pytest.mark.gpu

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGE, OTHER, THIRD = np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), dtype=np.uint8)
MASK = np.zeros((40, 60), bool)
MASK[10:30, 20:40] = True
PROMPTS = {
    "a text": "red",
    "texts": ["red", "a blue x", "red"],
    "a long text": ["red", "a red x and b"],
    "an image": OTHER,
    "a visual prompt": VisualPrompt(OTHER, MASK),
    "a mix": ["red", OTHER, "a blue x", VisualPrompt(OTHER, MASK)],
    "expressions": ["red - a", "red & (blue + !x)", "blue"],
    "an expression and an image": ["red - blue", OTHER],
}


@pytest.fixture(params=["float32", "float16"])
def segmenters(request, config, weights, tokenizer):
    """One model: on the GPU, recorded and eager; in float64 on the host; and the GPU's type."""
    processor = CLIPSegProcessor(ViTImageProcessor(size=32), tokenizer)
    model = model_of(config, weights, request.param)
    exact = model_of(config, weights, "float64", on_gpu=False)
    recording, eager = Segmenter(model, processor), Segmenter(model, processor, record=False)
    return recording, eager, Segmenter(exact, processor), request.param


@pytest.mark.parametrize("scales", [(1,), (1, 2)], ids=str)
@pytest.mark.parametrize("name", PROMPTS)
def test_recorded_and_eager_passes_agree(name, scales, segmenters):
    *segmenters, dtype = segmenters
    for image in (IMAGE, OTHER, THIRD):
        found, eager, exact = (
            (each.combine if "expression" in name else each)(image, PROMPTS[name], scales=scales)
            for each in segmenters
        )
        assert_near(found.logits, eager.logits, EAGER[dtype])
        assert_near(found.logits, exact.logits, EXACT[dtype])
        assert_near(found.probabilities, exact.probabilities, EXACT[dtype])
    assert len(segmenters[0].graphs.kept) >= 1 and not segmenters[1].graphs


def test_prepared_prompts_give_the_same(segmenters):
    recording, eager, _, dtype = segmenters
    prompts = PROMPTS["expressions"]
    prepared = recording.prepare(prompts)
    for image in (IMAGE, OTHER):
        found = recording.combine(image, prepared)
        assert_near(found.probabilities, eager.combine(image, prompts).probabilities, EAGER[dtype])


def test_texts_of_other_lengths_are_not_recorded_anew(segmenters):
    recording, eager, _, dtype = segmenters
    for text in ("red", "a", "a red", "red a b", "abcdef", "red"):  # 3 to 8 tokens
        found = recording(IMAGE, text)
        assert_near(found.logits, eager(IMAGE, text).logits, EAGER[dtype])
        assert len(recording.graphs.kept) == 1
    recording(IMAGE, "abcdefg")
    assert len(recording.graphs.kept) == 2


def test_few_passes_are_kept(segmenters):
    recording, eager, _, dtype = segmenters
    seen = set()
    for count in (*range(1, MAX_GRAPHS + 3), 1, MAX_GRAPHS + 2, 2):
        prompts = list("abcdefghij"[:count])
        found = recording(IMAGE, prompts)
        assert_near(found.logits, eager(IMAGE, prompts).logits, EAGER[dtype])
        seen.add(count)
        assert len(recording.graphs.kept) == min(len(seen), MAX_GRAPHS)


def test_a_trace_sees_every_layer_and_nothing_is_recorded(segmenters):
    recording, _, exact, dtype = segmenters
    for already in (0, 1):
        calls = []
        for segmenter in (recording, exact):
            with trace() as activations:
                segmenter(IMAGE, ["red", OTHER])
            calls.append({name: len(values) for name, values in activations.all.items()})
            calls[-1]["logits"] = as_floats(activations["decoder.transposed_convolution"])
        assert_near(*(each.pop("logits") for each in calls), EXACT[dtype])
        assert calls[0] == calls[1] and len(calls[0]) > 50
        assert len(recording.graphs.kept) == already
        recording(IMAGE, ["red", OTHER])


def test_an_image_on_the_gpu_gives_the_same(segmenters, gpu):
    *segmenters, _, dtype = segmenters
    for segmenter in segmenters:
        for image in (IMAGE, IMAGE / 255):
            expected = segmenter(image, ["red", OTHER])
            found = segmenter(gpu.asarray(image), ["red", gpu.asarray(OTHER)])
            assert_near(found.logits, expected.logits, EAGER[dtype])


@pytest.mark.parametrize("resample", RESAMPLINGS)
def test_the_pixels_are_those_of_pillow(resample, segmenters, tokenizer, monkeypatch):
    (model, exact), dtype = (segmenters[i].model for i in (0, 2)), segmenters[3]
    size = {"height": 24, "width": 40}
    preparation = ViTImageProcessor(size=size, resample=resample, image_mean=MEAN, image_std=STD)
    processor = CLIPSegProcessor(preparation, tokenizer)
    seen, encode = [], model.encode_image
    with monkeypatch.context() as patch:
        patch.setattr(model, "encode_image", lambda pixels: seen.append(pixels) or encode(pixels))
        Segmenter(model, processor, record=False)(IMAGE, "red")
    resized = np.asarray(Image.fromarray(IMAGE).resize((40, 24), resample))
    rescaled = (resized.astype("float64") * (1 / 255)).astype("float32")
    expected = (rescaled - np.float32(MEAN)) / np.float32(STD)
    assert len(seen) == 1
    np.testing.assert_array_equal(as_floats(seen[0]), np.moveaxis(expected, 2, 0)[None])
    found, expected = (Segmenter(each, processor)(IMAGE, "red") for each in (model, exact))
    assert_near(found.logits, expected.logits, EXACT[dtype])


def test_the_demonstration_finds_what_it_finds_on_the_host():
    image, prompts = Path(__file__).parents[2] / "examples" / "shapes.png", ["a star", "red"]
    exact = Segmenter.from_pretrained(dtype="float64")(image, prompts)
    found = Segmenter.from_pretrained(backend="cupy")(image, prompts)
    assert_near(found.logits, exact.logits, 1e-4)
    assert (found.masks() != exact.masks()).mean() < 1e-3
