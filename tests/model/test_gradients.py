"""The backward of the decoder, against finite differences."""

import pytest

from clipseg_np.model.clipseg import Decoder
from clipseg_np.model.config import CLIPSegConfig
from clipseg_np.nn.learning import learning
from clipseg_np.nn.ops import Ops
from clipseg_np.nn.scope import Scope

from ..helpers.finite_differences import assert_gradients
from ..nn.test_gradients import Drawn, numbers


def config(**values):
    tower = {"hidden_size": 4, "num_attention_heads": 2, "intermediate_size": 5}
    return CLIPSegConfig(
        text_config={**tower, "num_hidden_layers": 1, "vocab_size": 9},
        vision_config={**tower, "num_hidden_layers": 3, "image_size": 8, "patch_size": 4},
        projection_dim=3,
        reduce_dim=4,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=3,
        **{"extract_layers": [0, 1, 2], **values},
    )


def decoder_of(config):
    scope = Scope(Drawn(), Ops(), "float64", "decoder")
    return Decoder(scope, config), scope.arrays


@pytest.mark.parametrize("B", [1, 2], ids=["shared image", "an image each"])
@pytest.mark.parametrize("conditional_layer", [0, 1, 2])
@pytest.mark.parametrize("refined", [False, True], ids=["plain", "refined"])
def test_the_decoder(refined, conditional_layer, B):
    decoder, arrays = decoder_of(
        config(use_complex_transposed_convolution=refined, conditional_layer=conditional_layer)
    )
    P, (h, w) = 2, (2, 3)
    tokens = [numbers(B, 1 + h * w, 4, seed=i) for i in range(3)]
    embeddings = numbers(P, 3, seed=9)

    def logits():
        return decoder(decoder.reduce(tokens), embeddings, (h, w)).logits

    d_logits = numbers(*logits().shape, seed=8)
    with learning() as found:
        logits()
        d_reduced, found["embeddings"] = decoder.propagate(d_logits)
        d_tokens = decoder.propagate_reduced(d_reduced)
    for i, d in enumerate(d_tokens):
        found[f"tokens {i}"] = d
    inputs = {"embeddings": embeddings, **{f"tokens {i}": x for i, x in enumerate(tokens)}}
    assert_gradients(lambda: (logits() * d_logits).sum(), {**arrays, **inputs}, found, 3)
