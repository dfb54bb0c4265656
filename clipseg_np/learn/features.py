"""Features of images, encoded once by the frozen vision tower and kept in a folder on disk.

An entry is one image in one of 8 turns: the tokens that the decoder reads, in float16, which leaves
IoU unchanged. While the decoder's `reduces` stay as they are, it holds the reduced tokens: 0.2 MB
at the official size instead of 2.2 MB. Its name is a hash of all that it depends on, so that other
runs find it, and none is ever out of date. Each image is computed alone: an entry's bits do not
depend on which others are missing. The folder may be removed at any time.
"""

import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from ..atomic_files import remove_parts, written_together
from ..errors import InputError
from ..image.image_processor import ViTImageProcessor
from ..model.batched import in_parallel
from ..model.clipseg import CLIPSegForImageSegmentation
from ..model.input_checks import require
from ..model.learned_prompt import fingerprint
from ..nn.ops import Array
from .progress import Progress, unseen

MAX_BYTES = 8 << 30  # of all entries in a folder
SUFFIX = ".features"


def turned(x: Array, turn: int) -> Array:
    """One of 8 flips and quarter turns of the last two axes: 0 is x itself, 1 its mirror image.

    (..., H, W) -> (..., H, W), or (..., W, H) from turn 4 on
    """
    x = x.swapaxes(-1, -2) if turn & 4 else x
    x = x[..., ::-1, :] if turn & 2 else x
    return x[..., ::-1] if turn & 1 else x


class CachedFeatures:
    """The features of images, in `turns` turns each; those that are not there are encoded now.

    images: paths with their white levels, see load_image. The features are as `decoder.reduce`
    returns them or, unless `is_reduced`, as it takes them. There are fewer turns, with a warning,
    where all would take more than `max_bytes`. The entries that have not been used for longest make
    room for new ones. Raises InputError for images that do not fit even once, a processor that
    gives images different sizes, and numbers too large for float16.
    """

    def __init__(
        self,
        model: CLIPSegForImageSegmentation,
        image_processor: ViTImageProcessor,
        images: Mapping[str | os.PathLike, float | None],
        *,
        turns: int = 8,
        is_reduced: bool = True,
        folder: str | os.PathLike | None = None,
        max_bytes: int = MAX_BYTES,
        progress: Progress = unseen,
    ):
        self.model, self.image_processor, self.is_reduced = model, image_processor, is_reduced
        self.images = list(images.items())
        self.folder = usual_folder() if folder is None else Path(folder)
        config, size = model.config, image_processor.size
        fits = size.keys() == {"height", "width"} and image_processor.do_resize
        given = f"size={size}, do_resize={image_processor.do_resize}"
        require(fits, f"the processor has {given}; expected a height and a width for all")
        vision = config.vision_config
        h, w = self.grid = tuple(size[side] // vision.patch_size for side in ("height", "width"))
        width = config.reduce_dim if is_reduced else vision.hidden_size
        self.shape = len(config.extract_layers), 1 + h * w, width
        self.entry_bytes = 2 * int(np.prod(self.shape))
        # A quarter turn needs a square.
        turns = min(turns, 8 if size["height"] == size["width"] else 4)
        self.turns = self._affordable(turns, len(images), max_bytes)
        places = "clip.vision_model.", *["decoder.reduces."] * is_reduced
        about = fingerprint(model, places), image_processor.to_dict(), config.to_dict()
        mark = json.dumps(about, sort_keys=True)
        self.files = [self._files(Path(path), f"{level} {mark}") for path, level in self.images]
        remove_parts(self.folder, min_age=24 * 3600)
        self._make_room(max_bytes)
        self._encode(progress)

    def load(self, entries: Sequence[tuple[int, int]]) -> list[Array]:
        """P pairs of an image's number and a turn to their tokens, (P,1+hw,D) for each layer."""
        # (layers,P,1+hw,D)
        tokens = np.stack([self._numbers(*entry) for entry in entries], axis=1)
        return list(self.model.ops.asarray(tokens).astype(self.model.dtype))

    def _numbers(self, image: int, turn: int) -> np.ndarray:
        """An entry, (layers,1+hw,D). One that was removed meanwhile is encoded again."""
        if not self._is_there(self.files[image][turn]):
            self._encode_image(image)
        return np.fromfile(self.files[image][turn], "<f2").reshape(self.shape)

    def _affordable(self, turns: int, num_images: int, max_bytes: int) -> int:
        """The turns that fit into `max_bytes`: 8, 4, 2 or 1."""
        need = self.entry_bytes * num_images
        fitting = next((n for n in (8, 4, 2, 1) if n <= turns and n * need <= max_bytes), 0)
        given = f"{num_images} images in {turns} flips and turns take {turns * need / 1e9:.2f} GB"
        problem = f"{given}, and {self.folder} holds {max_bytes / 1e9:.2f} GB at most"
        require(fitting > 0, f"{problem}: give fewer images")
        if fitting < turns:
            warnings.warn(f"{problem}: {fitting} turns are learned from", stacklevel=4)
        return fitting

    def _files(self, image: Path, mark: str) -> tuple[Path, ...]:
        """The entries of an image, one for each turn."""
        content = sha256(image.read_bytes()).hexdigest()
        keys = (f"{content} {turn} {mark}".encode() for turn in range(self.turns))
        return tuple(self.folder / f"{sha256(key).hexdigest()}{SUFFIX}" for key in keys)

    def _make_room(self, max_bytes: int) -> None:
        own = {file for files in self.files for file in files}
        left = max_bytes - self.entry_bytes * len(own)
        with suppress(OSError):  # another run makes room, too, or the folder is another user's
            others = [(f.stat(), f) for f in self.folder.glob(f"*{SUFFIX}") if f not in own]
            for about, file in sorted(others, key=lambda other: -other[0].st_mtime):
                left -= about.st_size
                if left < 0:
                    file.unlink()

    def _encode(self, progress: Progress) -> None:
        """Write the entries that are not there, of several images at a time."""
        missing = [n for n, files in enumerate(self.files) if not all(map(self._is_there, files))]
        tasks = [partial(self._encode_image, number) for number in missing]
        size = self.model.ops.workers
        for start in progress(range(0, len(tasks), size), "encoding images"):
            in_parallel(self.model.ops, tasks[start : start + size])
        self.model.clip.vision_model.give_back_memory()

    def _is_there(self, file: Path) -> bool:
        """A file's time is that of its last use."""
        with suppress(OSError):  # it is another user's, or was never there
            os.utime(file)
        return file.is_file() and file.stat().st_size == self.entry_bytes

    def _encode_image(self, number: int) -> None:
        model, (image, white_level) = self.model, self.images[number]
        # (1,3,height,width)
        pixels = self.image_processor(os.fspath(image), white_level=white_level)["pixel_values"]
        try:
            with written_together(self.folder) as part:
                for turn, file in enumerate(self.files[number]):
                    view = np.ascontiguousarray(turned(pixels, turn))
                    tokens = model.encode_image(view).activations
                    tokens = model.decoder.reduce(tokens) if self.is_reduced else tokens
                    numbers = model.ops.to_numpy(model.ops.xp.concatenate(tokens))
                    largest, expected = abs(numbers).max(), "expected numbers that float16 holds"
                    fits = largest <= np.finfo("f2").max  # NaN does not
                    require(fits, f"{image}: its features reach {largest:g}; {expected}")
                    (part / file.name).write_bytes(np.ascontiguousarray(numbers, "<f2").tobytes())
        except OSError as error:
            advice = "give another folder as the cache (--cache)"
            raise InputError(f"features cannot be written ({error}): {advice}") from error


def usual_folder() -> Path:
    """The system's folder for what can be computed again."""
    base = {"win32": "AppData/Local", "darwin": "Library/Caches"}.get(sys.platform, ".cache")
    named = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return Path(named or Path.home() / base, "clipseg-np", "features")
