"""A folder that release 0.1.0 began: the same job has the same keys, so that it is resumed.

The marks and the record are what 0.1.0 computed for these files. The checkpoint is not one: an
image that is segmented again fails.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from clipseg_np.segment.batch import RECORD, REPORT, job_mark, run_batch
from clipseg_np.segment.job import CleanUp, Job

RECORD_OF_0_1 = """\
{"key": "4544f0cdc19391b3903c36092d041595685d007428f46f298b078df583a3b582", "prompts": [\
{"prompt": "a cat", "area": 0, "share": 0.0, "box": null, "presence": 0.0, \
"files": ["a_1_a-cat.png"]}, \
{"prompt": "a cat - a dog", "area": 0, "share": 0.0, "box": null, "presence": 0.0, \
"files": ["a_2_a-cat-a-dog.png"]}], \
"files": ["a_1_a-cat.png", "a_2_a-cat-a-dog.png", "a_overlay.png"]}"""

TWO_TEXTS = Job(("a cat", "a cat - a dog"), "out", "checkpoint")
EVERY_OPTION = Job(
    prompts=("a cat",),
    output="elsewhere",
    model="checkpoint/model.safetensors",
    image_prompts=(("cat.ppm", "mask.ppm"), ("cat.ppm", None)),
    kinds=("soft", "heat"),
    threshold=0.25,
    clean_up=CleanUp(smallest=2, grow=1, feather=3.5),
    labels=True,
    backend="numpy-reference",
    scales=(1, 2),
)


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("checkpoint", "images", "out/a.ppm"):
        Path(folder).mkdir(parents=True)
    for name in ("config.json", "merges.txt", "model.safetensors", "notes.md", "vocab.json"):
        Path("checkpoint", name).write_bytes(name.encode())
    Path("images/a.ppm").write_bytes(b"P6 4 3 255 " + bytes(range(36)))
    Path("cat.ppm").write_bytes(b"P6 1 1 255 abc")
    Path("mask.ppm").write_bytes(b"P6 1 1 255 def")
    Path("out/a.ppm", RECORD).write_text(RECORD_OF_0_1, "utf-8")
    for name in json.loads(RECORD_OF_0_1)["files"]:
        Path("out/a.ppm", name).write_bytes(b"written by 0.1")


@pytest.mark.parametrize(
    ("job", "mark"),
    [
        (TWO_TEXTS, "87b278d4a60887a02b34d24cef060960ee47b069203662f121ab5cc9a57f7fc4"),
        (EVERY_OPTION, "860c8056e9e6f8145dde816139a659f42a56ce8e52186e29df5e218565dd4ef0"),
    ],
)
def test_a_job_has_the_mark_that_0_1_computed(job, mark):
    assert job_mark(job) == mark


def run() -> list[dict]:
    with ThreadPoolExecutor(1) as executor:
        return run_batch(TWO_TEXTS, "images", executor)


def test_what_0_1_finished_is_left_alone():
    before = {path: path.read_bytes() for path in Path("out/a.ppm").iterdir()}
    (record,) = run()
    assert record["prompts"] == json.loads(RECORD_OF_0_1)["prompts"]
    assert {path: path.read_bytes() for path in Path("out/a.ppm").iterdir()} == before


def test_the_report_has_0_1s_name_of_an_image_beside_its_own():
    run()
    (line,) = Path("out", REPORT).read_text("utf-8").splitlines()
    assert json.loads(line)["picture"] == json.loads(line)["image"] == "a.ppm"


def test_what_0_1_did_not_finish_is_computed():
    Path("out/a.ppm/a_overlay.png").unlink()
    (record,) = run()
    assert "checkpoint" in record["error"]


@pytest.mark.parametrize("change", [{"prompts": ("a cat",)}, {"threshold": 0.4}])
def test_what_0_1_finished_of_another_job_is_left_alone(change):
    before = {path: path.read_bytes() for path in Path("out/a.ppm").iterdir()}
    with ThreadPoolExecutor(1) as executor:
        (record,) = run_batch(replace(TWO_TEXTS, **change), "images", executor)
    assert record["error"].startswith(
        f"{Path('out/a.ppm')} holds results of other prompts, options"
    )
    assert {path: path.read_bytes() for path in Path("out/a.ppm").iterdir()} == before
