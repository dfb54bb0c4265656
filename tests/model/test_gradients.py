"""The backward of each part of the model, against finite differences, and its ways of use."""

import numpy as np
import pytest

from clipseg_np import CLIPSegForImageSegmentation
from clipseg_np.errors import InputError
from clipseg_np.model.clip import (
    CLIPSegModel,
    CLIPSegTextModel,
    CLIPSegVisionModel,
    GridPositions,
    TextEmbeddings,
    VisionEmbeddings,
)
from clipseg_np.model.clipseg import Decoder
from clipseg_np.model.config import LEGACY_EOS_TOKEN_ID, CLIPSegConfig
from clipseg_np.nn.layers import Encoder
from clipseg_np.nn.learning import learning
from clipseg_np.nn.ops import Ops
from clipseg_np.nn.scope import Scope

from ..helpers.finite_differences import assert_gradients
from ..nn.test_gradients import CAUSAL, Drawn, check, numbers

DIRECTIONS = 1
P, EOS = 2, 8
# The second text is padded.
IDS = np.array([[7, 3, 1, EOS], [7, 5, EOS, 1]])
MASK = np.array([[1, 1, 1, 1], [1, 1, 1, 0]])


def config(eos=EOS, act="quick_gelu", **values):
    tower = {"hidden_size": 4, "num_attention_heads": 2, "intermediate_size": 5, "hidden_act": act}
    text = {"num_hidden_layers": 2, "vocab_size": 9, "max_position_embeddings": 6}
    vision = {"num_hidden_layers": 3, "image_size": 8, "patch_size": 4, "num_channels": 2}
    defaults = {"extract_layers": [0, 1, 2], "projection_dim": 3, "reduce_dim": 4}
    return CLIPSegConfig(
        text_config={**tower, **text, "eos_token_id": eos},
        vision_config={**tower, **vision},
        decoder_num_attention_heads=2,
        decoder_intermediate_size=3,
        **{**defaults, **values},
    )


def model_of(kind, config, place=""):
    scope = Scope(Drawn(), Ops(), "float64", place)
    model = kind(config, scope)
    return model, scope.arrays


def layer_of(kind, *arguments):
    scope = Scope(Drawn(), Ops(), "float64", "layer")
    return kind(scope, *arguments), scope.arrays


def check_model(model, arrays, inputs, rest, outputs, d_inputs=lambda returned: {}):
    """Every array and every input, for a loss that weighs each of the outputs.

    `outputs` are names of the model's outputs; `d_inputs` names the arrays that `backward` returns.
    """

    def loss():
        output = model(**inputs, **rest)
        values = {name: output[name] for name in outputs}
        return sum((weight * value).sum() for weight, value in pairs(values))

    def pairs(values):
        for i, value in enumerate(values.values()):
            for j, one in enumerate(value if isinstance(value, tuple) else [value]):
                yield weights.setdefault((i, j), numbers(*one.shape, seed=7 * i + j)), one

    weights = {}
    loss()
    d_y = {}
    for i, name in enumerate(outputs):
        of_one = [w for (number, _), w in weights.items() if number == i]
        d_y[name] = of_one if name == "hidden_states" else of_one[0]
    with learning() as found:
        model(**inputs, **rest)
        found.update(d_inputs(model.propagate(d_y)))
    checked = {name: x for name, x in inputs.items() if name != "input_ids"}
    assert_gradients(loss, {**arrays, **checked}, found, DIRECTIONS)


def test_token_and_position_embeddings():
    layer, arrays = layer_of(TextEmbeddings, config().text_config)
    for positions in (np.arange(4)[None], np.array([[0, 1, 2, 3], [3, 1, 1, 0]])):
        d_y = numbers(2, 4, 4)
        with learning() as found:
            layer(IDS, positions)
            layer.propagate(d_y)
        assert_gradients(lambda: (layer(IDS, positions) * d_y).sum(), arrays, found)  # noqa: B023


@pytest.mark.parametrize("grid", [(2, 2), (3, 5), (1, 2)], ids=["own", "larger", "smaller"])
def test_positions_of_a_grid(grid):
    layer, arrays = layer_of(GridPositions, 2, 3)
    d_y = numbers(1 + grid[0] * grid[1], 3)
    with learning() as found:
        layer(*grid)
        layer.propagate(d_y)
    assert_gradients(lambda: (layer(*grid) * d_y).sum(), arrays, found)


@pytest.mark.parametrize("size", [(8, 8), (9, 15)], ids=["own grid", "other grid, a margin"])
def test_vision_embeddings(size):
    check(*layer_of(VisionEmbeddings, config().vision_config), numbers(2, 2, *size))


@pytest.mark.parametrize("only", [(), (1,), (1, 0), (0, 1, 1)], ids=str)
def test_an_encoder(only):
    layer, arrays = layer_of(Encoder, config().text_config)
    x, rest = numbers(2, 4, 4), (CAUSAL, None, only)
    d_outputs = [numbers(*y.shape, seed=i) for i, y in enumerate(layer(x, *rest))]
    with learning() as found:
        layer(x, *rest)
        found["x"] = layer.propagate(d_outputs)
    if only == (1,):
        # An output that nothing depends on
        with learning() as again:
            layer(x, CAUSAL)
            d_x = layer.propagate([0, 0, d_outputs[0]])
        np.testing.assert_array_equal(d_x, found["x"])
        assert again.keys() == arrays.keys()

    def loss():
        return sum((y * d_y).sum() for y, d_y in zip(layer(x, *rest), d_outputs))

    arrays = {name: a for name, a in arrays.items() if name in found}
    assert len(arrays) == 16 * (max(only, default=1) + 1)
    assert_gradients(loss, {**arrays, "x": x}, found, DIRECTIONS)


TEXTS = {
    "whole": {},
    "padded": {"attention_mask": MASK},
    "padded on the left": {"attention_mask": MASK[:, ::-1]},
    "own positions": {"position_ids": np.array([[3, 2, 2, 5]])},
}
TOWERS_OUTPUTS = [
    ("pooler_output",),
    ("last_hidden_state",),
    ("last_hidden_state", "pooler_output", "hidden_states"),
]


@pytest.mark.parametrize("outputs", TOWERS_OUTPUTS, ids="+".join)
@pytest.mark.parametrize("rest", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("eos", [EOS, LEGACY_EOS_TOKEN_ID])
def test_the_text_tower(eos, rest, outputs):
    model, arrays = model_of(CLIPSegTextModel, config(eos).text_config)
    rest = {**rest, "output_hidden_states": True}
    check_model(model, arrays, {"input_ids": IDS}, rest, outputs)


@pytest.mark.parametrize("outputs", TOWERS_OUTPUTS, ids="+".join)
@pytest.mark.parametrize("size", [(8, 8), (9, 15)], ids=["own grid", "other grid, a margin"])
def test_the_vision_tower(size, outputs):
    model, arrays = model_of(CLIPSegVisionModel, config().vision_config)
    inputs, rest = {"pixel_values": numbers(2, 2, *size)}, {"output_hidden_states": True}
    check_model(model, arrays, inputs, rest, outputs, lambda d: {"pixel_values": d})


@pytest.mark.parametrize(
    "outputs",
    [
        ("loss",),
        ("logits_per_image",),
        ("loss", "logits_per_text", "logits_per_image", "text_embeds", "image_embeds"),
    ],
    ids="+".join,
)
def test_clip(outputs):
    model, arrays = model_of(CLIPSegModel, config())
    inputs = {"input_ids": IDS, "pixel_values": numbers(2, 2, 8, 8)}
    rest = {"attention_mask": MASK, "return_loss": True}
    check_model(model, arrays, inputs, rest, outputs, lambda d: {"pixel_values": d})


@pytest.mark.parametrize("outputs", [("logits_per_image",), ("logits_per_text",)], ids="+".join)
@pytest.mark.parametrize("B", [1, 3])
def test_clip_with_another_number_of_images_than_of_texts(B, outputs):
    model, arrays = model_of(CLIPSegModel, config())
    inputs = {"input_ids": IDS, "pixel_values": numbers(B, 2, 8, 8)}
    check_model(model, arrays, inputs, {}, outputs, lambda d: {"pixel_values": d})


@pytest.mark.parametrize(
    ("kind", "lacking"), [(CLIPSegModel, "return_loss"), (CLIPSegForImageSegmentation, "labels")]
)
def test_a_loss_that_was_not_asked_for_has_no_derivative(kind, lacking):
    model, _ = model_of(kind, config())
    inputs = {"input_ids": IDS, "pixel_values": numbers(2, 2, 8, 8)}
    with learning(), pytest.raises(InputError, match=f"there is no loss: no {lacking}"):
        assert model(**inputs).loss is None
        model.propagate({"loss": 1.0})


def test_images_may_be_given_as_lists():
    pixels = numbers(2, 2, 8, 8)
    found = []
    for given in (pixels, pixels.tolist()):
        model, _ = model_of(CLIPSegVisionModel, config().vision_config)
        with learning():
            model(given)
            found.append(model.propagate({"pooler_output": np.ones((2, 4))}))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("B", [1, 2], ids=["shared image", "an image each"])
@pytest.mark.parametrize("conditional_layer", [0, 1, 2])
@pytest.mark.parametrize("refined", [False, True], ids=["plain", "refined"])
def test_the_decoder(refined, conditional_layer, B):
    heads = {"use_complex_transposed_convolution": refined}
    decoder, arrays = layer_of(Decoder, config(conditional_layer=conditional_layer, **heads))
    h, w = 2, 3
    tokens = [numbers(B, 1 + h * w, 4, seed=i) for i in range(3)]
    embeddings = numbers(P, 3, seed=9)

    def logits():
        return decoder(decoder.reduce(tokens), embeddings, (h, w)).logits

    d_logits = numbers(*logits().shape, seed=8)
    with learning() as found:
        logits()
        d_reduced, found["embeddings"] = decoder.propagate(d_logits)
        d_tokens = decoder.reduce_backward(d_reduced)
    with learning() as alone:
        decoder.learn_reduces(d_reduced, tokens)
    assert len(alone) == 6 and all((alone[name] == found[name]).all() for name in alone)
    found.update({f"tokens {i}": d for i, d in enumerate(d_tokens)})
    inputs = {"embeddings": embeddings, **{f"tokens {i}": x for i, x in enumerate(tokens)}}
    assert_gradients(lambda: (logits() * d_logits).sum(), {**arrays, **inputs}, found, DIRECTIONS)


PROMPTS = {
    "ids": {"input_ids": IDS},
    "images": {"conditional_pixel_values": numbers(2, 2, 8, 12, seed=5)},
    "embeddings": {"conditional_embeddings": numbers(2, 3, seed=6)},
}


@pytest.mark.parametrize(
    "outputs",
    [("loss",), ("logits",), ("loss", "logits", "conditional_embeddings", "pooled_output")],
    ids="+".join,
)
@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("B", [1, 2], ids=["shared image", "an image each"])
def test_a_whole_model(B, kind, outputs):
    layers = {"extract_layers": [1, 0, 1], "conditional_layer": 1}
    model, arrays = model_of(CLIPSegForImageSegmentation, config(**layers))
    if kind != "ids":
        arrays = {name: a for name, a in arrays.items() if ".text_" not in name}
    arrays.pop("clip.logit_scale")
    labels = np.random.default_rng(4).uniform(size=(2, 8, 12))
    inputs = {"pixel_values": numbers(B, 2, 8, 12), **PROMPTS[kind]}

    def d_inputs(returned):
        d_pixels, d_prompts = returned
        assert (d_prompts is None) == (kind == "ids")
        return {"pixel_values": d_pixels, **{name: d_prompts for name in PROMPTS[kind]}}

    check_model(model, arrays, inputs, {"labels": labels}, outputs, d_inputs)


@pytest.mark.filterwarnings("ignore:a text without the end token")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("refined", [False, True], ids=["plain", "refined"])
def test_the_fast_backend(refined, kind, dtype):
    """As numpy-reference, but for rounding; long enough that threads share out the work."""
    tower = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 96}
    drawn = config(conditional_layer=1, use_complex_transposed_convolution=refined)
    values = drawn.to_dict()
    values["text_config"] |= {**tower, "max_position_embeddings": 40}
    values["vision_config"] |= {**tower, "num_channels": 3}
    values |= {"reduce_dim": 16, "decoder_num_attention_heads": 4, "decoder_intermediate_size": 300}
    values = CLIPSegConfig.from_dict(values)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 7, (2, 36))
    ids[:, -1] = EOS
    prompts = {
        "ids": {"input_ids": ids},
        "images": {"conditional_pixel_values": rng.normal(size=(2, 3, 24, 28))},
        "embeddings": {"conditional_embeddings": rng.normal(size=(2, 3))},
    }[kind]
    inputs = {"pixel_values": rng.normal(size=(1, 3, 28, 24)), **prompts}
    found = {}
    for backend in ("numpy-reference", "numpy"):
        model = CLIPSegForImageSegmentation(values, seed=1, backend=backend, dtype=dtype)
        shape = model(**inputs).logits.shape
        labels = np.random.default_rng(4).uniform(size=shape)
        with learning() as gradients:
            model(**inputs, labels=labels)
            gradients["pixels"], gradients["prompts"] = model.propagate({"loss": 1.0})
        found[backend] = {name: g for name, g in gradients.items() if g is not None}
    expected, found = found["numpy-reference"], found["numpy"]
    assert found.keys() == expected.keys() and len(found) > 60
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert found[name].dtype == dtype and found[name].shape == gradient.shape
        share = np.abs(found[name] - gradient).max() / largest
        assert share <= {"float64": 1e-12, "float32": 1e-5}[dtype], (name, share)


@pytest.mark.parametrize("backend", ["numpy-reference", "numpy"])
def test_positions_that_have_changed(backend):
    """The fast backend keeps resized positions, but not beyond a step."""
    model = CLIPSegVisionModel(config().vision_config, backend=backend, dtype="float64")
    weight = model.embeddings.position_embedding.weight
    images = numbers(1, 2, 12, 16)
    with learning() as found:
        model(images)
        model.propagate({"last_hidden_state": numbers(1, 13, 4)})
    weight -= found["embeddings.position_embedding.weight"]
    table = model.embeddings.position_embedding.forward(3, 4)
    np.testing.assert_array_equal(model.embeddings.positions(3, 4), table)
