"""For all tests: one thread a process, as two processes of tests share the machine; waiting."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

os.environ["OMP_NUM_THREADS"] = "1"  # read once, when torch is imported

HANG_SEC = 600  # nothing takes that long on the busiest machine: whatever does, hangs
Value = TypeVar("Value")


def wait_for(look: Callable[[], Value], pause_sec: float = 0.05) -> Value:
    """The first true value of `look`."""
    deadline = time.monotonic() + HANG_SEC
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(pause_sec)
    raise AssertionError(f"nothing happened within {HANG_SEC} s")
