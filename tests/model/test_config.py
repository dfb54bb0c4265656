"""Configs: defaults, the layouts of old and new config.json files, round trips, refused values."""

import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from clipseg_np import CLIPSegConfig, CLIPSegTextConfig, CLIPSegVisionConfig
from clipseg_np.errors import InputError

GOLDEN = Path(__file__).parents[1] / "data"
CONFIGS = (CLIPSegTextConfig, CLIPSegVisionConfig, CLIPSegConfig)


def test_defaults_are_the_published_ones():
    """The class defaults of the reference; the hub's files state what differs."""
    text, vision, whole = CLIPSegTextConfig(), CLIPSegVisionConfig(), CLIPSegConfig()
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (512, 2048, 12)
    assert (text.num_attention_heads, text.max_position_embeddings) == (8, 77)
    assert (text.vocab_size, text.bos_token_id, text.eos_token_id) == (49408, 49406, 49407)
    assert (vision.hidden_size, vision.intermediate_size) == (768, 3072)
    assert vision.num_hidden_layers == 12
    assert (vision.num_attention_heads, vision.image_size, vision.patch_size) == (12, 224, 32)
    assert (text.layer_norm_eps, vision.layer_norm_eps) == (1e-5, 1e-5)
    assert (whole.text_config, whole.vision_config) == (text, vision)
    assert (whole.projection_dim, whole.reduce_dim, whole.conditional_layer) == (512, 64, 0)


def test_P13_extract_layers_are_those_of_the_released_checkpoints():
    assert CLIPSegConfig().extract_layers == (3, 6, 9)
    assert CLIPSegConfig(extract_layers=[3, 7, 9]).extract_layers == (3, 7, 9)


def test_P09_the_towers_activation_is_quick_gelu_and_eps_1e_5():
    for config in (CLIPSegTextConfig(), CLIPSegVisionConfig()):
        assert (config.hidden_act, config.layer_norm_eps) == ("quick_gelu", 1e-5)


@pytest.mark.parametrize("config_class", CONFIGS)
def test_round_trips(config_class, tmp_path):
    config = config_class(initializer_factor=0.5)
    assert config_class.from_dict(config.to_dict()) == config
    config.save_pretrained(tmp_path)
    assert config_class.from_pretrained(tmp_path) == config
    assert config_class.from_json_file(tmp_path / "config.json") == config
    assert json.loads(config.to_json_string()) == config.to_dict()
    assert config.to_dict()["model_type"] == config_class.model_type


@pytest.mark.parametrize("name", ["plain", "refined"])
def test_a_file_by_transformers_is_read_and_written_back_without_loss(name, tmp_path):
    stored = json.loads((GOLDEN / name / "config.json").read_text())
    config = CLIPSegConfig.from_pretrained(GOLDEN / name)
    assert config.extract_layers == tuple(stored["extract_layers"])
    assert config.vision_config.image_size == stored["vision_config"]["image_size"]
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == stored


def test_towers_are_found_inside_a_whole_config():
    whole = CLIPSegConfig.from_pretrained(GOLDEN / "plain")
    assert CLIPSegTextConfig.from_pretrained(GOLDEN / "plain") == whole.text_config
    assert CLIPSegVisionConfig.from_pretrained(GOLDEN / "plain") == whole.vision_config


def test_the_old_layout_repeats_a_tower_under_another_name():
    """Files of 2022: text_config_dict wins over text_config, and may be null."""
    values = {
        "model_type": "clipseg",
        "text_config": {"hidden_size": 64, "num_attention_heads": 4, "torch_dtype": "float32"},
        "text_config_dict": {"hidden_size": 32, "eos_token_id": 2},
        "vision_config": {"patch_size": 16},
        "vision_config_dict": None,
        "torch_dtype": "float32",
    }
    config = CLIPSegConfig.from_dict(values)
    assert (config.text_config.hidden_size, config.text_config.eos_token_id) == (32, 2)
    assert config.text_config.other["torch_dtype"] == "float32"
    assert config.vision_config.patch_size == 16
    assert config.other == {"torch_dtype": "float32"}
    assert values["text_config_dict"] is not None  # the caller's dictionary is left alone
    assert CLIPSegConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("config_class", "name", "meant"),
    [
        (CLIPSegConfig, "extract_layer", "extract_layers"),
        (CLIPSegTextConfig, "layer_norm_epsilon", "layer_norm_eps"),
        (CLIPSegVisionConfig, "img_size", "image_size"),
    ],
)
def test_a_misspelled_field_is_warned_of(config_class, name, meant, tmp_path):
    with pytest.warns(UserWarning, match=f"{name} is no field of .*; is {meant} meant?"):
        config = config_class(**{name: 1})
    assert config.to_dict()[name] == 1
    config_class().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"{name} is neither .*; is {meant} meant?"):
        config_class.from_pretrained(tmp_path, **{name: 1})


@pytest.mark.parametrize("config_class", CONFIGS)
def test_names_of_transformers_are_not_warned_of(config_class, recwarn):
    names = ("sep_token_id", "attention_probs_dropout_prob", "dropout", "decoder_start_token_id")
    config = config_class(**dict.fromkeys(names, 1))
    assert not recwarn and config.dropout == 1 and config.return_dict is True
    assert config.output_attentions is config.output_hidden_states is False


def test_from_text_vision_configs():
    text, vision = CLIPSegTextConfig(vocab_size=100), CLIPSegVisionConfig(patch_size=16)
    config = CLIPSegConfig.from_text_vision_configs(text, vision, reduce_dim=16)
    assert config == CLIPSegConfig(text_config=text, vision_config=vision, reduce_dim=16)


def test_configs_are_frozen():
    with pytest.raises(FrozenInstanceError):
        CLIPSegConfig().reduce_dim = 16


def test_P10_decoder_hidden_act_is_kept_and_not_checked():
    """The reference never uses it, so no value of it can be wrong."""
    assert CLIPSegConfig(decoder_hidden_act="swish").to_dict()["decoder_hidden_act"] == "swish"


IMPOSSIBLE = [
    (CLIPSegTextConfig, {"hidden_size": 0}),
    (CLIPSegTextConfig, {"hidden_size": 30}),  # no multiple of 8 heads
    (CLIPSegTextConfig, {"num_hidden_layers": 1.5}),
    (CLIPSegTextConfig, {"num_attention_heads": True}),
    (CLIPSegTextConfig, {"vocab_size": -1}),
    (CLIPSegTextConfig, {"max_position_embeddings": "77"}),
    (CLIPSegTextConfig, {"hidden_act": "swish"}),
    (CLIPSegTextConfig, {"layer_norm_eps": -1e-5}),
    (CLIPSegTextConfig, {"layer_norm_eps": float("nan")}),
    (CLIPSegTextConfig, {"attention_dropout": 1.5}),
    (CLIPSegTextConfig, {"eos_token_id": None}),
    (CLIPSegTextConfig, {"pad_token_id": "1"}),
    (CLIPSegVisionConfig, {"hidden_size": None}),
    (CLIPSegVisionConfig, {"intermediate_size": 0}),
    (CLIPSegVisionConfig, {"num_channels": 0}),
    (CLIPSegVisionConfig, {"image_size": [224, 224]}),
    (CLIPSegVisionConfig, {"patch_size": 225}),
    (CLIPSegVisionConfig, {"initializer_range": float("inf")}),
    (CLIPSegConfig, {"projection_dim": 0}),
    (CLIPSegConfig, {"reduce_dim": 63}),  # no multiple of 4 heads
    (CLIPSegConfig, {"decoder_intermediate_size": -2}),
    (CLIPSegConfig, {"decoder_attention_dropout": "none"}),
    (CLIPSegConfig, {"logit_scale_init_value": None}),
    (CLIPSegConfig, {"extract_layers": []}),
    (CLIPSegConfig, {"extract_layers": 3}),
    (CLIPSegConfig, {"extract_layers": [3, 12]}),
    (CLIPSegConfig, {"extract_layers": [-1]}),
    (CLIPSegConfig, {"extract_layers": [3.0]}),
    (CLIPSegConfig, {"conditional_layer": 3}),
    (CLIPSegConfig, {"conditional_layer": -1}),
    (CLIPSegConfig, {"use_complex_transposed_convolution": "yes"}),
    (
        CLIPSegConfig,
        {"use_complex_transposed_convolution": True, "vision_config": {"patch_size": 3}},
    ),
]


@pytest.mark.parametrize("config_class, values", IMPOSSIBLE)
def test_impossible_values_are_refused_with_the_fields_name(config_class, values):
    name = next(iter(values))
    with pytest.raises(InputError, match=rf"{config_class.__name__}: {name} is .*expected"):
        config_class(**values)


def test_the_refined_head_needs_two_channels():
    values = {"reduce_dim": 1, "decoder_num_attention_heads": 1}
    CLIPSegConfig(**values)
    with pytest.raises(InputError, match="reduce_dim is 1"):
        CLIPSegConfig(**values, use_complex_transposed_convolution=True)


def test_an_impossible_tower_is_named_inside_a_whole_config():
    with pytest.raises(InputError, match="CLIPSegVisionConfig: patch_size"):
        CLIPSegConfig(vision_config={"patch_size": 0})


@pytest.mark.parametrize("config_class", CONFIGS)
@pytest.mark.parametrize("values", [{"model_type": "siglip"}, [], None, "clipseg"])
def test_another_models_config_is_refused(config_class, values):
    with pytest.raises(InputError, match="model_type is 'siglip'|made from an object"):
        config_class.from_dict(values)


@pytest.mark.parametrize(
    "text, message", [("{", "not valid JSON"), ("[1]", "expected an object"), ("\x80", "JSON")]
)
def test_a_damaged_file_is_named(text, message, tmp_path):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message) as caught:
        CLIPSegConfig.from_pretrained(tmp_path)
    assert "config.json" in str(caught.value)


def test_a_missing_file_is_named_with_what_is_there_instead(tmp_path):
    (tmp_path / "model.bin").touch()
    with pytest.raises(FileNotFoundError, match="config.json is missing.*holds: model.bin"):
        CLIPSegConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"text_config": "text"},
        {"text_config": [1], "text_config_dict": {}},
        {"text_config_dict": 5},
        {"vision_config": {"model_type": "siglip_vision_model"}},
    ],
)
def test_a_tower_that_is_no_config_is_refused(values):
    with pytest.raises(InputError, match="CLIPSeg(Text|Vision)Config"):
        CLIPSegConfig.from_dict(values)


def test_P09b_selu_may_be_named():
    """The reference documents it and raises KeyError for it."""
    assert CLIPSegTextConfig(hidden_act="selu").hidden_act == "selu"
