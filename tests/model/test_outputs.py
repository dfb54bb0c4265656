"""Outputs: read by attribute, key or position; which fields there are, in transformers' order."""

import numpy as np
import pytest

from clipseg_np import CLIPSegForImageSegmentation
from clipseg_np.model.outputs import BaseModelOutputWithPooling, Features

from ..helpers.checkpoints import PLAIN

IDS = np.array([[22, 3, 23], [22, 17, 23]])
ALL = {"output_attentions": True, "output_hidden_states": True}


@pytest.fixture(scope="module")
def model():
    return CLIPSegForImageSegmentation.from_pretrained(PLAIN)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(2, 1, 32, 32))


def test_a_field_by_attribute_key_and_position(model, x):
    out = model(pixel_values=x, input_ids=IDS)
    assert list(out.keys()) == [
        "logits",
        "conditional_embeddings",
        "pooled_output",
        "vision_model_output",
        "decoder_output",
    ]
    assert out[0] is out["logits"] is out.logits
    assert out[2] is out["pooled_output"] is out.pooled_output
    assert out[-1] == (
        out.decoder_output.logits,
    )  # a record inside becomes a tuple, as in transformers
    assert len(out) == 5 and "logits" in out and "loss" not in out
    assert [key for key, _ in out.items()] == list(out) == list(out.keys())
    assert out.get("loss", "none") == "none" and out.get("logits") is out.logits
    assert next(iter(out.values())) is out[:1][0] is out.logits


def test_a_field_that_is_not_there(model, x):
    out = model(pixel_values=x, input_ids=IDS)
    assert out.loss is None
    for key, error in (("loss", KeyError), ("nonsense", KeyError), (5, IndexError)):
        with pytest.raises(error):
            out[key]


def test_the_loss_comes_first_when_there_is_one(model, x):
    out = model(pixel_values=x, input_ids=IDS, labels=np.zeros((2, 32, 32)))
    assert out[0] is out.loss and out[1] is out.logits


def test_return_dict_false_gives_the_tuple(model, x):
    inputs = {"pixel_values": x, "input_ids": IDS}
    as_tuple = model(**inputs, return_dict=False)
    assert type(as_tuple) is tuple and len(as_tuple) == 5 and type(as_tuple[3]) is tuple
    for asked in (True, None):
        assert model(**inputs, return_dict=asked).keys() == model(**inputs).keys()


def test_to_tuple_makes_tuples_of_records_inside(model, x):
    out = model(pixel_values=x, input_ids=IDS, **ALL)
    as_tuple = out.to_tuple()
    vision, decoder = as_tuple[3], as_tuple[4]
    assert as_tuple[0] is out.logits
    assert type(vision) is type(decoder) is tuple
    assert vision[0] is out.vision_model_output.last_hidden_state
    assert vision[2] is out.vision_model_output.hidden_states
    assert decoder[0] is out.decoder_output.logits
    assert len(vision) == 4 and len(decoder) == 3


def test_hidden_states_and_attentions_are_there_when_asked_for(model, x):
    bare = model(pixel_values=x, input_ids=IDS)
    for record in (bare.vision_model_output, bare.decoder_output):
        assert record.hidden_states is None and record.attentions is None
    out = model(pixel_values=x, input_ids=IDS, **ALL)
    vision, decoder = out.vision_model_output, out.decoder_output
    assert [s.shape for s in vision.hidden_states] == [(2, 5, 16)] * 4
    assert [a.shape for a in vision.attentions] == [(2, 2, 5, 5)] * 3
    assert [s.shape for s in decoder.hidden_states] == [(2, 5, 16)] * 3
    assert [a.shape for a in decoder.attentions] == [(2, 4, 5, 5)] * 2
    np.testing.assert_array_equal(vision.hidden_states[-1], vision.last_hidden_state)
    text = model.clip.text_model(IDS, **ALL)
    assert [s.shape for s in text.hidden_states] == [(2, 3, 16)] * 3
    assert [a.shape for a in text.attentions] == [(2, 2, 3, 3)] * 2
    assert np.triu(text.attentions[0][0, 0], 1).max() == 0


def test_one_of_the_two_may_be_asked_for(model, x):
    out = model(pixel_values=x, input_ids=IDS, output_attentions=True)
    assert out.vision_model_output.hidden_states is None
    assert len(out.vision_model_output.attentions) == 3
    out = model(pixel_values=x, input_ids=IDS, output_hidden_states=True)
    assert out.vision_model_output.attentions is None
    assert len(out.decoder_output.hidden_states) == 3


def test_the_towers_inside_a_whole_output_hold_projected_vectors(model, x):
    """As in the reference."""
    out = model.clip(IDS, x)
    np.testing.assert_array_equal(
        out.vision_model_output.pooler_output, model.clip.get_image_features(x)
    )
    np.testing.assert_array_equal(
        out.text_model_output.pooler_output, model.clip.get_text_features(IDS)
    )
    for embeds in (out.text_embeds, out.image_embeds):
        np.testing.assert_allclose(np.linalg.norm(embeds, axis=1), 1, rtol=1e-6)
    cosines = out.text_embeds @ out.image_embeds.T
    np.testing.assert_allclose(
        out.logits_per_text, cosines * np.exp(model.clip.logit_scale), rtol=1e-5
    )


def test_a_record_without_anything_is_empty():
    empty = BaseModelOutputWithPooling()
    assert len(empty) == 0 and empty.to_tuple() == () and list(empty) == []


def test_features_are_a_dictionary_with_attributes():
    features = Features(input_ids=[1], attention_mask=[1])
    assert features.input_ids is features["input_ids"]
    assert dict(**features) == {"input_ids": [1], "attention_mask": [1]}
    with pytest.raises(AttributeError, match="no 'pixel_values' here; there are: input_ids"):
        _ = features.pixel_values
