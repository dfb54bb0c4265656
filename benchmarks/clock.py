"""The clock of speed.py and versions.py."""

import time
from collections.abc import Callable
from typing import Any

# Seconds: the threads of the system before keep a core busy while they wait for work (OpenBLAS:
# 0.1 s).
PAUSE = 0.25


def wait_awake(seconds: float) -> None:
    """Wait without sleep: a virtual processor needs a while after sleep to be at full speed."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds that a call takes after a pause, and its result."""
    wait_awake(PAUSE)
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result
