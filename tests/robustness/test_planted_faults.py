"""Likely mistakes of a port: `compare` names the layer where each one is planted."""

import pytest

from clipseg_np import CLIPSegForImageSegmentation
from clipseg_np.golden.compare import compare
from clipseg_np.golden.traces import assert_matches

from ..helpers.checkpoints import PLAIN
from ..helpers.exercises import faults


@pytest.mark.filterwarnings("ignore:a text without the end token")
@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: fault.plant.__name__)
def test_the_first_layer_that_deviates_is_the_one_that_is_wrong(fault):
    model, inputs = faults.sound(fault.folder)
    golden = faults.traced(model, inputs)
    assert_matches(golden, golden)
    fault.plant(model)
    wrong = [row.name for row in compare(golden, faults.traced(model, inputs)) if not row.fine]
    assert wrong[0] == fault.layer


def test_an_input_that_differs_is_the_first_to_be_named():
    model, inputs = faults.sound()
    golden = {"input.pixel_values": inputs["pixel_values"], **faults.traced(model, inputs)}
    inputs["pixel_values"] = (inputs["pixel_values"] - 0.5) / 0.5  # another normalization
    other = {"input.pixel_values": inputs["pixel_values"], **faults.traced(model, inputs)}
    assert compare(golden, other)[0].used > 1


def test_a_port_in_float32_is_not_taken_for_a_fault():
    model, inputs = faults.sound()
    rough = CLIPSegForImageSegmentation.from_pretrained(PLAIN)
    assert_matches(faults.traced(rough, inputs), faults.traced(model, inputs))
