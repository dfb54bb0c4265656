"""Hub ids without the hub's library or with a pretended one: what is asked, what is cached."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from clipseg_np import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTokenizer,
    Segmenter,
    ViTImageProcessor,
)
from clipseg_np.checkpoints.hub import CHECKPOINT_FILES, download, lacking
from clipseg_np.cli.parser import main
from clipseg_np.errors import InputError, MissingExtra
from clipseg_np.segment.batch import Job, job_mark

HUB_ID = "CIDAS/clipseg-rd64-refined"


def pretend_hub(monkeypatch, fetch=None, cached=None, offline=False, files=("model.safetensors",)):
    """A module by the library's name. `cached` is a folder, or an error to raise.

    Without `fetch` the network must not be asked.
    """

    def snapshot_download(hub_id, local_files_only=False, **options):
        if not local_files_only:
            assert fetch is not None, "the network was asked"
            return fetch(hub_id, **options)
        if isinstance(cached, Path):
            return str(cached)
        raise cached or FileNotFoundError("not in the cache")

    siblings = [SimpleNamespace(rfilename=file) for file in files]
    module = SimpleNamespace(
        snapshot_download=snapshot_download,
        model_info=lambda hub_id: SimpleNamespace(siblings=siblings),
        constants=SimpleNamespace(HF_HUB_OFFLINE=offline, HF_HUB_CACHE="the-cache"),
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


@pytest.fixture
def cached(checkpoint, tmp_path):
    """A copy of a whole checkpoint, to take files from."""
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match="pip install huggingface_hub"):
        CLIPSegForImageSegmentation.from_pretrained(HUB_ID)
    with pytest.raises(MissingExtra, match="pip install huggingface_hub"):
        download(HUB_ID)


def test_an_absent_folder_that_looks_like_a_hub_id_is_called_so(monkeypatch, image_file, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["segment", str(image_file), "red", "--model", "weights/absent"]) == 2
    said = "clipseg-np: error: There is no folder weights/absent; as a hub id: huggingface_hub is"
    assert capsys.readouterr().err.startswith(said)


def test_what_is_fetched(monkeypatch, checkpoint, tmp_path):
    asked = []

    def fetch(hub_id, **options):
        asked.append((hub_id, options["local_dir"], options["allow_patterns"]))
        return str(checkpoint)

    pretend_hub(monkeypatch, fetch)
    assert CLIPSegForImageSegmentation.from_pretrained(HUB_ID).config.extract_layers == (0, 2)
    assert download(HUB_ID, tmp_path) == checkpoint
    assert asked == [(HUB_ID, None, CHECKPOINT_FILES), (HUB_ID, tmp_path, CHECKPOINT_FILES)]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("no route to host.\nmore"), "no route to host. Check the network and try"),
        (PermissionError(13, "Permission denied", "/disk"), r"Permission denied: '/disk'\.$"),
        (RuntimeError(), "RuntimeError. Check the network"),
    ],
)
def test_why_nothing_came(monkeypatch, error, said):
    def fetch(*_, **__):
        raise error

    pretend_hub(monkeypatch, fetch)
    with pytest.raises(InputError, match=f"Could not fetch {HUB_ID} .*{said}") as caught:
        download(HUB_ID)
    assert "more" not in str(caught.value)


def test_without_safetensors_nothing_is_fetched(monkeypatch):
    pretend_hub(monkeypatch, files=("config.json", "pytorch_model.bin", "old/model.safetensors"))
    with pytest.raises(InputError, match="holds no safetensors weights"):
        download(HUB_ID)


def test_what_is_no_hub_id():
    for name in ("clipseg", "a/b/c", "./a", "a/"):
        with pytest.raises(InputError, match="is not a hub id"):
            download(name)


def load_all(hub_id: str) -> None:
    for kind in (CLIPSegForImageSegmentation, CLIPSegConfig, CLIPSegProcessor, Segmenter):
        kind.from_pretrained(hub_id)
    job_mark(Job(("a cat",), "out", model=hub_id))


def test_a_config_from_the_hub_gets_the_options_of_the_weights(monkeypatch, cached, checkpoint):
    load = CLIPSegForImageSegmentation.from_pretrained
    pretend_hub(monkeypatch, lambda *_, **__: pytest.fail("the network was asked"))
    with pytest.raises(InputError, match=f"offline, {HUB_ID} can only come from the cache"):
        load(checkpoint, config=HUB_ID, local_files_only=True)
    pretend_hub(monkeypatch, cached=cached)
    assert load(checkpoint, config=HUB_ID, local_files_only=True).config.extract_layers == (0, 2)


@pytest.mark.parametrize("offline", [False, True])
def test_what_is_cached_needs_no_network(monkeypatch, cached, offline):
    pretend_hub(monkeypatch, cached=cached, offline=offline)
    load_all(HUB_ID)


def test_each_part_needs_no_more_than_its_own_files(monkeypatch, cached):
    pretend_hub(monkeypatch, cached=cached)
    (cached / "preprocessor_config.json").unlink()
    CLIPSegForImageSegmentation.from_pretrained(HUB_ID)
    CLIPTokenizer.from_pretrained(HUB_ID)
    (cached / "model.safetensors").unlink()
    CLIPSegConfig.from_pretrained(HUB_ID)


def test_what_the_cache_lacks_is_fetched(monkeypatch, cached, checkpoint):
    (cached / "model.safetensors").unlink()
    pretend_hub(monkeypatch, lambda *_, **__: str(checkpoint), cached)
    load_all(HUB_ID)


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        (Segmenter, "vocab.json"),
        (CLIPSegForImageSegmentation, "model.safetensors"),
        (CLIPSegProcessor, "merges.txt"),
        (CLIPTokenizer, "merges.txt"),
        (ViTImageProcessor, "preprocessor_config.json"),
        (CLIPSegConfig, "config.json"),
    ],
)
def test_local_files_only(monkeypatch, cached, kind, file):
    (cached / file).unlink()
    pretend_hub(monkeypatch, cached=cached)
    lacks = f"the-cache, which holds it without .*{file}.* download {HUB_ID} "
    with pytest.raises(InputError, match=f"There is no folder {HUB_ID}; .* {lacks}"):
        kind.from_pretrained(HUB_ID, local_files_only=True)


def test_a_cache_that_the_library_calls_incomplete(monkeypatch, cached, checkpoint):
    """It knows of files that this package can do without, such as tokenizer_config.json."""
    error = FileNotFoundError("1 file is missing")
    error.snapshot_path = str(cached)
    pretend_hub(monkeypatch, cached=error, offline=True)
    with pytest.raises(InputError, match="holds it without some of its files"):
        Segmenter.from_pretrained(HUB_ID)
    pretend_hub(monkeypatch, lambda *_, **__: str(checkpoint), error)
    Segmenter.from_pretrained(HUB_ID)


@pytest.mark.parametrize("command", ["segment", "batch", "info", "trace"])
def test_every_command_with_a_model_can_be_offline(
    monkeypatch, image_file, tmp_path, capsys, command
):
    pretend_hub(monkeypatch)
    arguments = {
        "segment": [image_file, "red"],
        "batch": [image_file.parent, "red"],
        "info": [],
        "trace": [image_file, "red", "--output", tmp_path / "trace.safetensors"],
    }
    given = [command, *map(str, arguments[command]), "--model", HUB_ID, "--offline"]
    assert main(given) == 2
    error = capsys.readouterr().err
    assert "the cache the-cache, which does not hold it" in error
    assert error.count("\n") == 1


def test_what_a_folder_lacks(cached):
    assert lacking(cached) == ""
    weights = (cached / "model.safetensors").rename(cached / "one.safetensors")
    assert lacking(cached) == "model.safetensors or model.safetensors.index.json"
    index = cached / "model.safetensors.index.json"
    for weight_map, absent in [
        ({"a": weights.name}, ""),
        ({"a": weights.name, "b": "two.safetensors"}, "model.safetensors or " + index.name),
        ("damaged", ""),  # which loading says
    ]:
        index.write_text(json.dumps({"weight_map": weight_map}))
        assert lacking(cached) == absent
    (cached / "merges.txt").unlink()
    assert lacking(cached) == "tokenizer.json or vocab.json and merges.txt"
    (cached / "tokenizer.json").touch()
    assert lacking(cached) == ""
