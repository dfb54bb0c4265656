"""Folders of images: results are whole or absent, resumed, and the same for any workers."""

import errno
import gc
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from clipseg_np import CLIPTokenizer, InputError, Segmenter
from clipseg_np.cli import segment, terminal
from clipseg_np.cli.parser import main
from clipseg_np.segment import batch
from clipseg_np.segment.batch import RECORD, REPORT, Job, images_in, run_batch
from clipseg_np.segment.contact_sheet import PAGE
from clipseg_np.segment.job import CleanUp


@pytest.fixture
def folder(tmp_path):
    """Five good images in two folders, a damaged one, and a text file."""
    rng = np.random.default_rng(0)
    names = ["a.png", "b.jpg", "a.jpg", "inner/a.png", "inner/deep/c d.webp"]
    for number, name in enumerate(names):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (30 + 7 * number, 40, 3)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(path)
    (tmp_path / "images" / "inner" / "bad.png").write_bytes(b"not an image")
    (tmp_path / "images" / "notes.txt").write_text("nothing to see")
    return tmp_path / "images"


@pytest.fixture
def job(checkpoint, tmp_path):
    return Job(("red", "red - a blue x"), str(tmp_path / "out"), str(checkpoint))


def run(job, folder, workers=2, **options):
    with ThreadPoolExecutor(workers) as executor:
        return run_batch(job, folder, executor, **options)


def content(folder) -> dict[str, bytes]:
    """All files but the contact sheet, whose links depend on where the folder is."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != PAGE
    }


def finished(folder) -> int:
    """The number of finished images. `os.walk` allows for folders that vanish meanwhile."""
    return sum(RECORD in files for _, _, files in os.walk(folder))


def test_every_image_gets_a_folder_and_a_line_in_the_report(job, folder, tmp_path):
    report = run(job, folder)
    names = ["a.jpg", "a.png", "b.jpg", "inner/a.png", "inner/bad.png", "inner/deep/c d.webp"]
    assert [record["image"] for record in report] == names
    assert [record["image"] for record in report if "error" in record] == ["inner/bad.png"]
    assert "not an image that Pillow can read" in report[4]["error"]
    lines = (tmp_path / "out" / REPORT).read_text().splitlines()
    assert [json.loads(line) for line in lines] == report
    segmenter = Segmenter.from_pretrained(job.model, threads=1)
    for record in (report[0], report[5]):
        expected = segmenter.combine(folder / record["image"], list(job.prompts)).masks()
        for prompt, mask in zip(record["prompts"], expected, strict=True):
            (name,) = prompt["files"]
            written = np.asarray(Image.open(tmp_path / "out" / record["image"] / name)) > 0
            np.testing.assert_array_equal(written, mask)
    assert not (tmp_path / "out" / "inner" / "bad.png").exists()


def test_prompts_are_embedded_once_for_all_images(job, folder, monkeypatch):
    embedded, embed = [], Segmenter._embedded
    monkeypatch.setattr(Segmenter, "_embedded", lambda *a: embedded.append(a[1]) or embed(*a))
    batch._loaded.cache_clear()
    report = run(replace(job, image_prompts=((str(folder / "a.png"), None),)), folder)
    assert sum("prompts" in record for record in report) == 5
    assert [len(things) for things in embedded] == [3]  # two texts and an image


def test_a_worker_keeps_no_tokenizer(job, folder):
    def tokenizers() -> int:
        gc.collect()
        return sum(isinstance(thing, CLIPTokenizer) for thing in gc.get_objects())

    batch._loaded.cache_clear()
    before = tokenizers()
    run(job, folder)
    assert batch._loaded.cache_info().currsize and tokenizers() == before


def test_the_bytes_do_not_depend_on_workers(job, folder, tmp_path):
    job = replace(job, kinds=("soft", "cutout"), labels=True, clean_up=CleanUp(2, 1, 1))
    results = []
    for workers in (1, 4):
        run(job, folder, workers)
        results.append(content(tmp_path / "out"))
        shutil.rmtree(tmp_path / "out")
    options = [
        "--write",
        "soft",
        "cutout",
        "--labels",
        "--smallest",
        "2",
        "--grow",
        "1",
        "--feather",
        "1",
        "--workers",
        "2",
    ]
    model = ["--model", job.model, "--output", job.output]
    assert main(["batch", str(folder), *job.prompts, *options, *model]) == 1  # one is bad
    results.append(content(tmp_path / "out"))
    assert len(results[0]) > 25 and results[0] == results[1] == results[2]


def test_a_second_run_does_only_what_changed(job, folder, tmp_path):
    run(job, folder)
    out = tmp_path / "out"

    def stamps():
        files = [p for p in out.rglob("*") if p.is_file() and p.name not in (REPORT, PAGE)]
        return {path: path.stat().st_mtime_ns for path in files}

    first = stamps()
    run(job, folder)
    assert stamps() == first
    Image.new("RGB", (50, 20), "red").save(folder / "a.png")
    (out / "b.jpg" / "b_1_red.png").unlink()
    (out / "a.jpg" / RECORD).write_text("{")
    (folder / "inner" / "a.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="replaced the results of 1 images, such as .*a.png"):
        report = run(job, folder)
    second = stamps()
    changed = {path.relative_to(out).parts[0] for path in second if first.get(path) != second[path]}
    assert changed == {"a.png", "b.jpg", "a.jpg"}
    assert (out / "inner" / "a.png" / RECORD).exists()  # of the image as it was
    assert [record["image"] for record in report if "error" in record] == [
        "inner/a.png",
        "inner/bad.png",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": ("red", "a blue x")},
        {"threshold": 0.4},
        {"kinds": ("heat",)},
        {"labels": True},
        {"clean_up": CleanUp(grow=1)},
    ],
)
def test_other_options_are_other_results(change, job, folder, tmp_path):
    run(job, folder)
    changed = replace(job, **change, overwrite=True)
    with pytest.warns(UserWarning, match="replaced the results of 5 images"):
        run(changed, folder)
    again = content(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    run(changed, folder)
    assert content(tmp_path / "out") == again


def test_another_checkpoint_is_another_result(job, folder, tmp_path, checkpoint):
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    run(job, folder)
    before = (tmp_path / "out" / "a.png" / RECORD).read_bytes()
    run(replace(job, model=str(other)), folder)
    assert (tmp_path / "out" / "a.png" / RECORD).read_bytes() == before  # the same files elsewhere
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-3] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match="holds results of other options or weights"):
        run(replace(job, model=str(other)), folder)
    with pytest.warns(UserWarning, match="replaced"):
        run(replace(job, model=str(other), overwrite=True), folder)
    assert (tmp_path / "out" / "a.png" / RECORD).read_bytes() != before


def test_a_run_that_is_killed_again_and_again_ends_with_the_same(job, folder, tmp_path):
    rng = np.random.default_rng(1)
    for number in range(12):
        size = (60 + number, 80, 3)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(folder / f"more_{number}.png")
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "clipseg_np", "batch", str(folder), *job.prompts]
    command += ["--model", job.model, "--output", str(out), "--workers", "2"]
    chance, killed = random.Random(0), 0
    for _ in range(3):
        done = finished(out)
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        while process.poll() is None and finished(out) <= done:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.02))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed  # or the test shows nothing
    time.sleep(0.2)
    run(replace(job, output=str(out)), folder)
    run(job, folder)
    assert content(out) == content(tmp_path / "out")


def test_an_image_prompt_with_a_mask(job, folder, tmp_path):
    mask = np.zeros((30, 40), np.uint8)
    mask[5:20, 5:20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    pair = (str(folder / "a.png"), str(tmp_path / "mask.png"))
    report = run(replace(job, prompts=(), image_prompts=(pair,)), folder)
    assert report[0]["prompts"][0]["prompt"] == "a.png"


def test_images_by_suffix_and_by_pattern(folder):
    names = [path.relative_to(folder).as_posix() for path in images_in(folder, ["*.jpg"])]
    assert names == ["a.jpg", "b.jpg"]
    names = [path.relative_to(folder).as_posix() for path in images_in(folder, ["inner/*.png"])]
    assert names == ["inner/a.png", "inner/bad.png"]
    with pytest.raises(InputError, match=r"no image that fits \*.gif"):
        images_in(folder, ["*.gif"])
    with pytest.raises(InputError, match="is not a folder"):
        images_in(folder / "a.png")


def test_results_inside_the_folder_are_not_images_to_segment(job, folder):
    inside = replace(job, output=str(folder / "masks"))
    first = run(inside, folder)
    assert [record["image"] for record in run(inside, folder)] == [
        record["image"] for record in first
    ]


def test_hidden_folders_and_those_of_systems_are_passed_over(folder):
    expected = images_in(folder)
    for place in (".git", "inner/.AppleDouble", "__MACOSX/inner", "@eaDir", "inner/$RECYCLE.BIN"):
        (folder / place).mkdir(parents=True)
        shutil.copy(folder / "a.png", folder / place)
    assert images_in(folder) == expected
    assert images_in(folder / ".git") == [folder / ".git" / "a.png"]
    with pytest.raises(InputError, match="no image that fits"):
        images_in(folder, [".git/*.png"])


def test_a_folder_that_cannot_be_read_is_warned_of(folder, monkeypatch):
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.warns(UserWarning, match="inner/deep is left out: Permission denied"):
        assert len(images_in(folder)) == 5


def test_images_that_need_a_package_are_named_with_it(job, folder):
    (folder / "a.heic").write_bytes(b"\0\0\0\x1cftypheic" + b"x" * 99)
    (folder / "b.JXL").write_bytes(b"\0\0\0\x0cJXL x" + b"x" * 99)
    (folder / "c.nef").write_bytes(b"MM\0*" + b"x" * 99)
    report = {record["image"]: record.get("error", "") for record in run(job, folder)}
    assert "pip install pillow-heif" in report["a.heic"]
    assert "pip install pillow-jxl-plugin" in report["b.JXL"]
    assert "raw file; export it" in report["c.nef"]


def test_a_file_in_the_place_of_results_is_kept_and_named(job, folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.jpg").write_text("the user's")
    command = ["batch", str(folder), *job.prompts, "--model", job.model, "--output", job.output]
    assert main([*command, "--workers", "1", "--glob", "*.jpg"]) == 1
    said = capsys.readouterr()
    assert f"out{os.sep}a.jpg is there already, and holds no results" in said.err
    assert said.out.startswith("1 of 2 (1 new, 0 already there), 1 left")
    assert (tmp_path / "out" / "a.jpg").read_text() == "the user's"
    assert not list((tmp_path / "out").rglob(".*"))


def test_errors_of_a_disk_name_the_image_and_no_temporary_file(job, folder, tmp_path, monkeypatch):
    def refused(part, *_):
        raise PermissionError(13, "Permission denied", str(part / "x.png"))

    monkeypatch.setattr(batch, "write_results", refused)
    report = run(job, folder, patterns=["a.jpg"])
    assert report[0]["error"] == f"{tmp_path / 'out' / 'a.jpg' / 'x.png'}: Permission denied"
    assert not list((tmp_path / "out").rglob(".*"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("workers", [None, 1])
def test_a_full_disk_stops_all(number, workers, job, folder, tmp_path, monkeypatch):
    def refused(part, stem, *_):
        if stem == "b":
            raise OSError(number, os.strerror(number), str(part / "x.png"))
        return write_results(part, stem, *_)

    write_results = batch.write_results
    monkeypatch.setattr(batch, "write_results", refused)
    executor = ThreadPoolExecutor(workers) if workers else None
    with pytest.raises(OSError, match="out/b.jpg") as raised:
        run_batch(job, folder, executor)
    assert raised.value.errno == number
    report = (tmp_path / "out" / REPORT).read_text().splitlines()
    errors = {record["image"]: record.get("error") for record in map(json.loads, report)}
    assert errors.pop("a.jpg") is errors.pop("a.png") is None
    assert len(errors) == 4 and errors["b.jpg"] == batch.NOT_DONE
    assert not list((tmp_path / "out").rglob(".*"))


def test_another_executor_whose_process_dies(job, folder, tmp_path):
    """It gives up the images that it has; each is named, and the next run does all."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as executor:
        executor.submit(os._exit, 1)
        report = run_batch(job, folder, executor)
    reasons = "terminated abruptly", batch.NOT_DONE
    assert len(report) == 6
    assert all(any(reason in one["error"] for reason in reasons) for one in report)
    assert [one["image"] for one in run(job, folder) if "error" in one] == ["inner/bad.png"]


class Breaking(ThreadPoolExecutor):
    """An executor that breaks when it gets the fourth task."""

    number = 0

    def submit(self, *arguments):
        self.number += 1
        if self.number == 4:
            raise BrokenExecutor("a process was killed")
        return super().submit(*arguments)


def test_an_executor_that_takes_no_more_tasks(job, folder, tmp_path):
    with Breaking(2) as executor:
        report = run_batch(job, folder, executor)
    errors = [record.get("error") for record in report]
    assert errors == [None] * 3 + [batch.NOT_DONE] * 3
    lines = (tmp_path / "out" / REPORT).read_text().splitlines()
    assert [json.loads(line) for line in lines] == report


def test_an_interrupted_call_leaves_a_report_and_stops_its_executor(job, folder, tmp_path):
    def interrupted(done, number):
        yield next(done)
        raise KeyboardInterrupt

    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(KeyboardInterrupt):
            run_batch(job, folder, executor, progress=interrupted)
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(print)
    report = (tmp_path / "out" / REPORT).read_text().splitlines()
    assert sum("prompts" in json.loads(line) for line in report) == 1 and len(report) == 6


def test_progress_is_a_line_every_few_seconds(job, folder, monkeypatch, capsys):
    monkeypatch.setattr(terminal, "PROGRESS_SECONDS", -1)
    command = ["batch", str(folder), *job.prompts, "--model", job.model, "--output", job.output]
    assert main([*command, "--workers", "1", "--glob", "a.*"]) == 0
    said = capsys.readouterr()
    lines = [f"clipseg-np: progress: images: {number} of 3, 0:0" for number in (1, 2, 3)]
    assert [line[: len(lines[0])] for line in said.err.splitlines()] == lines
    assert said.out == f"3 of 3 (3 new, 0 already there)  {Path(job.output, REPORT)}\n"
    assert main([*command, "--workers", "2"]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("5 of 6 (2 new, 3 already there), 1 left  ")


def test_progress_is_a_bar_where_tqdm_is_installed(job, folder, monkeypatch, capsys):
    bars = []

    def tqdm(records, **options):
        bars.append(options)
        return records

    monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(tqdm=tqdm))
    monkeypatch.setattr(terminal, "PROGRESS_SECONDS", -1)
    command = ["batch", str(folder), *job.prompts, "--model", job.model, "--output", job.output]
    command += ["--workers", "1", "--glob", "a.*"]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(command) == 0
    assert bars == [{"desc": "images", "total": 3}] and not capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert main(command) == 0
    assert capsys.readouterr().err.startswith("clipseg-np: progress: images: 1 of 3")


@pytest.mark.parametrize("change", [{"prompts": ()}, {"kinds": ("film",)}, {"scales": (0,)}])
def test_a_job_that_cannot_be_done(change, job, folder):
    with pytest.raises(InputError, match="no prompt|unknown kind|scales are"):
        run(replace(job, **change), folder)
    assert not Path(job.output).exists()


def test_one_pattern_where_there_may_be_several(job, folder):
    with pytest.raises(InputError, match=r"patterns is '\*.png'; expected a list"):
        run_batch(job, folder, None, "*.png")


@pytest.mark.parametrize("name", ["prompts", "image_prompts", "kinds", "scales", "prompt_files"])
@pytest.mark.parametrize("value", ["cat", Path("cat"), 2])
def test_one_thing_where_a_job_has_several(name, value):
    with pytest.raises(InputError, match=f"{name} is .*; expected a list or a tuple"):
        Job(**{"prompts": ("a cat",), "output": "out", name: value})


def test_a_job_of_lists_paths_and_numpys_numbers_is_the_same_job(job, folder):
    image = folder / "a.png"
    options = {"scales": [np.int64(1), 2], "threshold": np.float32(0.5), "kinds": ["mask", "soft"]}
    pairs = [(image, None), [image, folder / "b.png"]]
    other = Job(list(job.prompts), Path(job.output), Path(job.model), pairs, **options)
    options = {"scales": (1, 2), "threshold": 0.5, "kinds": ("mask", "soft")}
    pairs = ((str(image), None), (str(image), str(folder / "b.png")))
    same = Job(job.prompts, job.output, job.model, pairs, **options)
    assert other == same and hash(other) == hash(same) and repr(other) == repr(same)


def test_lines_for_scripts_and_exit_codes(job, folder, capsys):
    command = ["batch", str(folder), "red", "--model", job.model, "--output", job.output]
    command += ["--workers", "1", "--json"]
    assert main([*command, "--glob", "a.*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["image"] for line in lines] == ["a.jpg", "a.png", "inner/a.png"]
    assert main([*command, "--workers", "0"]) == 2
    assert main(["batch", str(folder / "none"), "red", "--output", job.output]) == 2


def test_a_gpu_has_one_model_for_all_workers(job, folder, monkeypatch):
    """Not one in each process. The stand-in for a GPU is another array module."""
    monkeypatch.setattr(segment, "ops_for", lambda name: SimpleNamespace(xp="a GPU's"))
    monkeypatch.delattr(segment, "WorkerProcesses")
    command = ["batch", str(folder), *job.prompts, "--model", job.model, "--output", job.output]
    assert main([*command, "--workers", "3"]) == 1  # for the one bad image
    assert len(Path(job.output, REPORT).read_text().splitlines()) == 6


def test_a_batch_that_is_stopped_computes_no_more(job, folder, monkeypatch):
    for number in range(40):
        shutil.copy(folder / "a.png", folder / f"copy_{number}.png")

    def stopped(total, records, name):
        yield next(records)
        raise KeyboardInterrupt(130)

    monkeypatch.setattr(segment, "ops_for", lambda name: SimpleNamespace(xp="a GPU's"))
    monkeypatch.setattr(segment, "progress_of", stopped)
    command = ["batch", str(folder), *job.prompts, "--model", job.model, "--output", job.output]
    assert main([*command, "--workers", "2"]) == 130
    assert finished(job.output) < 20


def test_a_missing_gpu_is_reported_once(job, folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert main(["batch", str(folder), "red", "--output", job.output, "--backend", "cupy"]) == 2
    assert "needs CuPy" in capsys.readouterr().err and not Path(job.output).exists()


def test_from_standard_input_to_standard_output(checkpoint, image, image_file):
    command = [sys.executable, "-m", "clipseg_np", "segment", "-", "red", "--output", "-"]
    command += ["--model", str(checkpoint)]
    done = subprocess.run(command, input=image_file.read_bytes(), capture_output=True, check=True)
    mask = np.asarray(Image.open(io.BytesIO(done.stdout))) > 0
    expected = Segmenter.from_pretrained(checkpoint)(image, "red").masks()[0]
    np.testing.assert_array_equal(mask, expected)
    two = [*command[:6], "blue", *command[6:]]
    refused = subprocess.run(two, input=b"", capture_output=True, check=False)
    assert refused.returncode == 2 and b"one prompt" in refused.stderr
