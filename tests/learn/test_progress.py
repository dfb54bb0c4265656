"""A run's log, its plot, and the time left."""

import json
import sys

import pytest
from PIL import Image

from clipseg_np.errors import MissingExtra
from clipseg_np.learn.progress import write_log, write_plot

RECORDS = [
    {"step": 0, "loss": None, "new_iou": 0.25, "old_iou": 1.0},
    {"step": 20, "loss": 0.5, "new_iou": 0.75, "old_iou": 0.875},
    {"step": 40, "loss": 0.25, "new_iou": 0.8, "old_iou": 0.875},
]


def test_each_record_is_a_line_of_json(tmp_path):
    write_log(tmp_path, RECORDS)
    lines = (tmp_path / "learning.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == RECORDS


def test_the_plot_shows_the_loss_and_both_ious(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    curves = {}
    save = figure.Figure.savefig

    def savefig(self, *args, **kwargs):
        for axis in self.axes:
            for line in axis.lines:
                curves[line.get_label()] = [list(values) for values in line.get_data()]
        save(self, *args, **kwargs)

    monkeypatch.setattr(figure.Figure, "savefig", savefig)
    write_plot(tmp_path, RECORDS)
    assert curves == {
        "loss": [[0, 20, 40], [None, 0.5, 0.25]],
        "new_iou": [[0, 20, 40], [0.25, 0.75, 0.8]],
        "old_iou": [[0, 20, 40], [1.0, 0.875, 0.875]],
    }
    with Image.open(tmp_path / "learning.png") as image:
        assert image.size == (800, 300)


def test_a_plot_of_runs_that_have_no_test_of_the_old(tmp_path):
    pytest.importorskip("matplotlib")
    write_plot(tmp_path, [record | {"old_iou": None} for record in RECORDS])
    assert (tmp_path / "learning.png").is_file()


def test_a_plot_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match="pip install matplotlib "):
        write_plot(tmp_path, RECORDS)
