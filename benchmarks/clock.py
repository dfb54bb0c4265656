"""The clock of speed.py and versions.py."""

import time
from collections.abc import Callable
from typing import Any

PAUSE = 0.25  # seconds: threads of the system before wait for work a while, and keep a core busy (OpenBLAS: 0.1)


def wait_awake(seconds: float) -> None:
    """Not asleep: a virtual processor that slept takes a while to be at full speed."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds that a call takes after a pause, and its result."""
    wait_awake(PAUSE)
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result
