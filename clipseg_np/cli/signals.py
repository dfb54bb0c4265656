"""Signals that stop a command raise KeyboardInterrupt, so that nothing is left half written."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Ctrl-C; `kill`, or a host that shuts down; the terminal is closed.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


@contextmanager
def raised_as_interrupts() -> Iterator[None]:
    """Within this, a signal that stops the process raises KeyboardInterrupt with its number.

    The first one only: cleaning up is not disturbed. Signals that are ignored stay so, as under
    nohup.
    """
    if threading.current_thread() is not threading.main_thread():  # Python allows no handlers there
        yield
        return
    handlers = {number: signal.getsignal(number) for number in _numbers()}
    ours = {number for number, handler in handlers.items() if handler not in (None, signal.SIG_IGN)}

    def stop(number: int, _: object) -> None:
        for each in ours:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    try:
        for number in ours:
            signal.signal(number, stop)
        yield
    finally:
        for number in ours:
            signal.signal(number, handlers[number])


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """As shells have it: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


def _numbers() -> list[int]:
    return [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
