"""Ctrl-C and SIGTERM as a request that is heeded when it suits."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def taken(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Let `handler` have both inside the block; in another thread than the main one, nothing happens."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
