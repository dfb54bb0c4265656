"""Files and folders are written whole or not at all; errors of the disk name them.

tests/checkpoints/test_locate.py and tests/robustness/test_odd_input.py have more.
"""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipseg_np.atomic_files import (
    folder_replaced,
    folder_written_whole,
    remove_parts,
    written_whole,
)


def test_a_folder_is_replaced_on_success_only(tmp_path):
    folder = tmp_path / "folder"
    with pytest.raises(SystemExit), folder_replaced(folder) as part:
        raise SystemExit
    assert not list(tmp_path.iterdir())
    for name in ("old", "new"):
        (tmp_path / part.name).mkdir()
        (tmp_path / part.name / "of a killed process").touch()
        with folder_replaced(folder) as part:
            (part / name).touch()
    with pytest.raises(SystemExit), folder_replaced(folder) as part:
        raise SystemExit
    assert sorted(tmp_path.rglob("*")) == [folder, folder / "new"]


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
@pytest.mark.parametrize("exists", [True, False])
def test_a_link_to_an_empty_or_a_new_folder_stays_a_link(exists, tmp_path):
    target, link = tmp_path / "disk" / "target", tmp_path / "link"
    (target if exists else target.parent).mkdir(parents=True)
    link.symlink_to(target)
    with folder_written_whole(link) as part:
        (part / "file").touch()
    assert link.is_symlink() and sorted(target.parent.rglob("*")) == [target, target / "file"]


@pytest.mark.parametrize("write", [written_whole, folder_written_whole])
def test_errors_of_the_disk_name_no_temporary_file(write, tmp_path):
    target = tmp_path / "new" / "target"
    for name, expected in ((None, target), ("", target), ("/other", "/other")):
        with pytest.raises(OSError, match="full") as raised, write(target) as temporary:
            raise OSError(errno.ENOSPC, "full", str(temporary) if name == "" else name)
        assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(expected))
    with pytest.raises(OSError, match=f"5 requested and 3 written: '{target}'"), write(target):
        raise OSError("5 requested and 3 written")  # as NumPy does
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["tempfile.mkdtemp", "os.replace"])
def test_a_folder_that_cannot_be_written_to_is_named(place, tmp_path, monkeypatch):
    def deny(*given, **options):
        name = given[0] if place == "os.replace" else f"{options.get('dir', given[-1])}/.part-123"
        raise PermissionError(errno.EACCES, "Permission denied", str(name))

    monkeypatch.setattr(place, deny)
    with pytest.raises(PermissionError) as raised, written_whole(tmp_path / "new" / "file") as part:
        part.touch()
    named = tmp_path / "new" / ("file" if place == "os.replace" else "")
    assert str(raised.value) == f"[Errno {errno.EACCES}] Permission denied: '{named}'"
    assert not list(tmp_path.iterdir())


def test_parts_of_a_process_that_is_alive_are_left(tmp_path):
    for age in (10, 30):
        (tmp_path / f".part-{age}").mkdir()
        os.utime(tmp_path / f".part-{age}", (0, time.time() - age))
    remove_parts(tmp_path, min_age=20)
    assert [path.name for path in tmp_path.iterdir()] == [".part-10"]
    remove_parts(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX's limits")
def test_no_room_for_a_mask(image_file, checkpoint, tmp_path):
    import resource

    options = ["--model", checkpoint, "--output", tmp_path / "out"]
    command = [sys.executable, "-m", "clipseg_np", "segment", image_file, "red", *options]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)),
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"File too large: '{tmp_path / 'out' / Path(image_file).stem}_1_red.png" in done.stderr
    assert not (tmp_path / "out").exists()
