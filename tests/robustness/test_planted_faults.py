"""Likely mistakes of a port: `compare` names the layer where each one is planted."""

import numpy as np
import pytest

from clipseg_np import CLIPSegForImageSegmentation, trace
from clipseg_np.golden.compare import compare
from clipseg_np.golden.traces import assert_matches, numbered
from clipseg_np.nn import ops as ops_module
from clipseg_np.nn.layers import DecoderLayer, EncoderLayer

from ..helpers.checkpoints import PLAIN, REFINED

TEXT = "clip.text_model"
VISION = "clip.vision_model"


def sound(folder=PLAIN):
    model = CLIPSegForImageSegmentation.from_pretrained(
        folder, backend="numpy-reference", dtype="float64"
    )
    rng = np.random.default_rng(7)
    config = model.config
    # Not the config's size, so that positions are interpolated; not square; two texts, one padded.
    C, p = config.vision_config.num_channels, config.vision_config.patch_size
    inputs = {
        "pixel_values": rng.normal(size=(2, C, 4 * p, 3 * p)),
        "input_ids": np.array([[22, 3, 23, 1, 1], [22, 17, 4, 6, 23]]),
        "attention_mask": np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
    }
    return model, inputs


def first_of(tower):
    return tower.encoder.layers[0]


def gelu_for_quick_gelu(model, patch):
    first_of(model.clip.vision_model).mlp.activation = "gelu"


def quick_gelu_for_relu_in_the_decoder(model, patch):
    model.decoder.layers[0].mlp.activation = "quick_gelu"


def a_norms_epsilon_of_1e_6(model, patch):
    model.clip.vision_model.pre_layrnorm.eps = 1e-6


def no_scale_in_attention(model, patch):
    original = model.ops.attention
    patch(model.ops, "attention", lambda q, *rest: original(q * q.shape[-1] ** 0.5, *rest))


def scale_by_the_models_width(model, patch):
    original = model.ops.attention
    patch(model.ops, "attention", lambda q, *rest: original(q * q.shape[1] ** -0.5, *rest))


def heads_split_without_a_transpose(model, patch):
    original = model.ops.attention

    def split(x):  # (B,H,T,d) -> (B,T,H,d) -> (B,T,D) -> (B,H,T,d), the numbers left where they are
        return x.transpose(0, 2, 1, 3).reshape(x.shape)

    patch(model.ops, "attention", lambda q, k, v, *r: original(split(q), split(k), split(v), *r))


def with_mask(model, patch, change):
    encoder, original = model.clip.text_model.encoder, model.clip.text_model.encoder.forward
    patch(encoder, "forward", lambda x, mask, attentions: original(x, change(mask), attentions))


def no_causal_mask(model, patch):
    # The last token's row holds the padding alone.
    with_mask(model, patch, lambda mask: np.broadcast_to(mask[:, :, -1:], mask.shape))


def padding_is_looked_at(model, patch):
    with_mask(model, patch, lambda mask: np.tril(np.ones_like(mask)))


def pooled_at_the_last_token(model, patch):
    original = model.clip.text_model.encode

    def encode(*arguments):
        hidden_states, last, _ = original(*arguments)
        return hidden_states, last, last[:, -1]

    patch(model.clip.text_model, "encode", encode)


def text_positions_from_one(model, patch):
    original = model.clip.text_model.embeddings.forward
    patch(model.clip.text_model.embeddings, "forward", lambda ids, at: original(ids, at + 1))


def no_bias(model, patch):
    first_of(model.clip.vision_model).self_attn.q_proj.bias = None


def a_square_weight_transposed(model, patch):
    projection = first_of(model.clip.text_model).self_attn.k_proj
    projection.weight = projection.weight.T


def no_residual(model, patch):
    def forward(layer, x, mask=None, attentions=None):
        x = layer.self_attn(layer.layer_norm1(x), mask, attentions)
        return x + layer.mlp(layer.layer_norm2(x))

    patch(EncoderLayer, "forward", forward)


def pre_norm_in_the_decoder(model, patch):
    patch(
        DecoderLayer,
        "forward",
        lambda layer, x, attentions=None: EncoderLayer.forward(layer, x, None, attentions),
    )


def post_norm_in_the_towers(model, patch):
    patch(
        EncoderLayer,
        "forward",
        lambda layer, x, mask=None, attentions=None: layer.layer_norm2(
            layer.layer_norm1(x + layer.self_attn(x, mask)) + layer.mlp(x)
        ),
    )


def activations_before_the_layer(model, patch):
    vision, forward = model.clip.vision_model, model.clip.vision_model.forward

    def planted(*args, **record):
        output = forward(*args, **record)
        output.hidden_states = (output.hidden_states[0], *output.hidden_states)
        return output

    patch(vision, "forward", planted)


def activations_in_the_layers_order(model, patch):
    reduce = model.decoder.reduce
    patch(model.decoder, "reduce", lambda activations: reduce(activations[::-1]))


def modulated_at_the_wrong_layer(model, patch):
    model.decoder.conditional_layer = 1


def film_with_its_halves_swapped(model, patch):
    decoder = model.decoder

    def film(x, conditional):
        multiply, add = decoder.film_mul(conditional), decoder.film_add(conditional)
        return add[:, None, :] * x + multiply[:, None, :]

    patch(decoder, "film", film)


def the_last_token_dropped_instead_of_the_first(model, patch):
    paint = model.decoder.paint
    patch(model.decoder, "paint", lambda x, grid: paint(np.roll(x, 1, axis=1), grid))


def the_grid_taken_column_by_column(model, patch):
    def paint(x, grid):
        cells = x[:, 1:].reshape(len(x), *grid[::-1], x.shape[-1]).transpose(0, 3, 2, 1)
        return model.decoder.transposed_convolution(cells)[:, 0]

    patch(model.decoder, "paint", paint)


def a_flipped_kernel(model, patch):
    head = model.decoder.transposed_convolution
    head.weight = head.weight[:, :, ::-1, ::-1]


def a_sharper_cubic_for_the_positions(model, patch):
    original = ops_module.bicubic_weights
    patch(ops_module, "bicubic_weights", lambda old, new: original(old, new, a=-0.5))


def no_class_position(model, patch):
    original = model.clip.vision_model.embeddings.positions

    def positions(h, w):
        table = original(h, w).copy()
        table[0] = 0
        return table

    patch(model.clip.vision_model.embeddings, "positions", positions)


def colours_last_in_a_patch(model, patch):
    projection = model.clip.vision_model.embeddings.patch_embedding
    D, C, p, _ = projection.weight.shape
    projection.weight = projection.weight.reshape(D, p, p, C).transpose(0, 3, 1, 2)


FAULTS = [  # what is planted, the first layer that shows it, the checkpoint
    (colours_last_in_a_patch, f"{VISION}.embeddings.patch_embedding", REFINED),
    (a_sharper_cubic_for_the_positions, f"{VISION}.embeddings", PLAIN),
    (no_class_position, f"{VISION}.embeddings", PLAIN),
    (a_norms_epsilon_of_1e_6, f"{VISION}.pre_layrnorm", PLAIN),
    (no_bias, f"{VISION}.encoder.layers.0.self_attn.q_proj", PLAIN),
    (no_scale_in_attention, f"{VISION}.encoder.layers.0.self_attn.out_proj", PLAIN),
    (scale_by_the_models_width, f"{VISION}.encoder.layers.0.self_attn.out_proj", PLAIN),
    (heads_split_without_a_transpose, f"{VISION}.encoder.layers.0.self_attn.out_proj", PLAIN),
    (no_residual, f"{VISION}.encoder.layers.0.layer_norm2", PLAIN),
    (post_norm_in_the_towers, f"{VISION}.encoder.layers.0.layer_norm1", PLAIN),
    (gelu_for_quick_gelu, f"{VISION}.encoder.layers.0.mlp.fc2", PLAIN),
    (text_positions_from_one, f"{TEXT}.embeddings.position_embedding", PLAIN),
    (a_square_weight_transposed, f"{TEXT}.encoder.layers.0.self_attn.k_proj", PLAIN),
    (no_causal_mask, f"{TEXT}.encoder.layers.0.self_attn.out_proj", PLAIN),
    (padding_is_looked_at, f"{TEXT}.encoder.layers.0.self_attn.out_proj", PLAIN),
    (pooled_at_the_last_token, "clip.text_projection", PLAIN),
    (activations_before_the_layer, "decoder.reduces.0", PLAIN),
    (activations_in_the_layers_order, "decoder.reduces.0", PLAIN),
    (modulated_at_the_wrong_layer, "decoder.layers.0.self_attn.q_proj", PLAIN),
    (film_with_its_halves_swapped, "decoder.layers.0.self_attn.q_proj", PLAIN),
    (pre_norm_in_the_decoder, "decoder.layers.0.self_attn.q_proj", PLAIN),
    (quick_gelu_for_relu_in_the_decoder, "decoder.layers.0.mlp.fc2", PLAIN),
    (the_last_token_dropped_instead_of_the_first, "decoder.transposed_convolution", PLAIN),
    (the_grid_taken_column_by_column, "decoder.transposed_convolution", PLAIN),
    (a_flipped_kernel, "decoder.transposed_convolution", PLAIN),
]


def traced(model, inputs):
    with trace() as activations:
        model(**inputs)
    return numbered(activations)


@pytest.mark.filterwarnings("ignore:a text without the end token")
@pytest.mark.parametrize(
    ("plant", "name", "folder"), FAULTS, ids=[plant.__name__ for plant, *_ in FAULTS]
)
def test_the_first_layer_that_deviates_is_the_one_that_is_wrong(plant, name, folder, monkeypatch):
    model, inputs = sound(folder)
    golden = traced(model, inputs)
    assert_matches(golden, golden)
    plant(model, monkeypatch.setattr)
    wrong = [row.name for row in compare(golden, traced(model, inputs)) if not row.fine]
    assert wrong[0] == name


def test_an_input_that_differs_is_the_first_to_be_named():
    model, inputs = sound()
    golden = {"input.pixel_values": inputs["pixel_values"], **traced(model, inputs)}
    inputs["pixel_values"] = (inputs["pixel_values"] - 0.5) / 0.5  # another normalisation
    other = {"input.pixel_values": inputs["pixel_values"], **traced(model, inputs)}
    assert compare(golden, other)[0].used > 1


def test_a_port_in_float32_is_not_taken_for_a_fault():
    model, inputs = sound()
    rough = CLIPSegForImageSegmentation.from_pretrained(PLAIN)
    assert_matches(traced(rough, inputs), traced(model, inputs))
