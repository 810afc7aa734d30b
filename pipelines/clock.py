"""Seconds that count a device's work where it belongs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Seconds since the start, and since the last lap."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()

    def elapsed(self) -> float:
        """On CUDA waits for the work that is queued, so that it is counted where it belongs."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter() - self.last

    def total(self) -> float:
        return time.perf_counter() - self.start

    def lap(self) -> float:
        seconds, self.last = self.elapsed(), time.perf_counter()
        return seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is not counted."""
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self.start += seconds
        self.last += seconds
