"""Features on disk: right numbers in every turn, encoded once, never damaged, within a bound."""

import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipseg_np import CLIPSegForImageSegmentation, InputError, ViTImageProcessor
from clipseg_np.learn.features import SUFFIX, CachedFeatures, turned, usual_folder
from clipseg_np.nn.ops import Ops

from ..helpers.device_array import DeviceArray, DeviceModule


@pytest.fixture
def model(config) -> CLIPSegForImageSegmentation:
    return CLIPSegForImageSegmentation(config, seed=3, ops=Ops())


@pytest.fixture
def images(tmp_path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(path)
    return paths


@pytest.fixture
def cached(tmp_path):
    """CachedFeatures in a folder of the test's own."""

    def make(model, images, processor=None, **options) -> CachedFeatures:
        processor, images = processor or ViTImageProcessor(size=32), dict.fromkeys(images)
        return CachedFeatures(model, processor, images, folder=tmp_path / "cache", **options)

    return make


def entries(tmp_path) -> set[str]:
    return {path.name for path in (tmp_path / "cache").iterdir()}


def refuse(*_):
    raise AssertionError("an image is encoded again")


def test_eight_turns_differ_and_keep_a_square_a_square():
    x = np.arange(9).reshape(1, 3, 3)
    turns = [turned(x, turn) for turn in range(8)]
    assert len({turn.tobytes() for turn in turns}) == 8
    assert (turns[0] == x).all() and (turns[1] == x[..., ::-1]).all()
    # The four quarter turns are among them.
    for count in range(4):
        assert any((np.rot90(x, count, (1, 2)) == turn).all() for turn in turns)


@pytest.mark.parametrize("is_reduced", [True, False])
def test_an_entry_is_the_features_of_the_turned_image(model, images, cached, is_reduced):
    features = cached(model, images, is_reduced=is_reduced)
    assert features.grid == (4, 4) and features.turns == 8
    pairs = [(image, turn) for image in (2, 0) for turn in range(8)]
    loaded = features.load(pairs)
    pixels = ViTImageProcessor(size=32)(images)["pixel_values"]
    turns = np.concatenate([turned(pixels[image : image + 1], turn) for image, turn in pairs])
    tokens = model.encode_image(turns).activations
    expected = model.decoder.reduce(tokens) if is_reduced else tokens
    assert len(loaded) == len(expected) == 2
    for own, other in zip(loaded, expected):
        assert own.shape == (16, 17, 16) and own.dtype == model.dtype
        np.testing.assert_allclose(own, other, rtol=2**-11, atol=1e-6)


def test_an_image_is_encoded_once(model, images, cached, monkeypatch, tmp_path):
    first = cached(model, images[:2], turns=2).load([(0, 0), (1, 1)])
    times = {name: 0 for name in entries(tmp_path)}
    for name in times:
        os.utime(tmp_path / "cache" / name, (0, 0))
    monkeypatch.setattr(model, "encode_image", refuse)
    again = cached(model, images[1::-1], turns=2).load([(1, 0), (0, 1)])
    assert all((one == other).all() for one, other in zip(first, again))
    assert all(path.stat().st_mtime > 0 for path in (tmp_path / "cache").iterdir())


def test_an_image_in_two_files_has_one_entry(model, images, cached, tmp_path):
    images[2].write_bytes(images[0].read_bytes())
    features = cached(model, images, turns=1)
    assert len(entries(tmp_path)) == 2
    first, _, last = features.load([(0, 0), (1, 0), (2, 0)])[0]
    assert (first == last).all()


def change(model, name):
    array = model.scope.arrays[name]
    array += np.ones_like(array)


@pytest.mark.parametrize("name", ["image", "processor", "config", "vision", "reduces", "whole"])
def test_another_image_model_or_setting_is_another_entry(
    name, model, config, images, cached, tmp_path
):
    cached(model, images[:1], turns=1)
    before, processor, options = entries(tmp_path), None, {}
    if name == "image":
        images[0].write_bytes(images[1].read_bytes())
    elif name == "processor":
        processor = ViTImageProcessor(size=32, image_mean=0.4)
    elif name == "config":
        config = config.with_values(extract_layers=(1, 2))
        model = CLIPSegForImageSegmentation(config, seed=3, ops=Ops())
    elif name == "vision":
        change(model, "clip.vision_model.embeddings.class_embedding")
    elif name == "reduces":
        change(model, "decoder.reduces.1.bias")
    else:
        options = {"is_reduced": False}
    cached(model, images[:1], processor, turns=1, **options)
    assert len(entries(tmp_path)) == 2 > len(before)


def test_a_decoder_that_learns_keeps_its_entries(model, images, cached, monkeypatch):
    """What an entry does not depend on: the rest of the decoder, and `reduces` of whole tokens."""
    for options in ({}, {"is_reduced": False}):
        cached(model, images, **options)
    change(model, "decoder.film_mul.bias")
    monkeypatch.setattr(model, "encode_image", refuse)
    cached(model, images)
    change(model, "decoder.reduces.0.bias")
    cached(model, images, is_reduced=False)
    with pytest.raises(AssertionError):
        cached(model, images)


@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "removed"])
def test_a_damaged_entry_is_computed_again(damage, model, images, cached, tmp_path):
    good = cached(model, images, turns=2).load([(1, 1)])
    file = cached(model, images, turns=2).files[1][1]
    content = bytearray(file.read_bytes())
    whole = {"cut": content[:-2], "longer": content + b"12", "empty": b""}
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(whole[damage])
    again = cached(model, images, turns=2).load([(1, 1)])
    assert all((one == other).all() for one, other in zip(good, again))


@pytest.mark.parametrize("damage", ["folder", "entry", "cut"])
def test_what_is_removed_meanwhile_is_computed_again(damage, model, images, cached, tmp_path):
    features = cached(model, images, turns=2)
    pairs = [(2, 0), (0, 1), (1, 1)]
    good = features.load(pairs)
    if damage == "folder":
        shutil.rmtree(tmp_path / "cache")
    elif damage == "entry":
        features.files[0][1].unlink()
    else:
        features.files[0][1].write_bytes(b"12")
    assert all((one == other).all() for one, other in zip(good, features.load(pairs)))


def test_another_users_cache_is_read(model, images, cached, tmp_path, monkeypatch):
    """Its times cannot be set, and nothing in it can be removed."""
    good = cached(model, images, turns=1).load([(0, 0)])[0]
    (tmp_path / "cache" / f"other{SUFFIX}").write_bytes(b"1")

    def deny(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "utime", deny)
    monkeypatch.setattr(Path, "unlink", deny)
    again = cached(model, images, turns=1, max_bytes=3 * 2 * 2 * 17 * 16).load([(0, 0)])[0]
    assert (again == good).all()


def test_a_folder_that_cannot_be_written_to_is_named_with_a_way_out(
    model, images, cached, tmp_path, monkeypatch
):
    def deny(prefix, dir):
        raise PermissionError(13, "Permission denied", f"{dir}/{prefix}123")

    monkeypatch.setattr("tempfile.TemporaryDirectory", deny)
    expected = f"written .*Permission denied: '{tmp_path}/cache'.*another folder .*--cache"
    with pytest.raises(InputError, match=expected):
        cached(model, images)


def test_parts_of_a_killed_run_are_removed_after_a_day(model, images, cached, tmp_path):
    for age in (0, 23, 25):
        part = tmp_path / "cache" / f".part-{age}"
        part.mkdir(parents=True)
        (part / "1.features").write_bytes(b"1")
        os.utime(part, (0, time.time() - 3600 * age))
    cached(model, images)
    parts = {path.name for path in (tmp_path / "cache").glob(".*")}
    assert parts == {".part-0", ".part-23"}


def test_the_white_level_is_read_by_and_part_of_the_name(model, tmp_path):
    numbers = np.random.default_rng(0).integers(0, 4096, (40, 40)).astype(np.uint16)
    path, light = tmp_path / "12.png", tmp_path / "16.png"
    Image.fromarray(numbers).save(path)
    Image.fromarray((numbers * (65535 / 4095)).round().astype(np.uint16)).save(light)
    options = {"turns": 1, "folder": tmp_path / "cache"}
    processor = ViTImageProcessor(size=32)
    features = CachedFeatures(model, processor, {path: 4095, light: None}, **options)
    first, second = features.load([(0, 0), (1, 0)])[0]
    np.testing.assert_allclose(first, second, atol=0.01)
    with pytest.warns(UserWarning, match="white_level"):
        dark = CachedFeatures(model, processor, {path: None}, **options)
    assert dark.files[0] != features.files[0]
    assert abs(dark.load([(0, 0)])[0][0] - first).max() > 0.1


def test_a_run_that_is_stopped_leaves_whole_entries_alone(model, images, cached, tmp_path):
    encode, calls = model.encode_image, []

    def encode_some(pixels):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return encode(pixels)

    model.encode_image = encode_some
    with pytest.raises(KeyboardInterrupt):
        cached(model, images, turns=4)
    assert len(entries(tmp_path)) == 4
    cached(model, images, turns=4)
    assert len(calls) == 6 + 8


def test_bits_do_not_depend_on_what_is_there(model, images, cached, tmp_path):
    alone = cached(model, images[1:2], turns=1).files[0][0].read_bytes()
    together = cached(model, images, turns=8).files[1][0]
    assert together.read_bytes() == alone
    together.unlink()
    cached(model, images[::-1], turns=8)
    assert together.read_bytes() == alone


def test_turns_are_given_up_for_the_bound(model, images, cached, tmp_path):
    size = 2 * 2 * 17 * 16
    with pytest.warns(UserWarning, match=r"3 images in 8 flips .*cache holds 0.00 GB at most: 4 "):
        features = cached(model, images, max_bytes=8 * 3 * size - 1)
    assert features.turns == 4
    assert sum(file.stat().st_size for file in (tmp_path / "cache").iterdir()) == 12 * size
    with pytest.raises(InputError, match="take 0.00 GB, and .*: give fewer images"):
        cached(model, images, max_bytes=3 * size - 1)


def test_entries_that_were_not_used_for_longest_make_room(model, images, cached, tmp_path):
    size = 2 * 2 * 17 * 16
    files = [cached(model, [image], turns=1).files[0][0] for image in images]
    for age, file in zip((5, 9, 7), files):
        os.utime(file, (10**9 - age, 10**9 - age))
    own = tmp_path / "cache" / "a user's own file"
    own.write_bytes(b"1" * size)
    cached(model, images[:1], turns=2, max_bytes=3 * size)
    assert not files[1].exists() and files[0].exists() and files[2].exists() and own.exists()


def test_images_that_are_not_square_have_no_quarter_turns(model, images, cached):
    features = cached(model, images, ViTImageProcessor(size=(32, 48)))
    assert features.turns == 4 and features.grid == (4, 6)
    assert features.load([(0, 3)])[0].shape == (1, 25, 16)


@pytest.mark.parametrize("settings", [{"size": {"shortest_edge": 32}}, {"do_resize": False}])
def test_images_of_several_sizes_are_refused(settings, model, images, cached):
    with pytest.raises(InputError, match="expected a height and a width for all"):
        cached(model, images, ViTImageProcessor(**settings))


@pytest.mark.parametrize("number", [1e6, np.nan])
def test_features_that_float16_cannot_hold_are_refused(number, model, images, cached, tmp_path):
    model.scope.arrays["decoder.reduces.0.bias"][3] = number
    with pytest.raises(InputError, match=r"0\.png: its features reach (1.*e\+06|nan);"):
        cached(model, images)
    assert not (tmp_path / "cache").exists()


def test_progress_sees_every_image(model, images, cached):
    seen = []

    def progress(parts, name):
        for part in parts:
            yield part
            seen.append((part, len(parts), name))

    cached(model, images, progress=progress)
    assert seen == [(number, 3, "encoding images") for number in range(3)]


@pytest.mark.parametrize(
    "platform, variable, default",
    [
        ("linux", "XDG_CACHE_HOME", ".cache"),
        ("darwin", "XDG_CACHE_HOME", "Library/Caches"),
        ("win32", "LOCALAPPDATA", "AppData/Local"),
    ],
)
def test_the_usual_folder_is_the_systems(platform, variable, default, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delenv(variable, raising=False)
    assert usual_folder() == tmp_path / default / "clipseg-np" / "features"
    monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
    assert usual_folder() == tmp_path / "elsewhere" / "clipseg-np" / "features"


def test_a_devices_features_are_the_same(config, model, images, cached, tmp_path):
    device = CLIPSegForImageSegmentation(config, seed=3, ops=Ops(DeviceModule()))
    features = cached(device, images, turns=2)
    loaded = features.load([(0, 1), (2, 0)])
    assert all(isinstance(tokens, DeviceArray) for tokens in loaded)
    assert len(entries(tmp_path)) == 6
    expected = cached(model, images, turns=2).load([(0, 1), (2, 0)])
    assert len(entries(tmp_path)) == 6
    assert all((own.get() == other).all() for own, other in zip(loaded, expected))
    assert all(name.endswith(SUFFIX) for name in entries(tmp_path))
