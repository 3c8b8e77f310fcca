"""How a run is asked to stop: it finishes its step, saves, and says so."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM stopped the run between two steps; it is saved, and the same call goes on."""


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """SIGINT (Ctrl-C) and SIGTERM set the event instead of ending the process in the middle of a step.

    A second signal of the same kind does what it did before.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield stop
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number, frame):
        stop.set()
        signal.signal(number, previous[number])

    for number in previous:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
