"""A decoder in a file of its own, on top of a checkpoint; those that do not belong there."""

import shutil
import warnings

import numpy as np
import pytest

from clipseg_np import CLIPSegForImageSegmentation, CLIPSegProcessor, Segmenter
from clipseg_np.checkpoints.decoder_file import decoder_words, save_decoder
from clipseg_np.checkpoints.locate import demo_folder
from clipseg_np.checkpoints.weights import stored_tensors
from clipseg_np.errors import InputError
from clipseg_np.text.known_words import known_words, words_of

from ..helpers.checkpoints import PLAIN, REFINED, checkpoint, stored_arrays, write_file

KEY = "decoder.film_mul.weight"


@pytest.fixture
def arrays():
    """PLAIN's decoder with other numbers."""
    arrays = stored_arrays(PLAIN)
    return {name: array + 1 for name, array in arrays.items() if name.startswith("decoder.")}


@pytest.fixture
def file(arrays, tmp_path):
    save_decoder(tmp_path / "own.safetensors", stored_arrays(PLAIN) | arrays, ["heart", "a"])
    return tmp_path / "own.safetensors"


def load(decoder, base=PLAIN):
    return CLIPSegForImageSegmentation.from_pretrained(base, decoder=decoder)


def test_a_decoder_takes_the_place_of_the_checkpoints(file, arrays):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        held = load(file).state_dict()
    for name, array in stored_arrays(PLAIN).items():
        np.testing.assert_array_equal(held[name], arrays.get(name, array), err_msg=name)


def test_the_file_holds_the_decoder_alone(file, arrays):
    numbers = sum(array.nbytes for array in arrays.values())
    assert set(stored_tensors(file)) == set(arrays)
    assert numbers < file.stat().st_size < numbers + 10_000


def test_a_decoder_of_another_shape_is_refused(file):
    with pytest.raises(InputError, match=r"own.safetensors holds no decoder of this checkpoint"):
        load(file, REFINED)


def without_a_key(arrays):
    return {name: array for name, array in arrays.items() if name != KEY}


def with_another_shape(arrays):
    return arrays | {KEY: arrays[KEY].T}


def with_a_tower(arrays):
    return arrays | {"clip.logit_scale": np.ones((), np.float32)}


@pytest.mark.parametrize("change", [without_a_key, with_another_shape, with_a_tower])
def test_other_arrays_than_a_decoders_are_refused(change, arrays, tmp_path):
    write_file(tmp_path / "bad.safetensors", change(arrays))
    key = "clip.logit_scale" if change is with_a_tower else KEY
    with pytest.raises(InputError, match=f"bad.safetensors holds no decoder .*{key}"):
        load(tmp_path / "bad.safetensors")


def test_a_file_that_is_not_there_or_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        load(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("a decoder")
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load(tmp_path / "text.safetensors")


def test_a_folder_in_place_of_the_file_is_named(tmp_path):
    for read in (load, decoder_words):
        with pytest.raises(InputError, match="is a folder; expected a .safetensors file"):
            read(tmp_path)


def test_a_file_that_holds_no_words_because_it_is_empty_is_refused(tmp_path):
    (tmp_path / "empty.safetensors").touch()
    with pytest.raises(InputError, match=r"empty.safetensors is not a whole safetensors file"):
        CLIPSegProcessor.from_pretrained(demo_folder(), decoder=tmp_path / "empty.safetensors")


def test_a_decoder_trained_on_other_towers_is_warned_of(file, tmp_path):
    other = {name: array * 2 for name, array in stored_arrays(PLAIN).items()}
    folder = checkpoint(tmp_path / "other", other)
    with pytest.warns(UserWarning, match="Load it on the checkpoint that") as warned:
        CLIPSegForImageSegmentation.from_pretrained(folder, decoder=file)
    assert warned[0].filename == __file__


@pytest.mark.filterwarnings("ignore:.* was trained on another checkpoint")
@pytest.mark.parametrize("name", ["clip.text_projection.weight", "clip.visual_projection.weight"])
def test_a_checkpoint_without_a_projection_is_named(name, file, tmp_path):
    others = {key: array for key, array in stored_arrays(PLAIN).items() if key != name}
    with pytest.raises(InputError, match=f"lacks {name}"):
        load(file, checkpoint(tmp_path / "other", others))


def test_the_words_of_a_decoder_are_known_where_few_are(tmp_path):
    arrays = stored_arrays(demo_folder())
    save_decoder(tmp_path / "own.safetensors", arrays, words_of(["A heart, (hearts)!"]))
    assert decoder_words(tmp_path / "own.safetensors") == {"a", "heart", "hearts"}
    base = Segmenter.from_pretrained().processor.words
    own = Segmenter.from_pretrained(decoder=tmp_path / "own.safetensors").processor.words
    assert own - base == {"heart", "hearts"} and base < own
    shutil.copytree(demo_folder(), tmp_path / "free")
    (tmp_path / "free" / "words.txt").unlink()
    assert known_words(tmp_path / "free", tmp_path / "own.safetensors") == frozenset()


def test_a_file_without_words_or_base_is_a_decoder_all_the_same(arrays, tmp_path):
    write_file(tmp_path / "bare.safetensors", arrays)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path / "bare.safetensors")
    assert decoder_words(tmp_path / "bare.safetensors") == frozenset()
