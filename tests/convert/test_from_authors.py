"""The authors' decoder and OpenAI's CLIP as a checkpoint: names, splits, transpositions, errors."""

import gzip
import json
import warnings

import numpy as np
import pytest

from clipseg_np import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPTokenizer,
    LearnedPrompt,
    Segmenter,
    ViTImageProcessor,
)
from clipseg_np.cli.parser import main
from clipseg_np.convert.checkpoint import convert
from clipseg_np.convert.from_authors import _write_tokenizer, convert_original
from clipseg_np.errors import InputError
from clipseg_np.model.learned_prompt import fingerprint
from clipseg_np.text.bpe import BYTE_SYMBOLS

from ..helpers.archives import write_module, write_state_dict
from ..helpers.clip_merges import made_merges

LAYERS = (1, 2, 3)


def model_of(refined: bool, vocabulary: int = 40) -> CLIPSegForImageSegmentation:
    config = CLIPSegConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": 64,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 1,
            "max_position_embeddings": 12,
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
        },
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": 48,
            "patch_size": 16,
        },
        projection_dim=20,
        extract_layers=LAYERS,
        reduce_dim=16,
        decoder_intermediate_size=24,
        use_complex_transposed_convolution=refined,
    )
    model = CLIPSegForImageSegmentation(config, seed=4)
    rng = np.random.default_rng(5)  # biases and norms too, so that none can be taken for another
    for array in model.state_dict().values():
        array[...] = rng.normal(size=array.shape)
    return model


def attention(arrays: dict, place: str) -> dict:
    """Queries, keys and values above one another."""
    return {
        f"in_proj_{what}": np.concatenate(
            [arrays[f"{place}.{letter}_proj.{what}"] for letter in "qkv"]
        )
        for what in ("weight", "bias")
    } | {f"out_proj.{what}": arrays[f"{place}.out_proj.{what}"] for what in ("weight", "bias")}


def under(start: str, parts: dict) -> dict:
    return {start + name: array for name, array in parts.items()}


def pair(arrays: dict, place: str, name: str) -> dict:
    """A layer's weight and bias under another name."""
    return {f"{name}.{what}": arrays[f"{place}.{what}"] for what in ("weight", "bias")}


def blocks(arrays: dict, place: str, depth: int, start: str, names: tuple[str, ...]) -> dict:
    """Transformer layers, whose attention, two norms and two linear layers have these `names`."""
    parts = {}
    for layer in range(depth):
        prefix = f"{place}.{layer}"
        block = under(f"{names[0]}.", attention(arrays, f"{prefix}.self_attn"))
        for part, name in zip(("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"), names[1:]):
            block |= pair(arrays, f"{prefix}.{part}", name)
        parts |= under(f"{start}.{layer}.", block)
    return parts


def openai_blocks(arrays: dict, place: str, depth: int) -> dict:
    names = ("attn", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")
    return blocks(arrays, f"{place}.encoder.layers", depth, "transformer.resblocks", names)


def openai_clip(arrays: dict) -> dict:
    """OpenAI's names for the towers."""
    vision, text = "clip.vision_model", "clip.text_model"
    visual = {
        "class_embedding": arrays[f"{vision}.embeddings.class_embedding"],
        "positional_embedding": arrays[f"{vision}.embeddings.position_embedding.weight"],
        "conv1.weight": arrays[f"{vision}.embeddings.patch_embedding.weight"],
        "proj": arrays["clip.visual_projection.weight"].T,
        **pair(arrays, f"{vision}.pre_layrnorm", "ln_pre"),
        **pair(arrays, f"{vision}.post_layernorm", "ln_post"),
        **openai_blocks(arrays, vision, 4),
    }
    return {
        "token_embedding.weight": arrays[f"{text}.embeddings.token_embedding.weight"],
        "positional_embedding": arrays[f"{text}.embeddings.position_embedding.weight"],
        "text_projection": arrays["clip.text_projection.weight"].T,
        "logit_scale": arrays["clip.logit_scale"],
        **pair(arrays, f"{text}.final_layer_norm", "ln_final"),
        **openai_blocks(arrays, text, 2),
        **under("visual.", visual),
        "input_resolution": np.array(48),
        "context_length": np.array(12),
        "vocab_size": np.array(40),
        "transformer.resblocks.0.attn_mask": np.zeros((12, 12), np.float32),
    }


def authors_decoder(arrays: dict) -> dict:
    """The authors' names for the decoder, with a layer that is in their files and in no use."""
    parts = {
        "reduce.weight": np.ones((16, 128), np.float32),
        "reduce.bias": np.ones(16, np.float32),
    }
    for name in ("film_mul", "film_add", "reduces.0", "reduces.1", "reduces.2"):
        parts |= pair(arrays, f"decoder.{name}", name)
    names = ("self_attn", "norm1", "norm2", "linear1", "linear2")
    parts |= blocks(arrays, "decoder.layers", 3, "blocks", names)
    head = "decoder.transposed_convolution"
    steps = [""] if f"{head}.weight" in arrays else [".0", ".2", ".4"]
    for step in steps:
        parts |= pair(arrays, head + step, "trans_conv" + step)
    return parts


def files(folder, arrays: dict) -> tuple:
    decoder = write_state_dict(folder / "rd16-uni.pth", authors_decoder(arrays))
    return decoder, write_module(folder / "ViT-B-16.pt", openai_clip(arrays))


@pytest.fixture(scope="module")
def plain():
    return model_of(refined=False)


@pytest.fixture
def plain_files(plain, tmp_path):
    return files(tmp_path, plain.state_dict())


@pytest.mark.parametrize("refined", [False, True])
def test_every_array_finds_its_place(refined, tmp_path):
    model = model_of(refined)
    decoder, clip = files(tmp_path, model.state_dict())
    written = convert_original(decoder, clip, tmp_path / "new", extract_layers=LAYERS)
    assert written.tensors == len(model.state_dict())
    found = CLIPSegForImageSegmentation.from_pretrained(tmp_path / "new")
    assert found.config == CLIPSegConfig.from_dict(
        model.config.to_dict()
        | {"dtype": "float32", "architectures": ["CLIPSegForImageSegmentation"]}
    )
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(found.state_dict()[name], array, err_msg=name)
    settings = ViTImageProcessor.from_pretrained(tmp_path / "new")
    assert settings.size == {"height": 352, "width": 352} and settings.resample == 2
    assert tuple(settings.image_mean) == (0.485, 0.456, 0.406)
    assert tuple(settings.image_std) == (0.229, 0.224, 0.225)


def test_a_learned_prompt_fits_the_authors_files_and_what_is_made_of_them(tmp_path):
    """Whichever it was learned with; OpenAI's projections are stored as float16."""
    model, folders = model_of(refined=True), ["new", "half", "again"]
    decoder, clip = files(tmp_path, model.state_dict())
    convert_original(decoder, clip, tmp_path / "new", extract_layers=LAYERS)
    halves = {n: array.astype(np.float16) for n, array in openai_clip(model.state_dict()).items()}
    clip = write_module(tmp_path / "ViT-B-16.pt", halves)
    convert_original(decoder, clip, tmp_path / "half", extract_layers=LAYERS)
    convert(tmp_path / "half", tmp_path / "again", "float16")
    read = CLIPSegForImageSegmentation.from_pretrained
    models = [model, *(read(tmp_path / folder) for folder in folders)]
    for one in models:
        prompt = LearnedPrompt(np.zeros(20, np.float32), fingerprint(one), "heart", {})
        assert all(prompt.check(other) for other in models)


def test_clip_in_half_precision_becomes_float32_or_what_is_asked_for(plain, tmp_path):
    """As OpenAI stores it."""
    arrays = plain.state_dict()
    decoder = write_state_dict(tmp_path / "rd16-uni.pth", authors_decoder(arrays))
    halves = {name: array.astype(np.float16) for name, array in openai_clip(arrays).items()}
    clip = write_module(tmp_path / "ViT-B-16.pt", halves)
    convert_original(decoder, clip, tmp_path / "new", extract_layers=LAYERS)
    found = CLIPSegForImageSegmentation.from_pretrained(tmp_path / "new").state_dict()
    for name, array in arrays.items():
        half = array if name.startswith("decoder") else array.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(found[name], half, err_msg=name)
    size = (tmp_path / "new" / "model.safetensors").stat().st_size
    convert_original(decoder, clip, tmp_path / "half", "float16", 0.1, extract_layers=LAYERS)
    shards = list((tmp_path / "half").glob("*-of-*.safetensors"))
    assert len(shards) > 3 and sum(f.stat().st_size for f in shards) < 0.6 * size
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"


def test_one_file_of_both(plain, tmp_path):
    """The authors' whole model: CLIP under clip_model., and its vision tower again under model."""
    arrays = plain.state_dict()
    clip = openai_clip(arrays)
    again = {name.replace("visual.", "model."): a for name, a in clip.items() if "visual." in name}
    whole = authors_decoder(arrays) | under("clip_model.", clip) | again
    path = write_state_dict(tmp_path / "whole.pth", whole)
    convert_original(path, None, tmp_path / "new", extract_layers=LAYERS)
    found = CLIPSegForImageSegmentation.from_pretrained(tmp_path / "new").state_dict()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# Files that do not fit


def refused(folder, decoder, clip, message, **options):
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(InputError, match=message):
        convert_original(decoder, clip, folder / "new", **{"extract_layers": LAYERS, **options})
    assert sorted(path.name for path in folder.iterdir()) == before


def test_files_that_are_not_these(plain_files, tmp_path):
    decoder, clip = plain_files
    refused(tmp_path, decoder, None, "holds the decoder alone; expected OpenAI's CLIP beside it")
    refused(tmp_path, clip, decoder, "lacks film_mul.weight; expected the authors' decoder")
    refused(tmp_path, decoder, decoder, "is missing; expected an array of 2 axes. Are these")


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("film_add.weight", None, r"a.pth lacks decoder.film_add.weight; .* of shape \(16, 20\)"),
        ("film_add.weight", (16, 21), r"film_add.weight has shape \(16, 21\); .* \(16, 20\)"),
        ("film_mul.weight", (16,), r"film_mul.weight has the shape \(16,\); expected .* 2 axes"),
        (
            "blocks.0.self_attn.in_proj_weight",
            (47, 16),
            r"shape \(47, 16\); expected queries, keys",
        ),
        ("blocks.1.self_attn.in_proj_bias", (), r"shape \(\); expected queries, keys"),
        ("blocks.3.norm1.weight", (16,), r"holds 1 key.*decoder.layers.3.layer_norm1.weight"),
        ("extra_blocks.0.norm1.weight", (16,), "no place for 'extra_blocks.0.norm1.weight'"),
        (
            "reduces.3.weight",
            (16, 128),
            "The decoder reads 4 of the vision tower's layers; expected 3",
        ),
        ("trans_conv.0.weight", (16, 16, 3, 3), "lacks decoder.transposed_convolution.0.bias"),
    ],
)
def test_tensors_that_do_not_fit(name, array, message, plain, tmp_path):
    parts = authors_decoder(plain.state_dict())
    if array is None:
        del parts[name]
    else:
        parts[name] = np.ones(array, np.float32)
    decoder = write_state_dict(tmp_path / "a.pth", parts)
    clip = write_module(tmp_path / "ViT-B-16.pt", openai_clip(plain.state_dict()))
    refused(tmp_path, decoder, clip, message)


def test_default_layers(plain_files, tmp_path):
    """Three by default; a vision tower of four layers has no tenth."""
    refused(tmp_path, *plain_files, "extract_layers", extract_layers=None)
    refused(tmp_path, *plain_files, "expected 2, 0, 1. Say which", extract_layers=(0, 1))


def test_the_authors_model_reads_layers_by_number_and_none_twice(plain_files, tmp_path):
    """Its vision tower collects layer 0, which it drops, and those that are named, as they run."""
    for i, (layers, is_reversed) in enumerate([((3, 1, 2), False), ((2, 3, 1), True)]):
        settings = {"extract_layers": layers, "cond_layer": 0, "rev_activations": is_reversed}
        convert_original(*plain_files, tmp_path / str(i), **settings)
        expected = LAYERS[::-1] if is_reversed else LAYERS
        assert CLIPSegConfig.from_pretrained(tmp_path / str(i)).extract_layers == expected
    for layers in [(0, 1, 2), (2, 1, 2)]:
        message = f"extract_layers are {', '.join(map(str, layers))}; expected layers from 1"
        refused(tmp_path, *plain_files, message, extract_layers=layers)


SETTINGS = {"extract_layers": LAYERS, "cond_layer": 1, "rev_activations": True}


def test_settings_that_the_files_do_not_say(plain_files, tmp_path):
    """Each fits the same tensors: it is warned of unless it is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert_original(*plain_files, tmp_path / "given", **SETTINGS)
    config = CLIPSegConfig.from_pretrained(tmp_path / "given")
    assert config.extract_layers == LAYERS[::-1] and config.conditional_layer == 1
    for name, assumed in [("cond_layer", "cond_layer=0"), ("rev_activations", "=False")]:
        given = {each: value for each, value in SETTINGS.items() if each != name}
        with pytest.warns(UserWarning, match=rf"the published ones: \w*{assumed}\. With others"):
            convert_original(*plain_files, tmp_path / name, **given)
    config = CLIPSegConfig.from_pretrained(tmp_path / "cond_layer")
    assert config.extract_layers == LAYERS[::-1] and config.conditional_layer == 0
    config = CLIPSegConfig.from_pretrained(tmp_path / "rev_activations")
    assert config.extract_layers == LAYERS and config.conditional_layer == 1
    given = {**SETTINGS, "extract_layers": None}
    message = r"extract_layers=\(3, 6, 9\)\. With others"
    with pytest.warns(UserWarning, match=message), pytest.raises(InputError, match="from 0 to 3"):
        convert_original(*plain_files, tmp_path / "none", **given)
    refused(tmp_path, *plain_files, "conditional_layer is 3; expected", cond_layer=3)


def test_settings_on_the_command_line(plain_files, tmp_path, capsys):
    decoder, clip = map(str, plain_files)
    command = ["convert", decoder, str(tmp_path / "new"), "--clip", clip, "--cond-layer", "1"]
    assert main([*command, "--rev-activations", "--extract-layers", "1", "3", "2"]) == 0
    assert "assumed" not in capsys.readouterr().err
    config = CLIPSegConfig.from_pretrained(tmp_path / "new")
    assert config.extract_layers == LAYERS[::-1] and config.conditional_layer == 1


# The tokenizer


@pytest.fixture(scope="module")
def with_tokenizer():
    return model_of(refined=False, vocabulary=2 * 256 + 3 + 2)


def merges_file(path):
    text = '"bpe_simple_vocab_16e6.txt#version: 0.2\nr e\nre d</w>\na t</w>\nnever used\n'
    path.write_bytes(gzip.compress(text.encode()))
    return path


def test_openais_list_of_merges(with_tokenizer, tmp_path, image):
    decoder, clip = files(tmp_path, with_tokenizer.state_dict())
    merges = merges_file(tmp_path / "bpe_simple_vocab_16e6.txt.gz")
    convert_original(decoder, clip, tmp_path / "new", tokenizer=merges, extract_layers=LAYERS)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "new")
    assert len(tokenizer) == 517 and tokenizer.model_max_length == 77
    vocab = tokenizer.get_vocab()
    assert (
        vocab["!"] == 0
        and vocab["!</w>"] == 256
        and vocab["a"] == list(BYTE_SYMBOLS.values()).index("a")
    )
    assert [vocab[token] for token in ("re", "red</w>", "at</w>")] == [512, 513, 514]
    assert tokenizer("red").input_ids == [515, 513, 516]
    assert Segmenter.from_pretrained(tmp_path / "new")(image, "red").probabilities.shape == (
        1,
        40,
        60,
    )


def test_clips_own_merges(tmp_path):
    """Behind the merges that CLIP uses, OpenAI's file goes on."""
    lines = ["#version: 0.2", *map(" ".join, made_merges()), "q q", "x x"]
    path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode(), 1))
    _write_tokenizer(path, tmp_path, 49408)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("café").input_ids == [49406, 15304, 49407]


def test_a_folder_with_a_tokenizer(with_tokenizer, plain_files, tokenizer, tmp_path):
    decoder, clip = plain_files
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    refused(
        tmp_path, decoder, clip, "and CLIP 40: they do not belong", tokenizer=tmp_path / "tokenizer"
    )
    model = model_of(refined=False, vocabulary=len(tokenizer))
    (tmp_path / "other").mkdir()
    decoder, clip = files(tmp_path / "other", model.state_dict())
    convert_original(
        decoder, clip, tmp_path / "new", tokenizer=tmp_path / "tokenizer", extract_layers=LAYERS
    )
    assert (
        CLIPTokenizer.from_pretrained(tmp_path / "new")("red").input_ids
        == tokenizer("red").input_ids
    )


DAMAGED = [gzip.compress(b"a" * 99)[:-9], gzip.compress(b"\xff\xfe"), b"\x1f\x8b\x08", b"no gzip"]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_list_of_merges(content, plain_files, tmp_path):
    path = tmp_path / "merges.gz"
    path.write_bytes(content)
    refused(tmp_path, *plain_files, "merges.gz is not OpenAI's list of merges", tokenizer=path)


# The command


def test_the_command(plain_files, tmp_path, capsys):
    decoder, clip = map(str, plain_files)
    command = ["convert", decoder, str(tmp_path / "new"), "--extract-layers", "1", "3", "2"]
    assert main(command) == 2
    assert "--clip ViT-B-16.pt" in capsys.readouterr().err
    assert main([*command, "--clip", clip, "--dtype", "bfloat16"]) == 0
    printed = capsys.readouterr()
    assert "model.safetensors" in printed.out
    assert printed.err.count("\n") == 2 and "warning: no tokenizer was given" in printed.err
    assert "assumed, as in the published ones: cond_layer=0, rev_activations=False." in printed.err
    assert main(["info", "--model", str(tmp_path / "new")]) == 0
    assert "reads vision layers 1, 2, 3, plain head" in capsys.readouterr().out
