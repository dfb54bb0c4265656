"""Small files that claim huge sizes are refused or processed within 1 GiB of memory."""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ..helpers.checkpoints import write_raw

LIMIT = 1 << 30  # bytes of address space; 160 MB of them are the interpreter and its libraries

# A first run in which BLAS takes its buffers; then each command line of the file that it is given.
CHILD = f"""
import contextlib, io, json, resource, sys
from clipseg_np.cli.parser import main
lines = json.load(open(sys.argv[1]))
with contextlib.redirect_stdout(io.StringIO()):
    assert main(lines.pop(0)) == 0
resource.setrlimit(resource.RLIMIT_AS, ({LIMIT}, {LIMIT}))
for line in lines:
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        code = main(line)
    print(json.dumps([code, stderr.getvalue()]), flush=True)
"""

HUGE = (2**31 - 1, 10**9, 10**30)
COUNTS = {
    "vision_config": (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_channels", "image_size", "patch_size",
    ),
    "text_config": ("hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings"),
    None: (
        "projection_dim", "reduce_dim", "decoder_intermediate_size", "decoder_num_attention_heads",
    ),
}  # fmt: skip
SIZES = (
    {"height": 10**9, "width": 10**9},
    {"height": 1, "width": 2**22},
    {"height": 2048, "width": 2048},
    {"shortest_edge": 2**20},
    {"max_height": 2**22, "max_width": 2**22},
    10**400,
)


def huge_configs(checkpoint: Path, folder: Path):
    """Copies of a checkpoint, one number of each config blown up."""
    config = json.loads((checkpoint / "config.json").read_text())
    changes = [
        ("config.json", {**config, **({part: {**config[part], name: n}} if part else {name: n})})
        for part, names in COUNTS.items()
        for name in names
        for n in HUGE
    ]
    changes += [("preprocessor_config.json", {"size": size}) for size in SIZES]
    for number, (name, value) in enumerate(changes):
        copy = folder / str(number)
        copy.mkdir()
        for file in checkpoint.iterdir():
            (copy / file.name).symlink_to(file)
        (copy / name).unlink()
        (copy / name).write_text(json.dumps(value))
        yield copy


def huge_images(folder: Path):
    """Images that unpack to many pixels, and headers that only say so."""
    for name, size in {
        "square": (9000, 9000),
        "line": (80_000_000, 1),
        "tall": (3, 60_000),
    }.items():
        Image.new("1", size).save(folder / f"{name}.png")
        yield folder / f"{name}.png"
    small = io.BytesIO()
    Image.new("P", (24, 20)).save(small, "GIF")
    canvas = bytearray(small.getvalue())
    canvas[6:10] = (9400).to_bytes(2, "little") * 2
    (folder / "canvas.gif").write_bytes(canvas)
    yield folder / "canvas.gif"
    small = io.BytesIO()
    Image.new("RGB", (24, 20)).save(small, "BMP")
    header = bytearray(small.getvalue())
    header[18:26] = (9400).to_bytes(4, "little") * 2
    (folder / "header.bmp").write_bytes(header)
    yield folder / "header.bmp"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to its RLIMIT_AS")
def test_huge_sizes_in_little_memory(checkpoint, image_file, tmp_path):
    output = ["--output", str(tmp_path / "out")]
    sound = ["segment", str(image_file), "red", "--model", str(checkpoint), *output]
    lines = [sound]
    (tmp_path / "models").mkdir()
    for model in huge_configs(checkpoint, tmp_path / "models"):
        lines.append(["segment", str(image_file), "red", "--model", str(model), *output])
    for number, length in enumerate((10**8, 10**12, 2**64 - 1)):
        model = tmp_path / "models" / f"header{number}"
        model.mkdir()
        (model / "config.json").symlink_to(checkpoint / "config.json")
        write_raw(model / "model.safetensors", b'{"a":{}}', bytes(8), length)
        lines.append(["info", "--model", str(model)])
    (tmp_path / "images").mkdir()
    for image in huge_images(tmp_path / "images"):
        lines.append(["segment", str(image), "red", "--model", str(checkpoint), *output])
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as file:
        array = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            array, {"descr": "<f8", "fortran_order": False, "shape": (10**10,)}
        )
        file.writestr("a.npy", array.getvalue())
    lines.append(["compare", str(tmp_path / "huge.npz"), str(tmp_path / "huge.npz")])
    (tmp_path / "lines.json").write_text(json.dumps(lines))

    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path / "lines.json"],
        env={**os.environ, "PYTHONPATH": str(root), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ends = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(ends) == len(lines) - 1
    for line, (code, stderr) in zip(lines[1:], ends):
        errors = [e for e in stderr.splitlines() if not e.startswith("clipseg-np: warning: ")]
        assert code in (0, 2) and len(errors) == (code == 2), (line, stderr)
        assert all(e.startswith("clipseg-np: error: ") for e in errors), (line, stderr)
    refused = {
        line[1] if line[0] == "segment" else ""
        for line, (code, _) in zip(lines[1:], ends)
        if code == 2
    }
    assert str(tmp_path / "images" / "line.png") in refused
    assert [code for line, (code, _) in zip(lines[1:], ends) if "models" in " ".join(line)].count(
        2
    ) >= 49
