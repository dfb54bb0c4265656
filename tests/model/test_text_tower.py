"""The text tower: what a token may see, and where a text is pooled."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

from clipseg_np import CLIPSegTextConfig, CLIPSegTextModel

from ..helpers.checkpoints import PLAIN

BOS, EOS = 22, 23
TEXT = [BOS, 3, 17, EOS]


def tower(eos: int) -> CLIPSegTextModel:
    """The small checkpoint's text tower (7 positions, 24 ids) with another end token."""
    model = CLIPSegTextModel.from_pretrained(PLAIN, dtype="float64")
    model.config = replace(model.config, eos_token_id=eos)
    return model


def same(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def padded(pad: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """TEXT padded to a length, with its attention mask."""
    extra = length - len(TEXT)
    return np.array([TEXT + [pad] * extra]), np.array([[1] * len(TEXT) + [0] * extra])


@pytest.mark.parametrize("eos", [2, EOS])
@pytest.mark.parametrize("length", [4, 5, 7])
@pytest.mark.parametrize("pad", [0, 1, EOS])
@pytest.mark.parametrize("with_mask", [True, False])
def test_P22_neither_padding_id_nor_length_matters(eos, length, pad, with_mask):
    model = tower(eos)
    ids, mask = padded(pad, length)
    out = model(ids, attention_mask=mask if with_mask else None)
    alone = model(np.array([TEXT]))
    same(out.pooler_output, alone.pooler_output)
    same(out.last_hidden_state[:, : len(TEXT)], alone.last_hidden_state)


def test_a_token_sees_those_before_it_and_none_after():
    model = tower(2)
    one, other = np.array([TEXT]), np.array([TEXT])
    other[0, 2] = 9
    a, b = model(one).last_hidden_state[0], model(other).last_hidden_state[0]
    same(a[:2], b[:2])
    assert (np.abs(a[2:] - b[2:]).max(axis=-1) > 1e-3).all()


def test_the_attention_mask_hides_tokens_inside_a_text_too():
    model = tower(2)
    one, other = np.array([TEXT]), np.array([TEXT])
    other[0, 1] = 9
    hidden = np.array([[1, 0, 1, 1]])
    a, b = (model(ids, attention_mask=hidden).last_hidden_state[0, 2:] for ids in (one, other))
    same(a, b)
    assert np.abs(model(one).last_hidden_state[0, 2:] - a).max() > 1e-3


def test_a_mask_of_ones_and_one_of_booleans_change_nothing():
    model, ids = tower(2), np.array([TEXT])
    for mask in (np.ones((1, 4), int), np.ones((1, 4), bool), [[1.0] * 4]):
        same(model(ids, attention_mask=mask).last_hidden_state, model(ids).last_hidden_state)


def test_position_ids_say_where_a_token_stands():
    model, ids = tower(2), np.array([TEXT, TEXT])
    plain = model(ids).last_hidden_state
    for positions in ([0, 1, 2, 3], [[0, 1, 2, 3]], [[0, 1, 2, 3], [0, 1, 2, 3]]):
        same(model(ids, position_ids=positions).last_hidden_state, plain)
    moved = model(ids, position_ids=[[0, 1, 2, 3], [3, 4, 5, 6]]).last_hidden_state
    same(moved[0], plain[0])
    assert np.abs(moved[1] - plain[1]).max() > 1e-3


@pytest.mark.parametrize(
    "eos, ids, pooled",
    [
        (EOS, [BOS, 3, EOS, EOS, 1], 2),  # the first end token, not the last
        (EOS, [EOS, 3, 4, 5, EOS], 0),
        (7, [BOS, EOS, 7, 3, 7], 2),  # an end token that is not the highest id
        (2, [BOS, 3, EOS, EOS, 1], 2),  # the old way: the first highest id
        (2, [3, 9, 9, 4, 2], 1),  # and never the id 2 itself
    ],
)
def test_P23_where_a_text_is_pooled(eos, ids, pooled):
    out = tower(eos)(np.array([ids]))
    same(out.pooler_output[0], out.last_hidden_state[0, pooled])


def test_P31_of_equal_ids_the_first_is_the_highest():
    out = tower(2)(np.array([[9, 5, 9, 9]]))
    same(out.pooler_output[0], out.last_hidden_state[0, 0])


def test_P23_each_text_of_a_batch_is_pooled_at_its_own_end():
    out = tower(EOS)(np.array([[BOS, EOS, 1, 1], [BOS, 4, 5, EOS]]))
    same(out.pooler_output, out.last_hidden_state[[0, 1], [1, 3]])


def test_P23_a_text_without_its_end_token_is_pooled_at_the_first_with_a_warning():
    model = tower(7)
    with pytest.warns(UserWarning, match=r"without the end token 7 \(eos_token_id\)") as warned:
        out = model(np.array([[BOS, 7, 3], [BOS, 4, EOS]]))
    same(out.pooler_output, out.last_hidden_state[[0, 1], [1, 0]])
    assert warned[0].filename == __file__


@pytest.mark.parametrize("eos", [2, EOS])
def test_P23_no_warning_where_the_end_is_found(eos):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tower(eos)(np.array([TEXT]))


def test_P23_the_hubs_eos_of_2_means_the_highest_id():
    """Taken literally, no text holds the token 2 and all would be pooled at their first token."""
    config = CLIPSegTextConfig.from_pretrained(PLAIN)
    assert config.eos_token_id == 2
    out = CLIPSegTextModel.from_pretrained(PLAIN)(np.array([TEXT]))
    np.testing.assert_array_equal(out.pooler_output[0], out.last_hidden_state[0, 3])


def test_P25_an_end_token_inside_a_prompt_moves_the_pooled_position():
    model = tower(EOS)
    cut = model(np.array([[BOS, 3, EOS]])).pooler_output
    same(model(np.array([[BOS, 3, EOS, 17, EOS]])).pooler_output, cut)
