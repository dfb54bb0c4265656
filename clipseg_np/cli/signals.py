"""Signals that stop a command raise KeyboardInterrupt, so that nothing is left half written."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Ctrl-C; `kill`, or a host that shuts down; the terminal is closed.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


@contextmanager
def raised_as_interrupts() -> Iterator[None]:
    """Within this, a signal that stops the process raises KeyboardInterrupt with the exit code.

    Another one within a second is the same one, sent by a wrapper or a terminal, too; a later one
    ends the process at once. Signals that are ignored stay so, as under nohup. Exit codes are as
    in shells: 130 for SIGINT, 143 for SIGTERM.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()  # others have no signals
    numbers = [n for n in signal.Signals if in_main_thread and n.name in NAMES]
    ignored = signal.SIG_IGN, None
    handlers = {n: handler for n in numbers if (handler := signal.getsignal(n)) not in ignored}
    times: list[float] = []

    def stop(number: int, _: object) -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            raise KeyboardInterrupt(128 + number)
        if times[-1] > times[0] + 1:
            os._exit(128 + number)

    try:
        for number in handlers:
            signal.signal(number, stop)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
