"""A model's pass, recorded on a stand-in for CuPy, and Segmenter's use of it (a GPU: tests/gpu)."""

import gc
import shutil
import weakref
from contextlib import nullcontext

import numpy as np
import pytest

from clipseg_np import CLIPSegForImageSegmentation, LearnedPrompt, Segmenter, trace
from clipseg_np.backends import cublas
from clipseg_np.backends.cupy_ops import CupyOps
from clipseg_np.errors import InputError
from clipseg_np.model import pretrained as pretrained_module
from clipseg_np.model import recorded as recorded_module
from clipseg_np.model.learned_prompt import fingerprint
from clipseg_np.model.recorded import MAX_GRAPHS, recorded

from ..helpers.checkpoints import PLAIN, REFINED
from ..helpers.cuda_on_cpu import smaller_blocks
from ..helpers.recording_device import RecordingCublas, RecordingModule

OF_ROUNDING = {"float16": 2e-2, "float32": 1e-5}  # of the largest logit


@pytest.fixture(scope="module")
def ops(tmp_path_factory):
    """CupyOps on the stand-in, under the name of its backend."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++, which compiles the kernels for the CPU")
    here = pretrained_module.ops_for
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cublas, "load_library", lambda major: RecordingCublas([]))
        smaller_blocks(patch)
        ops = CupyOps(RecordingModule(tmp_path_factory.mktemp("kernels")))
        patch.setattr(
            pretrained_module, "ops_for", lambda n, *t: ops if n == "cupy" else here(n, *t)
        )
        yield ops


def inputs(model, rng, prompts: int = 2, tokens: int = 5):
    """One image of an odd size, and token ids that end at different places."""
    config = model.config
    pixels = rng.normal(size=(1, config.vision_config.num_channels, 24, 40))
    ids = rng.integers(3, config.text_config.vocab_size - 1, (prompts, tokens))
    ids[:, -1] = config.text_config.vocab_size - 1  # highest, for the old way of pooling
    ids[0, 2:] = ids[0, -1]
    return pixels, ids


def of_largest(found, expected) -> float:
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.filterwarnings("ignore:a text without the end token")
@pytest.mark.parametrize("dtype", OF_ROUNDING)
@pytest.mark.parametrize("folder", [PLAIN, REFINED], ids=["plain", "refined"])
def test_from_ids_to_logits(folder, dtype, ops):
    load = CLIPSegForImageSegmentation.from_pretrained
    model, exact = load(folder, backend="cupy", dtype=dtype), load(folder, dtype="float64")
    rng = np.random.default_rng(0)
    run = recorded(model, *inputs(model, rng))
    for _ in range(2):
        pixels, ids = inputs(model, rng)
        found = ops.to_numpy(run(pixels, ids))
        expected = exact(pixel_values=pixels, input_ids=ids).logits
        assert found.dtype == dtype and of_largest(found, expected) <= OF_ROUNDING[dtype]


def test_from_embeddings_to_logits(ops):
    model = CLIPSegForImageSegmentation.from_pretrained(REFINED, backend="cupy")
    exact = CLIPSegForImageSegmentation.from_pretrained(REFINED, dtype="float64")
    rng = np.random.default_rng(0)
    pixels, ids = inputs(model, rng)
    embeddings = exact.get_conditional_embeddings(input_ids=ids)
    run = recorded(model, pixels, np.zeros_like(embeddings))
    expected = exact.decode(exact.encode_image(pixels), embeddings)
    assert of_largest(ops.to_numpy(run(pixels, embeddings)), expected) <= OF_ROUNDING["float32"]


def test_the_text_tower_runs_beside_the_vision_tower(ops):
    model = CLIPSegForImageSegmentation.from_pretrained(REFINED, backend="cupy")
    ops.xp.events.clear()
    recorded(model, *inputs(model, np.random.default_rng(0)))
    after = ops.xp.events[ops.xp.events.index("synchronized") + 1 :]
    assert after == ["second waits for first", "first waits for second"]


def test_a_recorded_pass_keeps_the_model_alive_and_no_longer_than_itself(ops):
    model = CLIPSegForImageSegmentation.from_pretrained(REFINED, backend="cupy")
    run, kept = recorded(model, *inputs(model, np.random.default_rng(0))), weakref.ref(model)
    del model
    gc.collect()
    assert kept() is not None
    pool = ops.xp.pools[-1]
    del run
    assert pool.used == pool.free == 0
    gc.collect()  # a model's layers refer to each other
    assert kept() is None


def test_position_embeddings_are_resized_once_for_each_grid(ops):
    """To bring a table of weights to a GPU takes longer than to use it, and cannot be recorded."""
    model = CLIPSegForImageSegmentation.from_pretrained(REFINED, backend="cupy")
    readable = CLIPSegForImageSegmentation.from_pretrained(REFINED, backend="numpy-reference")
    embeddings, expected = (m.clip.vision_model.embeddings for m in (model, readable))
    for h, w in ((3, 5), (5, 3)):
        positions = embeddings.positions(h, w)
        assert positions.shape[0] == 1 + h * w and embeddings.positions(h, w) is positions
        assert of_largest(positions.get(), expected.positions(h, w)) <= OF_ROUNDING["float32"]
        assert expected.positions(h, w) is not expected.positions(h, w)


def test_a_table_that_the_graph_reads_outlasts_the_models_cache(ops):
    model = CLIPSegForImageSegmentation.from_pretrained(REFINED, backend="cupy")
    pixels, ids = inputs(model, np.random.default_rng(0))
    embeddings = model.clip.vision_model.embeddings
    table = weakref.ref(embeddings.positions(3, 5)._values)
    run = recorded(model, pixels, ids)
    for h in range(6, 20):
        embeddings.positions(h, 1)
    assert embeddings.positions(3, 5)._values is not table() is not None
    del run
    gc.collect()
    assert table() is None


@pytest.mark.parametrize("ids", [[[1, 2, -1]], [[1, 2, 10**6]]])
def test_ids_are_checked_before_they_are_sent(ids, ops):
    model = CLIPSegForImageSegmentation.from_pretrained(REFINED, backend="cupy")
    pixels = inputs(model, np.random.default_rng(0))[0]
    run = recorded(model, pixels, np.array([[1, 2, model.config.text_config.vocab_size - 1]]))
    for call in (run, lambda *given: recorded(model, *given)):
        with pytest.raises(InputError, match="the vocabulary has ids 0 to"):
            call(pixels, np.array(ids))


def test_without_a_gpu_it_says_what_to_do():
    model = CLIPSegForImageSegmentation.from_pretrained(REFINED)
    with pytest.raises(InputError, match="only a model on a GPU.*backend='cupy'"):
        recorded(model, *inputs(model, np.random.default_rng(0)))


# The Segmenter


@pytest.fixture
def on_gpu(checkpoint, ops):
    return Segmenter.from_pretrained(checkpoint, backend="cupy")


@pytest.fixture
def eager(checkpoint, ops):
    return Segmenter.from_pretrained(checkpoint, backend="cupy", record=False)


@pytest.mark.parametrize(
    "prompts",
    [["red"], ["red", "blue"], "image", ["red", "image"], "@heart", ["@heart", "red", "image"]],
    ids=lambda p: str(p),
)
@pytest.mark.parametrize("scales", [(1,), (1, 2)])
def test_recorded_and_eager_passes_give_the_same(prompts, scales, on_gpu, eager, image):
    vector = np.linspace(-1, 1, eager.model.config.projection_dim, dtype=np.float32)
    heart = LearnedPrompt(vector, fingerprint(eager.model), "heart", {})
    others = {"image": image[::-1], "@heart": heart}
    given = [others.get(str(p), str(p)) for p in np.atleast_1d(prompts)]
    expected = eager(image, given, scales=scales).logits
    found = on_gpu(image, given, scales=scales).logits
    assert of_largest(found.get(), expected.get()) <= 1e-6
    assert eager.graphs is None and len(on_gpu.graphs.kept) >= 1


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_prompt_that_was_learned_on_a_cpu_is_taken(dtype, checkpoint, segmenter, ops):
    model = CLIPSegForImageSegmentation.from_pretrained(checkpoint, backend="cupy", dtype=dtype)
    assert fingerprint(model) == fingerprint(segmenter.model)


def test_each_combination_of_shapes_is_recorded_once_and_a_few_are_kept(on_gpu, image):
    on_gpu(image, "red")
    (run,) = on_gpu.graphs.kept.values()
    on_gpu(image[:20, :20], "ab")  # another image, another length
    on_gpu.combine(image, "red")
    assert list(on_gpu.graphs.kept.values()) == [run]
    pools = on_gpu.model.ops.xp.pools
    before = len(pools)
    for number in range(2, 2 * MAX_GRAPHS):
        on_gpu(image, ["red"] * number)
        on_gpu(image, [f"red {'abcdefg'[:i]}" for i in range(number)])
        assert len(on_gpu.graphs.kept) <= MAX_GRAPHS
    del run
    assert sum(pool.used > 0 for pool in pools[before:]) <= MAX_GRAPHS
    on_gpu.graphs.kept.clear()
    assert all(pool.used == pool.free == 0 for pool in pools[before:])


def test_the_last_used_is_not_dropped(on_gpu, image):
    for number in (1, 2, 3, 4, 1, 5):
        on_gpu(image, [f"red {'abcdefg'[:i]}" for i in range(number)])
    assert [key[1][0] for key in on_gpu.graphs.kept] == [3, 4, 1, 5]


def test_prepared_prompts_are_embedded_once(on_gpu, eager, image):
    query = on_gpu.prepare(["red", "blue"])
    found = [on_gpu.combine(x, query).logits for x in (image, image[::-1])]
    expected = [eager.combine(x, ["red", "blue"]).logits for x in (image, image[::-1])]
    assert all(of_largest(a.get(), b.get()) <= 1e-6 for a, b in zip(found, expected))
    assert {key[2] for key in on_gpu.graphs.kept} == {"f"}


def test_a_trace_sees_the_eager_pass(on_gpu, image):
    with trace() as activations:
        on_gpu(image, "red")
    assert len(on_gpu.graphs.kept) == 0
    assert "decoder.layers.0.self_attn.q_proj" in activations


def test_what_cannot_be_recorded_runs_eagerly_and_says_so_once(on_gpu, eager, image, monkeypatch):
    decode = on_gpu.model.decode
    monkeypatch.setattr(on_gpu.model, "decode", lambda f, e: decode(f, e + float(e.sum() * 0)))
    with pytest.warns(UserWarning, match="passes are not recorded: .*float") as warned:
        found = [on_gpu(image, "red").logits for _ in range(2)]
    assert len(warned) == 1 and on_gpu.graphs is None
    expected = eager(image, "red").logits
    assert all(of_largest(x.get(), expected.get()) <= 1e-6 for x in found)


@pytest.mark.parametrize("failures", [1, 2])
def test_where_memory_is_short_fewer_are_kept_or_none(failures, on_gpu, eager, image, monkeypatch):
    on_gpu(image, "red")
    left = [MemoryError("out of memory")] * failures

    def recorded_or_not(*inputs):
        if left:
            raise left.pop()
        return recorded(*inputs)

    monkeypatch.setattr(recorded_module, "recorded", recorded_or_not)
    with pytest.warns(UserWarning, match="memory is too small") if failures == 2 else nullcontext():
        found = on_gpu(image, ["red", "a"]).logits
    assert of_largest(found.get(), eager(image, ["red", "a"]).logits.get()) <= 1e-6
    assert on_gpu.graphs is None if failures == 2 else len(on_gpu.graphs.kept) == 1


def test_a_gpus_array_is_an_image_too(on_gpu, image):
    there = on_gpu.model.ops.asarray(image)
    found, expected = (on_gpu(x, ["red", x]).probabilities for x in (there, image))
    assert np.array_equal(found, expected)
