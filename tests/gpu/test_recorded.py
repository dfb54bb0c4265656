"""Recorded passes on a GPU: what they are given, what they keep, and what they give back."""

import gc
from functools import partial

import numpy as np
import pytest

from clipseg_np import CLIPSegForImageSegmentation, InputError
from clipseg_np.backends.cuda_graph import CudaGraph
from clipseg_np.golden.compare import as_floats
from clipseg_np.model.recorded import recorded

from ..helpers.checkpoints import REFINED
from .agreement import EAGER, assert_near, eager_logits, loaded

pytestmark = pytest.mark.gpu

MiB = 2**20
LIMIT = EAGER["float32"]
END = 23  # of a text, in this checkpoint's vocabulary


def drawn(seed: int = 0, side: int = 32, prompts: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """An image (1,3,side,side) and the ids of texts (prompts,5)."""
    rng = np.random.default_rng(seed)
    input_ids = rng.integers(3, END, (prompts, 5))
    input_ids[:, -1] = END
    return rng.normal(size=(1, 3, side, side)).astype("float32"), input_ids


def fresh_model() -> CLIPSegForImageSegmentation:
    return CLIPSegForImageSegmentation.from_pretrained(REFINED, backend="cupy")


@pytest.mark.parametrize("dtype", EAGER)
def test_it_is_the_eager_pass_for_other_numbers(dtype, gpu):
    model = loaded(REFINED, dtype)
    run, found, expected = recorded(model, *drawn()), [], []
    for inputs in map(drawn, (1, 2, 3)):
        found += [run(*inputs), run(*map(gpu.asarray, inputs))]  # from the host and from the GPU
        expected += 2 * [eager_logits(model, *inputs)]
    for logits, eager in zip(found, expected):  # each an array of its own
        assert logits.dtype == dtype
        assert_near(logits, eager, EAGER[dtype])
    assert np.abs(as_floats(found[0]) - as_floats(found[2])).max() > 0.01


def test_it_is_launched_from_any_stream(gpu):
    model, inputs = loaded(REFINED, "float32"), drawn(1)
    run, expected = recorded(model, *drawn()), as_floats(eager_logits(model, *inputs))
    with gpu.cuda.Stream(non_blocking=True):
        assert_near(run(*map(gpu.asarray, inputs)), expected, LIMIT)
    assert_near(run(*inputs), expected, LIMIT)


def test_recorded_passes_do_not_disturb_each_other():
    model, kept = loaded(REFINED, "float32"), {}

    def check(run, shape, seed):
        inputs = drawn(seed, **shape)
        assert_near(run(*inputs), eager_logits(model, *inputs), LIMIT)

    def check_all():
        for seed in (1, 2):
            for again in kept.values():
                again(seed)

    for side, prompts in ((32, 3), (48, 2), (40, 5)):
        shape = {"side": side, "prompts": prompts}
        kept[side] = partial(check, recorded(model, *drawn(**shape)), shape)
        check_all()
        kept.pop(48, None)  # dropped before the third is recorded
        gc.collect()
        check_all()
    assert len(kept) == 2


def test_it_keeps_its_model(gpu):
    model, inputs = fresh_model(), drawn(1)
    expected = as_floats(eager_logits(model, *inputs))
    shapes = [weight.shape for weight in model.scope.arrays.values()]
    run = recorded(model, *drawn())
    del model
    gc.collect()
    taken = [gpu.full(shape, np.nan, "float32") for shape in shapes for _ in range(3)]
    assert_near(run(*inputs), expected, LIMIT)
    assert len(taken) == 3 * len(shapes)


def free_memory(cupy) -> int:
    """Bytes of the GPU, once all that nobody holds has been given back."""
    gc.collect()
    cupy.cuda.Device().synchronize()
    cupy.get_default_memory_pool().free_all_blocks()
    return cupy.cuda.runtime.memGetInfo()[0]


def test_a_dropped_pass_gives_its_memory_back(gpu):
    model, inputs = loaded(REFINED, "float32"), drawn(side=128, prompts=64)
    recorded(model, *inputs)  # makes what stays: tables, and cuBLAS's workspaces
    before = free_memory(gpu)
    run = recorded(model, *inputs)
    held = before - free_memory(gpu)
    del run
    for _ in range(4):
        recorded(model, *inputs)
    left = before - free_memory(gpu)
    assert held > 4 * MiB
    assert left < held / 2


def test_so_do_a_model_and_its_pass(gpu):
    recorded(fresh_model(), *drawn())
    before = free_memory(gpu)
    for _ in range(4):
        recorded(fresh_model(), *drawn())
    assert before - free_memory(gpu) < 32 * MiB  # one workspace of cuBLAS


def test_other_inputs_are_refused():
    run = recorded(loaded(REFINED, "float32"), *drawn())
    image, ids = drawn(1)
    shapes = [(image[..., :24], ids), (image[0], ids), (image, ids[:2]), (image, ids[:, 1:])]
    for given in (*shapes, (image, ids + 1), (image, np.zeros((3, 18)))):
        with pytest.raises(InputError):
            run(*given)


def test_what_cannot_be_recorded_is_said_and_leaves_nothing_recording(gpu):
    ones, model, inputs = gpu.ones(3, "float32"), fresh_model(), drawn()

    def waits(x):
        gpu.cuda.get_current_stream().synchronize()  # CUDA itself refuses it, the others CuPy
        return x

    for function in (
        waits,
        lambda x: x * int(x.sum()),
        lambda x: x + gpu.asarray(np.ones(3, "float32")),
        lambda x: gpu.asarray(x.get()),
    ):
        with pytest.raises(InputError, match="cannot record this pass as a graph"):
            CudaGraph(model.ops, function, ones)
        doubled = CudaGraph(model.ops, lambda x: 2 * x, ones)
        assert_near(doubled(np.arange(3)), np.arange(3) * 2, 0)
    assert_near(recorded(model, *drawn(1))(*inputs), eager_logits(model, *inputs), LIMIT)
