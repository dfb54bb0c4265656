"""Twenty-five faults that ports of CLIPSeg have had, each planted into one model.

Whoever goes on a hunt (hunt.py) better reads this file afterwards. The tests read it, too.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from clipseg_np import CLIPSegForImageSegmentation, trace
from clipseg_np.golden import numbered
from clipseg_np.nn.layers import EncoderLayer
from clipseg_np.nn.ops import bicubic_weights

PLAIN, REFINED = (ROOT / "tests" / "data" / name for name in ("plain", "refined"))
TEXT, VISION = "clip.text_model", "clip.vision_model"

KINDS = {
    "activation": "another activation function",
    "axes": "the axes of an array, or the numbers along one, in another order",
    "film": "the modulation by the prompt",
    "mask": "which tokens attention sees",
    "missing": "something that is added is missing",
    "norm": "a norm that stands elsewhere, or has another epsilon",
    "position": "positions",
    "scale": "the scale of attention",
    "taps": "which of the vision tower's outputs the decoder takes",
    "token": "another token is read or dropped",
}


class Fault(NamedTuple):
    """layer: the first that shows it. plant: changes a model; its docstring says how."""

    plant: Callable[[Any], None]
    layer: str
    kind: str
    folder: Path = PLAIN


def sound(folder: Path = PLAIN) -> tuple[CLIPSegForImageSegmentation, dict[str, np.ndarray]]:
    """A small model without a fault, and inputs for it."""
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


def traced(model: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The output of each layer, by name."""
    with trace() as activations:
        model(**inputs)
    return numbered(activations)


def first_of(tower):
    return tower.encoder.layers[0]


def gelu_for_quick_gelu(model):
    """The first block of the vision tower has gelu in place of quick_gelu."""
    first_of(model.clip.vision_model).mlp.activation = "gelu"


def quick_gelu_for_relu_in_the_decoder(model):
    """The decoder's first block has quick_gelu, as its config says; it is relu."""
    model.decoder.layers[0].mlp.activation = "quick_gelu"


def a_norms_epsilon_of_1e_6(model):
    """The vision tower's first norm has an epsilon of 1e-6 in place of 1e-5."""
    model.clip.vision_model.pre_layrnorm.eps = 1e-6


def no_scale_in_attention(model):
    """Scores are not divided by sqrt(d)."""
    original = model.ops.attention
    model.ops.attention = lambda q, *rest: original(q * q.shape[-1] ** 0.5, *rest)


def scale_by_the_models_width(model):
    """Scores are divided by the root of all heads' width, not of one head's."""
    original = model.ops.attention
    model.ops.attention = lambda q, *rest: original(q * q.shape[1] ** -0.5, *rest)


def heads_split_without_a_transpose(model):
    """(B,T,D) is reshaped to (B,N,T,d) at once, so that heads hold parts of several tokens."""
    original = model.ops.attention

    def split(x):  # (B,N,T,d) -> (B,T,N,d) -> (B,T,D) -> (B,N,T,d), the numbers left where they are
        return x.transpose(0, 2, 1, 3).reshape(x.shape)

    model.ops.attention = lambda q, k, v, *rest: original(split(q), split(k), split(v), *rest)


def with_mask(model, change):
    encoder, original = model.clip.text_model.encoder, model.clip.text_model.encoder.forward
    encoder.forward = lambda x, mask, attentions: original(x, change(mask), attentions)


def no_causal_mask(model):
    """A token of a text sees those after it, too."""
    # The last token's row holds the padding alone.
    with_mask(model, lambda mask: np.broadcast_to(mask[:, :, -1:], mask.shape))


def padding_is_looked_at(model):
    """Tokens see the padding."""
    with_mask(model, lambda mask: np.tril(np.ones_like(mask)))


def pooled_at_the_last_token(model):
    """A text is read at its last token, be it padding, in place of its first end token."""
    original = model.clip.text_model.encode

    def encode(*arguments):
        hidden_states, last, _ = original(*arguments)
        return hidden_states, last, last[:, -1]

    model.clip.text_model.encode = encode


def text_positions_from_one(model):
    """The positions of a text begin with row 1."""
    original = model.clip.text_model.embeddings.forward
    model.clip.text_model.embeddings.forward = lambda ids, at: original(ids, at + 1)


def no_bias(model):
    """The bias of q_proj is forgotten in the vision tower's first block."""
    first_of(model.clip.vision_model).self_attn.q_proj.bias = None


def a_square_weight_transposed(model):
    """k_proj's weight is transposed, which no shape shows, in the text tower's first block."""
    projection = first_of(model.clip.text_model).self_attn.k_proj
    projection.weight = projection.weight.T


def no_residual(model):
    """The towers' blocks do not add x to what attention returns."""

    def without(layer):
        def forward(x, mask=None, attentions=None):
            x = layer.self_attn(layer.layer_norm1(x), mask, attentions)
            return x + layer.mlp(layer.layer_norm2(x))

        return forward

    for tower in (model.clip.text_model, model.clip.vision_model):
        for layer in tower.encoder.layers:
            layer.forward = without(layer)


def pre_norm_in_the_decoder(model):
    """The decoder's blocks norm what goes into each branch, not each sum."""
    for layer in model.decoder.layers:
        layer.forward = EncoderLayer.forward.__get__(layer)


def post_norm_in_the_towers(model):
    """The towers' blocks norm each sum, not what goes into each branch."""

    def post_norm(layer):
        def forward(x, mask=None, attentions=None):
            x = layer.layer_norm1(x + layer.self_attn(x, mask))
            return layer.layer_norm2(x + layer.mlp(x))

        return forward

    for tower in (model.clip.text_model, model.clip.vision_model):
        for layer in tower.encoder.layers:
            layer.forward = post_norm(layer)


def activations_before_the_layer(model):
    """The decoder takes what goes into the extracted layers, not what comes out."""
    vision, forward = model.clip.vision_model, model.clip.vision_model.forward

    def planted(*args, **record):
        output = forward(*args, **record)
        output.hidden_states = (output.hidden_states[0], *output.hidden_states)
        return output

    vision.forward = planted


def activations_in_the_layers_order(model):
    """The decoder takes the extracted layers in their own order, not the deepest first."""
    reduce = model.decoder.reduce
    model.decoder.reduce = lambda activations: reduce(activations[::-1])


def modulated_at_the_wrong_layer(model):
    """FiLM acts before the decoder's second block, not before its first."""
    model.decoder.conditional_layer = 1


def film_with_its_halves_swapped(model):
    """film_add multiplies, and film_mul is added."""
    decoder = model.decoder

    def film(x, conditional):
        multiply, add = decoder.film_mul(conditional), decoder.film_add(conditional)
        return add[:, None, :] * x + multiply[:, None, :]

    decoder.film = film


def the_last_token_dropped_instead_of_the_first(model):
    """The decoder drops the last token as if it were the class token, which is the first."""
    paint = model.decoder.paint
    model.decoder.paint = lambda x, grid: paint(np.roll(x, 1, axis=1), grid)


def the_grid_taken_column_by_column(model):
    """The tokens fill the grid column by column: each block is whole, but in another place."""

    def paint(x, grid):
        cells = x[:, 1:].reshape(len(x), *grid[::-1], x.shape[-1]).transpose(0, 3, 2, 1)
        return model.decoder.transposed_convolution(cells)[:, 0]

    model.decoder.paint = paint


def a_flipped_kernel(model):
    """The transposed convolution's kernel is flipped: each block is in its place, half turned."""
    head = model.decoder.transposed_convolution
    head.weight = head.weight[:, :, ::-1, ::-1]


def a_sharper_cubic_for_the_positions(model):
    """Positions are resized by the cubic with a = -0.5, Pillow's; it is -0.75."""

    def resize_bicubic(grid, size):
        rows, columns = (bicubic_weights(*sizes, a=-0.5) for sizes in zip(grid.shape, size))
        return np.einsum("hi,wj,ijD->hwD", rows, columns, grid)

    model.ops.resize_bicubic = resize_bicubic


def no_class_position(model):
    """The class token's position is not added."""
    original = model.clip.vision_model.embeddings.positions

    def positions(h, w):
        table = original(h, w).copy()
        table[0] = 0
        return table

    model.clip.vision_model.embeddings.positions = positions


def colours_last_in_a_patch(model):
    """The kernel of the patches is read with the colors last, (D,p,p,C); it is (D,C,p,p)."""
    projection = model.clip.vision_model.embeddings.patch_embedding
    D, C, p, _ = projection.weight.shape
    projection.weight = projection.weight.reshape(D, p, p, C).transpose(0, 3, 1, 2)


FAULTS = [
    Fault(colours_last_in_a_patch, f"{VISION}.embeddings.patch_embedding", "axes", REFINED),
    Fault(a_sharper_cubic_for_the_positions, f"{VISION}.embeddings", "position"),
    Fault(no_class_position, f"{VISION}.embeddings", "position"),
    Fault(a_norms_epsilon_of_1e_6, f"{VISION}.pre_layrnorm", "norm"),
    Fault(no_bias, f"{VISION}.encoder.layers.0.self_attn.q_proj", "missing"),
    Fault(no_scale_in_attention, f"{VISION}.encoder.layers.0.self_attn.out_proj", "scale"),
    Fault(scale_by_the_models_width, f"{VISION}.encoder.layers.0.self_attn.out_proj", "scale"),
    Fault(heads_split_without_a_transpose, f"{VISION}.encoder.layers.0.self_attn.out_proj", "axes"),
    Fault(no_residual, f"{VISION}.encoder.layers.0.layer_norm2", "missing"),
    Fault(post_norm_in_the_towers, f"{VISION}.encoder.layers.0.layer_norm1", "norm"),
    Fault(gelu_for_quick_gelu, f"{VISION}.encoder.layers.0.mlp.fc2", "activation"),
    Fault(text_positions_from_one, f"{TEXT}.embeddings.position_embedding", "position"),
    Fault(a_square_weight_transposed, f"{TEXT}.encoder.layers.0.self_attn.k_proj", "axes"),
    Fault(no_causal_mask, f"{TEXT}.encoder.layers.0.self_attn.out_proj", "mask"),
    Fault(padding_is_looked_at, f"{TEXT}.encoder.layers.0.self_attn.out_proj", "mask"),
    Fault(pooled_at_the_last_token, "clip.text_projection", "token"),
    Fault(activations_before_the_layer, "decoder.reduces.0", "taps"),
    Fault(activations_in_the_layers_order, "decoder.reduces.0", "taps"),
    Fault(modulated_at_the_wrong_layer, "decoder.layers.0.self_attn.q_proj", "film"),
    Fault(film_with_its_halves_swapped, "decoder.layers.0.self_attn.q_proj", "film"),
    Fault(pre_norm_in_the_decoder, "decoder.layers.0.self_attn.q_proj", "norm"),
    Fault(quick_gelu_for_relu_in_the_decoder, "decoder.layers.0.mlp.fc2", "activation"),
    Fault(the_last_token_dropped_instead_of_the_first, "decoder.transposed_convolution", "token"),
    Fault(the_grid_taken_column_by_column, "decoder.transposed_convolution", "axes"),
    Fault(a_flipped_kernel, "decoder.transposed_convolution", "axes"),
]
