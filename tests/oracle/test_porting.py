"""PORTING.md's recipe, as it is written there: transformers' trace compares clean against ours."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'oracle'")
pytest.importorskip("transformers", reason="needs the extra 'oracle'")
from transformers import CLIPSegConfig

from clipseg_np import CLIPSegForImageSegmentation
from clipseg_np.cli.parser import main
from clipseg_np.golden.compare import compare
from clipseg_np.golden.traces import Golden, write_golden

from ..helpers.checkpoints import PLAIN, REFINED
from ..helpers.documents import ROOT, fenced
from .reference import reference_model

pytestmark = pytest.mark.oracle
BLOCKS = fenced(ROOT / "PORTING.md", "python")
(RECIPE,) = [block for block in BLOCKS if "register_forward_hook" in block]


def run_recipe(folder, dtype, monkeypatch, where):
    """The page's own code, in `where`, with another checkpoint and float type."""
    code = RECIPE.replace('"weights/demo"', repr(str(folder)))
    if dtype == "float32":
        code = code.replace("dtype=torch.float64", "dtype=torch.float32")
        code = code.replace("torch.tensor(array)", "torch.tensor(array, dtype=kind(array))")
    assert code != RECIPE
    monkeypatch.chdir(where)
    floats = {True: torch.float32, False: None}
    exec(code, {"kind": lambda array: floats[array.dtype.kind == "f"]})  # noqa: S102


def drawn_inputs(config, rng):
    vision, text = config.vision_config, config.text_config
    ids = rng.integers(0, text.vocab_size - 2, (2, 6))
    ids[:, -1] = text.vocab_size - 1
    side = 3 * vision.patch_size
    return {
        "pixel_values": rng.normal(size=(2, vision.num_channels, side, side)),
        "input_ids": ids,
        "attention_mask": np.array([[1] * 6, [1] * 4 + [0, 1]]),
    }


@pytest.mark.filterwarnings("ignore:a text without the end token")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("folder", [PLAIN, REFINED, "full size"], ids=["plain", "refined", "full"])
def test_transformers_under_the_recipe_compares_clean(folder, dtype, monkeypatch, tmp_path):
    if folder == "full size":
        folder = tmp_path / "full"
        config = CLIPSegConfig(
            text_config={"eos_token_id": 2},
            vision_config={"patch_size": 16},
            use_complex_transposed_convolution=True,
        )
        reference_model(config, seed=0).save_pretrained(folder)
    model = CLIPSegForImageSegmentation.from_pretrained(folder, dtype="float64")
    inputs = drawn_inputs(model.config, np.random.default_rng(0))
    write_golden(tmp_path / "golden.safetensors", model, inputs)
    run_recipe(folder, dtype, monkeypatch, tmp_path)
    rows = compare(Golden(tmp_path / "golden.safetensors"), Golden(tmp_path / "mine.npz"))
    assert len(rows) > 50 and [row for row in rows if not row.fine] == []
    assert main(["compare", "golden.safetensors", "mine.npz"]) == 0


def test_the_page_as_it_stands(monkeypatch, tmp_path, capsys):
    golden = tmp_path / "golden.safetensors"
    monkeypatch.chdir(ROOT)
    prompts = ["a red thing", "a star"]
    assert main(["trace", "examples/shapes.png", *prompts, "--output", str(golden)]) == 0
    run_recipe(ROOT / "weights/demo", "float64", monkeypatch, tmp_path)
    assert main(["compare", "golden.safetensors", "mine.npz"]) == 0
    assert "agree" in capsys.readouterr().out
