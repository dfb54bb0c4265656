"""`with learning()`: what layers keep, which gradients are collected, and by whom."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from clipseg_np import CLIPSegForImageSegmentation, trace
from clipseg_np.errors import InputError
from clipseg_np.nn.layers import MLP, Attention, DecoderLayer, Linear
from clipseg_np.nn.learning import current, is_learning, learning
from clipseg_np.nn.ops import Ops
from clipseg_np.nn.scope import Scope

from ..helpers.checkpoints import PLAIN, REFINED
from .test_gradients import Drawn, built, numbers


def whole_model(folder, backend="numpy-reference"):
    load = CLIPSegForImageSegmentation.from_pretrained
    model = load(folder, backend=backend, dtype="float64")
    rng = np.random.default_rng(7)
    C, p = model.config.vision_config.num_channels, model.config.vision_config.patch_size
    inputs = {
        "pixel_values": rng.normal(size=(2, C, 4 * p, 3 * p)),
        "input_ids": np.array([[22, 3, 23, 1, 1], [22, 17, 4, 6, 23]]),
        "attention_mask": np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
    }
    labels = rng.uniform(size=model(**inputs).logits.shape)
    return model, {**inputs, "labels": labels, "output_hidden_states": True}


def equal(one, other) -> bool:
    """All arrays of two outputs have the same bits."""
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one.tobytes() == other.tobytes()


pytestmark = pytest.mark.filterwarnings("ignore:a text without the end token")
FOLDERS = pytest.mark.parametrize("folder", [PLAIN, REFINED], ids=["plain", "refined"])


@FOLDERS
@pytest.mark.parametrize("backend", ["numpy-reference", "numpy"])
def test_the_forward_pass_has_the_same_bits(folder, backend):
    model, inputs = whole_model(folder, backend)
    outside = model(**inputs).to_tuple()
    with learning():
        inside = model(**inputs).to_tuple()
    assert len(outside) > 4 and equal(inside, outside)


def test_nothing_is_kept_outside():
    layer, _ = built(Linear, 3, 4)
    assert not is_learning()
    layer(numbers(2, 3))
    with learning() as gradients:
        assert is_learning() and gradients.given == {}
        layer(numbers(2, 3))
        assert len(gradients.given[layer]) == 1
        with pytest.raises(ZeroDivisionError), learning():
            raise ZeroDivisionError
        assert current() is gradients
    assert not is_learning()
    layer(numbers(2, 3))
    assert len(gradients.given[layer]) == 1


def test_the_way_back_empties_what_was_kept():
    model, inputs = whole_model(REFINED)
    with learning() as gradients:
        model(**inputs)
        assert sum(map(len, gradients.given.values())) > 40
        model.propagate({"loss": 1.0})
    assert not any(gradients.given.values())


def test_the_children_of_a_unit_keep_nothing():
    layer, _ = built(DecoderLayer, 4, 2, 5, "relu", 1e-5)
    with learning() as gradients:
        layer(numbers(2, 3, 4))
    kinds = {type(one) for one in gradients.given}
    assert Attention in kinds and MLP in kinds and Linear not in kinds


def test_a_layer_that_is_called_twice():
    """The last call comes first on the way back; gradients are added."""
    layer, _ = built(DecoderLayer, 4, 2, 5, "relu", 1e-5)
    xs, d_ys = ([numbers(1, 3, 4, seed=i) for i in seeds] for seeds in ((0, 1), (2, 3)))
    apart, d_xs = [], []
    for x, d_y in zip(xs, d_ys):
        with learning() as found:
            layer(x)
            d_xs.append(layer.propagate(d_y))
        apart.append(found)
    with learning() as both:
        for x in xs:
            layer(x)
        for d_y, d_x in zip(reversed(d_ys), reversed(d_xs)):
            np.testing.assert_array_equal(layer.propagate(d_y), d_x)
    assert both.keys() == apart[0].keys()
    for name, gradient in both.items():
        np.testing.assert_array_equal(gradient, apart[1][name] + apart[0][name])


def test_only_the_gradients_that_are_asked_for():
    model, inputs = whole_model(PLAIN)
    with learning() as everything:
        model(**inputs)
        d_all = model.propagate({"loss": 1.0})
    asked = []

    def learns(name):
        asked.append(name)
        return name.startswith("decoder.film")

    with learning(learns) as some:
        model(**inputs)
        d_some = model.propagate({"loss": 1.0})
    names = set(model.state_dict()) - {"clip.logit_scale"}
    assert set(asked) == set(everything) == names
    assert set(some) == {name for name in names if name.startswith("decoder.film")}
    assert all(some[name].tobytes() == everything[name].tobytes() for name in some)
    assert d_some[0].tobytes() == d_all[0].tobytes()


def test_names_of_a_model_by_itself():
    linear = Linear(Scope(Drawn(), Ops(), "float64"), 3, 2)
    with learning() as gradients:
        linear(numbers(4, 3))
        linear.propagate(numbers(4, 2))
    assert set(gradients) == {"weight", "bias"}


@FOLDERS
def test_a_trace_and_learning_together(folder):
    model, inputs = whole_model(folder)
    with trace() as alone:
        model(**inputs)
    with learning() as expected:
        model(**inputs)
        model.propagate({"loss": 1.0})
    with trace() as activations, learning() as gradients:
        model(**inputs)
        model.propagate({"loss": 1.0})
    # The way back computes outputs again, of which the trace sees none.
    counts = {name: len(outputs) for name, outputs in activations.all.items()}
    assert counts == {name: len(outputs) for name, outputs in alone.all.items()}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, expected[name])


def test_threads_have_gradients_of_their_own():
    layer, _ = built(DecoderLayer, 4, 2, 5, "relu", 1e-5)

    def one(seed):
        x, d_y = numbers(1, 3, 4, seed=seed), numbers(1, 3, 4, seed=seed + 100)
        with learning() as gradients:
            layer(x)
            layer.propagate(d_y)
        return gradients["layer.mlp.fc1.weight"]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(one, range(40)))
    for seed, gradient in enumerate(together):
        np.testing.assert_array_equal(gradient, one(seed))


def test_derivatives_by_unknown_outputs_are_refused():
    model, inputs = whole_model(PLAIN)
    with learning():
        model(**inputs)
        with pytest.raises(InputError, match="'logit' is given; expected some of loss, logits"):
            model.propagate({"logit": 1.0})
