"""cuBLAS called by hand, by a stand-in that follows its documentation. On a GPU: tests/gpu."""

import numpy as np
import pytest

from clipseg_np.backends import cublas
from clipseg_np.backends.cublas import Cublas

from ..helpers.cuda_on_cpu import CpuCublas, CpuCupy, Stream

TOLERANCE = {"float16": 2e-3, "float32": 1e-5, "float64": 1e-13}


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(cublas, "load_library", lambda major: CpuCublas([]))
    return Cublas(CpuCupy(None))


SHAPES = [(1, 5, 3, 4), (6, 2, 7, 3), (2, 1, 4, 1), (3, 4, 1, 2)]
TURNED = ["", "a", "b", "ab"]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("turned", TURNED)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_multiplies_stacks(shape, turned, dtype, on_cpu):
    check_products(on_cpu, shape, turned, dtype)


def check_products(blas, shape, turned, dtype) -> None:
    """Products of stacks (n, rows, k, columns), a or b or both transposed, with all scales."""
    n, rows, k, columns = shape
    rng, xp = np.random.default_rng(0), blas.cupy
    a, b = (
        rng.normal(size=(n, rows, k)).astype(dtype),
        rng.normal(size=(n, k, columns)).astype(dtype),
    )
    there = [
        xp.asarray(np.ascontiguousarray(x.swapaxes(1, 2))).swapaxes(1, 2)
        if name in turned
        else xp.asarray(x)
        for name, x in (("a", a), ("b", b))
    ]
    for alpha in (1.0, 0.5):
        for apart in (False, True):  # rows of the result side by side, or n of them in turn
            shape = (rows, n, columns) if apart else (n, rows, columns)
            whole = xp.full(shape, np.nan, dtype)
            out = whole.swapaxes(0, 1) if apart else whole
            blas.product(*there, out, alpha)
            expected = alpha * a.astype("float64") @ b
            found = out.get() if hasattr(out, "get") else out
            assert np.abs(found - expected).max() <= TOLERANCE[dtype] * np.abs(expected).max()


def test_what_is_neither_rows_nor_columns_is_refused(on_cpu):
    x = np.ones((2, 6, 6))
    with pytest.raises(ValueError, match="neither rows nor columns lie side by side"):
        on_cpu.product(x[:, ::1, ::2], x[:, ::2, :4], np.ones((2, 6, 4)))


@pytest.mark.parametrize("switch, asked", [(None, 68), ("0", 68), ("1", 77)])
def test_tf32_is_for_those_who_ask(switch, asked, monkeypatch):
    monkeypatch.delenv("CUPY_TF32", raising=False)
    if switch:
        monkeypatch.setenv("CUPY_TF32", switch)
    sums = []
    monkeypatch.setattr(cublas, "load_library", lambda major: CpuCublas(sums))
    blas = Cublas(CpuCupy(None))
    for dtype in ("float32", "float16", "float64"):
        blas.product(*(np.ones((1, 2, 2), dtype) for _ in range(3)))
    assert sums == [asked, 68, 70]


def test_a_failure_is_not_passed_over(on_cpu, monkeypatch):
    monkeypatch.setattr(CpuCublas, "cublasGemmStridedBatchedEx", lambda *_: 13)
    with pytest.raises(RuntimeError, match="status 13"):
        on_cpu.product(*(np.ones((1, 2, 2)) for _ in range(3)))


def test_tf32_keeps_ten_bits(monkeypatch):
    """So that what is done with it is tried with numbers as they are on a GPU."""
    monkeypatch.setenv("CUPY_TF32", "1")
    monkeypatch.setattr(cublas, "load_library", lambda major: CpuCublas([]))
    blas = Cublas(CpuCupy(None))
    rng, out = np.random.default_rng(0), np.empty((1, 50, 60), "float32")
    a, b = rng.normal(size=(1, 50, 40)), rng.normal(size=(1, 40, 60))
    blas.product(a.astype("float32"), b.astype("float32"), out)
    assert 1e-5 < np.abs(out - a @ b).max() / np.abs(a @ b).max() < 1e-3


def test_a_handle_lasts_as_long_as_its_stream(on_cpu):
    first, cuda = on_cpu._handle(), on_cpu.cupy
    assert on_cpu._handle() is first
    usual, cuda.stream = cuda.stream, Stream()
    assert on_cpu._handle() is not first and len(on_cpu.handles) == 2
    cuda.stream = usual
    assert on_cpu._handle() is first and len(on_cpu.handles) == 1
    assert on_cpu.library.destroyed == 1
