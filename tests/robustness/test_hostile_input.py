"""Thousands of damaged files, through the command: the right result or a clear error.

helpers/mutations.py damages images, weights, configs, tokenizers and golden files. A failure names
its kind and seed, from which the test makes the file again. helpers/command.py checks each run.
"""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipseg_np.cli.parser import main
from clipseg_np.golden.traces import Golden
from clipseg_np.image.load_image import load_image

from ..helpers import mutations
from ..helpers.checkpoints import sharded, stored_arrays
from ..helpers.command import Yard, failing_as
from ..helpers.mutations import generator

HEIGHT, WIDTH = 20, 24


def drawn(*shape: int) -> np.ndarray:
    """An image neither flat nor pure noise, so that every format packs it in its own way."""
    ramp = np.add.outer(np.arange(HEIGHT) * 6, np.arange(WIDTH) * 4)[..., None]
    noise = np.random.default_rng(0).integers(0, 60, (HEIGHT, WIDTH, *shape))
    return np.clip(ramp + noise, 0, 255).astype(np.uint8)


def saved(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def images() -> dict[str, bytes]:
    """A small whole image of each kind."""
    rgb, rgba = Image.fromarray(drawn(3)), Image.fromarray(drawn(4))
    grey = Image.fromarray(drawn(1)[..., 0])
    deep = Image.fromarray(drawn(1)[..., 0].astype(np.uint16) * 257)
    turned = rgb.getexif()
    turned[0x0112] = 6
    frames = {"save_all": True, "append_images": [rgb.rotate(90), grey.convert("RGB")]}
    return {
        "png": saved(rgb, "PNG", exif=turned),
        "png 16 bits": saved(deep, "PNG"),
        "png palette": saved(rgb.convert("P"), "PNG", transparency=3),
        "png rgba": saved(rgba, "PNG"),
        "png animated": saved(rgb, "PNG", **frames),
        "jpeg": saved(rgb, "JPEG", exif=turned),
        "jpeg cmyk": saved(rgb.convert("CMYK"), "JPEG", progressive=True),
        "gif": saved(rgb.convert("P"), "GIF"),
        "gif animated": saved(rgb, "GIF", **frames),
        "bmp": saved(rgb, "BMP"),
        "bmp palette": saved(rgb.convert("P"), "BMP"),
        "tiff": saved(rgb, "TIFF"),
        "tiff lzw rgba": saved(rgba, "TIFF", compression="tiff_lzw"),
        "tiff 16 bits": saved(deep, "TIFF"),
        "webp": saved(rgb, "WEBP", exif=turned),
        "webp animated": saved(rgba, "WEBP", lossless=True, **frames),
        "ico": saved(rgba, "ICO", sizes=[(16, 16), (WIDTH, HEIGHT)]),
        "ppm": saved(rgb, "PPM"),
        "pgm": saved(grey, "PPM"),
        "pbm": saved(grey.convert("1"), "PPM"),
    }


IMAGES = images()


@pytest.fixture
def yard(tmp_path, monkeypatch) -> Yard:
    return Yard(tmp_path, monkeypatch)


def assert_written(yard: Yard, stem: str, size: tuple[int, int], prompts: int = 1) -> None:
    """A mask of the image's size for each prompt, and the sheet, all whole."""
    names = sorted(path.name for path in yard.output.iterdir())
    assert len(names) == prompts + 1 and f"{stem}_overlay.png" in names, names
    for name in names:
        with Image.open(yard.output / name) as written:
            written.load()
            assert name.endswith("_overlay.png") or written.size == size[::-1]


IMAGE_CASES = 60  # of each kind


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", IMAGES)
def test_images(kind, yard, checkpoint, segmenter, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500_000)  # a blown-up size costs time
    file = yard.given / f"odd.{kind.split()[0]}"
    kinds = sorted(IMAGES)
    for seed in range(IMAGE_CASES):
        with failing_as(kind, seed):
            rng = generator(kind, seed)
            other = IMAGES[mutations.pick(rng, kinds)]
            file.write_bytes(mutations.damaged_bytes(IMAGES[kind], rng, other))
            output = (
                "-" if seed % 3 else yard.output
            )  # a folder gets a sheet, too, which takes longer
            command = ["segment", file, "red", "--model", checkpoint, "--output", output]
            run = yard.run("images", *command)
            if run.code == 2:
                assert file.name in run.error
            elif output == "-":
                mask = np.asarray(Image.open(io.BytesIO(run.out)))
                pixels = Image.fromarray(load_image(file))
                np.testing.assert_array_equal(mask > 0, segmenter(pixels, "red").masks()[0])
            else:
                assert_written(yard, "odd", load_image(file).shape[:2])
                shutil.rmtree(yard.output)


@pytest.fixture
def folder(yard, checkpoint) -> Path:
    return Path(shutil.copytree(checkpoint, yard.given / "checkpoint"))


@pytest.fixture
def image(yard) -> Path:
    file = yard.given / "scene.png"
    file.write_bytes(IMAGES["png rgba"])
    return file


def judge(yard: Yard, kind: str, seed: int, model: Path, image: Path, named: list[str]) -> None:
    """Run the model on an image, by one of four commands; an error names one of `named`."""
    trace = yard.output / "trace.safetensors"
    command, output = [
        (["segment", image, "red", "a + (b & !c)"], yard.output),
        (["info"], None),
        (["trace", image, "red"], trace),
    ][max(0, seed % 8 - 5)]
    if seed % 8 in range(1, 6):  # a folder gets a sheet, too, which takes longer
        command, output = ["segment", image, "red"], "-"
    run = yard.run(kind, *command, "--model", model, *(["--output", output] if output else []))
    if run.code == 2:
        assert any(name in run.error for name in named), run.error
    elif output == "-":
        assert np.asarray(Image.open(io.BytesIO(run.out))).shape == (HEIGHT, WIDTH)
    elif output == yard.output:
        assert_written(yard, "scene", (HEIGHT, WIDTH), prompts=2)
    elif output == trace:
        assert all(array.size for array in Golden(trace).values())
    shutil.rmtree(yard.output, ignore_errors=True)


FILES = {  # of a checkpoint: the kind that it is counted as, how it is damaged, and how often
    "model.safetensors": ("checkpoints", mutations.damaged_safetensors, 300),
    "config.json": ("configs", mutations.damaged_json, 320),
    "preprocessor_config.json": ("configs", mutations.damaged_json, 200),
    "vocab.json": ("tokenizers", mutations.damaged_vocab, 200),
    "merges.txt": ("tokenizers", mutations.damaged_merges, 120),
    "tokenizer_config.json": ("tokenizers", mutations.damaged_json, 200),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_a_checkpoint(name, yard, folder, image, capsys):
    kind, damage, cases = FILES[name]
    file = folder / name
    whole = file.read_bytes()
    for seed in range(cases):
        with failing_as(name, seed):
            file.write_bytes(damage(whole, generator(name, seed)))
            judge(yard, kind, seed, folder, image, [name, str(folder)])


def as_tokenizer_json(folder: Path) -> bytes:
    """The tokenizer's two files as the one that newer checkpoints have."""
    merges = (folder / "merges.txt").read_text().splitlines()[1:]
    vocab = json.loads((folder / "vocab.json").read_text())
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "end_of_word_suffix": "</w>"}
    added = [{"content": c, "id": vocab[c]} for c in ("<|startoftext|>", "<|endoftext|>")]
    return json.dumps({"model": model, "added_tokens": added}).encode()


def test_other_files_of_a_tokenizer(yard, folder, image, capsys):
    (folder / "tokenizer_config.json").unlink()
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    described = {"content": "<|endoftext|>", "lstrip": False, "normalized": True}
    special = dict.fromkeys(names, described) | {"bos_token": "<|startoftext|>"}
    wholes = {
        "special_tokens_map.json": json.dumps(special).encode(),
        "tokenizer.json": as_tokenizer_json(folder),
    }
    for name, whole in wholes.items():
        for seed in range(100):
            with failing_as(name, seed):
                (folder / name).write_bytes(mutations.damaged_json(whole, generator(name, seed)))
                judge(yard, "tokenizers", seed, folder, image, [name, str(folder)])
        (folder / name).write_bytes(whole)


def test_shards_and_their_index(yard, folder, image, capsys):
    arrays = stored_arrays(folder)
    (folder / "model.safetensors").unlink()
    config = (folder / "config.json").read_bytes()
    sharded(folder, arrays)
    (folder / "config.json").write_bytes(config)
    names = ["model.safetensors.index.json", "model-00002-of-00003.safetensors"]
    for seed in range(160):
        name = names[seed % 2]
        with failing_as(name, seed):
            rng, whole = generator(name, seed), (folder / name).read_bytes()
            damage = mutations.damaged_safetensors if seed % 2 else mutations.damaged_json
            (folder / name).write_bytes(damage(whole, rng))
            judge(yard, "checkpoints", seed, folder, image, [*names, str(folder)])
            (folder / name).write_bytes(whole)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_golden_files(suffix, yard, checkpoint, image, capsys):
    golden, other = yard.given / "golden.safetensors", yard.given / f"other{suffix}"
    command = ["trace", image, "red", "--model", checkpoint, "--names", "decoder.*"]
    assert main([str(argument) for argument in (*command, "--output", golden)]) == 0
    if suffix == ".npz":
        np.savez_compressed(other, **Golden(golden))
    else:
        shutil.copy(golden, other)
    whole = other.read_bytes()
    damage = mutations.damaged_bytes if suffix == ".npz" else mutations.damaged_safetensors
    for seed in range(100):
        with failing_as(suffix, seed):
            other.write_bytes(damage(whole, generator(suffix, seed)))
            files = (golden, other) if seed % 2 else (other, golden)
            run = yard.run("golden files", "compare", *files, codes=(0, 1, 2))
            assert run.code < 2 or other.name in run.error


def test_a_sound_file_is_answered(yard, folder, image, capsys):
    """The tests above would all pass if nothing could be read."""
    for seed in range(8):  # each command
        judge(yard, "sound files", seed, folder, image, [])
    for kind, data in IMAGES.items():
        file = yard.given / f"whole.{kind.split()[0]}"
        file.write_bytes(data)
        run = yard.run(
            "sound files", "segment", file, "red", "--model", folder, "--output", yard.output
        )
        assert run.code == 0, (kind, run.err)
        assert_written(yard, "whole", load_image(file).shape[:2])
        shutil.rmtree(yard.output)
