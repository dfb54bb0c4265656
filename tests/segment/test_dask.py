"""The batch on a real dask scheduler with two worker processes, one of which is killed midway."""

import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from clipseg_np.segment.batch import RECORD, Job, run_batch

distributed = pytest.importorskip("distributed", reason="needs the extra 'dask'")
IMAGES = 60


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(IMAGES):
        pixels = rng.integers(0, 256, (300, 400 + number, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number:03}.png", compress_level=1)
    return tmp_path / "images"


def content(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_worker_is_killed_and_nothing_is_lost(folder, checkpoint, tmp_path):
    job = Job(("red", "a blue x"), str(tmp_path / "out"), str(checkpoint), kinds=("soft", "heat"))
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        first = next(iter(client.run(os.getpid).values()))
        killed = threading.Event()

        def kill_midway():
            while not killed.is_set():
                if len(list((tmp_path / "out").glob(f"*/{RECORD}"))) >= IMAGES // 4:
                    os.kill(first, signal.SIGKILL)
                    killed.set()
                time.sleep(0.01)

        killer = threading.Thread(target=kill_midway)
        killer.start()
        with client.get_executor() as executor:
            report = run_batch(job, folder, executor)
        assert killed.is_set()
        killer.join()
        assert first not in client.run(os.getpid).values()
    assert len(report) == IMAGES and not any("error" in record for record in report)
    assert not list((tmp_path / "out").rglob("*.part"))
    written = content(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    with ThreadPoolExecutor(2) as executor:
        run_batch(replace(job), folder, executor)
    assert content(tmp_path / "out") == written
