"""Waiting for something to become true, in tests of servers and processes."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def eventually(condition: Callable[[], Found], seconds: float = 30) -> Found:
    """The first true value of `condition`, asked every few milliseconds; AssertionError when there is none in time."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < deadline, f"still not true after {seconds} s"
        pause.wait(0.002)
    return found
