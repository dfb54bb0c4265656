"""What PyTorch itself writes, read without it."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'oracle'")

from torch import nn

from clipseg_np.convert.torch_archive import read_archive
from clipseg_np.errors import InputError

pytestmark = pytest.mark.oracle

TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def assert_read(path, tensors: dict) -> None:
    found = read_archive(path)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        raw = found[name]
        assert raw.stored_type == TYPES[tensor.dtype], name
        assert raw.array.shape == tuple(tensor.shape), name
        tensor = tensor.detach()
        expected = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        np.testing.assert_array_equal(raw.floats(), expected.numpy(), err_msg=name)


def test_every_type_and_layout(tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    tensors = {str(dtype): (base * 10).to(dtype) for dtype in TYPES}
    tensors |= {
        "tied": base,
        "tied again": base,
        "turned": base.T,
        "part": base[1:3, ::2],
        "row of a turned one": base.T[2],
        "scalar": torch.tensor(3.5),
        "parameter": nn.Parameter(base.half()),
        "channels last": torch.randn(2, 3, 4, 5, generator=generator).to(
            memory_format=torch.channels_last
        ),
    }  # fmt: skip
    torch.save(tensors, tmp_path / "a.pth")
    assert_read(tmp_path / "a.pth", tensors)


def test_a_modules_state_dict(tmp_path):
    """With the versions of its layers, which PyTorch keeps beside the tensors."""
    layer = nn.TransformerEncoderLayer(d_model=8, nhead=2, dim_feedforward=12)
    torch.save(layer.state_dict(), tmp_path / "a.pth")
    assert_read(tmp_path / "a.pth", layer.state_dict())


class Small(nn.Module):
    """Layers with attributes that TorchScript keeps too: lists, settings, None."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2, bias=False)
        self.blocks = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.attn = nn.MultiheadAttention(4, 2)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("size", torch.tensor(224))

    def forward(self, x):
        x = self.blocks(self.conv(x).mean((2, 3)))
        return self.attn(x, x, x)[0] * self.scale


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_a_torchscript_module_in_half(how, tmp_path):
    module = Small().eval()
    if how == "script":
        made = torch.jit.script(module)
    else:
        made = torch.jit.trace(module, torch.ones(1, 3, 4, 4))
    made.half().save(tmp_path / "a.pt")
    state = module.half().state_dict()
    assert state["conv.weight"].dtype == torch.float16
    assert_read(tmp_path / "a.pt", state)


def test_what_is_refused(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    torch.save({"a": torch.eye(2).to_sparse()}, tmp_path / "sparse.pth")
    for name, message in [
        ("old", "the format of PyTorch before 1.6"),
        ("module", "asks for 'torch.nn.modules.linear.Linear'"),
        ("sparse", "asks for 'torch._utils._rebuild_sparse_tensor'"),
    ]:
        with pytest.raises(InputError, match=message):
            read_archive(tmp_path / f"{name}.pth")
