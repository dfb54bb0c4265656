"""A learned prompt's file, its fingerprint, and for which models it is taken."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from clipseg_np import CLIPSegForImageSegmentation, InputError
from clipseg_np.convert import convert
from clipseg_np.model.learned_prompt import KEY, LearnedPrompt, fingerprint

from ..helpers.checkpoints import PLAIN, REFINED, checkpoint, stored_arrays

MADE = {"prompt": "a heart", "start": "a shape", "steps": 400}


def model_of(folder, **options):
    return CLIPSegForImageSegmentation.from_pretrained(folder, **options)


@pytest.fixture(scope="module")
def model():
    return model_of(PLAIN)


@pytest.fixture
def prompt(model):
    vector = np.random.default_rng(0).standard_normal(model.config.projection_dim)
    return LearnedPrompt(vector.astype(np.float32), fingerprint(model), "heart", MADE)


def test_a_file_gives_back_what_was_saved_and_is_named_by_its_name(prompt, tmp_path):
    prompt.save(tmp_path / "big heart.v2.safetensors")
    loaded = LearnedPrompt.load(tmp_path / "big heart.v2.safetensors")
    np.testing.assert_array_equal(loaded.vector, prompt.vector)
    assert (loaded.fingerprint, loaded.made) == (prompt.fingerprint, MADE)
    assert (loaded.name, str(loaded)) == ("big heart.v2", "@big heart.v2")


def test_a_vector_of_another_type_is_stored_as_float32(prompt, tmp_path):
    replace(prompt, vector=prompt.vector.astype(np.float64)).save(tmp_path / "heart.safetensors")
    loaded = LearnedPrompt.load(tmp_path / "heart.safetensors").vector
    assert loaded.dtype == np.float32 and np.array_equal(loaded, prompt.vector)


def test_the_same_prompt_is_the_same_file_which_the_library_reads(prompt, tmp_path):
    prompt.save(tmp_path / "a.safetensors")
    replace(prompt, made=dict(reversed(MADE.items()))).save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert list(load_file(tmp_path / "a.safetensors")) == [KEY]
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        assert json.loads(file.metadata()["made"]) == MADE


@pytest.mark.parametrize(
    "arrays, about",
    [
        ({"other": np.zeros(4, np.float32)}, {"fingerprint": "", "made": "{}"}),
        ({KEY: np.zeros(4, np.float32)}, None),
        ({KEY: np.zeros(4, np.float32)}, {"fingerprint": ""}),
        ({KEY: np.zeros(4, np.float32)}, {"fingerprint": "", "made": "{"}),
        ({KEY: np.zeros(4, np.float32)}, {"fingerprint": "", "made": "[1]"}),
        ({KEY: np.zeros(4, np.float32)}, {"fingerprint": "", "made": "[" * 100_000}),
        ({KEY: np.full(4, np.nan, np.float32)}, {"fingerprint": "", "made": "{}"}),
        ({KEY: np.full(4, np.inf, np.float32)}, {"fingerprint": "", "made": "{}"}),
    ],
)
def test_another_safetensors_file_is_refused(arrays, about, tmp_path):
    save_file(arrays, tmp_path / "x.safetensors", about)
    with pytest.raises(InputError, match=r"x\.safetensors is no learned prompt .*learn-prompt"):
        LearnedPrompt.load(tmp_path / "x.safetensors")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "heart.safetensors").write_text("a heart")
    with pytest.raises(InputError, match="is no learned prompt"):
        LearnedPrompt.load(tmp_path / "heart.safetensors")
    with pytest.raises(InputError, match="is no learned prompt"):
        LearnedPrompt.load(PLAIN / "model.safetensors")
    for missing in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no file .*learn-prompt"):
            LearnedPrompt.load(missing)


def test_a_failed_save_leaves_the_old_file(prompt, tmp_path, monkeypatch):
    path = tmp_path / "heart.safetensors"
    prompt.save(path)
    before = path.read_bytes()

    def write_half(path, *_):
        path.write_bytes(before[:50])
        raise OSError("the disk is full")

    monkeypatch.setattr("clipseg_np.checkpoints.weights.write_tensors", write_half)
    with pytest.raises(OSError, match="the disk is full"):
        prompt.save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_neither_the_computing_type_nor_the_files_layout_changes_the_fingerprint(model, tmp_path):
    expected = fingerprint(model)
    assert fingerprint(model_of(PLAIN, dtype="float64")) == expected
    convert(PLAIN, tmp_path / "one")
    convert(PLAIN, tmp_path / "shards", shard_size=0.01)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    model.save_pretrained(tmp_path / "saved")
    for folder in ("one", "shards", "saved"):
        assert fingerprint(model_of(tmp_path / folder)) == expected
        assert fingerprint(model_of(tmp_path / folder, dtype="float64")) == expected


def test_a_float64_checkpoint_has_one_fingerprint_in_both_types(tmp_path):
    """At this number, rounding to float16 at once and by way of float32 differ."""
    arrays = {name: array.astype(np.float64) for name, array in stored_arrays(PLAIN).items()}
    arrays["decoder.film_add.bias"][0] = 1 + 2**-11 + 2**-40
    folder = checkpoint(tmp_path / "wide", arrays)
    found = {fingerprint(model_of(folder, dtype=dtype)) for dtype in ("float32", "float64")}
    assert len(found) == 1


def test_storing_a_checkpoint_as_float16_keeps_the_fingerprint_and_as_bfloat16_does_not(
    model, prompt, tmp_path
):
    for dtype in ("float16", "bfloat16"):
        convert(PLAIN, tmp_path / dtype, dtype)
        convert(tmp_path / dtype, tmp_path / f"{dtype} and back", "float32")
    for folder in ("float16", "float16 and back"):
        other = model_of(tmp_path / folder)
        assert prompt.check(other).fingerprint == fingerprint(other) == fingerprint(model)
    for folder in ("bfloat16", "bfloat16 and back"):
        other = model_of(tmp_path / folder)
        assert fingerprint(other) == fingerprint(model_of(tmp_path / "bfloat16"))
        with pytest.raises(InputError, match="the other in bfloat16, it does little harm"):
            prompt.check(other)


def test_numbers_too_large_for_float16_have_a_fingerprint(recwarn, tmp_path):
    arrays = stored_arrays(PLAIN)
    arrays["decoder.film_add.bias"] = arrays["decoder.film_add.bias"] * 1e30
    assert len(fingerprint(model_of(checkpoint(tmp_path / "large", arrays)))) == 64
    assert not recwarn.list


def test_each_array_of_the_decoder_and_the_projections_decides_and_no_other(model, tmp_path):
    arrays, expected = stored_arrays(PLAIN), fingerprint(model)
    decide = set()
    for name in arrays:
        changed = {n: a.copy() for n, a in arrays.items()}
        changed[name].reshape(-1)[-1] += 1
        if fingerprint(model_of(checkpoint(tmp_path / "changed", changed))) != expected:
            decide.add(name)
    towers = ("clip.text_model.", "clip.vision_model.", "clip.logit_scale")
    assert decide == {name for name in arrays if not name.startswith(towers)}
    assert len(decide) > 20


def test_another_decoder_is_refused_unless_it_is_forced(model, prompt, tmp_path):
    assert prompt.check(model).fingerprint == prompt.fingerprint
    arrays = stored_arrays(PLAIN)
    arrays["decoder.film_add.bias"] = arrays["decoder.film_add.bias"] + 1
    other = model_of(checkpoint(tmp_path / "other", arrays))
    with pytest.raises(InputError, match="@heart does not fit .*learn it again .*--force"):
        prompt.check(other)
    forced = prompt.check(other, force=True)
    assert forced.fingerprint == fingerprint(other) and forced.vector is prompt.vector
    assert forced.check(other).name == "heart"


def test_another_shape_is_always_refused(model, prompt):
    other = model_of(REFINED)
    for force in (False, True):
        with pytest.raises(InputError, match=r"@heart has shape \(20,\); expected \(18,\): use"):
            prompt.check(other, force)
    for shape in ((1, 20), (20, 1), ()):
        with pytest.raises(InputError, match=r"expected \(20,\)"):
            replace(prompt, vector=np.zeros(shape, np.float32)).check(model)
