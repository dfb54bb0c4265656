"""Where a batch's results go: a folder is one job's; nothing else is replaced or segmented."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipseg_np import InputError, Job, run_batch
from clipseg_np.cli.parser import main
from clipseg_np.segment.batch import FLAT_RECORDS, JOB, RECORD, REPORT
from clipseg_np.segment.contact_sheet import PAGE

from .test_batch import content

NAMES = ["a.png", "a.jpg", "inner/a.png", "inner/b.jpg"]


@pytest.fixture(autouse=True)
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for folder in ("few", "more"):
        for name in NAMES:
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(path)


@pytest.fixture
def job(checkpoint):
    return Job(("red",), "out", str(checkpoint))


@pytest.fixture
def batch(checkpoint, capsys):
    """A function that runs the command: its code and errors."""

    def batch(*arguments: str) -> tuple[int, str]:
        code = main(["batch", *arguments, "--model", str(checkpoint), "--workers", "1"])
        return code, capsys.readouterr().err

    return batch


def results(folder: str = "out") -> dict[str, bytes]:
    """All files but the report and the description of the job."""
    return {name: data for name, data in content(Path(folder)).items() if name not in (REPORT, JOB)}


def images_of_report(folder: str = "out") -> list[str]:
    lines = Path(folder, REPORT).read_text("utf-8").splitlines()
    return [json.loads(line)["image"] for line in lines]


@pytest.mark.parametrize("layout", [[], ["--flat"]])
@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (["few", "blue"], r"other prompts \(\['red'\]\)"),
        (["more", "blue"], r"other prompts \(\['red'\]\) and other images \(.*few\)"),
        (["more", "red"], r"other images \(.*few\)"),
        (["few", "red", "--threshold", "0.4"], "other options or weights"),
        (["few", "red", "--write", "heat"], "other options or weights"),
    ],
)
def test_results_of_another_job_are_replaced_only_when_asked_for(batch, layout, other, difference):
    assert batch("few", "red", "-o", "out", *layout) == (0, "")
    before = content(Path("out"))
    code, error = batch(*other, "-o", "out", *layout)
    assert code == 2 and error.count("\n") == 1
    assert re.search(f"out holds results of {difference}; name another --output", error)
    assert "name another --output, or replace them with --overwrite" in error
    assert content(Path("out")) == before
    assert batch("few", "red", "-o", "out", *layout) == (0, "")  # is still resumed
    code, error = batch(*other, "-o", "out", *layout, "--overwrite")
    assert code == 0 and "warning: replaced the results of 4 images, such as" in error
    assert batch(*other, "-o", "alone", *layout) == (0, "")
    assert results() == results("alone")


def test_one_layout_does_not_mix_with_the_other(batch):
    assert batch("few", "red", "-o", "out")[0] == 0
    assert batch("few", "red", "-o", "out", "--flat")[0] == 2


def test_all_results_in_one_folder(job):
    report = run_batch(replace(job, flat=True, kinds=("mask", "soft")), "few")
    stems = {"a.png": "a.png", "a.jpg": "a.jpg", "inner/a.png": "inner_a.png", "inner/b.jpg": "b"}
    names = {f"{stem}_1_red{kind}.png" for stem in stems.values() for kind in ("", "_soft")}
    assert {path.name for path in Path("out").glob("*.png")} == names
    written = {path.name for path in Path("out").iterdir()}
    assert written == {*names, JOB, REPORT, PAGE, FLAT_RECORDS}
    for record in report:
        stem = stems[record["image"]]
        assert record["prompts"][0]["files"] == [f"{stem}_1_red.png", f"{stem}_1_red_soft.png"]
    in_folders = run_batch(replace(job, output="folders", kinds=("mask", "soft")), "few")
    for record in in_folders:
        name = record["image"]
        for kind in ("", "_soft"):
            expected = Path("folders", name, f"{Path(name).stem}_1_red{kind}.png").read_bytes()
            assert Path("out", f"{stems[name]}_1_red{kind}.png").read_bytes() == expected


def test_a_flat_batch_is_resumed(job):
    job = replace(job, flat=True)
    run_batch(job, "few")
    before = {path: path.stat().st_mtime_ns for path in Path("out").glob("*.png")}
    Path("out/a.jpg_1_red.png").unlink()
    Image.new("RGB", (50, 20), "red").save("few/inner/b.jpg")
    with pytest.warns(
        UserWarning, match="replaced the results of 1 images, such as few/inner/b.jpg"
    ):
        run_batch(job, "few")
    after = {path: path.stat().st_mtime_ns for path in Path("out").glob("*.png")}
    changed = {path.name for path in after if after[path] != before[path]}
    assert changed == {"a.jpg_1_red.png", "b_1_red.png"} and after.keys() == before.keys()
    # An image whose name is unique from now on, and one whose name is no longer.
    Path("few/a.jpg").unlink()
    Path("few/a.png").unlink()
    Image.new("RGB", (50, 20)).save("few/b.gif")
    with pytest.warns(UserWarning, match="replaced the results of 2 images"):
        run_batch(job, "few")
    names = {path.name for path in Path("out").glob("*.png")}
    stems = ("a", "a.jpg", "a.png", "b.gif", "b.jpg")
    assert names == {f"{stem}_1_red.png" for stem in stems}


@pytest.mark.parametrize("flat", [False, True])
def test_files_of_others_are_never_replaced(job, flat):
    job = replace(job, flat=flat, overwrite=True)
    Path("out/a.png").mkdir(parents=True)
    Path("out/a.png/notes.txt").write_text("mine")
    Path("out/inner").mkdir()
    Path("out/inner/b.jpg").write_text("mine")
    Path("out/b_1_red.png").write_text("mine")
    before = content(Path("out"))
    report = run_batch(job, "few")
    failed = ["inner/b.jpg"] if flat else ["a.png", "inner/b.jpg"]
    errors = {record["image"]: record["error"] for record in report if "error" in record}
    assert sorted(errors) == failed and all("ove it away" in error for error in errors.values())
    assert before.items() <= content(Path("out")).items()


def test_an_image_that_cannot_be_read_now_costs_no_earlier_result(job):
    run_batch(job, "few")
    before = results()
    Path("few/a.png").write_bytes(b"no image")
    report = run_batch(job, "few")
    assert [record["image"] for record in report if "error" in record] == ["a.png"]
    assert results() == before


def test_an_overlay_is_added_when_asked_for(job):
    run_batch(job, "few")
    before = results()
    assert not any("overlay" in name for name in before)
    run_batch(replace(job, overlay=True), "few")
    added = results().keys() - before.keys()
    assert added == {f"{name}/{Path(name).stem}_overlay.png" for name in NAMES}
    shown = results()
    run_batch(job, "few")
    assert results() == shown


def test_results_of_earlier_runs_are_no_images(batch, job, checkpoint):
    os.chdir("few")
    assert batch(".", "red", "-o", "masks")[0] == 0
    assert batch(".", "red", "-o", "flat masks", "--flat")[0] == 0
    segment = ["segment", "a.png", "red", "--model", str(checkpoint), "--output"]
    assert main([*segment, "one"]) == main([*segment, "one.png"]) == 0
    os.chdir("..")
    for options in ([], ["--glob", "*.png", "--glob", "*.jpg"]):
        folder = f"out{len(options)}"
        code, error = batch("few", "blue", "--output", folder, *options)
        assert code == 0 and images_of_report(folder) == sorted(NAMES)
        assert error.startswith("clipseg-np: warning: passed over ") and error.count("\n") == 1
    # Results that 0.1 wrote say nothing of themselves, but have records beside them.
    for path in Path("few").rglob("*.png"):
        if path.parent.name.endswith((".png", ".jpg")):
            Image.open(path).copy().save(path)
    shutil.rmtree("out0")
    shutil.rmtree("few/one")
    assert batch("few", "blue", "--output", "out0")[0] == 0
    assert images_of_report("out0") == sorted(NAMES)


def test_a_folder_of_nothing_but_results_can_be_segmented(batch):
    assert batch("few", "red", "-o", "masks", "--write", "cutout") == (0, "")
    assert batch("masks", "blue", "-o", "out") == (0, "")
    assert len(images_of_report()) == 4


def test_the_python_face_refuses_too(job):
    run_batch(job, "few")
    before = content(Path("out"))
    for other, folder in ((replace(job, prompts=("blue",)), "few"), (job, "more")):
        with pytest.raises(InputError, match="out holds results of other (prompts|images)"):
            run_batch(other, folder)
    assert content(Path("out")) == before
    assert json.loads(Path("out", JOB).read_text())["prompts"] == ["red"]
    assert Path("out/a.png", RECORD).exists()


@pytest.mark.parametrize("has_record", [True, False])
def test_files_of_the_user_beside_results_stay(batch, has_record):
    assert batch("few", "red", "-o", "out") == (0, "")
    place, before = Path("out/inner/a.png"), content(Path("out/inner/a.png"))
    (place / "notes" / "deep").mkdir(parents=True)
    (place / "retouched.png").write_bytes(b"mine")
    (place / "notes" / "deep" / "a.txt").write_text("mine, too")
    (place / "link").symlink_to("retouched.png")
    if not has_record:
        (place / RECORD).write_text("damaged")
    assert batch("few", "blue", "-o", "out", "--overwrite")[0] == 0
    assert (place / "retouched.png").read_bytes() == b"mine"
    assert (place / "notes" / "deep" / "a.txt").read_text() == "mine, too"
    assert os.readlink(place / "link") == "retouched.png"
    assert has_record == (not before.keys() & content(place).keys() - {RECORD})
