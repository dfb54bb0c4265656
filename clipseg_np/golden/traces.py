"""Golden traces: the output of every layer, by dotted name and in order, as a reference for a port.

    clipseg-np trace image.png "a cat" --dtype float64 --output golden.safetensors
    clipseg-np compare golden.safetensors mine.safetensors

A golden file is a safetensors file: the inputs under "input.NAME", then the layers' outputs under
their dotted names; NAME@2 is the output of a layer's second call within one trace. The metadata has
"order", as safetensors keeps no order, and "about", both in JSON. The file of a port needs no
metadata, and may be an .npz instead.
"""

import fnmatch
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors import safe_open

from ..atomic_files import written_whole
from ..checkpoints.weights import SHORT_NAMES, read_header, write_tensors
from ..errors import InputError
from ..model.config import is_number
from ..model.pretrained import PretrainedModel
from ..nn.ops import in_main_memory
from ..nn.trace import trace
from ..version import __version__
from .compare import compare, report, scale

INPUT = "input."


class Golden(Mapping):
    """The arrays of a golden file, or of a port's .safetensors or .npz, by name; read on access.

    Iterates in order of execution if the file has it, else in the file's order. `about` describes
    the run that made the file; {} if unknown. Raises FileNotFoundError, or InputError for a file
    that is damaged or of another kind.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is missing: expected a .safetensors or .npz file")
        try:
            if self.path.suffix == ".npz":
                file = np.load(self.path)
                self._read, stored, metadata = file.__getitem__, file.files, {}
            else:
                file = safe_open(self.path, framework="numpy")
                self._read, metadata = file.get_tensor, file.metadata()
                stored, _ = read_header(self.path)
            metadata = metadata or {}
            self.about: dict[str, Any] = json.loads(metadata.get("about", "{}"))
            self.names = json.loads(metadata.get("order", "null")) or list(stored)
        except Exception as error:  # both libraries raise errors of many kinds: zip, zlib, struct
            raise InputError(
                f"{self.path} is neither a whole safetensors file nor an .npz ({error})"
            ) from error
        order = self.names if isinstance(self.names, list) else []
        errors = self.about.get("float32_error", {}) if isinstance(self.about, dict) else None
        measured = isinstance(errors, dict) and all(map(is_number, errors.values()))
        if sorted(map(str, order)) != sorted(stored) or not measured:
            raise InputError(
                f"{self.path} is damaged: the order or the description in its metadata does not fit"
            )

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(name)
        try:
            array = self._read(name)
        except Exception as error:  # np.load unpacks an array only now
            raise InputError(f"{self.path}: the array {name} cannot be read ({error})") from error
        if getattr(array, "dtype", np.dtype(object)).kind not in "biuf":
            raise InputError(f"{self.path}: the array {name} holds no real numbers")
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """The inputs of the model, by the names of its arguments."""
        return {n.removeprefix(INPUT): self[n] for n in self.names if n.startswith(INPUT)}


class Recorder:
    """Passes the output of each layer whose name fits `pattern` to `add`, with its golden name."""

    def __init__(self, add: Callable[[str, Any], None], pattern: str = "*"):
        self.add, self.pattern = add, pattern
        self.calls: dict[str, int] = {}

    def record(self, name: str, value: Any) -> None:
        """Ignores outputs that are no arrays: those of whole models, and lists."""
        if not name or not hasattr(value, "dtype"):
            return
        self.calls[name] = call = self.calls.get(name, 0) + 1
        if fnmatch.fnmatchcase(name, self.pattern):
            self.add(name if call == 1 else f"{name}@{call}", value)


class GoldenWriter:
    """Keeps each array in a file of its own, so that memory never holds a whole trace."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files: dict[str, Path] = {}
        self.tensors: dict[str, tuple] = {}

    def add(self, name: str, value: Any) -> None:
        array = in_main_memory(value)
        self.files[name] = file = self.folder / f"{len(self.files)}.npy"
        np.save(file, array)
        self.tensors[name] = SHORT_NAMES[array.dtype.name], array.shape, map(np.load, [file])


@contextmanager
def golden_file(path: str | os.PathLike, about: dict[str, Any]) -> Iterator[GoldenWriter]:
    """Yield a writer. The file appears when the block ends, and not at all if it fails."""
    with written_whole(path) as temporary, TemporaryDirectory(dir=temporary.parent) as folder:
        writer = GoldenWriter(Path(folder))
        yield writer
        metadata = {"about": json.dumps(about), "order": json.dumps(list(writer.tensors))}
        write_tensors(temporary, writer.tensors, metadata)


def write_golden(
    path: str | os.PathLike,
    model: PretrainedModel,
    inputs: dict[str, Any],
    wanted: str = "*",
    about: dict | None = None,
    in_float32: PretrainedModel | None = None,
) -> None:
    """Run `model(**inputs)` and write its trace, with a description of the run.

    wanted: a pattern of layers' names, such as "decoder.*". about: added to the description, which
    has the versions, the config, the float type and the hashes of the inputs. in_float32: the same
    model in float32; it runs too, and the file gets its error in each layer. Raises InputError if
    no layer's name fits.
    """
    inputs = {name: model.ops.to_numpy(model.ops.asarray(v)) for name, v in inputs.items()}
    about = {
        "clipseg_np": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "array_module": model.ops.xp.__name__,
        "dtype": model.dtype.name,
        "class": type(model).__name__,
        "config": asdict(model.config),
        "sha256": {n: hashlib.sha256(a.tobytes()).hexdigest() for n, a in inputs.items()},
        **(about or {}),
    }
    with golden_file(path, about) as writer:
        for name, array in inputs.items():
            writer.add(INPUT + name, array)
        with trace(Recorder(writer.add, wanted)):
            model(**inputs)
        if len(writer.tensors) == len(inputs):
            raise InputError(f"no layer is called like {wanted!r}; expected, say, 'decoder.*'")
        if in_float32 is not None:
            errors = about["float32_error"] = {}

            def measure(name: str, value: Any) -> None:
                expected = np.load(writer.files[name])
                error = np.abs(in_float32.ops.to_numpy(value) - expected).max()
                errors[name] = float(error) / scale(expected)

            with trace(Recorder(measure, wanted)):
                in_float32(**inputs)


def assert_matches(
    activations: Mapping, golden: str | os.PathLike | Mapping, tolerance: float | None = None
) -> None:
    """Raise AssertionError with the report of `clipseg-np compare` if an array deviates.

    activations: a trace, or arrays by the same names; some may be missing, but InputError is raised
    if all are. golden: a file, or arrays by name in order of execution.
    """
    if not isinstance(golden, Mapping):
        golden = Golden(golden)
    rows = compare(golden, numbered(activations), tolerance)
    rows = [row for row in rows if not (row.missing and row.name.startswith(INPUT))]
    if not all(row.fine for row in rows):
        raise AssertionError(report(rows))


def numbered(activations: Mapping[str, Any]) -> dict[str, Any]:
    """A trace's arrays by their golden names: NAME@2 is the second call of a layer."""
    calls = getattr(activations, "all", {name: [value] for name, value in activations.items()})
    arrays: dict[str, Any] = {}
    recorder = Recorder(arrays.__setitem__)
    for name, values in calls.items():
        for value in values:
            recorder.record(name, value)
    return arrays
