"""What the documentation shows, run: the reference's own example with its import changed, and README's first snippet."""

import re
import runpy
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]


def test_the_example_of_transformers_documentation(checkpoint, image, capsys):
    """CLIPSegForImageSegmentation's example: only the import and return_tensors differ, and where the files lie."""
    from clipseg_np import CLIPSegForImageSegmentation, CLIPSegProcessor

    processor = CLIPSegProcessor.from_pretrained(checkpoint)
    model = CLIPSegForImageSegmentation.from_pretrained(checkpoint)

    image = Image.fromarray(image)

    texts = ["a cat", "a remote", "a blanket"]
    inputs = processor(text=texts, images=[image] * len(texts), padding=True, return_tensors="np")

    outputs = model(**inputs)

    logits = outputs.logits
    print(logits.shape)
    assert capsys.readouterr().out == "(3, 32, 32)\n"


def test_the_examples_of_the_two_towers_and_of_both(checkpoint, image):
    """The examples of CLIPSegTextModel, CLIPSegVisionModel and CLIPSegModel, with the same changes."""
    from clipseg_np import (
        CLIPSegModel,
        CLIPSegProcessor,
        CLIPSegTextModel,
        CLIPSegVisionModel,
        CLIPTokenizer,
    )

    image = Image.fromarray(image)
    tokenizer = CLIPTokenizer.from_pretrained(checkpoint)
    inputs = tokenizer(["a cat", "a dog"], padding=True, return_tensors="np")
    outputs = CLIPSegTextModel.from_pretrained(checkpoint)(**inputs)
    assert outputs.last_hidden_state.shape == (2, inputs.input_ids.shape[1], 16)
    assert outputs.pooler_output.shape == (2, 16)

    processor = CLIPSegProcessor.from_pretrained(checkpoint)
    inputs = processor(images=image, return_tensors="np")
    outputs = CLIPSegVisionModel.from_pretrained(checkpoint)(**inputs)
    assert outputs.pooler_output.shape == (1, 16)

    model = CLIPSegModel.from_pretrained(checkpoint)
    inputs = processor(text=["a cat", "a dog"], images=image, return_tensors="np", padding=True)
    logits_per_image = model(**inputs).logits_per_image
    assert logits_per_image.shape == (1, 2) and np.isfinite(logits_per_image).all()


def test_the_first_snippet_of_the_readme(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(ROOT)
    snippet = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)[
        1
    ]
    (tmp_path / "snippet.py").write_text(snippet, "utf-8")
    runpy.run_path(tmp_path / "snippet.py")
    shape, areas = capsys.readouterr().out.splitlines()
    width, height = Image.open("examples/shapes.png").size
    assert shape == f"(2, {height}, {width})"
    assert len(re.findall(r"\d+", areas)) == 2
