"""The authors' model in PyTorch, its two files, and the checkpoint that is made of them."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'oracle'")
transformers = pytest.importorskip("transformers", reason="needs the extra 'oracle'")

import clipseg_np
from clipseg_np.convert.from_authors import convert_original

from . import authors_model as authors
from .reference import worst

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-10
LAYERS = (3, 1, 4)
VISION = {"width": 128, "hidden": 96, "depth": 5, "patch": 16, "side": 3}
TEXT = {"width": 64, "hidden": 80, "depth": 2}
IDS = np.array([[30, 4, 5, 31, 0], [30, 9, 31, 0, 0]])  # OpenAI fills up with 0
PIXELS = np.random.default_rng(0).normal(size=(2, 3, 48, 48))
PROMPTS = np.random.default_rng(1).normal(size=(2, 3, 48, 48))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("reduced", [64, 16])
@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize(("apart", "cond_layer"), [(True, 0), (False, 0), (False, 1)])
@pytest.mark.parametrize("rev_activations", [False, True])
def test_a_checkpoint_of_the_authors_files(
    reduced, refined, apart, cond_layer, rev_activations, tmp_path, agreement
):
    """CLIP in half precision and apart, as published; or both in one file."""
    clip = authors.drawn(authors.Clip(VISION, TEXT, words=32, places=8, projected=24), seed=1)
    decoder = authors.drawn(authors.Decoder(128, reduced, 24, 16, refined), seed=2)
    file, of_clip = tmp_path / "rd-uni.pth", None
    if apart:
        of_clip = tmp_path / "ViT-B-16.pt"
        torch.jit.script(clip.half()).save(of_clip)
        torch.save(decoder.state_dict(), file)
    else:
        whole = {f"clip_model.{name}": tensor for name, tensor in clip.state_dict().items()}
        again = {f"model.{name}": tensor for name, tensor in clip.visual.state_dict().items()}
        torch.save({**whole, **again, **decoder.state_dict()}, file)
    folder = tmp_path / "new"
    settings = {"cond_layer": cond_layer, "rev_activations": rev_activations}
    convert_original(file, of_clip, folder, extract_layers=LAYERS, **settings)

    clip, decoder = clip.double(), decoder.double()
    ours = clipseg_np.CLIPSegForImageSegmentation.from_pretrained(folder, dtype="float64")
    theirs, report = transformers.CLIPSegForImageSegmentation.from_pretrained(
        folder, dtype=torch.float64, output_loading_info=True
    )
    assert not any(report.values()), report
    pixels, ids, prompts = torch.tensor(PIXELS), torch.tensor(IDS), torch.tensor(PROMPTS)
    with torch.no_grad():
        for prompt, condition in [
            ({"input_ids": ids}, authors.of_texts(clip, ids)),
            ({"conditional_pixel_values": prompts}, authors.of_image_prompts(clip, prompts)),
        ]:
            expected = authors.logits(clip, decoder, pixels, condition, LAYERS, **settings)
            assert expected.shape == (2, 48, 48) and expected.std() > 0.05
            arrays = {name: tensor.numpy() for name, tensor in prompt.items()}
            found = worst(ours(pixel_values=PIXELS, **arrays).logits, expected)
            of_transformers = worst(theirs.eval()(pixel_values=pixels, **prompt).logits, expected)
            assert found <= TOLERANCE and of_transformers <= TOLERANCE, (found, of_transformers)
            agreement("logits of checkpoints made of the authors' files, float64", found, 2)
