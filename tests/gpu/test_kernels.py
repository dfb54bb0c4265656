"""Our kernels and cuBLAS on a GPU, against the readable methods in float64; TF32."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from clipseg_np.backends.cublas import Cublas
from clipseg_np.backends.select import ops_for

from ..backends.test_cublas import SHAPES, TURNED, check_products
from ..backends.test_cublas import TOLERANCE as PRODUCTS
from ..backends.test_cupy_kernels import OVERRIDES, TOLERANCES, check, check_flash, check_linear
from .agreement import gpu_ops

pytestmark = pytest.mark.gpu

# CuPy reads CUPY_TF32 when it is imported. A number then has 10 bits after the point.
WITH_TF32 = """
import warnings
from clipseg_np.backends.select import working_cupy
from clipseg_np.model.recorded import recorded
from tests.helpers.checkpoints import PLAIN, REFINED
from tests.gpu.agreement import assert_near, eager_logits, loaded
from tests.gpu.test_shapes import SHAPES, drawn_inputs

working_cupy()
warnings.simplefilter("error", UserWarning)  # such as an override that is left out
for folder in (PLAIN, REFINED):
    model, exact = loaded(folder, "float32"), loaded(folder, "float64", "numpy")
    inputs = drawn_inputs(model.config, SHAPES["pixels past the last patch, five prompts"])
    expected = eager_logits(exact, *inputs)
    assert_near(eager_logits(model, *inputs), expected, 5e-3)
    assert_near(recorded(model, *inputs)(*inputs), expected, 5e-3)
"""


def test_the_self_check_finds_no_fault():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ops_for("cupy")


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", OVERRIDES)
def test_an_override_gives_the_same_and_leaves_its_inputs_alone(name, dtype):
    check(gpu_ops(), name, dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("d, T", [(16, 485), (32, 130), (64, 8), (64, 485)])
def test_attention_on_the_chip(d, T, dtype):
    check_flash(gpu_ops(), d, T, dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("activation", ["quick_gelu", "selu"])
def test_a_linear_map_and_what_follows_it(activation, dtype):
    check_linear(gpu_ops(), activation, dtype)


@pytest.mark.parametrize("dtype", PRODUCTS)
@pytest.mark.parametrize("turned", TURNED)
@pytest.mark.parametrize("shape", [*SHAPES, (4, 485, 64, 485)], ids=str)
def test_cublas_multiplies_stacks(shape, turned, dtype, gpu):
    check_products(Cublas(gpu), shape, turned, dtype)


def test_tf32_passes_the_self_check_and_is_recorded():
    done = subprocess.run(
        [sys.executable, "-c", WITH_TF32],
        env={**os.environ, "CUPY_TF32": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
