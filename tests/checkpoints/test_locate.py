"""Folders, backends and extras; files that are written whole or not at all."""

import os
import stat
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from clipseg_np import CLIPSegForImageSegmentation
from clipseg_np.atomic_files import folder_written_whole, write_json, written_whole
from clipseg_np.backends import select as backends
from clipseg_np.backends.numpy_ops import NumpyOps
from clipseg_np.backends.select import NAMES, ops_for
from clipseg_np.checkpoints.locate import checkpoint_folder, read_json
from clipseg_np.errors import InputError, MissingExtra, optional
from clipseg_np.nn.ops import Ops

from ..helpers.checkpoints import PLAIN


def test_a_folder_is_itself(tmp_path, monkeypatch):
    assert checkpoint_folder(tmp_path) == tmp_path
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert checkpoint_folder("owner/name").is_dir()  # a folder of that name comes before the hub


def test_a_subfolder(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for subfolder in ("a/b", "/a/b/"):
        assert checkpoint_folder(tmp_path, subfolder=subfolder) == tmp_path / "a" / "b"
    assert checkpoint_folder(tmp_path, subfolder=None) == tmp_path
    with pytest.raises(FileNotFoundError, match="There is no folder c in"):
        checkpoint_folder(tmp_path, subfolder="c")


@pytest.mark.parametrize("name", ["nowhere", "./a/b", "../a/b", "/no/such/folder", "a/b/c", "~/x"])
def test_a_folder_that_is_not_there(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match="There is no folder .*hub id such as"):
        checkpoint_folder(name)


def test_an_empty_name():
    for name in (None, b"folder", 5):
        with pytest.raises(InputError, match="name is .*; expected its folder's path"):
            checkpoint_folder(name)
    with pytest.raises(InputError, match="name is empty; expected its folder's path"):
        CLIPSegForImageSegmentation.from_pretrained("")


def test_a_file_for_a_folder():
    with pytest.raises(InputError, match="is a file; expected a checkpoint's folder"):
        checkpoint_folder(PLAIN / "config.json")


def test_an_optional_library():
    assert optional("json", extra="hub").loads("1") == 1
    with pytest.raises(MissingExtra, match="no_such_library is needed here and is not installed"):
        optional("no_such_library", extra="hub")


def test_backends_by_name():
    assert NAMES == ("auto", "numpy", "numpy-reference", "cupy", "cupy-reference")
    assert ops_for("numpy").xp.__name__ == ops_for("numpy-reference").xp.__name__ == "numpy"


@pytest.mark.parametrize("backend", ["torch", "NumPy", "", None])
def test_an_unknown_backend(backend):
    with pytest.raises(InputError, match="unknown backend .*auto, numpy, numpy-reference, cupy"):
        CLIPSegForImageSegmentation.from_pretrained(PLAIN, backend=backend)


def pretend_cupy(monkeypatch, is_available=lambda: True, ones=np.ones):
    """A module by the name of CuPy that has what is asked of it before it is used."""
    cuda = SimpleNamespace(is_available=is_available)
    module = SimpleNamespace(cuda=cuda, ones=ones)
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(backends, "CupyOps", lambda xp: SimpleNamespace(xp=xp, fast=True))
    return module


def no_gpu() -> bool:
    return False


def no_driver() -> bool:
    """CuPy 13, where 14 says that there is no GPU."""
    raise RuntimeError("cudaErrorInsufficientDriver")


def without_a_compiler(shape, dtype):
    raise RuntimeError("cannot open libnvrtc")


def test_a_working_gpu(monkeypatch):
    module = pretend_cupy(monkeypatch)
    assert ops_for("cupy").xp is ops_for("cupy-reference").xp is module
    assert ops_for("cupy").fast and type(ops_for("cupy-reference")) is Ops


@pytest.mark.parametrize("backend", ("cupy", "cupy-reference"))
def test_cupy_that_is_not_installed(backend, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(MissingExtra, match=r"pip install 'clipseg_np\[cuda12\]'"):
        ops_for(backend)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"is_available": no_gpu}, "needs an NVIDIA GPU, and CuPy finds none. "),
        ({"is_available": no_driver}, "needs an NVIDIA GPU, .*none .cudaErrorInsufficientDriver"),
        (
            {"ones": without_a_compiler},
            (
                "cannot compute on it .RuntimeError: cannot open libnvrtc"
                r".*pip install 'clipseg_np\[cuda12\]'"
            ),
        ),
        ({"ones": np.zeros}, "wrong sums"),
    ],
)
def test_cupy_that_does_not_work(given, said, monkeypatch):
    pretend_cupy(monkeypatch, **given)
    for backend in ("cupy", "cupy-reference"):
        with pytest.raises(InputError, match=f"{said}.*or use backend='numpy'"):
            ops_for(backend)


@pytest.fixture
def fresh_auto():
    backends._best.cache_clear()
    yield
    backends._best.cache_clear()


def test_auto_takes_the_gpu_that_works(monkeypatch, fresh_auto):
    module = pretend_cupy(monkeypatch)
    assert ops_for("auto").xp is module


@pytest.mark.parametrize("is_available", [no_gpu, no_driver])
def test_auto_falls_back_to_numpy_and_says_so_once(is_available, monkeypatch, fresh_auto):
    pretend_cupy(monkeypatch, is_available)
    with pytest.warns(UserWarning, match="'auto' uses NumPy: .*needs an NVIDIA GPU"):
        assert type(ops_for("auto")) is NumpyOps
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert type(ops_for("auto")) is NumpyOps


def test_a_file_is_written_whole(tmp_path):
    path = tmp_path / "new" / "file.json"
    write_json(path, {"b": "é", "a": [1]})
    assert path.read_bytes() == '{\n  "a": [\n    1\n  ],\n  "b": "é"\n}\n'.encode()
    assert read_json(path) == {"a": [1], "b": "é"}
    assert os.listdir(path.parent) == ["file.json"]


def test_a_file_is_readable_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        write_json(tmp_path / "a.json", {})
        CLIPSegForImageSegmentation.from_pretrained(PLAIN).save_pretrained(tmp_path)
        with folder_written_whole(tmp_path / "folder") as folder:
            write_json(folder / "b.json", {})
    finally:
        os.umask(before)
    for name in ("a.json", "config.json", "model.safetensors", "folder/b.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o755


def test_a_failure_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), written_whole(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("broke down")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("text", ["{", "[]", "null", '"a"', ""])
def test_a_json_file_that_is_no_object(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match="a.json (is not valid JSON|holds a JSON)"):
        read_json(tmp_path / "a.json")


def test_a_missing_json_file_in_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="is missing. There is no folder"):
        read_json(tmp_path / "no" / "a.json")
