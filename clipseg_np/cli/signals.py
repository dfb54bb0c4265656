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
    """Within this, a signal that stops the process raises KeyboardInterrupt with its number.

    Another one within a second is the same one, sent by a wrapper or a terminal, too; a later one
    ends the process at once. Signals that are ignored stay so, as under nohup.
    """
    if threading.current_thread() is not threading.main_thread():  # Python allows no handlers there
        yield
        return
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in numbers}
    times: list[float] = []

    def stop(number: int, _: object) -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            raise KeyboardInterrupt(number)
        if times[-1] > times[0] + 1:
            os._exit(128 + number)

    handled = {n for n, handler in handlers.items() if handler not in (None, signal.SIG_IGN)}
    try:
        for number in handled:
            signal.signal(number, stop)
        yield
    finally:
        for number in handled:
            signal.signal(number, handlers[number])


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """As shells have it: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
