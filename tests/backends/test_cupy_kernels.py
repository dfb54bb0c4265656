"""The GPU's kernels, run on the CPU, against the readable methods.

NVIDIA's compiler compiles them in backends/test_real_cupy.py; on a GPU they run in tests/gpu.
"""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from clipseg_np import CLIPSegForImageSegmentation
from clipseg_np.backends import cublas, cupy_kernels
from clipseg_np.backends.cupy_kernels import ACTIVATIONS
from clipseg_np.backends.cupy_layers import WHOLE_LAYERS
from clipseg_np.backends.cupy_ops import TOLERANCES, CupyOps
from clipseg_np.errors import InputError
from clipseg_np.model import pretrained
from clipseg_np.nn.layers import DecoderLayer, Encoder, RefinedHead
from clipseg_np.nn.ops import Ops

from ..helpers.checkpoints import PLAIN, REFINED
from ..helpers.cuda_on_cpu import CpuCublas, CpuCupy, smaller_blocks
from .test_numpy_layers import PADDED, build
from .test_numpy_ops import arguments

OVERRIDES = ("linear", "layer_norm", "softmax", "attention", "conv2d", "conv_transpose2d")
OVERRIDES += ("quick_gelu", "gelu", "relu")
LEFT_OUT = "is not used: its result in .* deviates"

FLASH = [(16, 7), (16, 40), (32, 16), (64, 17)]  # numbers of a head; tokens, below and above KEYS
ERRORS = {"float16": 2e-2, "float32": 1e-5, "float64": 1e-12}  # of a model's logits


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs g++, which compiles the kernels for the CPU")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cublas, "load_library", lambda major: CpuCublas([]))
        smaller_blocks(patch)
        yield CupyOps(CpuCupy(tmp_path_factory.mktemp("kernels")))


@pytest.fixture
def with_tensor_cores(tmp_path, monkeypatch, on_cpu):
    smaller_blocks(monkeypatch, threads=32)
    return CupyOps(CpuCupy(tmp_path, "90"))


@pytest.fixture
def with_four_warps(tmp_path, monkeypatch, on_cpu):
    smaller_blocks(monkeypatch, threads=16, warp=4)
    return CupyOps(CpuCupy(tmp_path))


def arguments_of(name: str) -> list[tuple]:
    """Inputs in float64 for a method, in several shapes."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape)

    heads, many = [[draw(2, 3, T, 4) for _ in range(3)] for T in (7, 150)]
    causal = np.tri(7, dtype=bool)[None, None]
    padded = causal & (np.arange(7) < np.array([[4], [7]]))[:, None, None]
    if name in ("linear", "layer_norm"):
        return arguments(name, "float64")
    return {
        "conv2d": [
            (x.transpose(0, 2, 1, 3), draw(4, 3, k, k), draw(4))
            for x in (draw(1, 4, 3, 5), draw(2, 1, 3, 7))
            for k in (1, 3, 5)
        ],
        "conv_transpose2d": [
            (x, draw(3, D, p, p), draw(D))
            for x in (draw(1, 3, 4, 5), draw(2, 4, 5, 3).transpose(0, 3, 1, 2))
            for D, p in ((2, 4), (1, 8), (3, 3))
        ],
        "softmax": [(draw(2, 5, 8) * 30,), (np.full((3, 4), -1e30),), (draw(9, 9, 999),)],
        "attention": [
            (*heads,),
            (*heads, causal),
            (*heads, padded),
            (*heads, np.zeros((2, 1, 7, 7), bool)),
            many,
            (*many, np.tri(150, dtype=bool)[None, None]),
            (*many, np.zeros((2, 1, 150, 150), bool)),
        ],
        "activation": [
            (name, draw(4, 9) * 5),
            (name, draw(50, 3000)),
            (name, np.array([-1e30, -800, 0, 800, 1e30])),
        ],
    }["activation" if name in ACTIVATIONS else name]


def check(ops, name: str, dtype: str) -> None:
    """A method against the readable one in float64; 1e30 is clipped to the type's limit."""
    limits, method = np.finfo(dtype), "activation" if name in ACTIVATIONS else name
    for given in arguments_of(name):
        floats = [getattr(a, "dtype", "") == "float64" for a in given]
        rounded = [
            np.clip(a, limits.min, limits.max).astype(dtype) if is_float else a
            for a, is_float in zip(given, floats)
        ]
        exact = [a.astype("float64") if is_float else a for a, is_float in zip(rounded, floats)]
        there = [ops.asarray(a) if isinstance(a, np.ndarray) else a for a in rounded]
        expected = getattr(Ops(), method)(*exact)
        found = ops.to_numpy(getattr(ops, method)(*there))
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


def check_flash(ops, d: int, T: int, dtype: str = "float16") -> None:
    """Attention of contiguous heads and of interleaved ones, with biases or not, masked or not."""
    rng = np.random.default_rng(0)
    B, N = 2, 3
    causal = (np.tri(T) > 0)[None, None]
    padded = causal & (np.arange(T) < np.array([[T // 2], [T]]))[:, None, None]
    nothing = np.zeros((1, 1, T, T), bool)
    for mask in (None, causal, padded, nothing):
        for apart in (False, True):
            x = rng.normal(size=(3, B, T, N, d)).astype(dtype)
            bias = rng.normal(size=(3, N, 1, d)).astype(dtype)
            x = x.transpose(0, 1, 3, 2, 4) if apart else np.ascontiguousarray(x.swapaxes(2, 3))
            there = [ops.asarray(part) for part in x]
            if apart:  # as a tower's heads lie
                there = [ops.asarray(part.swapaxes(1, 2)).transpose(0, 2, 1, 3) for part in x]
            on_device = None if mask is None else ops.asarray(mask)
            x, bias = x.astype("float64"), bias.astype("float64")
            pairs = [(ops.attention(*there, on_device), Ops().attention(*x, mask))]
            if ops.is_flash(dtype, d):
                biases = ops.asarray(bias.astype(dtype).ravel())
                result = ops.flash_attention(*there, on_device, biases)
                x = [part + its for part, its in zip(x, bias)]
                pairs.append((result, Ops().attention(*x, mask)))
            for result, expected in pairs:
                result = ops.to_numpy(result)
                assert result.dtype == dtype
                error = np.abs(result - expected).max()
                assert error <= TOLERANCES[dtype] * np.abs(expected).max()


def launches(ops, work) -> list:
    """The names of the kernels that it launches."""
    names, launch = [], ops._launch
    ops._launch = lambda name, *given: (names.append(name), launch(name, *given))
    work()
    del ops._launch
    return names


@pytest.mark.parametrize("d, T", FLASH)
def test_attention_on_the_chip(d, T, with_tensor_cores):
    names = launches(with_tensor_cores, lambda: check_flash(with_tensor_cores, d, T))
    assert set(names) == {"attention"}


@pytest.mark.parametrize("d, T", FLASH)
def test_attention_on_the_chip_in_float32(d, T, with_four_warps):
    names = launches(with_four_warps, lambda: check_flash(with_four_warps, d, T, "float32"))
    assert set(names) == {"attention_float32"}


def test_attention_of_older_gpus_is_cublas_and_softmax(on_cpu):
    check_flash(on_cpu, 16, 20)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "relu", "selu"])
def test_a_linear_map_and_what_follows_it(activation, dtype, on_cpu):
    check_linear(on_cpu, activation, dtype)


def check_linear(ops, activation: str, dtype: str) -> None:
    """A product with a bias or not, an activation, and a residual or not."""
    rng = np.random.default_rng(0)
    # Few rows, with packs or not, and more.
    for rows, width, out in ((5, 48, 7), (8, 16, 24), (5, 7, 3), (9, 8, 24), (9, 8, 7)):
        shapes = (2, rows, width), (out, width), (out,)
        x, w, b = (rng.normal(size=shape).astype(dtype) for shape in shapes)
        for bias in (b, None):
            for residual in (None, rng.normal(size=(2, rows, out)).astype(dtype)):
                there = [a if a is None else ops.asarray(a) for a in (x, w, bias, residual)]
                found = ops.to_numpy(ops.linear(*there, activation))
                exact = [None if a is None else a.astype("float64") for a in (x, w, bias)]
                expected = Ops().activation(activation, Ops().linear(*exact))
                expected = expected if residual is None else expected + residual
                assert found.dtype == dtype
                error = np.abs(found - expected).max()
                assert error <= TOLERANCES[dtype] * np.abs(expected).max()


def test_there_is_a_test_for_every_override():
    public = {name for name, part in vars(CupyOps).items() if callable(part) and name[0] != "_"}
    # The others are tested below, in model/test_recorded.py, test_models.py and
    # test_gradients_device.py.
    others = {"flash_attention", "is_flash", "linear_and_norm", "packed_projections"}
    others |= {"run_backward"}
    expected = {"activation"} | {*OVERRIDES} - {*ACTIVATIONS}
    assert public - others - {"parallel_for", "memoize"} == expected


def encoder(depth: int, D: int, num_heads: int, intermediate_size: int, activation: str) -> tuple:
    """The arguments of an Encoder: a config."""
    sizes = {"hidden_size": D, "num_attention_heads": num_heads, "num_hidden_layers": depth}
    sizes |= {"intermediate_size": intermediate_size, "hidden_act": activation}
    return (SimpleNamespace(**sizes, layer_norm_eps=1e-5),)


LAYERS = {  # the shape of x, the layer's sizes, and what else it is given
    Encoder: [
        ((2, 7, 12), encoder(depth, 12, 3, 20, activation), *more)
        for depth, activation in ((2, "relu"), (1, "quick_gelu"), (3, "gelu"), (2, "gelu_new"))
        for more in ((), (PADDED,))
    ]
    # With attention in one kernel, and some of the layers.
    + [((2, 9, 32), encoder(3, 32, 2, 40, "gelu"), None, None, only) for only in ((1,), (0, 2))],
    DecoderLayer: [((2, 7, 12), (12, 3, 20, "relu", 1e-5)), ((1, 5, 8), (8, 2, 30, "relu", 1e-5))],
    RefinedHead: [((2, 6, 3, 4), (6, 16)), ((1, 8, 2, 5), (8, 32)), ((1, 4, 2, 3), (4, 8))],
}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("layer", WHOLE_LAYERS)
def test_a_whole_layer_is_its_formula(layer, dtype, on_cpu):
    for shape, sizes, *more in LAYERS[layer]:
        scale = max(shape[1:]) ** -0.5
        fast = build(layer, on_cpu, dtype, *sizes, scale=scale)
        exact = build(layer, Ops(), "float64", *sizes, scale=scale)
        for part in (fast, exact) if more else ():
            part.layers[0].self_attn.k_proj.bias = None
        x = np.random.default_rng(1).normal(size=shape).astype(dtype)
        before = x.copy()
        results, formulas = fast(x, *more), exact(x.astype("float64"), *more)
        if layer is not Encoder:
            results, formulas = [results], [formulas]
        for result, expected in zip(results, formulas, strict=True):
            assert result.dtype == dtype and result.shape == expected.shape
            error = np.abs(result - expected).max()
            assert error <= 2 * TOLERANCES[dtype] * np.abs(expected).max()
        assert np.array_equal(x, before)


def test_projections_are_packed_once_and_go_with_their_layer(on_cpu):
    layer = build(DecoderLayer, on_cpu, "float32", 12, 3, 20, "relu", 1e-5)
    x = np.ones((1, 7, 12), "float32")
    layer(x)
    packed = on_cpu.packed[layer.self_attn]
    layer(x)
    assert on_cpu.packed[layer.self_attn] is packed
    count = len(on_cpu.packed)
    del layer
    assert len(on_cpu.packed) == count - 1


def test_the_attention_weights_are_kept(on_cpu):
    q, k, v = (np.random.default_rng(i).normal(size=(2, 3, 7, 4)) for i in range(3))
    kept, expected = [], []
    on_cpu.attention(q, k, v, None, kept)
    Ops().attention(q, k, v, None, expected)
    np.testing.assert_allclose(kept[0], expected[0], rtol=1e-12)


@pytest.mark.parametrize(
    "name, mistake",
    [
        ("layer_norm", ("square, false) / width", "square, false) / (width - 1)")),
        ("layer_norm", ("+= (A)own[p]", "= (A)own[p]")),
        ("sum_and_norm", ("+ (residual ? (A)residual[i]", "- (residual ? (A)residual[i]")),
        ("attention", ("/ queries / heads", "/ queries")),
        ("quick_gelu", ("-1.702", "-1.7")),
        ("gelu", ("(A)0.5 *", "(A)0.6 *")),
        ("relu", ("x < 0 ?", "x < 1 ?")),
        ("few_rows", ("(A)bias[feature]", "(A)bias[0]")),
        ("conv2d", ("row >= 0 &&", "row >= 1 &&")),
        ("conv_transpose2d", ("+ (A)bias[d]", "- (A)bias[d]")),
        ("flash_attention", ("most = fmaxf(most, tops", "most = fminf(most, tops")),
        ("flash_attention", ("part + i % 4;", "part + i % 2;")),
        ("flash_attention", ("mask += (size_t)my_image", "mask += (size_t)0")),
        ("flash_attention", ("sum[r] *= factor", "sum[r] += factor")),
    ],
)
def test_a_wrong_kernel_is_noticed_and_left_out(name, mistake, tmp_path, monkeypatch, on_cpu):
    source = cupy_kernels.SOURCE.replace(*mistake)
    assert source != cupy_kernels.SOURCE
    has_tensor_cores = mistake[0] in cupy_kernels.SOURCE.split("attention_float32")[0]
    monkeypatch.setattr(cupy_kernels, "SOURCE", source)
    capability = "90" if name == "flash_attention" and has_tensor_cores else "75"
    if name == "flash_attention":
        smaller_blocks(monkeypatch, *((32,) if has_tensor_cores else (16, 4)))
    with pytest.warns(UserWarning, match=rf"the GPU's {name} {LEFT_OUT}") as warned:
        ops = CupyOps(CpuCupy(tmp_path, capability))
    said = [str(w.message).split()[2] for w in warned]
    assert said in ([name], [name, "sum_and_norm"])  # which is the norm's kernel too
    if name == "flash_attention":
        check_flash(ops, 16, 20)
    elif name == "sum_and_norm":
        assert ops.whole_layers == {}
    elif name == "few_rows":
        check(ops, "linear", "float32")
    elif name == "relu":
        assert ops.activations == {"", "quick_gelu", "gelu"}
    else:
        for dtype in ("float32", "float64"):
            check(ops, name, dtype)


def test_a_gpu_that_makes_all_of_it_zero_is_noticed(tmp_path, monkeypatch):
    """Its own yardstick would be 0 too."""

    class Zero(CpuCublas):
        def cublasGemmStridedBatchedEx(self, *given) -> int:
            return 0

    monkeypatch.setattr(cublas, "load_library", lambda major: Zero([]))
    smaller_blocks(monkeypatch)
    cupy = CpuCupy(tmp_path)
    cupy.empty = np.zeros
    with pytest.warns(UserWarning, match=f"the GPU's .* {LEFT_OUT}") as warned:
        CupyOps(cupy)
    named = {str(w.message).split()[2] for w in warned}
    assert named == {"linear", "attention", "conv2d", *ACTIVATIONS[1:]}


def test_tf32_is_as_good_as_its_bits(tmp_path, monkeypatch, recwarn):
    monkeypatch.setenv("CUPY_TF32", "1")
    monkeypatch.setattr(cublas, "load_library", lambda major: CpuCublas([]))
    smaller_blocks(monkeypatch)
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

    with pytest.warns(UserWarning, match="is not used: RuntimeError: no compiler$") as warned:
        ops = CupyOps(Broken(None))
    assert {str(w.message).split()[2] for w in warned} == {
        "linear",
        "few_rows",
        "layer_norm",
        "sum_and_norm",
        "softmax",
        "attention",
        "flash_attention",
        "conv2d",
        "conv_transpose2d",
        *ACTIVATIONS[1:],
    }
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
    images = np.random.default_rng(0).normal(size=(1, channels, 32, 32))
    inputs = {
        "pixel_values": images,
        "input_ids": np.array([[1, 2, model.config.text_config.eos_token_id]]),
    }
    found, expected = ops.to_numpy(model(**inputs).logits), exact(**inputs).logits
    assert found.dtype == dtype
    off = np.abs(found - expected).max() / np.abs(expected).max()
    assert off <= ERRORS[dtype]


def test_float16_is_for_the_gpus_kernels_alone():
    for backend in ("numpy", "numpy-reference"):
        with pytest.raises(InputError, match="float16.*expected one of float32, float64"):
            CLIPSegForImageSegmentation.from_pretrained(PLAIN, backend=backend, dtype="float16")
