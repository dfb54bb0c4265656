"""Lines for the terminal."""

from clipseg_np.cli import terminal


def test_a_line_every_few_seconds_says_how_much_time_is_left(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    for _ in terminal.progress(range(30), "learning"):
        now[0] += 4
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "clipseg-np: progress: learning: 2 of 30, 1:52 left"
    assert lines[-1] == "clipseg-np: progress: learning: 30 of 30, 0:00 left" and len(lines) == 15
