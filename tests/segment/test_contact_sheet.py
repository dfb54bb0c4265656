"""index.html of a batch: each image and mask by a relative link that leads there, names escaped."""

import os
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from PIL import Image

from clipseg_np import Job, run_batch
from clipseg_np.segment.contact_sheet import PAGE, figure

NAMES = ["a.png", "in & <b>/a#1?%.png", "in & <b>/javascript:x'\".jpg", "日本語.png"]
NAMES += ["line\nfeed.png"]


class Page(HTMLParser):
    """What a browser would show: links, images, tags, text."""

    def __init__(self, folder):
        super().__init__()
        self.links, self.images, self.tags, self.text = [], [], set(), ""
        page = Path(folder, PAGE).read_bytes()
        assert page.startswith(b"<!doctype html>")
        self.feed(page.decode("utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            assert not name.startswith("on"), "JavaScript"
            if name in ("href", "src"):
                place = os.fsdecode(unquote_to_bytes(value))
                assert not os.path.isabs(place) and ":" not in value
                (self.links if name == "href" else self.images).append(place)

    def handle_data(self, data):
        self.text += data


@pytest.fixture(autouse=True)
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    names = [*NAMES, os.fsdecode(b"\xff.png")] if os.name == "posix" else NAMES[:1]
    for name in names:
        path = Path("photos", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(path)
    return names


@pytest.fixture
def job(checkpoint):
    return Job(("red", 'a <star> & "x"'), "out", str(checkpoint), kinds=("mask", "soft"))


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("output", ["out", "photos/masks", "elsewhere/masks"])
def test_the_page_shows_each_image_and_all_its_files(job, photos, flat, output):
    job = replace(job, output=output, flat=flat)
    report = run_batch(job, "photos")
    page = Page(output)
    places = [os.path.realpath(Path(output, link)) for link in page.links]
    expected = []
    for record in report:
        expected.append(Path("photos", record["image"]))
        for prompt in record["prompts"]:
            folder = Path(output, "" if flat else record["image"])
            expected += [folder / file for file in prompt["files"]]
    assert places == [os.path.realpath(path) for path in expected]
    assert all(map(os.path.isfile, places)) and page.images == page.links
    assert page.tags <= {
        "html",
        "meta",
        "style",
        "title",
        "h1",
        "h2",
        "p",
        "figure",
        "a",
        "img",
    } | {"figcaption"}
    assert f'{len(photos)} images: red, a <star> & "x"' in page.text
    assert all(
        ascii(name)[1:-1] in page.text for name in photos if name.isascii() and "'" not in name
    )
    assert "light dark" in Path(output, PAGE).read_text("utf-8")


def test_a_resumed_batch_completes_the_page_and_names_what_failed(job, photos):
    Path("photos/bad<1>.png").write_text("no image")
    run_batch(job, "photos")
    page = Page("out")
    assert "bad<1>.png is not an image" in page.text and "out/bad<1>.png" not in page.links
    assert len(page.links) == 5 * len(photos) + 1
    Image.new("RGB", (20, 30)).save("photos/bad<1>.png")
    run_batch(job, "photos")
    page = Page("out")
    assert "is not an image" not in page.text and len(page.links) == 5 * len(photos) + 5
    first = Path("out", PAGE).read_bytes()
    run_batch(job, "photos")
    assert Path("out", PAGE).read_bytes() == first
    assert not [path for path in Path("out").rglob("*") if "part" in path.name]


def test_a_stopped_batch_has_a_page_of_what_is_done(job):
    def stop(records, total):
        yield next(records)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_batch(job, "photos", progress=stop)
    assert "the batch was stopped" in Page("out").text
    run_batch(job, "photos")
    assert "the batch was stopped" not in Page("out").text


@pytest.mark.parametrize("kind", ["file", "folder", "binary"])
def test_a_page_of_the_users_own_stays(job, kind):
    page = Path("out", PAGE)
    page.parent.mkdir()
    if kind == "folder":
        page.mkdir()
    else:
        page.write_bytes(b"<!doctype html>mine" if kind == "file" else b"\xff\xfe")
    before = None if kind == "folder" else page.read_bytes()
    with pytest.warns(UserWarning, match="index.html is no contact sheet, and is left as it is"):
        report = run_batch(job, "photos")
    assert not any("error" in record for record in report)
    assert page.is_dir() if before is None else page.read_bytes() == before


def test_a_damaged_record_costs_one_image_and_not_the_page(job):
    run_batch(job, "photos")
    record = Path("out/a.png/record.json")
    text = record.read_text("utf-8")
    for old, new in (('"share"', '"part"'), ('"prompts": [', '"prompts": [3, ')):
        record.write_text(text.replace(old, new), "utf-8")
        report = run_batch(job, "photos")
        (error,) = (one["error"] for one in report if "error" in one)
        assert "a.png" in error and error in Page("out").text


def test_an_image_on_another_drive_has_a_full_link(monkeypatch):
    def relpath(path, start):
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    monkeypatch.setattr(os.path, "relpath", relpath)
    assert f'href="{os.getcwd()}/a%20b.png"' in figure("a b.png", "out", "the image")
