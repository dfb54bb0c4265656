"""A pass recorded as a CUDA graph: on a stand-in that records what it is told to do; on a GPU, where there is one."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from clipseg_np import CLIPSegForImageSegmentation, InputError
from clipseg_np.cuda_graph import CudaGraph, recorded
from clipseg_np.ops import Ops

from .checkpoints import REFINED


class Device:
    """NumPy with `cuda`: what goes through `do` is done at once and, while a stream records, kept for its graph."""

    def __init__(self):
        self.log, self.kept, self.streams = [], None, [SimpleStream(self, "caller")]
        self.cuda = SimpleNamespace(
            MemoryPool=lambda: SimpleNamespace(malloc=None),
            Stream=lambda non_blocking: SimpleStream(self, "own"),
            get_current_stream=lambda: self.streams[-1],
            using_allocator=lambda malloc: nullcontext(),
        )

    def __getattr__(self, name: str):
        return getattr(np, name)

    def do(self, step) -> None:
        step()
        if self.kept is not None:
            self.kept.append(step)


class SimpleStream:
    def __init__(self, device: Device, name: str):
        self.device, self.name = device, name

    def __enter__(self):
        self.device.streams.append(self)

    def __exit__(self, *_):
        self.device.streams.pop()

    def record(self) -> str:
        return self.name

    def wait_event(self, event: str) -> None:
        self.device.log.append(f"{self.name} waits for {event}")

    def synchronize(self) -> None:
        self.device.log.append("synchronized")

    def begin_capture(self) -> None:
        self.device.kept = []

    def end_capture(self):
        steps, self.device.kept = self.device.kept, None

        def launch(stream) -> None:
            self.device.log.append(f"launched on {stream.name}")
            for step in steps:
                step()

        return SimpleNamespace(launch=launch)


def doubling():
    """A device, a function that doubles on it, and how often Python ran that function."""
    device, runs = Device(), []

    def double(x):
        runs.append(1)
        out = np.empty_like(x)
        device.do(lambda: np.multiply(x, 2, out=out))
        return out

    return device, double, runs


def test_what_is_recorded_is_replayed_for_other_numbers():
    device, double, runs = doubling()
    graph = CudaGraph(Ops(device), double, np.ones(3, "float32"))
    ran = len(runs)
    first, second = graph([1, 2, 3]), graph(np.array([4, 5, 6.0]))
    assert first.tolist() == [2, 4, 6] and second.tolist() == [8, 10, 12]
    assert first.dtype == "float32" and len(runs) == ran


def test_each_stream_waits_for_the_other():
    device, double, _ = doubling()
    graph = CudaGraph(Ops(device), double, np.ones(3))
    device.log.clear()
    graph(np.ones(3))
    expected = ["own waits for caller", "launched on own", "caller waits for own"]
    assert device.log == expected


def test_the_example_is_not_what_is_written_to():
    device, double, _ = doubling()
    example = np.ones(3)
    CudaGraph(Ops(device), double, example)(np.zeros(3))
    assert example.tolist() == [1, 1, 1]


@pytest.mark.parametrize("given", [(np.ones(4),), (np.ones((1, 3)),), (), (np.ones(3), np.ones(3))])
def test_other_shapes_are_refused(given):
    device, double, _ = doubling()
    graph = CudaGraph(Ops(device), double, np.ones(3))
    with pytest.raises(
        InputError, match=r"recorded for arrays of shapes \[\(3,\)\]; got .*record anew"
    ):
        graph(*given)


def test_what_cannot_be_recorded_is_said_and_leaves_nothing_recording():
    device = Device()

    def fails(x):
        if device.kept is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        return x

    with pytest.raises(InputError, match="cannot be recorded as a CUDA graph: operation not"):
        CudaGraph(Ops(device), fails, np.ones(3))
    assert device.kept is None and len(device.streams) == 1


def test_without_a_gpu_it_says_what_to_do():
    model = CLIPSegForImageSegmentation.from_pretrained(REFINED)
    with pytest.raises(InputError, match="only a model on a GPU.*backend='cupy'"):
        recorded(model, np.zeros((1, 3, 32, 32)), np.zeros((1, model.config.projection_dim)))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_on_a_gpu_the_recorded_pass_gives_the_same(dtype, cupy):
    model = CLIPSegForImageSegmentation.from_pretrained(REFINED, backend="cupy", dtype=dtype)
    rng = np.random.default_rng(0)
    C, D = model.config.vision_config.num_channels, model.config.projection_dim
    examples = rng.normal(size=(1, C, 32, 32)), rng.normal(size=(3, D))
    run = recorded(model, *examples)
    for _ in range(3):
        pixels, embeddings = rng.normal(size=(1, C, 32, 32)), rng.normal(size=(3, D))
        expected = model.decode(model.encode_image(pixels), model.ops.asarray(embeddings, dtype))
        found, expected = model.ops.to_numpy(run(pixels, embeddings)), model.ops.to_numpy(expected)
        assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
