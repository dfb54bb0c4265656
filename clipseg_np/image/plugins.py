"""Image files that Pillow does not read by itself: their names, and the packages that read them."""

import os
import re
from importlib import import_module

from PIL import Image, UnidentifiedImageError

from ..errors import InputError

# Format: suffixes, the first bytes, the package, its module that adds the format to Pillow.
PLUGINS = {
    "HEIC": (
        {".heic", ".heif", ".hif"},
        rb".{4}ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)",
        ("pillow-heif", "pillow_heif.HeifImagePlugin"),
    ),
    "AVIF": ({".avif", ".avifs"}, rb".{4}ftypavi[fs]", ("pillow-avif-plugin", "pillow_avif")),
    "JPEG XL": ({".jxl"}, rb"\xff\n|\0\0\0\x0cJXL ", ("pillow-jxl-plugin", "pillow_jxl")),
}
# Of these, Pillow sees at most a small preview.
EXPORTED = {
    **dict.fromkeys(
        (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw"),
        "a camera's raw file",
    ),
    ".svg": "a drawing without pixels",
}


def image_suffixes() -> set[str]:
    """The suffixes, in lower case, of files that are images, whether they can be read or not."""
    Image.init()  # registers the suffixes of all formats
    readable = {suffix for suffix, name in Image.EXTENSION.items() if name in Image.OPEN}
    return readable.union(EXPORTED, *(suffixes for suffixes, _, _ in PLUGINS.values()))


def has_image_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in image_suffixes()


def open_image(file, name: str) -> Image.Image:
    """Pillow's image of a file that is open, through a plugin where that is needed and installed.

    `name` is that in messages; the suffix is that of the file's own name, if it has one. Raises
    InputError where the plugin is not installed, and whatever Pillow raises.
    """
    suffix = re.search(r"\.\w+$|$", getattr(file, "name", name).lower())[0]
    if suffix in EXPORTED:
        raise InputError(f"{name} is {EXPORTED[suffix]}; export it as PNG or JPEG.")
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        file.seek(0)
        start = file.read(12)
        file.seek(0)
        for kind, (_, pattern, (package, module)) in PLUGINS.items():
            if re.match(pattern, start, re.DOTALL):
                try:
                    import_module(module)
                except ImportError as error:
                    way = f"which Pillow reads with the package {package}: pip install {package}"
                    raise InputError(f"{name} is an image of the format {kind}, {way}") from error
                return Image.open(file)
        raise
