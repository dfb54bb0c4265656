"""A random start: reproducible, with the documented deviations, and of the published size."""

import numpy as np
import pytest

from clipseg_np import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegModel,
    CLIPSegTextConfig,
    CLIPSegTextModel,
    CLIPSegVisionConfig,
    CLIPSegVisionModel,
)
from clipseg_np.nn.ops import Ops
from clipseg_np.nn.scope import Scope

TEXT = CLIPSegTextConfig(
    vocab_size=300, hidden_size=48, intermediate_size=96, num_hidden_layers=3, eos_token_id=2
)
VISION = CLIPSegVisionConfig(
    hidden_size=60, intermediate_size=80, num_hidden_layers=5, image_size=48, patch_size=8
)
CONFIG = CLIPSegConfig(
    text_config=TEXT,
    vision_config=VISION,
    projection_dim=40,
    extract_layers=[1, 3],
    reduce_dim=32,
    decoder_intermediate_size=70,
    use_complex_transposed_convolution=True,
)


def test_the_same_seed_gives_the_same_model_and_another_seed_another():
    one, again, other = (
        CLIPSegForImageSegmentation(CONFIG, seed=seed).state_dict() for seed in (3, 3, 4)
    )
    for name, array in one.items():
        np.testing.assert_array_equal(array, again[name])
        constant = name.endswith((".bias", "logit_scale")) or "norm" in name
        assert np.array_equal(array, other[name]) == constant, name


def test_both_types_are_drawn_from_the_same_numbers():
    single, double = (
        CLIPSegForImageSegmentation(CONFIG, dtype=dtype).state_dict()
        for dtype in ("float32", "float64")
    )
    for name, array in double.items():
        np.testing.assert_array_equal(array.astype(np.float32), single[name])


# Standard deviations: of the towers, with D wide and L deep, and of the decoder, whose layers are
# 32 wide and count the vision tower's 5 layers as their depth. None: not drawn.
DEVIATIONS = {
    "clip.logit_scale": None,
    "clip.text_projection.weight": 48**-0.5,
    "clip.visual_projection.weight": 60**-0.5,
    "clip.text_model.embeddings.token_embedding.weight": 0.02,
    "clip.text_model.embeddings.position_embedding.weight": 0.02,
    "clip.text_model.encoder.layers.1.self_attn.q_proj.weight": (48 * 6) ** -0.5,
    "clip.text_model.encoder.layers.1.self_attn.out_proj.weight": 48**-0.5,
    "clip.text_model.encoder.layers.2.mlp.fc1.weight": 96**-0.5,
    "clip.text_model.encoder.layers.2.mlp.fc2.weight": (48 * 6) ** -0.5,
    "clip.vision_model.embeddings.class_embedding": 60**-0.5,
    "clip.vision_model.embeddings.patch_embedding.weight": 0.02,
    "clip.vision_model.embeddings.position_embedding.weight": 0.02,
    "clip.vision_model.encoder.layers.4.self_attn.v_proj.weight": (60 * 10) ** -0.5,
    "clip.vision_model.encoder.layers.0.mlp.fc1.weight": 120**-0.5,
    "clip.vision_model.pre_layrnorm.weight": None,
    "decoder.film_mul.weight": 1.0,
    "decoder.film_add.weight": 1.0,
    "decoder.reduces.1.weight": 1.0,
    "decoder.layers.0.self_attn.k_proj.weight": (32 * 10) ** -0.5,
    "decoder.layers.0.self_attn.out_proj.weight": 32**-0.5,
    "decoder.layers.1.mlp.fc1.weight": 64**-0.5,
    "decoder.transposed_convolution.0.weight": 1.0,
    "decoder.transposed_convolution.2.weight": 1.0,
    "decoder.film_mul.bias": None,
    "decoder.transposed_convolution.4.bias": None,
}


@pytest.mark.parametrize("name", DEVIATIONS)
def test_standard_deviations(name):
    array = CLIPSegForImageSegmentation(CONFIG).state_dict()[name]
    expected = DEVIATIONS[name]
    if expected is None:
        constant = 0.0 if name.endswith("bias") else 1.0
        assert (array == (np.float32(2.6592) if name == "clip.logit_scale" else constant)).all()
    else:
        error = expected / np.sqrt(2 * array.size)  # of a normal sample's deviation
        assert abs(array.std() - expected) < 4 * error
        assert abs(array.mean()) < 4 * expected / np.sqrt(array.size)


def test_the_factor_scales_what_is_drawn():
    plain = CLIPSegVisionModel(VISION).state_dict()
    values = VISION.to_dict() | {"initializer_factor": 3.0, "initializer_range": 0.04}
    scaled = CLIPSegVisionModel(CLIPSegVisionConfig.from_dict(values)).state_dict()
    for name, array in plain.items():
        drawn = array.any() and "norm" not in name
        both = name.endswith(("patch_embedding.weight", "position_embedding.weight"))
        np.testing.assert_allclose(
            scaled[name], array * ((6 if both else 3) if drawn else 1), rtol=1e-6
        )


@pytest.mark.parametrize(
    "part, config", [(CLIPSegTextModel, TEXT), (CLIPSegVisionModel, VISION), (CLIPSegModel, CONFIG)]
)
def test_every_model_has_a_random_start(part, config):
    model = part(config, seed=1)
    assert all(np.isfinite(array).all() for array in model.state_dict().values())
    assert model.config is config


class Counted:
    """A source of arrays that take no memory: one number, seen from everywhere."""

    def take(self, name, shape):
        return np.broadcast_to(np.float32(0), shape)


def parameters(reduce_dim: int, refined: bool) -> tuple[int, int]:
    """All parameters of an official architecture, and those of its decoder."""
    config = CLIPSegConfig(
        vision_config={"patch_size": 16},
        reduce_dim=reduce_dim,
        use_complex_transposed_convolution=refined,
    )
    model = CLIPSegForImageSegmentation(config, Scope(Counted(), Ops(), np.float32))
    sizes = {name: array.size for name, array in model.scope.arrays.items()}
    return sum(sizes.values()), sum(n for name, n in sizes.items() if name.startswith("decoder."))


@pytest.mark.parametrize(
    "reduce_dim, refined, whole, decoder",
    [
        (64, False, 150_693_890, 1_073_153),
        (64, True, 150_747_746, 1_127_009),
        (16, False, 149_884_418, 263_681),
    ],
)
def test_the_official_architectures_have_the_published_sizes(reduce_dim, refined, whole, decoder):
    assert parameters(reduce_dim, refined) == (whole, decoder)
    assert whole - decoder == 149_620_737  # CLIP ViT-B/16
