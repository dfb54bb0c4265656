"""Training of the demonstration checkpoint: shortcuts give the model's numbers, and it runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'oracle'")
pytest.importorskip("transformers", reason="needs the extra 'oracle'")
from transformers import CLIPSegForImageSegmentation

from clipseg_np import Segmenter

pytestmark = pytest.mark.oracle
TRAINING = Path(__file__).parents[2] / "training"
TOKENS = 60


@pytest.fixture(scope="module")
def parts():
    sys.path.insert(0, str(TRAINING))
    import batches
    import losses
    import model
    import muon
    import phrases

    yield SimpleNamespace(batches=batches, losses=losses, model=model, muon=muon, phrases=phrases)
    sys.path.remove(str(TRAINING))


@pytest.fixture(scope="module")
def model(parts):
    torch.manual_seed(0)
    return parts.model.build_model(TOKENS).eval()


@torch.no_grad()
def test_the_parts_called_one_by_one_give_the_models_own_masks(parts, model):
    images = torch.randn(2, 3, 128, 128)
    ids = torch.tensor([[58, 3, 4, 59], [58, 5, 59, 59]])
    activations, projected = parts.model.encode(model, images)
    embeddings = parts.model.embed(model, ids)
    patches = parts.model.decode(model.decoder, activations, embeddings.expand(2, 2, -1))
    for b in range(2):
        whole = model(pixel_values=images[b].expand(2, -1, -1, -1), input_ids=ids)
        expected = parts.model.by_patches(whole.logits)
        torch.testing.assert_close(patches[b], expected, rtol=1e-4, atol=1e-4)
    own = model.clip.get_image_features(images).pooler_output
    torch.testing.assert_close(projected[:, 0], own, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_patches_that_are_not_looked_at_change_nothing(parts, model):
    images = torch.randn(1, 3, 128, 128)
    keep = torch.arange(0, 256, 3)[None]
    before, _ = parts.model.encode(model, images, keep)
    cut = parts.model.by_patches(images)  # (1,3,N,64), a view of the same numbers in patches
    assert cut.shape == (1, 3, 256, 64)
    others = torch.ones(256, dtype=torch.bool)
    others[keep] = False
    rows, columns = torch.arange(256) // 16, torch.arange(256) % 16
    for row, column in zip(rows[others], columns[others]):
        images[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 9
    after, _ = parts.model.encode(model, images, keep)
    for one, other in zip(before, after):
        assert one.shape == (1, 1 + keep.shape[1], 128)
        torch.testing.assert_close(one, other)


def test_by_patches_counts_rows_then_columns(parts):
    maps = torch.arange(16 * 24).view(16, 24)[:, :16]
    patches = parts.model.by_patches(maps)
    assert torch.equal(patches[1], maps[:8, 8:16].flatten())
    assert torch.equal(patches[2], maps[8:16, :8].flatten())


@torch.no_grad()
def test_half_of_the_heads_start_with_their_eyes_on_a_neighbor(parts, model):
    grid = 16
    pixels = torch.full((1, 3, 128, 128), 0.3)
    vision = model.clip.vision_model
    layer = vision.encoder.layers[0]
    x = layer.layer_norm1(vision.pre_layrnorm(vision.embeddings(pixels)))

    def heads(linear):
        return linear(x).view(257, 8, 16).transpose(0, 1)

    scores = heads(layer.self_attn.q_proj) @ heads(layer.self_attn.k_proj).transpose(1, 2) / 4
    weights = scores.softmax(-1)[:, 1:, 1:].view(8, grid, grid, grid, grid)
    for head, (down, right) in enumerate(parts.model.NEIGHBORS):
        share = np.mean(
            [float(weights[head, i, j, i + down, j + right]) for i in (4, 8) for j in (5, 11)]
        )
        assert share > 0.2, (head, share)  # evenly shared, it would be 1/257


def test_muons_steps_are_orthogonal_matrices(parts):
    singular = torch.linalg.svdvals(parts.muon.orthogonal(torch.randn(3, 20, 50)))
    assert 0.6 < singular.min() and singular.max() < 1.3


def test_nothing_is_said_of_a_shape_in_the_color_in_which_it_is_never_seen(parts):
    Phrase = parts.phrases.Phrase
    green = Phrase(size="small", surface="solid", color="green", shape="star")
    undecided = parts.batches.undecided
    assert undecided(Phrase(shape="triangle"), green)
    assert undecided(Phrase(surface="solid", shape="triangle"), green)
    assert not undecided(Phrase(surface="dotted", shape="triangle"), green)  # is not dotted anyway
    assert not undecided(Phrase(color="red", shape="triangle"), green)
    assert not undecided(Phrase(shape="circle"), green)
    logits = torch.zeros(1, 7)
    color = torch.tensor([1 + parts.phrases.COLORS.index("green")])
    left = parts.losses.excused(logits, color)[0]
    assert (left < -20).nonzero().flatten().tolist() == [1 + parts.phrases.SHAPES.index("triangle")]


def test_a_run_leaves_a_checkpoint_that_both_libraries_load(parts, tmp_path):
    command = [sys.executable, "train.py", "--output", tmp_path / "out", "--run", tmp_path / "run"]
    options = "--pool 1500 --steps 6 --scenes 2 --crops 1 --towers 0.2 --whole 0.5"
    command += options.split()
    variables = os.environ | {"PYTHONPATH": str(TRAINING.parent)}
    subprocess.run(command, cwd=TRAINING, env=variables, check=True, capture_output=True)
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 6 and 0 <= last["valid_iou"] <= 1
    scene = np.zeros((50, 60, 3), np.uint8)
    assert Segmenter.from_pretrained(tmp_path / "out")(scene, "a red circle").masks().shape[0] == 1
    trained = CLIPSegForImageSegmentation.from_pretrained(tmp_path / "out")
    again = parts.model.build_model(trained.config.text_config.vocab_size)
    heads = parts.losses.Auxiliary(again.config)
    parts.losses.start_from(tmp_path / "out", again, heads)  # for a run that goes on from here
    torch.testing.assert_close(again.state_dict(), dict(trained.state_dict()), check_dtype=False)
