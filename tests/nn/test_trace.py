"""`with trace()`: what is recorded, and that nothing is outside the block."""

import threading

import numpy as np
import pytest

from clipseg_np import CLIPSegForImageSegmentation, CLIPSegTextModel, trace

from ..helpers.checkpoints import PLAIN

IDS = np.array([[22, 3, 23]])


@pytest.fixture(scope="module")
def model():
    return CLIPSegForImageSegmentation.from_pretrained(PLAIN)


def layer_at(model, name):
    """The layer at a dotted name, by attributes and list positions."""
    for part in name.split("."):
        model = model[int(part)] if part.isdigit() else getattr(model, part)
    return model


def test_a_name_is_the_attribute_path_the_checkpoints_prefix_and_the_traces_key(model):
    with trace() as activations:
        model(pixel_values=np.zeros((1, 1, 32, 32)), input_ids=IDS)
    traced = set(activations) - {""}  # the whole model's own name is empty
    keys = {name.rpartition(".")[0] for name in model.state_dict()}
    assert "clip.vision_model.pre_layrnorm" in traced  # misspelt in every checkpoint
    assert all(layer_at(model, name).name == name for name in traced)
    # These hold arrays and are not called: logit_scale's owner, and a table that is read directly.
    assert keys - traced == {"clip", "clip.vision_model.embeddings.position_embedding"}


def test_the_recorded_array_is_what_the_layer_returned(model):
    with trace() as activations:
        out = model.clip.text_model(IDS)
    assert activations["clip.text_model.final_layer_norm"] is out.last_hidden_state
    assert activations["clip.text_model"] is out


def test_a_layer_that_runs_twice_keeps_both(model):
    x = np.random.default_rng(0).normal(size=(2, 1, 32, 32))
    name = "clip.visual_projection"
    with trace() as activations:
        out = model(pixel_values=x[:1], conditional_pixel_values=x[1:])
    first, second = activations.all[name]
    assert activations[name] is second
    np.testing.assert_array_equal(first, out.pooled_output)
    np.testing.assert_array_equal(second, out.conditional_embeddings)


def test_nothing_is_recorded_outside_the_block(model):
    with trace() as activations:
        pass
    model.clip.text_model(IDS)
    assert activations == {}


def test_an_inner_block_records_for_itself_and_an_error_ends_a_block(model):
    with trace() as outer:
        with pytest.raises(RuntimeError), trace() as inner:
            model.clip.text_model.final_layer_norm(np.zeros((1, 1, 16), np.float32))
            raise RuntimeError
        model.clip.text_projection(np.zeros((1, 16), np.float32))
    assert list(inner) == ["clip.text_model.final_layer_norm"]
    assert list(outer) == ["clip.text_projection"]


def test_another_threads_layers_are_not_recorded(model):
    with trace() as activations:
        thread = threading.Thread(target=model.clip.text_model, args=(IDS,))
        thread.start()
        thread.join()
    assert activations == {}


def test_a_tower_on_its_own_has_short_names():
    with trace() as activations:
        CLIPSegTextModel.from_pretrained(PLAIN)(IDS)
    assert "encoder.layers.1.self_attn.q_proj" in activations
