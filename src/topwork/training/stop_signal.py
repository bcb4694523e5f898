"""SIGTERM while training: stop after the running step, with a checkpoint."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_after_step() -> Iterator[threading.Event]:
    """Within the block SIGTERM sets the event instead of ending the process at once; outside the
    main thread, which signals don't reach, nothing sets it.
    """
    stop_requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop_requested
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop_requested.set())
    try:
        yield stop_requested
    finally:
        signal.signal(signal.SIGTERM, before)
