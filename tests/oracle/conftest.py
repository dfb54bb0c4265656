"""Collects the deviations and prints them as a table at the end: that in docs/EVIDENCE.md."""

import pytest

_worst: dict[str, float] = {}
_counted: dict[str, int] = {}


@pytest.fixture
def agreement():
    """A function that notes a comparison: its name, its deviation, and how many there were."""

    def note(what: str, deviation: float, count: int = 1) -> None:
        _worst[what] = max(_worst.get(what, 0.0), deviation)
        _counted[what] = _counted.get(what, 0) + count

    return note


def pytest_terminal_summary(terminalreporter):
    if _worst:
        terminalreporter.section("agreement with transformers")
        terminalreporter.line("| compared | number | largest deviation |")
        terminalreporter.line("|---|---:|---:|")
        for what, deviation in _worst.items():
            shown = f"{deviation:.1e}" if deviation else "none"
            terminalreporter.line(f"| {what} | {_counted[what]:,} | {shown} |")
