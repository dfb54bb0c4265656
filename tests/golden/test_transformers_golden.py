"""Each activation and output against transformers' golden traces (tests/data/make_golden.py)."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from clipseg_np import CLIPSegForImageSegmentation
from clipseg_np.golden.compare import compare, report
from clipseg_np.model.outputs import Output
from clipseg_np.nn.trace import trace

FOLDER = Path(__file__).parents[1] / "data"
CASES = sorted(path.relative_to(FOLDER) for path in FOLDER.glob("*/*.golden"))
BACKENDS = ("numpy-reference", "numpy")
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}  # relative to the largest expected value


class Golden:
    """One golden file: `model`, and arrays by name under inputs, outputs and modules."""

    def __init__(self, path: Path):
        with safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()["golden"])
            arrays = {n: file.get_tensor(place) for n, place in about["place_of"].items()}
        self.model = about["model"]
        self.versions = {name: about[name] for name in ("torch", "transformers")}
        self.inputs = self._under(arrays, "input/")
        self.outputs = self._under(arrays, "output/")
        self.modules = self._under(arrays, "module/")  # "CALL/NAME"

    @staticmethod
    def _under(arrays: dict, start: str) -> dict:
        return {n.removeprefix(start): a for n, a in arrays.items() if n.startswith(start)}


@pytest.fixture(params=CASES, ids=str, scope="module")
def case(request):
    return request.param


@pytest.fixture(params=itertools.product(TOLERANCE, BACKENDS), ids="-".join, scope="module")
def run(request, case):
    """A golden case, with our outputs and our trace of it in one float type on one backend."""
    dtype, backend = request.param
    golden = Golden(FOLDER / case)
    part = CLIPSegForImageSegmentation.from_pretrained(
        (FOLDER / case).parent, dtype=dtype, backend=backend
    )
    for name in filter(None, golden.model.split(".")):
        part = getattr(part, name)
    if golden.model == "clip":
        options = {"return_loss": True}
    else:
        options = {"output_attentions": True, "output_hidden_states": True}
    with trace() as activations:
        outputs = part(**golden.inputs, **options)
    return dtype, golden, outputs, activations


def in_order(activations) -> list[tuple[str, np.ndarray]]:
    """The traced arrays as ("CALL/NAME", array): the first calls in order, then the second."""
    calls = max(len(values) for values in activations.all.values())
    return [
        (f"{call}/{name}", values[call])
        for call in range(calls)
        for name, values in activations.all.items()
        if call < len(values) and isinstance(values[call], np.ndarray)
    ]


def first_deviation(ours: dict, expected: dict, dtype: str) -> str | None:
    """The report of the first array outside the tolerance, or None."""
    rows = compare(expected, ours, TOLERANCE[dtype])
    return None if all(row.fine for row in rows) else report(rows, table=False)


def flatten(value, name: str = "") -> dict[str, np.ndarray]:
    """The arrays of an output by dotted name."""
    if not isinstance(value, (Output, tuple)):
        return {name: np.asarray(value)}
    items = value.items() if isinstance(value, Output) else enumerate(value)
    arrays = {}
    for key, inner in items:
        arrays |= flatten(inner, f"{name}.{key}" if name else str(key))
    return arrays


def test_all_cases_are_there():
    assert [str(case) for case in CASES] == [
        "plain/clip.golden",
        "plain/text.golden",
        "refined/image_prompts.golden",
        "refined/tall_image.golden",
        "refined/text.golden",
    ]


def test_every_layer_returns_the_golden_activation(run):
    dtype, golden, _, activations = run
    ours = dict(in_order(activations))
    if golden.modules:
        assert set(ours) == set(golden.modules)
        expected = {name: golden.modules[name] for name in ours}
        assert first_deviation(ours, expected, dtype) is None


def test_outputs_are_the_golden_outputs(run):
    dtype, golden, outputs, _ = run
    ours = flatten(outputs)
    assert list(ours) == list(golden.outputs)
    assert first_deviation(ours, golden.outputs, dtype) is None


def test_every_activation_and_output_keeps_the_input_type(run):
    """float32 stays float32: one NumPy scalar of float64 would promote all later layers."""
    dtype, _, outputs, activations = run
    types = {name: array.dtype.name for name, array in in_order(activations)}
    types |= {name: array.dtype.name for name, array in flatten(outputs).items()}
    assert {name: kind for name, kind in types.items() if kind != dtype} == {}


def test_a_deviation_is_reported_by_name_element_and_share():
    expected = np.array([[1.0, 2.0], [3.0, 4.0]])
    ours = expected.copy()
    ours[1, 0] += 8e-5
    message = first_deviation(
        {"a": expected, "b.c": ours}, {"a": expected, "b.c": expected}, "float32"
    )
    assert message.startswith(
        "b.c is the first of 1 that deviate(s): it is worst at [1, 0]: expected 3, got"
    )
    assert "It uses 2 times the tolerance." in message
    assert "has shape (2, 1)" in first_deviation({"a": ours[:, :1]}, {"a": expected}, "float32")
