"""Loading and the methods of a loaded model: flags in config.json, checkpoints of CLIP, types."""

import copy
import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest

from clipseg_np import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegModel,
    CLIPSegTextModel,
    CLIPSegVisionConfig,
    CLIPSegVisionModel,
    learning,
)
from clipseg_np.errors import InputError
from clipseg_np.nn.ops import Ops

from ..helpers.checkpoints import PLAIN, clip_checkpoint

IDS = np.array([[22, 3, 23], [22, 17, 23]])
X = np.random.default_rng(0).normal(size=(2, 1, 32, 32))


@pytest.fixture
def with_flags(tmp_path):
    """A function that writes PLAIN with other values in config.json."""

    def write(**changes):
        shutil.copytree(PLAIN, tmp_path, dirs_exist_ok=True)
        values = json.loads((PLAIN / "config.json").read_text())
        for name, value in changes.items():
            if isinstance(value, dict):
                values[name] |= value
            else:
                values[name] = value
        (tmp_path / "config.json").write_text(json.dumps(values))
        return tmp_path

    return write


def fields_of(output) -> dict[str, int]:
    """How many hidden states and attentions there are, by name."""
    names = ("hidden_states", "attentions")
    return {name: len(getattr(output, name) or ()) for name in names}


def test_flags_of_config_json_are_the_defaults_of_a_call(with_flags):
    folder = with_flags(output_hidden_states=True, output_attentions=True)
    model = CLIPSegForImageSegmentation.from_pretrained(folder)
    out = model(IDS, X)
    assert fields_of(out.vision_model_output) == {"hidden_states": 4, "attentions": 3}
    assert fields_of(out.decoder_output) == {"hidden_states": 3, "attentions": 2}
    out = model(IDS, X, output_attentions=False, output_hidden_states=None)
    assert fields_of(out.vision_model_output) == {"hidden_states": 4, "attentions": 0}
    assert fields_of(out.decoder_output) == {"hidden_states": 3, "attentions": 0}
    text = model.clip(IDS, X).text_model_output
    assert fields_of(text) == {"hidden_states": 3, "attentions": 2}


@pytest.mark.parametrize("flag, count", [("output_hidden_states", 4), ("output_attentions", 3)])
def test_a_towers_flag_is_that_towers(with_flags, flag, count):
    model = CLIPSegForImageSegmentation.from_pretrained(with_flags(vision_config={flag: True}))
    name = flag.removeprefix("output_")
    out = model(IDS, X)
    assert len(getattr(out.vision_model_output, name)) == count
    assert getattr(out.decoder_output, name) is None
    assert len(getattr(model.clip.vision_model(X), name)) == count
    assert getattr(model(IDS, X, **{flag: False}).vision_model_output, name) is None
    assert fields_of(model.clip.text_model(IDS)) == {"hidden_states": 0, "attentions": 0}


def test_flags_and_fields_may_be_arguments():
    model = CLIPSegForImageSegmentation.from_pretrained(PLAIN, output_attentions=True)
    assert len(model(IDS, X).decoder_output.attentions) == 2
    assert "output_attentions" in model.config.to_dict()
    assert CLIPSegConfig.from_pretrained(PLAIN, conditional_layer=1).conditional_layer == 1
    model = CLIPSegForImageSegmentation.from_pretrained(
        PLAIN, config=model.config, initializer_factor=2.0
    )
    assert (model.config.initializer_factor, model.config.output_attentions) == (2.0, True)
    with pytest.raises(InputError, match="nonsense is neither an argument .* of CLIPSegConfig"):
        CLIPSegForImageSegmentation.from_pretrained(PLAIN, nonsense=1)


def test_a_return_dict_of_false_in_config_json_is_refused(with_flags):
    with pytest.raises(InputError, match=r"write model\(\.\.\., return_dict=False\)"):
        CLIPSegForImageSegmentation.from_pretrained(with_flags(return_dict=False))
    CLIPSegForImageSegmentation.from_pretrained(with_flags(return_dict=True))


def test_a_checkpoint_of_clip_is_read(tmp_path):
    folder = clip_checkpoint(tmp_path)
    inside = CLIPSegModel.from_pretrained(PLAIN)
    model = CLIPSegModel.from_pretrained(folder)
    np.testing.assert_array_equal(model(IDS, X).logits_per_text, inside(IDS, X).logits_per_text)
    text, vision = CLIPSegTextModel, CLIPSegVisionModel
    for part, inputs in ((text, IDS), (vision, X)):
        expected = part.from_pretrained(PLAIN)(inputs).pooler_output
        np.testing.assert_array_equal(part.from_pretrained(folder)(inputs).pooler_output, expected)
    assert model.config.to_dict()["model_type"] == "clipseg"
    model.save_pretrained(tmp_path / "again")
    again = CLIPSegModel.from_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(again(IDS, X).logits_per_text, inside(IDS, X).logits_per_text)
    with pytest.raises(InputError, match=r"lacks clip\.text_model"):
        CLIPSegForImageSegmentation.from_pretrained(folder)


@pytest.mark.parametrize("depth, layers", [(12, (3, 6, 9)), (8, (3, 6)), (2, (0,))])
def test_a_config_of_clip_extracts_layers_that_are_there(depth, layers):
    values = {"model_type": "clip", "vision_config": {"num_hidden_layers": depth}}
    assert CLIPSegConfig.from_dict(values).extract_layers == layers
    assert CLIPSegVisionConfig.from_dict(values).num_hidden_layers == depth
    old = {"model_type": "clip", "vision_config_dict": values["vision_config"]}
    assert CLIPSegConfig.from_dict(old).extract_layers == layers


def test_an_argument_that_is_no_field_is_kept_as_in_a_file(tmp_path):
    config = CLIPSegVisionConfig(dropout=0.1, patch_size=16)
    assert config == CLIPSegVisionConfig.from_dict({"dropout": 0.1, "patch_size": 16})
    assert config.dropout == config.to_dict()["dropout"] == 0.1
    assert CLIPSegVisionConfig(**config.to_dict()) == config
    whole = CLIPSegConfig(
        vision_config=config, architectures=["A"], text_config_dict={"vocab_size": 9}
    )
    assert whole.architectures == ["A"] and whole.text_config.vocab_size == 9
    whole.save_pretrained(tmp_path)
    assert CLIPSegConfig.from_pretrained(tmp_path) == whole
    for same in (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole)), replace(whole)):
        assert same == whole
    with pytest.raises(AttributeError, match="CLIPSegConfig has no 'dropout'"):
        whole.dropout  # noqa: B018


def test_a_config_is_made_of_values_in_order():
    assert CLIPSegVisionConfig(24, 20).intermediate_size == 20


@pytest.mark.parametrize(
    "dtype", [None, "float32", np.float32, np.dtype("float32"), "torch.float32"]
)
def test_the_type_may_be_named_as_in_pytorch(dtype):
    for model in (
        CLIPSegTextModel.from_pretrained(PLAIN, dtype=dtype),
        CLIPSegTextModel.from_pretrained(PLAIN, torch_dtype=dtype),
        CLIPSegTextModel(CLIPSegTextModel.from_pretrained(PLAIN).config, dtype=dtype),
    ):
        assert model.dtype == np.float32


@pytest.mark.parametrize(
    "named, used", [("float64", "float64"), ("float16", "float32"), (None, "float32")]
)
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_auto_is_the_type_that_the_config_names(with_flags, key, named, used):
    folder = with_flags(**{"dtype": None, key: named})
    model = CLIPSegForImageSegmentation.from_pretrained(folder, torch_dtype="auto")
    assert model.dtype == used


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_saved_config_names_the_type_of_the_saved_weights(with_flags, key, tmp_path):
    towers = {"text_config": {key: "float16"}, "vision_config": {key: None}}
    folder = with_flags(**{"dtype": None, key: "float16", **towers})
    for dtype in ("float32", "float64"):
        model = CLIPSegForImageSegmentation.from_pretrained(folder, dtype=dtype)
        model.save_pretrained(tmp_path / dtype)
        saved = json.loads((tmp_path / dtype / "config.json").read_text())
        assert (saved[key], saved["text_config"][key]) == (dtype, dtype)
        assert saved["vision_config"][key] is None and model.config.other[key] == "float16"
        load = CLIPSegForImageSegmentation.from_pretrained
        assert load(tmp_path / dtype, dtype="auto").dtype == dtype
    CLIPSegTextModel.from_pretrained(folder).save_pretrained(tmp_path / "tower")
    assert json.loads((tmp_path / "tower" / "config.json").read_text())[key] == "float32"


def test_a_config_that_names_no_type_is_saved_without_one(tmp_path):
    config = replace(CLIPSegTextModel.from_pretrained(PLAIN).config, other={})
    CLIPSegTextModel(config, dtype="float64").save_pretrained(tmp_path)
    assert "dtype" not in (tmp_path / "config.json").read_text()


def test_a_model_stays_where_it_is():
    model = CLIPSegTextModel.from_pretrained(PLAIN, dtype="float64")
    here = ["cpu", "cpu:0", "float64", np.float64, None]
    for place in here:
        assert model.to(place) is model
    assert model.to("cpu", np.float64, non_blocking=True) is model.eval() is model.double() is model
    assert model.to(device="cpu", dtype="float64") is model.cpu() is model.requires_grad_(False)
    for place in ("cuda", "cuda:1", 0, "mps", "float32", np.float16, "torch.bfloat16"):
        with pytest.raises(
            InputError, match="computes on 'cpu' in float64, not in .*from_pretrained"
        ):
            model.to(place)
    for method in (model.float, model.half, model.bfloat16, model.cuda, model.train):
        with pytest.raises(InputError):
            method()
    assert (model.device, model.training, model.main_input_name) == ("cpu", False, "input_ids")
    assert CLIPSegVisionModel.main_input_name == "pixel_values"
    assert model.num_parameters() == sum(array.size for array in model.state_dict().values())


def test_the_device_of_a_gpus_backend():
    class Cupy(Ops):
        def __init__(self):
            super().__init__()
            self.xp = type("cupy", (), {"__name__": "cupy", "asarray": np.asarray})

    model = CLIPSegTextModel.from_pretrained(PLAIN, ops=Cupy())
    assert model.device == "cuda"
    assert model.to("cuda:0") is model.cuda() is model
    with pytest.raises(InputError, match="computes on 'cuda' in float32, not in 'cpu'"):
        model.cpu()


def test_an_attribute_that_is_not_there_is_named_with_advice():
    model = CLIPSegTextModel.from_pretrained(PLAIN)
    with pytest.raises(AttributeError, match="CLIPSegTextModel has no 'nonsense'$"):
        model.nonsense  # noqa: B018
    with pytest.raises(AttributeError, match=r"has no 'parameters': .*state_dict\(\)"):
        model.parameters()
    assert not hasattr(model, "push_to_hub") and copy.copy(model).config is model.config


@pytest.mark.parametrize("method", ["train", "requires_grad_"])
def test_train_says_how_to_train(method):
    model = CLIPSegForImageSegmentation.from_pretrained(PLAIN)
    assert getattr(model, method)(False) is model
    with pytest.raises(InputError) as refusal:
        getattr(model, method)()
    for way in ("clipseg-np fine-tune", "clipseg-np learn-prompt", "clipseg_np.learning()"):
        assert way in str(refusal.value)
    with learning() as gradients:
        assert gradients == {}
