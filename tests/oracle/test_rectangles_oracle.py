"""Images that are not square.

The reference's vision tower takes them; its decoder takes the square root of the number of tokens,
so its own modules are called here one by one, with the grid's true height and width.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'oracle'")
pytest.importorskip("transformers", reason="needs the extra 'oracle'")

from .reference import compare, draw_ids, drawn_pair, worst

pytestmark = pytest.mark.oracle

ARCHITECTURES = 60
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


@pytest.fixture(params=range(ARCHITECTURES))
def drawn(request, tmp_path):
    rng = np.random.default_rng(10_000 + request.param)
    config, theirs, ours, dtype = drawn_pair(rng, request.param, tmp_path)
    return rng, config, ours, theirs, dtype


def decode(model, hidden_states, embeddings, grid):
    """The reference's decoder, out of its own modules, for a grid of any shape."""
    config, decoder = model.config, model.decoder
    x = 0
    for i, layer in enumerate(reversed(config.extract_layers)):
        x = decoder.reduces[i](hidden_states[layer + 1]) + x
        if i == config.conditional_layer:
            x = decoder.film_mul(embeddings)[:, None] * x + decoder.film_add(embeddings)[:, None]
        x = decoder.layers[i](x, attention_mask=None)
        x = x[0] if isinstance(x, tuple) else x
    B, _, D = x.shape
    cells = x[:, 1:].permute(0, 2, 1).reshape(B, D, *grid)
    return decoder.transposed_convolution(cells).squeeze(1)


def test_the_decoder_called_module_by_module_is_the_references(drawn):
    """On squares, where the reference can answer itself."""
    rng, config, _, theirs, dtype = drawn
    vision = config.vision_config
    side = vision.patch_size * 3
    images = torch.from_numpy(rng.normal(size=(2, vision.num_channels, side, side)).astype(dtype))
    embeddings = torch.from_numpy(rng.normal(size=(2, config.projection_dim)).astype(dtype))
    with torch.no_grad():
        expected = theirs(pixel_values=images, conditional_embeddings=embeddings)
        states = theirs.clip.vision_model(
            images, interpolate_pos_encoding=True, output_hidden_states=True
        ).hidden_states
        by_modules = decode(theirs, states, embeddings, (3, 3))
    assert torch.equal(by_modules, expected.logits)


def test_P08_rectangles(drawn):
    rng, config, ours, theirs, dtype = drawn
    vision = config.vision_config
    h, w = rng.permutation(7)[:2] + 1
    spare = rng.integers(0, vision.patch_size, 2)  # pixels past the last whole patch
    shape = (
        2,
        vision.num_channels,
        h * vision.patch_size + spare[0],
        w * vision.patch_size + spare[1],
    )
    images = rng.normal(size=shape).astype(dtype)
    ids, mask = draw_ids(rng, config, prompts=2)
    options = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        tower = theirs.clip.vision_model(
            torch.from_numpy(images), interpolate_pos_encoding=True, **options
        )
        embeddings = theirs.get_conditional_embeddings(
            batch_size=2, input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
        )
        logits = decode(theirs, tower.hidden_states, embeddings, (h, w))
    found = compare(ours.clip.vision_model(images, **options), tower, "vision")
    out = ours(pixel_values=images, input_ids=ids, attention_mask=mask)
    found["logits"] = worst(out.logits, logits)
    beyond = {
        name: f"{share:.2e}" for name, share in found.items() if not share <= TOLERANCE[dtype]
    }
    assert beyond == {}
