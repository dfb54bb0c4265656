"""The models: shapes of inputs and outputs, what depends on what, and what is refused."""

import gc
import warnings
import weakref
from dataclasses import replace

import numpy as np
import pytest

from clipseg_np import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegModel,
    CLIPSegTextModel,
    CLIPSegVisionModel,
)
from clipseg_np.errors import InputError
from clipseg_np.model.batched import encode
from clipseg_np.nn.trace import trace

from ..helpers.checkpoints import PLAIN, REFINED

IDS = np.array([[22, 3, 23, 1, 1], [22, 17, 4, 6, 23], [22, 9, 9, 23, 1]])
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
P = len(IDS)


@pytest.fixture(scope="module")
def plain():
    """One channel, patches of 16, positions for 2 by 2 patches, extract_layers (0, 1) of 3."""
    return CLIPSegForImageSegmentation.from_pretrained(PLAIN, dtype="float64")


@pytest.fixture(scope="module")
def refined():
    """Three channels, patches of 8, positions for 2 by 2 patches, extract_layers (1, 0) of 2."""
    return CLIPSegForImageSegmentation.from_pretrained(REFINED, dtype="float64")


def images(model, *shape, seed=0):
    """(B,C,H,W) from (B,H,W)"""
    channels = model.config.vision_config.num_channels
    return np.random.default_rng(seed).normal(size=(shape[0], channels, *shape[1:]))


def differ(a, b) -> bool:
    return float(np.abs(a - b).max()) > 1e-3 * float(np.abs(a).max())


def same(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


# Shapes


@pytest.mark.parametrize("height, width", [(32, 32), (16, 48), (80, 16), (33, 47)])
def test_P08_logits_have_the_images_height_and_width(plain, height, width):
    """The decoder is told the grid; the reference takes the square root of the number of tokens."""
    logits = plain(pixel_values=images(plain, 1, height, width), input_ids=IDS).logits
    assert logits.shape == (P, height // 16 * 16, width // 16 * 16)


def test_P08_a_grid_of_six_is_not_two_by_three_when_it_is_three_by_two(plain):
    """Rows and columns keep their places: a changed patch changes its own logits most."""
    base = np.zeros((1, 1, 48, 32))
    changed = base.copy()
    changed[:, :, 32:48, 0:16] = 3.0  # row 2, column 0
    before, after = (plain(pixel_values=x, input_ids=IDS[:1]).logits[0] for x in (base, changed))
    by_patch = np.abs(after - before).reshape(3, 16, 2, 16).mean(axis=(1, 3))
    assert np.unravel_index(by_patch.argmax(), by_patch.shape) == (2, 0)


@pytest.mark.parametrize("patch, factor", [(16, 16), (8, 4), (4, 1), (5, 1)])
def test_P18b_the_refined_head_upsamples_by_a_quarter_of_the_patch_twice(patch, factor):
    config = CLIPSegConfig(
        text_config={"num_hidden_layers": 1, "vocab_size": 3, "hidden_size": 8, "eos_token_id": 2},
        vision_config={
            "num_hidden_layers": 1,
            "patch_size": patch,
            "image_size": 2 * patch,
            "hidden_size": 12,
            "intermediate_size": 4,
        },
        extract_layers=[0],
        projection_dim=6,
        reduce_dim=4,
        use_complex_transposed_convolution=True,
    )
    model = CLIPSegForImageSegmentation(config)
    image = np.zeros((1, 3, 2 * patch, 3 * patch))
    assert model(pixel_values=image, input_ids=[[1, 2]]).logits.shape == (1, 2 * factor, 3 * factor)
    plain = CLIPSegForImageSegmentation(replace(config, use_complex_transposed_convolution=False))
    logits = plain(pixel_values=image, input_ids=[[1, 2]]).logits
    assert logits.shape == (1, 2 * patch, 3 * patch)


def test_P19_one_prompt_keeps_its_axis_and_logits_are_not_probabilities(plain):
    logits = plain(pixel_values=images(plain, 1, 32, 32), input_ids=IDS[:1]).logits
    assert logits.shape == (1, 32, 32)
    one_patch = plain(pixel_values=images(plain, 1, 16, 16), input_ids=IDS[:1]).logits
    assert one_patch.shape == (1, 16, 16)
    assert logits.min() < 0 or logits.max() > 1


def test_one_prompt_may_come_without_its_axis(plain):
    """As in transformers, a single text's ids are taken as a batch of one."""
    same(plain.clip.get_text_features(IDS[1]), plain.clip.get_text_features(IDS[1:2]))
    mask = np.ones_like(IDS[1])
    mask[-1] = 0
    expected = plain.clip.get_text_features(IDS[1:2], attention_mask=mask[None])
    same(plain.clip.get_text_features(IDS[1], attention_mask=mask), expected)


def test_P07_only_the_grids_positions_are_interpolated(plain):
    """The class token's own position stays as it is, at any size."""
    embeddings = plain.clip.vision_model.embeddings
    table = embeddings.position_embedding.weight
    assert embeddings.positions(2, 2) is table
    wide = embeddings.positions(3, 5)
    assert wide.shape == (16, 16)
    same(wide[0], table[0])
    assert not np.isclose(wide[1:], table[0]).all(axis=1).any()


def test_P29_positions_are_interpolated_unless_that_is_refused(plain):
    other = images(plain, 1, 48, 48)
    assert plain(pixel_values=other, input_ids=IDS).logits.shape == (P, 48, 48)
    assert plain.clip.vision_model(other).last_hidden_state.shape == (1, 10, 16)
    for call in (
        lambda: plain(pixel_values=other, input_ids=IDS, interpolate_pos_encoding=False),
        lambda: plain.clip(IDS, other, interpolate_pos_encoding=False),
        lambda: plain.clip.get_image_features(other, interpolate_pos_encoding=False),
    ):
        with pytest.raises(InputError, match=r"48 by 48 pixels; .* 32 by 32 \(image_size\)"):
            call()
    own = images(plain, 1, 32, 32)
    same(
        plain(pixel_values=own, input_ids=IDS, interpolate_pos_encoding=False).logits,
        plain(pixel_values=own, input_ids=IDS).logits,
    )


def test_P12_the_extracted_tokens_are_the_blocks_outputs_with_the_class_token(plain):
    """Block i's output is hidden_states[i + 1]; they are taken before the last norm."""
    x = images(plain, 2, 32, 32)
    states = plain.clip.vision_model(x, output_hidden_states=True).hidden_states
    features = plain.encode_image(x)
    assert len(states) == 4 and features.grid == (2, 2)
    for i, activation in zip((0, 1), features.activations, strict=True):
        assert activation.shape == (2, 5, 16)
        same(activation, states[i + 1])


def test_P14_the_last_extracted_layer_is_reduced_first(refined):
    """With extract_layers (1, 0), reduces[0] gets layer 0: the list's order, reversed."""
    with trace() as activations:
        refined(pixel_values=images(refined, 1, 16, 16), input_ids=IDS)
    for i, block in ((0, 0), (1, 1)):
        tokens = activations[f"clip.vision_model.encoder.layers.{block}"]
        same(activations[f"decoder.reduces.{i}"], refined.decoder.reduces[i](tokens))


def test_P17_the_class_token_is_dropped_after_the_layers(plain):
    tokens = np.random.default_rng(0).normal(size=(1, 7, 16))
    other = tokens.copy()
    other[:, 0] += 5
    same(plain.decoder.paint(tokens, (2, 3)), plain.decoder.paint(other, (2, 3)))
    painted = plain.decoder.paint(tokens, (2, 3))
    alone = plain.decoder.paint(tokens[:, [0, 6]], (1, 1))  # the last token is row 1, column 2
    same(painted[:, 16:, 32:], alone)


# Prompts


@pytest.mark.parametrize("model", ["plain", "refined"])
@pytest.mark.parametrize(
    "kind", ["input_ids", "conditional_pixel_values", "conditional_embeddings"]
)
def test_one_image_with_many_prompts_is_as_many_copies_of_it(model, kind, request):
    model = request.getfixturevalue(model)
    prompt = {
        "input_ids": IDS,
        "conditional_pixel_values": images(model, P, 32, 16, seed=1),
        "conditional_embeddings": np.random.default_rng(2).normal(
            size=(P, model.config.projection_dim)
        ),
    }[kind]
    image = images(model, 1, 48, 32)
    once = model(pixel_values=image, **{kind: prompt})
    copies = model(pixel_values=np.repeat(image, P, axis=0), **{kind: prompt})
    same(once.logits, copies.logits)
    same(once.conditional_embeddings, copies.conditional_embeddings)
    assert once.pooled_output.shape == (1, model.config.projection_dim)
    same(model.decode(model.encode_image(image), once.conditional_embeddings), once.logits)


@pytest.mark.parametrize("count", [1, 12])
@pytest.mark.parametrize("backend, at_once", [("numpy", (2, 5)), ("numpy-reference", (64, 64))])
def test_many_images_and_prompts_are_taken_a_few_at_a_time(backend, at_once, count):
    model = CLIPSegForImageSegmentation.from_pretrained(REFINED, backend=backend, dtype="float64")
    assert (model.ops.images_per_slice, model.ops.prompts_per_slice) == at_once
    rng = np.random.default_rng(0)
    pixel_values = rng.normal(size=(count, 3, 32, 24))
    embeddings = rng.normal(size=(12, model.config.projection_dim))
    with trace() as activations:
        found = model.decode(model.encode_image(pixel_values), embeddings)
    expected = model(pixel_values=pixel_values, conditional_embeddings=embeddings).logits
    unseen = model.decode(model.encode_image(pixel_values), embeddings)
    for logits in (found, unseen):
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    for name, total, limit in (
        ("clip.vision_model.pre_layrnorm", count, at_once[0]),
        ("decoder.transposed_convolution", 12, at_once[1]),
    ):
        counts = [len(part) for part in activations.all[name]]
        assert sum(counts) == total and max(counts) == min(total, limit)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_images_and_prompts_are_encoded_in_one_call_as_in_two(threads):
    model = CLIPSegForImageSegmentation.from_pretrained(REFINED, dtype="float64", threads=threads)
    rng = np.random.default_rng(0)
    pixel_values = rng.normal(size=(5, 3, 32, 24))
    ids = rng.integers(3, model.config.text_config.vocab_size, (4, 7))
    ids[:, -1] = model.config.text_config.eos_token_id
    features, embeddings = encode(model, pixel_values, input_ids=ids)
    expected = model.get_conditional_embeddings(input_ids=ids)
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=1e-13)
    for found, alone in zip(features.activations, model.encode_image(pixel_values).activations):
        np.testing.assert_allclose(found, alone, rtol=0, atol=1e-12 * np.abs(alone).max())
    visual = encode(model, pixel_values, conditional_pixel_values=pixel_values)[1]
    expected = model.get_conditional_embeddings(conditional_pixel_values=pixel_values)
    np.testing.assert_allclose(visual, expected, rtol=0, atol=1e-13)
    with pytest.raises(InputError, match="got neither"):
        encode(model, pixel_values)


def test_position_embeddings_are_resized_once_for_each_grid():
    """To bring a table of weights to a GPU takes longer than to use it, and cannot be recorded."""
    model = CLIPSegForImageSegmentation.from_pretrained(PLAIN)
    readable = CLIPSegForImageSegmentation.from_pretrained(PLAIN, backend="numpy-reference")
    embeddings, expected = (m.clip.vision_model.embeddings for m in (model, readable))
    for h, w in ((3, 5), (5, 3)):
        found = embeddings.positions(h, w)
        assert found.shape[0] == 1 + h * w and embeddings.positions(h, w) is found
        assert np.array_equal(found, expected.positions(h, w))
        assert expected.positions(h, w) is not expected.positions(h, w)


def test_a_model_that_nobody_holds_is_gone_at_once():
    """Not at the next collection of cycles: a GPU's memory may be needed before."""
    model = CLIPSegForImageSegmentation.from_pretrained(PLAIN)
    model(pixel_values=images(model, 1, 24, 40), input_ids=IDS[:1])
    parts = [weakref.ref(part) for part in (model, model.clip.vision_model.embeddings)]
    gc.disable()
    try:
        del model
        assert [part() for part in parts] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("model", ["plain", "refined"])  # FiLM at the first and the second layer
@pytest.mark.parametrize("tokens", ["B == T", "B != T"])
def test_P16_film_takes_prompt_i_to_image_i(model, tokens, request):
    """(B,T,D) * (B,D) would fail for most B, and silently take prompts for tokens where B == T."""
    model = request.getfixturevalue(model)
    patch = model.config.vision_config.patch_size
    B = 5 if tokens == "B == T" else 3
    x = images(model, B, 2 * patch, 2 * patch)
    prompts = np.random.default_rng(3).normal(size=(B, model.config.projection_dim))
    together = model(pixel_values=x, conditional_embeddings=prompts).logits
    for i in range(B):
        one = model(pixel_values=x[i : i + 1], conditional_embeddings=prompts[i : i + 1]).logits
        same(together[i], one[0])
    shifted = model(pixel_values=x, conditional_embeddings=np.roll(prompts, 1, axis=0)).logits
    assert all(differ(together[i], shifted[i]) for i in range(B))


def test_P16_different_prompts_give_different_masks(plain):
    logits = plain(pixel_values=images(plain, 1, 32, 32), input_ids=IDS).logits
    assert differ(logits[0], logits[1]) and differ(logits[1], logits[2])


def test_P16_film_reaches_the_class_token_too_and_the_prompt_is_not_normalised(plain):
    x, prompt = np.random.default_rng(0).normal(size=(1, 5, 16)), np.full((1, 20), 0.1)
    got = plain.decoder.film(x, prompt)
    multiply, add = plain.decoder.film_mul(prompt), plain.decoder.film_add(prompt)
    same(got[0, 0], multiply[0] * x[0, 0] + add[0])
    embeddings = plain.get_conditional_embeddings(input_ids=IDS)
    same(embeddings, plain.clip.get_text_features(IDS))
    assert not np.isclose(np.linalg.norm(embeddings, axis=1), 1).any()


def test_P10_the_decoders_activation_is_relu_whatever_the_config_says():
    config = CLIPSegConfig.from_pretrained(PLAIN)
    assert config.decoder_hidden_act == "quick_gelu"
    model = CLIPSegForImageSegmentation.from_pretrained(PLAIN)
    mlp = model.decoder.layers[0].mlp
    x = np.random.default_rng(0).normal(size=(1, 2, 16)).astype(np.float32)
    np.testing.assert_array_equal(mlp(x), mlp.fc2(np.maximum(mlp.fc1(x), 0)))


def test_P15_decoder_layers_normalise_each_sum(plain):
    """Post-norm: the layer's output has the norm's own statistics."""
    layer = plain.decoder.layers[1]
    out = layer(np.random.default_rng(0).normal(size=(2, 5, 16)))
    rows = (out - layer.layer_norm2.bias) / layer.layer_norm2.weight
    np.testing.assert_allclose(rows.mean(axis=-1), 0, atol=1e-12)
    np.testing.assert_allclose(rows.var(axis=-1), 1, atol=1e-2)


def test_labels_give_the_mean_binary_cross_entropy(plain):
    x = images(plain, 2, 32, 32)
    labels = np.random.default_rng(1).integers(0, 2, (2, 32, 32))
    out = plain(pixel_values=x, input_ids=IDS[:2], labels=labels)
    p = 1 / (1 + np.exp(-out.logits))
    expected = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean()
    assert out.loss.shape == () and out.loss == pytest.approx(expected, rel=1e-12)
    assert plain(pixel_values=x, input_ids=IDS[:2]).loss is None


def test_P18b_labels_must_have_the_logits_shape(plain):
    with pytest.raises(InputError, match=r"labels have shape \(32, 32\); .*\(3, 32, 32\)"):
        plain(pixel_values=images(plain, 1, 32, 32), input_ids=IDS, labels=np.zeros((32, 32)))


def test_P20_logit_scale_plays_no_part_in_segmentation(plain):
    other = CLIPSegForImageSegmentation.from_pretrained(PLAIN, dtype="float64")
    other.clip.logit_scale = np.array(99.0)
    x = images(plain, 1, 32, 32)
    same(other(pixel_values=x, input_ids=IDS).logits, plain(pixel_values=x, input_ids=IDS).logits)
    assert differ(other.clip(IDS, x).logits_per_image, plain.clip(IDS, x).logits_per_image)


# Encoding once


def test_encode_image_stops_at_the_last_extracted_layer(plain):
    with trace() as activations:
        features = plain.encode_image(images(plain, 1, 32, 32))
        plain.decode(features, np.ones((2, 20)))
    layers = {name for name in activations if name.startswith("clip.vision_model.encoder.layers.")}
    assert {name.split(".")[4] for name in layers} == {"0", "1"}
    assert "clip.vision_model.post_layernorm" not in activations
    assert len(activations.all["clip.vision_model.encoder.layers.1"]) == 1
    assert len(activations.all["decoder.reduces.0"]) == 1


def test_images_in_a_batch_do_not_see_each_other(plain):
    x = images(plain, 3, 48, 32)
    together = plain(pixel_values=x, input_ids=IDS, attention_mask=MASK)
    for i in range(3):
        alone = plain(
            pixel_values=x[i : i + 1], input_ids=IDS[i : i + 1], attention_mask=MASK[i : i + 1]
        )
        same(together.logits[i], alone.logits[0])
        same(together.pooled_output[i], alone.pooled_output[0])


def test_the_same_call_gives_the_same_numbers_and_leaves_its_inputs_alone(plain):
    x, ids, mask = images(plain, 1, 40, 32), IDS.copy(), MASK.copy()
    kept = x.copy()
    first = plain(pixel_values=x, input_ids=ids, attention_mask=mask).logits
    second = plain(pixel_values=x, input_ids=ids, attention_mask=mask).logits
    np.testing.assert_array_equal(first, second)
    for given, before in ((x, kept), (ids, IDS), (mask, MASK)):
        np.testing.assert_array_equal(given, before)


@pytest.mark.parametrize("given", ["uint8", "float16", "float32", "float64", "list"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inputs_of_any_type_are_worked_on_in_the_models(given, dtype):
    model = CLIPSegForImageSegmentation.from_pretrained(PLAIN, dtype=dtype)
    x = np.random.default_rng(0).integers(0, 3, (1, 1, 32, 32))
    given_x = x.tolist() if given == "list" else x.astype(given)
    out = model(pixel_values=given_x, input_ids=IDS.tolist())
    assert out.logits.dtype == dtype == out.pooled_output.dtype
    expected = model(pixel_values=x.astype(dtype), input_ids=IDS)
    np.testing.assert_array_equal(out.logits, expected.logits)


def test_no_warning_in_an_everyday_call(plain):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CLIPSegForImageSegmentation.from_pretrained(REFINED)(
            pixel_values=np.zeros((1, 3, 24, 24)), input_ids=IDS, attention_mask=MASK
        )


@pytest.mark.parametrize("part", [CLIPSegTextModel, CLIPSegVisionModel, CLIPSegModel])
def test_a_part_loaded_alone_computes_what_it_does_inside(part, plain):
    alone = part.from_pretrained(PLAIN, dtype="float64")
    x = images(plain, 1, 32, 48)
    if part is CLIPSegTextModel:
        same(alone(IDS).pooler_output, plain.clip.text_model(IDS).pooler_output)
    elif part is CLIPSegVisionModel:
        same(alone(x).pooler_output, plain.clip.vision_model(x).pooler_output)
    else:
        same(alone(IDS, x).logits_per_image, plain.clip(IDS, x).logits_per_image)
        assert alone(IDS, x).logits_per_image.shape == (1, P)
        assert alone(IDS, x).logits_per_text.shape == (P, 1)
