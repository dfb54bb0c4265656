"""transformers loads what `convert` writes, with PyTorch's own roundings of the numbers."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'oracle'")
transformers = pytest.importorskip("transformers", reason="needs the extra 'oracle'")

import clipseg_np
from clipseg_np.checkpoints.weights import Raw
from clipseg_np.convert.checkpoint import convert, stored_as

pytestmark = pytest.mark.oracle


def test_bfloat16_is_pytorchs_for_any_bits():
    """Of two million drawn patterns of bits, among them infinite ones and what is no number."""
    bits = np.random.default_rng(0).integers(0, 2**32, 2_000_000, dtype=np.uint32)
    with_zeros_below = bits & np.uint32(0xFFFF8000)  # the middle between two, half of the time
    for each in (bits, with_zeros_below):
        floats = each.view(np.float32)
        expected = torch.from_numpy(floats).to(torch.bfloat16)
        kept = ~(expected.isinf().numpy() & np.isfinite(floats))  # the others are refused
        expected = expected.float().numpy()[kept]
        found = Raw(stored_as(Raw(floats[kept], "F32"), "BF16"), "BF16").floats()
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shard_size", [None, 0.01])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_transformers_loads_what_is_converted(dtype, shard_size, checkpoint, tmp_path):
    convert(checkpoint, tmp_path / "new", dtype, shard_size)
    load = transformers.CLIPSegForImageSegmentation.from_pretrained
    before = load(checkpoint, dtype=torch.float32).state_dict()
    model, report = load(tmp_path / "new", output_loading_info=True)
    assert not any(report.values()), report
    assert model.dtype == getattr(torch, dtype)  # as the config says
    ours = clipseg_np.CLIPSegForImageSegmentation.from_pretrained(tmp_path / "new").state_dict()
    found = model.state_dict()
    assert set(found) == set(before) == set(ours)
    for name, tensor in before.items():
        expected = tensor.to(getattr(torch, dtype))
        assert torch.equal(found[name], expected), name
        np.testing.assert_array_equal(ours[name], expected.float().numpy(), err_msg=name)
    transformers.CLIPSegProcessor.from_pretrained(tmp_path / "new")


def test_what_transformers_writes_in_its_old_form(checkpoint, tmp_path):
    """pytorch_model.bin, as transformers wrote it before safetensors."""
    model = transformers.CLIPSegForImageSegmentation.from_pretrained(checkpoint)
    model.config.save_pretrained(tmp_path / "old")
    torch.save(model.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    convert(tmp_path / "old", tmp_path / "new")
    ours = clipseg_np.CLIPSegForImageSegmentation.from_pretrained(tmp_path / "new").state_dict()
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(ours[name], tensor.numpy(), err_msg=name)
