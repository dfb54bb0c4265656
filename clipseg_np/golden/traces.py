"""Golden traces: what every layer returned, by dotted name and in order, in a file to port from.

    clipseg-np trace image.png "a cat" --dtype float64 --output golden.safetensors
    clipseg-np compare golden.safetensors mine.safetensors

A golden file is a safetensors file: the inputs under "input.NAME", then the layers' outputs under their dotted names; what a
layer returns in its second call within one trace stands under NAME@2. Safetensors keeps no order, so that the metadata does:
"order", and "about", both JSON. The file of a port needs neither, and may be an .npz instead.
"""

import fnmatch
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from ..atomic_files import written_whole
from ..errors import InputError
from ..model.config import is_number
from ..model.pretrained import PretrainedModel
from ..nn.trace import trace
from ..version import __version__
from .compare import compare, report, scale

INPUT = "input."
STORED = {  # NumPy's types that safetensors knows
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "uint8": "U8",
    "bool": "BOOL",
}

TYPES = {stored: name for name, stored in STORED.items()}


class Golden(Mapping):
    """The arrays of a golden file, or of a port's .safetensors or .npz, by name; each is read when it is asked for.

    Iterates in the order of execution where the file tells it, and in the order of the file where not. `about`
    is what made it, {} where that is unknown. Raises FileNotFoundError or InputError for what is not such a file.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.about: dict[str, Any] = {}
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is missing: expected a .safetensors or .npz file")
        try:
            if self.path.suffix == ".npz":
                self._file = np.load(self.path)
                self.names = self._file.files
            else:
                self._file = safe_open(self.path, framework="numpy")
                metadata = self._file.metadata() or {}
                self.about = json.loads(metadata.get("about", "{}"))
                names = list(self._file.offset_keys())
                self.names = json.loads(metadata.get("order", "null")) or names
                self._check_metadata(names)
        except InputError:
            raise
        except Exception as error:  # both libraries raise errors of many kinds: zip, zlib, struct
            raise InputError(
                f"{self.path} is neither a whole safetensors file nor an .npz ({error})"
            ) from error

    def _check_metadata(self, names: list[str]) -> None:
        order, about = self.names, self.about
        if not isinstance(order, list) or sorted(map(str, order)) != sorted(names):
            raise InputError(
                f"{self.path} is damaged: its metadata's order has not its arrays' names"
            )
        errors = about.get("float32_error", {}) if isinstance(about, dict) else None
        if not isinstance(errors, dict) or not all(map(is_number, errors.values())):
            raise InputError(
                f"{self.path} is damaged: its metadata's about is not what trace writes"
            )

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(name)
        try:
            array = self._file[name] if self.path.suffix == ".npz" else self._file.get_tensor(name)
        except Exception as error:  # an .npz is only now unpacked
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
        """What the model was given, by the names of its arguments."""
        return {n.removeprefix(INPUT): self[n] for n in self.names if n.startswith(INPUT)}


class Recorder:
    """Hands what layers return, one by one and by their golden names, to `add`."""

    def __init__(self, add: Callable[[str, Any], None], wanted: str = "*"):
        """`wanted`: a pattern of layers' names, as a shell's."""
        self.add, self.wanted = add, wanted
        self.calls: dict[str, int] = {}

    def record(self, name: str, value: Any) -> None:
        """Records and lists of arrays are no layer's own, and are passed over."""
        if not name or not hasattr(value, "dtype"):
            return
        self.calls[name] = call = self.calls.get(name, 0) + 1
        if fnmatch.fnmatchcase(name, self.wanted):
            self.add(name if call == 1 else f"{name}@{call}", value)


class GoldenWriter:
    """Takes arrays one by one and writes them to disk at once: a trace is never held in memory."""

    def __init__(self, data: Any, about: dict[str, Any]):
        """`data`: a binary file for the arrays' bytes. `about`: what the file will say about itself."""
        self.data, self.about = data, about
        self.header: dict[str, dict] = {}

    def read(self, name: str) -> np.ndarray:
        """An array that was added, for a look back at it."""
        entry = self.header[name]
        start, end = entry["data_offsets"]
        self.data.flush()
        raw = os.pread(self.data.fileno(), end - start, start)
        return np.frombuffer(raw, TYPES[entry["dtype"]]).reshape(entry["shape"])

    def add(self, name: str, value: Any) -> None:
        array = np.ascontiguousarray(value.get() if hasattr(value, "get") else value)
        start = self.data.tell()
        self.data.write(array.reshape(-1).view(np.uint8))
        self.header[name] = {
            "dtype": STORED[array.dtype.name],
            "shape": list(np.shape(value)),
            "data_offsets": [start, self.data.tell()],
        }


@contextmanager
def golden_file(path: str | os.PathLike, about: dict[str, Any]) -> Iterator[GoldenWriter]:
    """Yield a writer; the file is there when the block ends, and not at all if it fails."""
    with tempfile.TemporaryFile(dir=Path(path).absolute().parent) as data:
        writer = GoldenWriter(data, about)
        yield writer
        metadata = {"about": json.dumps(writer.about), "order": json.dumps(list(writer.header))}
        header = json.dumps({"__metadata__": metadata, **writer.header}).encode()
        header += b" " * (-len(header) % 8)  # so that arrays begin where their type wants them to
        data.seek(0)
        with written_whole(path) as temporary, temporary.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            shutil.copyfileobj(data, file, 1 << 22)


def write_golden(
    path: str | os.PathLike,
    model: PretrainedModel,
    inputs: dict[str, Any],
    wanted: str = "*",
    about: dict | None = None,
    in_float32: PretrainedModel | None = None,
) -> None:
    """Run `model(**inputs)` and write its trace, with what made it.

    `wanted` picks layers by a pattern of their names, "decoder.*" say. `about` is added to the versions, the
    config, the float type and the hashes of the inputs. `in_float32`, the same model in that type, is run too, and the
    file tells how far it is off in each layer. Raises InputError where no layer's name fits.
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
    Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
    with golden_file(path, about) as writer:
        for name, array in inputs.items():
            writer.add(INPUT + name, array)
        with trace(Recorder(writer.add, wanted)):
            model(**inputs)
        if len(writer.header) == len(inputs):
            raise InputError(
                f"no layer is called like {wanted!r}; expected a pattern as 'decoder.*'"
            )
        if in_float32 is not None:
            errors = about["float32_error"] = {}

            def measure(name: str, value: Any) -> None:
                expected = writer.read(name)
                off = np.abs(in_float32.ops.to_numpy(value) - expected).max()
                errors[name] = float(off) / scale(expected)

            with trace(Recorder(measure, wanted)):
                in_float32(**inputs)


def assert_matches(
    activations: Mapping[str, Any],
    golden: str | os.PathLike | Mapping,
    tolerance: float | None = None,
) -> None:
    """Raise AssertionError with the report of `clipseg-np compare` unless all arrays are the golden ones.

    activations: a trace, or arrays by the same names; inputs may be left out. golden: a file, or arrays by name in
    order of execution.
    """
    if not isinstance(golden, Mapping):
        golden = Golden(golden)
    arrays = numbered(activations)
    arrays |= {n: golden[n] for n in golden if n.startswith(INPUT) and n not in arrays}
    found = compare(golden, arrays, tolerance)
    if any(not row.fine for row in found):
        raise AssertionError(report(found))


def numbered(activations: Mapping[str, Any]) -> dict[str, Any]:
    """A trace's arrays as a golden file names them: the second call of a layer is NAME@2."""
    calls = getattr(activations, "all", {name: [value] for name, value in activations.items()})
    found: dict[str, Any] = {}
    recorder = Recorder(found.__setitem__)
    for name, values in calls.items():
        for value in values:
            recorder.record(name, value)
    return found
