"""The files that the recipes and examples name."""

import os
import shutil

import numpy as np
import PIL.Image
import pytest

from clipseg_np import LearnedPrompt, Segmenter
from clipseg_np.checkpoints.decoder_file import save_decoder
from clipseg_np.model.learned_prompt import fingerprint

from ..helpers.documents import ROOT

PHOTO_SIZE = (150, 200)  # height and width, upright


def save_hearts(folder, count=2):
    """Images of 60 x 40 with masks, whose files have the same names."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for name in map(str, range(1, count + 1)):
        pixels = rng.integers(0, 256, (40, 60, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(folder / "images" / f"{name}.jpg")
        PIL.Image.fromarray(np.tri(40, 60, 9 * int(name), bool)).save(folder / f"masks/{name}.png")


@pytest.fixture(scope="session")
def user_files(tmp_path_factory, checkpoint):
    """A photo taken with the camera on its side; a cup and its mask; a folder; a checkpoint."""
    folder = tmp_path_factory.mktemp("user")
    rng = np.random.default_rng(0)
    height, width = PHOTO_SIZE
    photo = PIL.Image.fromarray(rng.integers(0, 256, (width, height, 3), np.uint8))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    photo.save(folder / "photo.jpg", exif=exif)
    PIL.Image.fromarray(rng.integers(0, 256, (60, 50, 3), np.uint8)).save(folder / "cup.jpg")
    mask = np.zeros((60, 50), bool)
    mask[10:40, 10:40] = True
    PIL.Image.fromarray(mask).save(folder / "cup_mask.png")
    (folder / "photos" / "inner").mkdir(parents=True)
    shutil.copy(folder / "photo.jpg", folder / "photos" / "inner")
    shutil.copytree(checkpoint, folder / "clipseg-rd64-refined")
    save_hearts(folder / "hearts", count=4)
    own = Segmenter.from_pretrained(checkpoint).model.state_dict()
    save_decoder(folder / "own.safetensors", own)
    (folder / "examples").symlink_to(ROOT / "examples")
    demo = Segmenter.from_pretrained()
    heart = LearnedPrompt(demo.embed(["a star"])[0], fingerprint(demo.model), "heart", {})
    heart.save(folder / "heart.safetensors")
    return folder


@pytest.fixture
def user_folder(user_files, tmp_path, monkeypatch):
    """An own copy of these files, as the working folder."""
    for path in user_files.iterdir():
        os.symlink(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path
