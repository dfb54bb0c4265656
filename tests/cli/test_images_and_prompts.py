"""Which words are images, prompts and kinds; where results go; none is overwritten unasked."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipseg_np.cli.parser import main
from clipseg_np.segment.results import KINDS

rng = np.random.default_rng(0)


@pytest.fixture
def run(checkpoint, tmp_path, monkeypatch, capsys):
    """A function that runs the command in a folder with images: its code, output and errors."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.jpg", "photos/a.png", "photos/b.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(name)

    def run(*arguments: object) -> tuple[int, str, str]:
        model = ["--model", checkpoint] if arguments[0] in ("segment", "batch", "trace") else []
        try:
            code = main([str(argument) for argument in (arguments[0], *model, *arguments[1:])])
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def files(folder: str = "masks") -> dict[str, bytes]:
    """The names and bytes of a folder's files."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_several_images_with_the_same_prompts(run):
    code, out, err = run("segment", "a.png", "b.jpg", "photos/b.png", "red", "a star")
    assert (code, err) == (0, "")
    # Stems are equal of two images alone, which keep their suffix.
    stems = ["a", "b.jpg", "b.png"]
    names = [f"{stem}_{prompt}.png" for stem in stems for prompt in ("1_red", "2_a-star")]
    assert sorted(files()) == names
    assert [line.split()[-1] for line in out.splitlines()] == [f"masks/{name}" for name in names]
    assert run("segment", "a.png", "red", "a star", "-o", "alone")[0] == 0
    assert files("alone")["a_1_red.png"] == files()["a_1_red.png"]
    code, out, _ = run("segment", "a.png", "b.jpg", "red", "--json", "-o", "json", "--overlay")
    assert [json.loads(line)["image"] for line in out.splitlines()] == ["a.png", "b.jpg"]
    assert {"a_overlay.png", "b_overlay.png"} < set(files("json"))


def test_images_of_one_name_get_their_folder_too(run):
    assert run("segment", "a.png", "photos/a.png", "b.jpg", "b.jpg", "x")[0] == 0
    assert sorted(files()) == ["a.png_1_x.png", "b_1_x.png", "photos_a.png_1_x.png"]


def test_one_of_several_images_that_cannot_be_read(run):
    Path("bad.png").write_bytes(b"no image")
    code, out, err = run("segment", "a.png", "bad.png", "b.jpg", "red")
    assert code == 1 and err.startswith("clipseg-np: error: bad.png is not an image")
    assert sorted(files()) == ["a_1_red.png", "b_1_red.png"] and err.count("\n") == 1
    assert len(out.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("segment a.png x b.jpg", "b.jpg is a file: images come first"),
        ("segment a.png --threshold 0.4 b.jpg x", "b.jpg is a file: images come first"),
        ("segment a.png --image-prompt b.jpg photos/a.png", "photos/a.png is a file"),
        ("segment a.png --image-prompt b.jpg --prompt-mask b.jpg a.png", "a.png is a file"),
        ("segment a.png x -", "- is a file"),
        ("segment a.png c.png x", "c.png is the name of an image that is not there"),
        ("segment a.png x --grow 1 c.JPEG", "c.JPEG is the name of an image that is not there"),
        ("segment a.png notes.txt x", "notes.txt is a file"),
        ("segment photos x", "photos is a folder; `clipseg-np batch` segments"),
        ("segment a.png photos x", "photos is a folder: `clipseg-np batch` takes one"),
        ("segment a.png x photos/", "photos/ is a folder"),
        ("segment c.png x", "There is no image c.png"),
        ("segment x a.png", "There is no image x"),
        ("segment a.png b.jpg", "no prompt"),
        ("batch . x --glob a.png b.jpg", "quote a pattern, as in --glob '*.jpg'"),
        ("batch . x c.gif", "c.gif is the name of an image"),
        ("batch photos photos x", "photos is a folder: `clipseg-np batch` takes one"),
        ("trace a.png b.jpg x --output t", "b.jpg is a file"),
        ("segment a.png x --output mask.jpg", "mask.jpg has an image's suffix"),
        ("segment a.png x --output mask.png/", "mask.png/ has an image's suffix"),
        ("segment a.png x y --output mask.png", "mask.png has an image's suffix"),
        ("segment a.png b.jpg x --output mask.png", "mask.png has an image's suffix"),
        ("segment a.png x --write mask soft --output m.png", "m.png has an image's suffix"),
        ("segment a.png x --labels --output m.png", "m.png has an image's suffix"),
        ("batch photos x --output masks.png", "masks.png has an image's suffix"),
        ("segment a.png b.jpg x --output -", "expected one image, one prompt"),
        ("segment a.png x --write nope", "'nope' is no kind of image; expected mask, soft"),
        ("segment a.png x --write mask,nope", "'nope' is no kind of image"),
        ("segment a.png x --scales 1,x", "'1,x' is no list of whole numbers"),
        ("segment a.png x --shreshold 1", "--shreshold. See clipseg-np segment --help"),
        ("batch photos x --wrokers 1", "--wrokers. See clipseg-np batch --help"),
        ("info x", "unrecognized arguments: x. See clipseg-np info --help"),
    ],
)
def test_a_word_in_the_wrong_place(arguments, message, run):
    Path("notes.txt").write_text("notes")
    before = files(".")
    code, _, err = run(*arguments.split())
    assert code == 2 and message in err and err.count("\n") == 1, err
    assert files(".") == before


def test_a_folder_of_results_may_be_called_as_the_prompt(run):
    assert [run("segment", name, "red", "-o", "red")[0] for name in ("a.png", "b.jpg")] == [0, 0]
    assert sorted(files("red")) == ["a_1_red.png", "a_overlay.png", "b_1_red.png", "b_overlay.png"]


def test_a_prompt_may_be_an_option(run):
    code, out, _ = run("segment", "a.png", "--prompt", "a star", "--write", "mask", "--prompt=red")
    assert code == 0 and [line.split("  ")[0] for line in out.splitlines()] == ["a star", "red"]


def test_numbers_of_a_list_may_stand_apart(run):
    assert run("segment", "a.png", "--scales", "1,", "2", ",3", "red", "--prompt", "4")[0] == 0
    assert sorted(files()) == ["a_1_4.png", "a_2_red.png", "a_overlay.png"]


def test_a_long_word_after_a_list_is_read_at_once(run):
    assert run("segment", "a.png", "--write", "mask", " , " * 50_000 + "x")[0] == 0


def test_behind_two_dashes_all_words_are_prompts(run):
    code, out, _ = run("segment", "a.png", "red", "--", "b.jpg", "-x", "photos", "c.png", "--json")
    assert code == 0 and len(out.splitlines()) == 7
    names = ["1_red", "2_b-jpg", "3_x", "4_photos", "5_c-png", "6_json", "overlay"]
    assert sorted(files()) == [f"a_{name}.png" for name in names]
    assert run("batch", "photos", "-o", "out", "--", "a.png", "--flat")[0] == 0
    assert "a.png/a_1_a-png.png" in files("out")
    assert run("convert", "--", "-x", "out")[0] == 2


def test_standard_input_beside_files(run, monkeypatch):
    with open("photos/a.png") as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert run("segment", "a.png", "-", "x")[0] == 0
    assert sorted(files()) == ["a_1_x.png", "image_1_x.png"]


@pytest.mark.parametrize(
    ("written", "kinds", "prompts"),
    [
        (["mask", "soft", "a star", "x"], ["mask", "soft"], ["a star", "x"]),
        (["mask,soft", "a star"], ["mask", "soft"], ["a star"]),
        (["soft,", "heat", "sofft"], ["soft", "heat"], ["sofft"]),
        (["all", "a star"], list(KINDS), ["a star"]),
        (["heat", "all"], list(KINDS), []),
        (["soft", "--", "mask"], ["soft"], ["mask"]),
        (["soft", "--write", "heat,soft", "x"], ["soft", "heat"], ["x"]),
    ],
)
@pytest.mark.parametrize("option", ["--write", "--writ"])
def test_kinds_end_where_prompts_begin(written, kinds, prompts, option, run):
    code, out, _ = run("segment", "a.png", "red", "--json", option, *written)
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [record["prompt"] for record in records] == ["red", *prompts]
    names = ["red" if kind == "mask" else f"red_{kind}" for kind in kinds]
    assert records[0]["files"] == [f"masks/a_1_{name}.png" for name in names]
    assert not Path("masks/a_overlay.png").exists()


def test_numbers_end_where_prompts_begin(run):
    for number, scales in enumerate((["1", "2"], ["1,2"], ["1", "--scales=2"])):
        code, out, _ = run("segment", "a.png", "--scales", *scales, "a star", "-o", f"m{number}")
        assert code == 0 and out.startswith("a star  ")
    assert files("m0") == files("m1") == files("m2")
    assert run("segment", "a.png", "a star", "-o", "whole")[0] == 0
    assert files("m0") != files("whole")
    _, _, err = run("convert", "--extract-layers", "1", "2", "in.safetensors", "out")
    assert "are for the authors' decoder, a .pth file; got in.safetensors" in err


def test_one_file_for_one_image_and_one_prompt(run):
    code, out, err = run("segment", "a.png", "red", "-o", "new/mask.PNG")
    assert (code, err) == (0, "") and out.endswith("  new/mask.PNG\n")
    assert run("segment", "a.png", "red", "--write", "cutout", "-o", "cutout.png")[0] == 0
    assert (
        run("segment", "a.png", "--image-prompt", "b.jpg", "-o", "by_image.png", "--json")[0] == 0
    )
    assert run("segment", "a.png", "red", "--write", "mask,cutout")[0] == 0
    assert Path("new/mask.PNG").read_bytes() == files()["a_1_red.png"]
    assert Path("cutout.png").read_bytes() == files()["a_1_red_cutout.png"]
    assert sorted(files("new")) == ["mask.PNG"]
    Path("folder.png").mkdir()  # is one already
    assert run("segment", "a.png", "red", "-o", "folder.png", "--write", "mask")[0] == 0
    assert files("folder.png") == {"a_1_red.png": files()["a_1_red.png"]}


def test_an_overlay_is_written_for_one_image_alone_or_when_asked_for(run):
    for options, written in [
        ([], True), (["--write", "mask"], False), (["--write", "mask", "--overlay"], True),
    ]:  # fmt: skip
        folder = f"masks{len(options)}"
        _, out, _ = run("segment", "a.png", "red", *options, "-o", folder)
        assert Path(folder, "a_overlay.png").exists() == written == ("all together" in out)


def test_a_file_that_begins_with_a_dash(run):
    shutil.copy("a.png", "-a.png")
    code, _, err = run("segment", "-a.png", "red")
    assert code == 2 and "unrecognized arguments: -a.png; a file's name is written ./-a.png" in err
    assert run("segment", "./-a.png", "red")[0] == 0


def test_results_are_not_overwritten_unasked(run):
    assert run("segment", "b.jpg", "red", "--labels")[0] == 0
    before = files()
    assert run("segment", "b.jpg", "red", "--labels")[0] == 0  # the same again
    assert files() == before
    for other in ("photos/b.png red", "b.jpg red --threshold 0.3", "b.jpg red blue --labels"):
        code, _, err = run("segment", *other.split())
        assert code == 2 and "is there already, and the new one is not the same; name an" in err
        assert files() == before
    code, _, err = run("segment", "b.jpg", "red", "--threshold", "0.3", "--overwrite")
    assert code == 0 and err.startswith("clipseg-np: warning: replaced masks/b_1_red.png")
    changed = {name for name, data in files().items() if before[name] != data}
    assert "b_1_red.png" in changed <= {"b_1_red.png", "b_overlay.png"}


def test_overlays_of_other_prompts_are_numbered(run):
    assert run("segment", "a.png", "red")[0] == 0
    before = files()
    code, out, _ = run("segment", "a.png", "blue")
    assert code == 0 and out.endswith("  masks/a_overlay_2.png\n")
    assert run("segment", "a.png", "red")[1].endswith("  masks/a_overlay.png\n")
    assert run("segment", "a.png", "blue")[1].endswith("  masks/a_overlay_2.png\n")
    assert before.items() < files().items() and len(files()) == 4


def test_a_trace_is_not_overwritten_unasked(run):
    trace = ["trace", "a.png", "red", "--output", "t.safetensors", "--names", "decoder.l*"]
    assert run(*trace)[0] == 0
    before = Path("t.safetensors").read_bytes()
    code, _, err = run(*trace, "--dtype", "float32")
    assert code == 2 and "t.safetensors is there already" in err
    assert Path("t.safetensors").read_bytes() == before
    code, _, err = run(*trace, "--dtype", "float32", "--overwrite")
    assert (code, err) == (0, "clipseg-np: warning: replaced t.safetensors\n")
    assert Path("t.safetensors").read_bytes() != before


@pytest.mark.parametrize(
    "stem",
    ["猫" * 80, "x" * 251, "é" * 120, "\U0001f600" * 60, "हिन्दी" * 12, "e\u0301" * 80],
    ids=["Chinese", "ASCII", "Latin", "emoji", "Hindi", "decomposed"],
)
def test_names_of_results_fit(stem, run):
    others = [stem, stem[:-1] + "z"]  # they differ at the end alone
    for name in others:
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(f"{name}.png")
    prompts = ["red", "猫" * 50, "\U00020000" * 50]  # longer than the model reads
    images = [f"{name}.png" for name in others]
    code, _, err = run("segment", *images, *prompts, "--write", "all", "--overlay", "--labels")
    assert code == 0 and "error" not in err
    count = 2 * (len(KINDS) * len(prompts) + 4)
    assert len(files()) == count and all(len(name.encode()) <= 255 for name in files())
    assert all(name.startswith(stem[:8]) for name in files())
    Path("long").mkdir()
    for name in images:
        Path(name).rename(f"long/{name}")
    for layout in ([], ["--flat"]):
        folder = f"out{len(layout)}"
        code, _, err = run("batch", "long", *prompts, "-o", folder, "--workers", "1", *layout)
        assert code == 0 and "error" not in err
        masks = [name for name in files(folder) if name.endswith(".png")]
        assert len(masks) == 6 and all(len(Path(name).name.encode()) <= 255 for name in masks)


def test_line_feeds_and_escape_codes_are_not_printed(run):
    Image.new("RGB", (20, 20)).save("bad\nname\x1b[31m.png")
    code, out, _ = run(
        "segment", "bad\nname\x1b[31m.png", "two\nlines", "\x1b[31mred\u202e", "猫", "--labels"
    )
    assert code == 0 and len(out.splitlines()) == 4 and out.count("\n") == 4
    assert out.startswith(r"two\nlines") and r"\x1b[31mred\u202e" in out and "猫" in out
    assert "\x1b" not in out and r"masks/bad\nname\x1b[31m_1_two-lines.png" in out
    code, out, _ = run("segment", "bad\nname\x1b[31m.png", "two\nlines", "--json", "-o", "json")
    assert json.loads(out)["prompt"] == "two\nlines"


def test_a_quote_inside_a_prompt(run):
    code, out, err = run("segment", "a.png", '12" ring', '12" ring - a 5" star')
    assert (code, err) == (0, "") and out.startswith('12" ring')


def test_prompts_like_expressions_are_warned_of_once(run):
    for command in (["segment", "a.png"], ["batch", "photos", "--workers", "2"]):
        code, _, err = run(*command, "a cat,a dog", "red", "-o", command[0])
        assert code == 0 and err.count("\n") == 1
        assert err.startswith("clipseg-np: warning: the prompt 'a cat,a dog' is read as one text.")


def test_help_shows_all_defaults(run):
    for command in ("segment", "batch"):
        text = " ".join(run(command, "--help")[1].split())
        for option in ("--smallest N", "--grow N", "--feather N", "--scales S,S", "--threshold T"):
            about = text.rpartition(f" {option} ")[2].partition(" --")[0]
            assert "default: " in about, about


def test_closed_streams(checkpoint, run):
    """`2>&-` and the like: one line, and nothing of it in a file or in the results."""
    command = f'"{sys.executable}" -m clipseg_np segment --model {checkpoint} '
    long = "a.png " + "'" + "red " * 100 + "'"

    def shell(text: str):
        root = str(Path(__file__).parents[2])
        return subprocess.run(
            ["bash", "-c", f"export PYTHONPATH={root}; {command} {text}"],
            capture_output=True,
            check=False,
        )

    done = shell(f"{long} --output - 2>&-")
    assert done.returncode == 0 and done.stdout.startswith(b"\x89PNG")
    assert done.stdout == shell(f"{long} --output -").stdout
    done = shell(f"{long} --output closed 2>&- >&- <&-")
    assert done.returncode == 0 and len(files("closed")) == 2
    assert files("closed")[f"a_1_{('red-' * 10)[:40]}.png"] == shell(f"{long} --output -").stdout
    for text, message in [
        ("- red <&-", b"standard input is closed"),
        ("a.png red --output - >&-", b"standard output to be open"),
    ]:
        done = shell(text)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count(b"\n") == 1
    done = shell("a.png red --output quiet >&-")
    assert done.returncode == 0 and done.stderr == b""


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    code = "import clipseg_np.cli.parser as p; p.open_streams(); "
    code += "f = open('n', 'w'); print(f.fileno(), file=f)"
    root = str(Path(__file__).parents[2])
    command = f'PYTHONPATH={root} "{sys.executable}" -c "{code}" <&- >&- 2>&-'
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert int((tmp_path / "n").read_text()) > 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-16"])
def test_json_whatever_the_encoding_of_standard_output(encoding, checkpoint, run):
    command = [sys.executable, "-m", "clipseg_np", "segment", "a.png", "café 猫", "--json"]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [*command, "--model", checkpoint],
        env={"PYTHONIOENCODING": encoding, "PYTHONPATH": root, "PATH": ""},
        capture_output=True,
        check=False,
    )
    (line,) = done.stdout.decode(encoding).splitlines()
    assert json.loads(line)["prompt"] == "café 猫"
