"""Images that Pillow reads only with another package: read with it, named without it."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from clipseg_np import InputError, ViTImageProcessor
from clipseg_np.image import load_image, plugins

STARTS = {
    "pillow-heif": b"\0\0\0\x1cftypheic",
    "pillow-avif-plugin": b"\0\0\0\x20ftypavif",
    "pillow-jxl-plugin": b"\0\0\0\x0cJXL \r\n\x87\n",
}


@pytest.mark.parametrize("package", STARTS)
@pytest.mark.parametrize("name", ["a.jpg", "a.heic", "a"])
def test_a_missing_package_is_named(package, name, tmp_path, monkeypatch):
    """The file's bytes count, not its name."""
    module = next(m for _, _, (p, m) in plugins.PLUGINS.values() if p == package)
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_bytes(STARTS[package] + b"x" * 99)
    monkeypatch.setattr(Image, "open", unidentified)
    with pytest.raises(InputError, match=f"{name} is .*pip install {package}"):
        load_image(tmp_path / name)


def unidentified(*_):
    raise Image.UnidentifiedImageError("cannot identify image file")


def test_an_installed_package_is_used(tmp_path, monkeypatch):
    """It adds its format to Pillow as it is imported. This one reads a PNG behind HEIC's start."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    (tmp_path / "a.heic").write_bytes(STARTS["pillow-heif"] + png.getvalue())
    opened = Image.open

    def import_module(name):
        assert name == "pillow_heif.HeifImagePlugin"
        monkeypatch.setattr(
            Image, "open", lambda file: opened(io.BytesIO(file.read().partition(b"heic")[2]))
        )

    monkeypatch.setattr(plugins, "import_module", import_module)
    np.testing.assert_array_equal(load_image(tmp_path / "a.heic"), pixels)


@pytest.mark.parametrize("name", ["a.DNG", "b.cr2", "c.svg"])
def test_what_has_no_pixels_that_pillow_sees_is_refused(name, tmp_path):
    """A raw file is a TIFF whose first image is a preview."""
    Image.new("RGB", (4, 3)).save(tmp_path / name, "TIFF")
    with pytest.raises(InputError, match="export it as PNG or JPEG"):
        load_image(tmp_path / name)
    with pytest.raises(InputError, match=r"^my image is .*; export it as PNG or JPEG"):
        load_image(tmp_path / name, name="my image")
    with pytest.raises(InputError, match=f"{name} is .*; export it as PNG or JPEG"):
        ViTImageProcessor()([str(tmp_path / name)])


def test_suffixes():
    assert {".png", ".jpg", ".heic", ".avif", ".jxl", ".dng"} <= plugins.image_suffixes()
    assert not {".txt", ".json", ""} & plugins.image_suffixes()
