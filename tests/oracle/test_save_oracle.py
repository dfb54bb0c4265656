"""transformers loads what is saved here, and starts a model from the same distributions."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'oracle'")
transformers = pytest.importorskip("transformers", reason="needs the extra 'oracle'")

import clipseg_np
from clipseg_np.nn.ops import Ops

from .reference import compare, worst

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-10
TEXT = {"hidden_size": 40, "num_attention_heads": 4, "intermediate_size": 56, "vocab_size": 90}
TEXT |= {"num_hidden_layers": 2, "eos_token_id": 89, "max_position_embeddings": 9}
VISION = {"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 64, "patch_size": 8}
VISION |= {"num_hidden_layers": 3, "image_size": 24}
WHOLE = {"projection_dim": 28, "extract_layers": [2, 0], "reduce_dim": 32, "conditional_layer": 1}
WHOLE |= {"decoder_intermediate_size": 44, "decoder_num_attention_heads": 2}

IDS = np.array([[3, 17, 89, 1], [3, 4, 5, 89], [3, 89, 1, 1]])


def config_of(name: str, refined: bool = False, **changes):
    if name == "CLIPSegTextModel":
        return clipseg_np.CLIPSegTextConfig(**TEXT, **changes)
    if name == "CLIPSegVisionModel":
        return clipseg_np.CLIPSegVisionConfig(**VISION, **changes)
    return clipseg_np.CLIPSegConfig(
        text_config={**TEXT, **changes},
        vision_config={**VISION, **changes},
        use_complex_transposed_convolution=refined,
        **WHOLE,
        **{key: value for key, value in changes.items() if key == "initializer_factor"},
    )


def inputs_of(name: str) -> dict[str, np.ndarray]:
    images = np.random.default_rng(0).normal(size=(3, 3, 32, 32))
    inputs = {"input_ids": IDS, "pixel_values": images}
    if name == "CLIPSegTextModel":
        del inputs["pixel_values"]
    if name == "CLIPSegVisionModel":
        del inputs["input_ids"]
    return inputs


@pytest.mark.parametrize(
    "name, refined",
    [
        ("CLIPSegTextModel", False),
        ("CLIPSegVisionModel", False),
        ("CLIPSegModel", False),
        ("CLIPSegForImageSegmentation", False),
        ("CLIPSegForImageSegmentation", True),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_transformers_loads_what_is_saved_and_the_other_way_round(name, refined, dtype, tmp_path):
    """Outputs are compared in float64: a random start's decoder magnifies float32's rounding."""
    config = config_of(name, refined)
    ours = getattr(clipseg_np, name)(config, seed=5, dtype=dtype)
    ours.save_pretrained(tmp_path / "ours")
    theirs, report = getattr(transformers, name).from_pretrained(
        tmp_path / "ours", dtype=getattr(torch, dtype), output_loading_info=True
    )
    assert not any(report.values()), report  # no missing, unexpected or mismatched key
    assert_same_arrays(ours, {key: tensor.numpy() for key, tensor in theirs.state_dict().items()})

    if dtype == "float64":
        inputs = inputs_of(name)
        tensors = {key: torch.from_numpy(array) for key, array in inputs.items()}
        with torch.no_grad():
            expected = theirs.eval()(**tensors, output_hidden_states=True)
        got = ours(**inputs, output_hidden_states=True)
        found = compare(got, expected) | compare(got.to_tuple(), expected.to_tuple(), "to_tuple")
        assert found and all(share <= TOLERANCE for share in found.values()), found

    theirs.save_pretrained(tmp_path / "theirs")
    again = getattr(clipseg_np, name).from_pretrained(tmp_path / "theirs", dtype=dtype)
    assert_same_arrays(again, ours.state_dict())
    assert type(again.config).from_dict(again.config.to_dict()) == again.config


@pytest.mark.parametrize("name", ["CLIPSegTextModel", "CLIPSegVisionModel", "CLIPSegModel"])
def test_a_checkpoint_of_clip_gives_transformers_numbers(name, tmp_path):
    """Saved by transformers' CLIPModel, with as many layers as CLIPSeg extracts by default."""
    config = transformers.CLIPConfig(
        text_config=TEXT, vision_config=VISION | {"num_hidden_layers": 10}, projection_dim=28
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).double().save_pretrained(tmp_path)
    theirs = getattr(transformers, name).from_pretrained(tmp_path, dtype=torch.float64).eval()
    ours = getattr(clipseg_np, name).from_pretrained(tmp_path, torch_dtype=torch.float64)
    assert ours.to(torch.device("cpu"), torch.float64) is ours
    inputs = inputs_of(name)
    with torch.no_grad():
        expected = theirs(**{key: torch.from_numpy(array) for key, array in inputs.items()})
    found = compare(ours(**inputs), expected)
    assert found and all(share <= TOLERANCE for share in found.values()), found


def assert_same_arrays(ours, expected: dict[str, np.ndarray]) -> None:
    arrays = ours.state_dict()
    assert set(arrays) == set(expected)
    for key, array in arrays.items():
        assert array.dtype == expected[key].dtype
        np.testing.assert_array_equal(array, expected[key], err_msg=key)


@pytest.mark.parametrize("changes", [{}, {"initializer_factor": 2.5, "initializer_range": 0.07}])
@pytest.mark.parametrize(
    "name",
    ["CLIPSegTextModel", "CLIPSegVisionModel", "CLIPSegModel", "CLIPSegForImageSegmentation"],
)
def test_the_random_start_has_transformers_distributions(name, changes, tmp_path):
    """Each tensor is equal where constant, else of one deviation, to five standard errors."""
    config = config_of(name, refined=True, **changes)
    ours = getattr(clipseg_np, name)(config, seed=1).state_dict()
    config.save_pretrained(tmp_path)
    reference = getattr(transformers, name)
    torch.manual_seed(0)
    theirs = reference(reference.config_class.from_pretrained(tmp_path)).state_dict()
    assert set(ours) == set(theirs)
    wrong = {}
    for key, tensor in theirs.items():
        expected, got = tensor.numpy(), ours[key]
        if np.ptp(expected) == 0:
            fits = np.array_equal(got, expected)
        else:
            error = expected.std() / np.sqrt(expected.size)  # of a difference of two deviations
            fits = abs(got.std() - expected.std()) < 5 * error
            fits &= abs(got.mean()) < 5 * error
        if not fits:
            wrong[key] = (float(got.std()), float(expected.std()))
    assert wrong == {}


def test_P09b_selu_is_torchs():
    """transformers has no activation of this name, though its documentation names it."""
    x = torch.linspace(-30, 30, 5001, dtype=torch.float64)
    assert worst(Ops().selu(x.numpy()), torch.nn.functional.selu(x)) < 1e-15


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["gelu", "gelu_new", "quick_gelu", "relu"])
def test_P09_activations_are_transformers(name, dtype):
    x = torch.linspace(-12, 12, 5001, dtype=getattr(torch, dtype))
    expected = transformers.activations.ACT2FN[name](x)
    got = Ops().activation(name, x.numpy())
    assert worst(got, expected) < {"float32": 1e-6, "float64": 1e-15}[dtype]


@pytest.mark.parametrize("name", ["CLIPSegTextConfig", "CLIPSegVisionConfig", "CLIPSegConfig"])
def test_configs_have_the_same_fields_and_defaults(name):
    towers = ("text_config", "vision_config")  # compared under their own names
    theirs = getattr(transformers, name)().to_dict()
    ours = {k: v for k, v in getattr(clipseg_np, name)().to_dict().items() if k not in towers}
    assert {key: theirs.get(key) for key in ours} == ours
    of_the_library = set(transformers.PretrainedConfig().to_dict())
    assert set(theirs) - set(ours) <= of_the_library | set(towers)
