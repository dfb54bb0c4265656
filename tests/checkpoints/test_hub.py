"""The command against a hub on this machine: downloads, cache, offline, broken off and refused."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from clipseg_np.cli.parser import main

from ..helpers.hub_server import served

pytest.importorskip("huggingface_hub", reason="needs the extra 'hub'")

ROOT = Path(__file__).parents[2]
DEMO = {file.name: file.read_bytes() for file in (ROOT / "weights" / "demo").iterdir()}
ID, WEIGHTS = "shapes/demo", "model.safetensors"
IMAGE = ROOT / "examples" / "shapes.png"
PROMPTS = ("a red thing", "a star")
EXTRAS = {"pytorch_model.bin": b"not fetched", f"checkpoint-500/{WEIGHTS}": b"nor this"}
ENVIRONMENT_PREFIXES = ("HF_", "HUGGING", "TRANSFORMERS_", "XDG_")


class Machine:
    """A user's folders, all new, and the command there."""

    def __init__(self, folder: Path, hub):
        self.folder, self.hub = folder, hub
        self.home, self.here = folder / "home", folder / "here"
        self.home.mkdir()
        self.here.mkdir()

    def python(self, *arguments: object, **changes: str) -> SimpleNamespace:
        """The exit code, what was printed, and what the hub was asked meanwhile."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(ENVIRONMENT_PREFIXES) and not name.lower().endswith("_proxy")
        }
        settings = {
            "HF_ENDPOINT": self.hub.address,
            "HF_HOME": str(self.folder / "cache"),
            "HF_HUB_DISABLE_XET": "1",
            "HOME": str(self.home),
            "PYTHONPATH": str(ROOT),
        }
        before = len(self.hub.asked)
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=self.here,
            env=kept | settings | changes,
            check=False,
            capture_output=True,
            text=True,
        )
        return SimpleNamespace(
            code=done.returncode, out=done.stdout, error=done.stderr, asked=self.hub.asked[before:]
        )

    def run(self, *arguments: object, **changes: str) -> SimpleNamespace:
        return self.python("-m", "clipseg_np", *arguments, **changes)

    def segment(self, *arguments: object, **changes: str) -> SimpleNamespace:
        return self.run("segment", IMAGE, *PROMPTS, "--model", ID, *arguments, **changes)


@pytest.fixture
def hub():
    with served({ID: DEMO | EXTRAS}) as hub:
        yield hub


@pytest.fixture
def machine(tmp_path, hub):
    return Machine(tmp_path, hub)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, save the library's own record of what it fetched."""
    files = (file for file in folder.rglob("*") if file.is_file())
    named = {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
    return {name: content for name, content in named.items() if not name.startswith(".cache/")}


def refusal(done: SimpleNamespace) -> str:
    """The one line that says why, of a command that ended with exit code 2."""
    assert done.code == 2, done
    assert "Traceback" not in done.error
    said = [line for line in done.error.splitlines() if line.startswith("clipseg-np: ")]
    assert len(said) == 1, done.error
    return said[0]


def test_a_checkpoint_is_fetched_once_and_then_needs_no_hub(machine, hub, tmp_path):
    expected = tmp_path / "expected"
    assert main(["segment", str(IMAGE), *PROMPTS, "--output", str(expected)]) == 0

    first = machine.segment("--output", "first")
    assert first.code == 0, first.error
    assert contents(machine.here / "first") == contents(expected)
    fetched = {path.partition(f"/{ID}/resolve/")[2].partition("/")[2] for path in first.asked}
    assert fetched - {""} == set(DEMO)

    again = machine.segment("--output", "again")
    assert (again.code, again.asked) == (0, []), again.error
    hub.shutdown()
    hub.server_close()
    for place, arguments, changes in [
        ("flag", ["--offline"], {}),
        ("variable", [], {"HF_HUB_OFFLINE": "1"}),
    ]:
        without = machine.segment("--output", place, *arguments, **changes)
        assert without.code == 0, without.error
        assert contents(machine.here / place) == contents(expected)
    assert {path.name for path in machine.here.iterdir()} == {"first", "again", "flag", "variable"}
    assert list(machine.home.iterdir()) == []


def test_a_checkpoint_is_downloaded_into_a_folder(machine):
    done = machine.run("download", ID)
    assert (done.code, done.out) == (0, f"{ID} is in {machine.here / 'demo'}\n"), done.error
    assert contents(machine.here / "demo") == DEMO
    assert os.listdir(machine.here) == ["demo"]
    assert list(machine.home.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "changes"), [(["--offline"], {}), ([], {"HF_HUB_OFFLINE": "1"})]
)
def test_offline_without_the_checkpoint(machine, arguments, changes):
    done = machine.segment(*arguments, **changes)
    said = refusal(done)
    assert said.startswith(f"clipseg-np: error: There is no folder {ID}; as a hub id: ")
    assert str(machine.folder / "cache" / "hub") in said
    assert "does not hold it" in said
    assert f"clipseg-np download {ID} FOLDER" in said
    assert done.asked == []
    assert contents(machine.here) == {}


def test_a_download_offline(machine):
    done = machine.run("download", ID, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in refusal(done)
    assert done.asked == []


def test_a_file_that_breaks_off_is_not_taken_for_whole(machine, hub):
    hub.cut.add(f"{ID}/{WEIGHTS}")
    said = refusal(machine.segment())
    assert f"Could not fetch {ID}" in said
    assert "503" in said
    assert contents(machine.here) == {}

    offline = refusal(machine.segment("--offline"))
    assert f"holds it without {WEIGHTS}" in offline

    hub.cut.clear()
    hub.refusals.clear()
    done = machine.segment()
    assert done.code == 0, done.error
    assert any(path.startswith("GET") and path.endswith(WEIGHTS) for path in done.asked)


DOWNLOADS = """
import sys
from clipseg_np.cli.parser import main
for hub_id in sys.argv[1:]:
    print(hub_id, main(["download", hub_id, "to-" + hub_id.split("/")[0]]))
"""


def test_what_a_hub_may_answer(machine, hub):
    """All in one process, to start Python once."""
    gated = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Ask for access."}
    hub.refusals |= {
        "private/a": (401, {}),
        "forbidden/a": (403, {}),
        "broken/a": (500, {}),
        "silent/a": None,
        f"gated/a/{WEIGHTS}": (403, gated),
        f"closed/a/{WEIGHTS}": (403, {}),
    }
    hub.repositories |= {
        "gated/a": DEMO,
        "closed/a": DEMO,
        "short/a": DEMO,
        "torch/a": {"config.json": b"{}", "pytorch_model.bin": b"", f"old/{WEIGHTS}": b""},
    }
    hub.short.add(f"short/a/{WEIGHTS}")
    expected = {
        "absent/a": "it answers 404, there is no such checkpoint: check the name",
        "private/a": "it answers 401, there is no such checkpoint, or it asks who you are",
        "forbidden/a": "it answers 403, it is not open to you",
        "gated/a": "it answers 403, it is not open to you: ask for access on the checkpoint's page",
        "closed/a": "it answers 403, it is not open to you",
        "broken/a": "500 Internal Server Error",
        "silent/a": "Check the network and try again, or give the path of a checkpoint's folder.",
        "short/a": f"should be of size {len(DEMO[WEIGHTS])} but has size {len(DEMO[WEIGHTS]) // 2}",
        "torch/a": "torch/a holds no safetensors weights",
    }
    done = machine.python("-c", DOWNLOADS, *expected)
    assert done.out.splitlines() == [f"{hub_id} 2" for hub_id in expected], done.error
    assert "Traceback" not in done.error
    said = [line for line in done.error.splitlines() if line.startswith("clipseg-np: error: ")]
    assert len(said) == len(expected), done.error
    for (hub_id, message), line in zip(expected.items(), said):
        assert hub_id in line
        assert message in line
    assert not [name for name in contents(machine.here) if name.endswith(WEIGHTS)]
    assert not any(path.endswith((".bin", f"old/{WEIGHTS}")) for path in done.asked)


LOADS = """
import sys
from clipseg_np import CLIPSegForImageSegmentation, CLIPSegProcessor, Segmenter
options = {"subfolder": "inner", "cache_dir": "own", "revision": "v1", "token": "hf_secret"}
options |= dict.fromkeys(sys.argv[1:], True)
for part in (CLIPSegForImageSegmentation, CLIPSegProcessor, Segmenter):
    part.from_pretrained("owner/nested", **options)
"""


def test_options_of_from_pretrained(machine, hub):
    """A subfolder of a revision, in another cache: fetched once, unless each time is asked for."""
    nested = {f"inner/{name}": content for name, content in DEMO.items()}
    hub.repositories["owner/nested"] = nested | EXTRAS | {"config.json": b"{}", WEIGHTS: b"no"}
    first = machine.python("-c", LOADS)
    assert first.code == 0, first.error
    assert any(path.endswith("/api/models/owner/nested/revision/v1") for path in first.asked)
    fetched = [path.partition("/resolve/")[2].partition("/")[2] for path in first.asked]
    assert set(fetched) - {""} == set(nested)
    assert (machine.here / "own" / "models--owner--nested").is_dir()
    assert not (machine.folder / "cache" / "hub" / "models--owner--nested").exists()

    for options in ([], ["local_files_only"]):
        again = machine.python("-c", LOADS, *options)
        assert (again.code, again.asked) == (0, []), again.error
    forced = machine.python("-c", LOADS, "force_download")
    assert forced.code == 0, forced.error
    assert any(path.startswith("GET") and path.endswith(WEIGHTS) for path in forced.asked)
    absent = machine.python("-c", LOADS.replace("v1", "v2"), "local_files_only")
    assert "can only come from the cache own, which does not hold it" in absent.error
