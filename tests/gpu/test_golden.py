"""The golden files on a GPU: each layer and output of the eager pass, the recorded logits."""

from pathlib import Path

import pytest

from clipseg_np import trace
from clipseg_np.golden.compare import compare, report
from clipseg_np.golden.traces import Golden, assert_matches
from clipseg_np.model.recorded import recorded

from ..golden.test_transformers_golden import CASES, FOLDER, TOLERANCE
from ..golden.test_transformers_golden import Golden as TransformersGolden
from ..helpers.checkpoints import PLAIN, REFINED
from ..model.test_device_clean import flat
from .agreement import EXACT, assert_near, loaded

pytestmark = pytest.mark.gpu

CHECKPOINTS = {"plain": PLAIN, "refined": REFINED}
COMMITTED = sorted((Path(__file__).parents[2] / "golden").glob("*.safetensors"))
LIMITS = {"float16": EXACT["float16"], **TOLERANCE}  # of transformers' numbers

each_type = pytest.mark.parametrize("dtype", EXACT)
each_file = pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def recorded_logits(model, inputs):
    """Recorded for other numbers. Padding stands after a text's end, where no token of it looks."""
    pixel_values, prompts = inputs["pixel_values"], inputs.get("input_ids")
    if prompts is None:
        prompts = inputs.get("conditional_embeddings")
    if prompts is None:
        images = inputs["conditional_pixel_values"]
        prompts = model.get_conditional_embeddings(conditional_pixel_values=images)
    return recorded(model, pixel_values[::-1], prompts[::-1])(pixel_values, prompts)


@each_type
@each_file
def test_every_layer_returns_the_golden_activation(path, dtype):
    golden = Golden(path)
    with trace() as activations:
        loaded(CHECKPOINTS[golden.about["checkpoint"]], dtype)(**golden.inputs)
    assert_matches(activations, golden)


@each_type
@each_file
def test_the_recorded_pass_returns_the_golden_logits(path, dtype):
    golden = Golden(path)
    found = recorded_logits(loaded(CHECKPOINTS[golden.about["checkpoint"]], dtype), golden.inputs)
    assert found.dtype == dtype
    assert_near(found, golden["decoder.transposed_convolution"][:, 0], EXACT[dtype])


@each_type
@each_case
def test_every_layer_and_output_is_that_of_transformers(case, dtype):
    golden = TransformersGolden(FOLDER / case)
    model = part = loaded(CHECKPOINTS[case.parts[0]], dtype)
    for name in filter(None, golden.model.split(".")):
        part = getattr(part, name)
    everything = {"output_attentions": True, "output_hidden_states": True}
    options = {"return_loss": True} if golden.model == "clip" else everything
    with trace() as activations:
        outputs = flat(part(**golden.inputs, **options))
    outputs = dict(zip(golden.outputs, outputs, strict=True))
    assert {output.dtype.name for output in outputs.values()} == {dtype}
    layers = {
        f"{call}/{name}": value
        for name, values in activations.all.items()
        for call, value in enumerate(values)
        if f"{call}/{name}" in golden.modules
    }
    assert len(layers) == len(golden.modules)
    rows = compare(golden.modules, layers, LIMITS[dtype])
    rows += compare(golden.outputs, outputs, LIMITS[dtype])
    assert all(row.fine for row in rows), report(rows)
    if not golden.model:
        found = recorded_logits(model, golden.inputs)
        assert_near(found, golden.outputs["logits"], LIMITS[dtype])
