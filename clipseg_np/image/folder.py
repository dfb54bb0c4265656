"""The images of a folder: which of its files they are."""

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from .plugins import image_suffixes

# Hidden files and folders, and those of macOS, network storage and Windows.
NOT_IMAGES = re.compile(r"\.|(__MACOSX|@eaDir|#recycle|@Recycle|\$RECYCLE\.BIN)$")


def images_in(folder: str | os.PathLike, patterns: Sequence[str] = ()) -> list[Path]:
    """A folder's images, sorted, by suffix or by glob patterns. Raises InputError for none.

    What is hidden is passed over, and what systems keep beside images. Warns of a folder that
    cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected one with images in it")
    suffixes, images = image_suffixes(), []

    def warn(error: OSError) -> None:
        warnings.warn(f"{error.filename} is left out: {error.strerror}", stacklevel=4)

    def fits(path: Path) -> bool:
        return any(map(path.match, patterns)) if patterns else path.suffix.lower() in suffixes

    try:
        for parent, folders, names in os.walk(folder, onerror=warn):
            folders[:] = [name for name in folders if not NOT_IMAGES.match(name)]
            paths = (Path(parent, name) for name in names if not NOT_IMAGES.match(name))
            images += filter(fits, paths)
    except ValueError as error:
        problem = f"--glob {' '.join(map(repr, patterns))}: {error}"
        raise InputError(f"{problem}; expected patterns such as '*.jpg'") from error
    if not images:
        expected = f"that fits {', '.join(patterns)}" if patterns else "by its suffix"
        raise InputError(f"{folder} and its subfolders hold no image {expected}")
    return sorted(images)
