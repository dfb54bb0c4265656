"""The GPU's kernels, run on the CPU, against the readable methods. By NVIDIA's compiler: test_real_cupy.py; on a GPU: tests/gpu."""

import shutil

import numpy as np
import pytest

from clipseg_np import CLIPSegForImageSegmentation, cublas, cupy_ops, pretrained
from clipseg_np.cupy_ops import TOLERANCES, CupyOps
from clipseg_np.errors import InputError
from clipseg_np.ops import Ops

from .checkpoints import PLAIN, REFINED
from .cuda_on_cpu import CpuCublas, CpuCupy
from .test_numpy_ops import arguments

OVERRIDES = ("linear", "layer_norm", "softmax", "attention", "quick_gelu", "gelu")


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs g++, which compiles the kernels for the CPU")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cublas, "load_library", lambda major: CpuCublas([]))
        patch.setattr(cupy_ops, "THREADS", 4)  # enough to meet at barriers; rows are longer
        yield CupyOps(CpuCupy(tmp_path_factory.mktemp("kernels")))


def check(ops, name: str, dtype: str) -> None:
    """Against the readable method in float64, on the same numbers; 1e30 is cut to what the type holds."""
    limits = np.finfo(dtype)
    for given in arguments("quick_gelu" if name == "gelu" else name, "float64"):
        floats = [getattr(a, "dtype", "") == "float64" for a in given]
        rounded = [
            np.clip(a, limits.min, limits.max).astype(dtype) if is_float else a
            for a, is_float in zip(given, floats)
        ]
        exact = [a.astype("float64") if is_float else a for a, is_float in zip(rounded, floats)]
        expected = getattr(Ops(), name)(*exact)
        there = [ops.asarray(a) if isinstance(a, np.ndarray) else a for a in rounded]
        found = ops.to_numpy(getattr(ops, name)(*there))
        assert found.dtype == dtype and found.shape == expected.shape
        error = np.abs(found - expected).max()
        assert error <= TOLERANCES[dtype] * max(np.abs(expected).max(), 1e-30)
        for array, before in zip(there, rounded):
            if isinstance(before, np.ndarray):
                assert np.array_equal(ops.to_numpy(array), before)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", OVERRIDES)
def test_it_gives_the_same_and_leaves_its_inputs_alone(name, dtype, on_cpu):
    check(on_cpu, name, dtype)


def test_there_is_a_test_for_every_override():
    public = {name for name, part in vars(CupyOps).items() if callable(part) and name[0] != "_"}
    assert public - {"aside"} == set(OVERRIDES)  # that one: test_recorded.py


def test_the_attention_weights_are_kept(on_cpu):
    q, k, v = (np.random.default_rng(i).normal(size=(2, 3, 7, 4)) for i in range(3))
    kept, expected = [], []
    on_cpu.attention(q, k, v, None, kept)
    Ops().attention(q, k, v, None, expected)
    np.testing.assert_allclose(kept[0], expected[0], rtol=1e-12)


@pytest.mark.parametrize(
    "name, mistake",
    [
        ("layer_norm", ("/ width + (A)eps", "/ (width - 1) + (A)eps")),
        ("attention", ("/ queries / heads", "/ queries")),
        ("quick_gelu", ("-1.702", "-1.7")),
        ("gelu", ("(A)0.5 *", "(A)0.6 *")),
    ],
)
def test_a_wrong_kernel_is_noticed_and_left_out(name, mistake, tmp_path, monkeypatch, on_cpu):
    monkeypatch.setattr(cupy_ops, "SOURCE", cupy_ops.SOURCE.replace(*mistake))
    with pytest.warns(UserWarning, match=rf"the GPU's {name} is CuPy's own: ours dev") as warned:
        ops = CupyOps(CpuCupy(tmp_path))
    assert len(warned) == 1
    for dtype in ("float32", "float64"):
        check(ops, name, dtype)


def test_a_gpu_that_makes_all_of_it_zero_is_noticed(tmp_path, monkeypatch):
    """Its own yardstick would be 0 too."""

    class Zero(CpuCublas):
        def cublasGemmStridedBatchedEx(self, *given) -> int:
            return 0

    monkeypatch.setattr(cublas, "load_library", lambda major: Zero([]))
    cupy = CpuCupy(tmp_path)
    cupy.empty = np.zeros
    with pytest.warns(UserWarning, match="the GPU's .* is CuPy's own: ours dev") as warned:
        CupyOps(cupy)
    assert {str(w.message).split()[2] for w in warned} == {"linear", "attention"}


def test_tf32_is_as_good_as_its_bits(tmp_path, monkeypatch, recwarn):
    monkeypatch.setenv("CUPY_TF32", "1")
    monkeypatch.setattr(cublas, "load_library", lambda major: CpuCublas([]))
    monkeypatch.setattr(cupy_ops, "THREADS", 4)
    ops = CupyOps(CpuCupy(tmp_path))
    assert not recwarn.list
    assert "linear" not in vars(ops) and "attention" not in vars(ops)


def test_a_mask_for_all_images_is_read_as_it_is(on_cpu):
    """Not copied for each."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(3, 2, 7, 4)) for _ in range(3))
    mask = (np.tri(7) > 0)[None, None]
    seen = []
    launch = on_cpu._launch
    on_cpu._launch = lambda name, x, blocks, *given: (
        seen.append(given),
        launch(name, x, blocks, *given),
    )
    found = on_cpu.attention(q, k, v, mask)
    del on_cpu._launch
    np.testing.assert_allclose(found, Ops().attention(q, k, v, mask), rtol=1e-12)
    assert seen[0][1].shape == (1, 1, 7, 7)


def test_kernels_that_do_not_compile_are_left_out():
    class Broken(CpuCupy):
        def RawModule(self, **_):
            raise RuntimeError("no compiler\nthere")

    with pytest.warns(UserWarning, match="is CuPy's own: RuntimeError: no compiler$") as warned:
        ops = CupyOps(Broken(None))
    assert len(warned) == len(OVERRIDES) - 1  # a linear layer needs no kernel
    for name in OVERRIDES:
        check(ops, name, "float64")


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("folder", [PLAIN, REFINED], ids=["plain", "refined"])
def test_a_whole_model(folder, dtype, on_cpu, monkeypatch):
    ops, here = on_cpu, pretrained.ops_for
    monkeypatch.setattr(pretrained, "ops_for", lambda n, *t: ops if n == "cupy" else here(n, *t))
    load = CLIPSegForImageSegmentation.from_pretrained
    model, exact = load(folder, backend="cupy", dtype=dtype), load(folder, dtype="float64")
    channels = model.config.vision_config.num_channels
    pictures = np.random.default_rng(0).normal(size=(1, channels, 32, 32))
    inputs = {
        "pixel_values": pictures,
        "input_ids": np.array([[1, 2, model.config.text_config.eos_token_id]]),
    }
    found, expected = ops.to_numpy(model(**inputs).logits), exact(**inputs).logits
    assert found.dtype == dtype
    off = np.abs(found - expected).max() / np.abs(expected).max()
    assert off <= {"float16": 2e-2, "float32": 1e-5, "float64": 1e-12}[dtype]


def test_float16_is_for_the_gpus_kernels_alone():
    for backend in ("numpy", "numpy-reference"):
        with pytest.raises(InputError, match="float16.*expected one of float32, float64"):
            CLIPSegForImageSegmentation.from_pretrained(PLAIN, backend=backend, dtype="float16")
