"""How far a preparation is, for people and for the studio, and whether it is to stop."""

import signal
import sys
import time
from pathlib import Path
from types import FrameType

from trainers.run.log import Tracker

EVERY_SEC = 1.0


class Progress:
    """Lines on stderr and in metrics.jsonl, where a step is an item."""

    def __init__(self, tracker: Tracker, num_items: int):
        self.tracker, self.num_items = tracker, num_items
        self.first: tuple[int, float] | None = None  # items and time when it began
        self.shown_at = -EVERY_SEC

    @property
    def is_due(self) -> bool:
        """Whether a second has passed."""
        return time.monotonic() - self.shown_at >= EVERY_SEC

    def show(self, num_done: int) -> None:
        """Tells how many items are done, how fast it goes and how long it will take."""
        now = time.monotonic()
        self.shown_at = now
        self.first = self.first or (num_done, now)
        elapsed_sec = now - self.first[1]
        pace = (num_done - self.first[0]) / elapsed_sec if elapsed_sec else 0.0
        self.tracker.metrics(num_done, {"items_per_sec": pace})
        told = f"prepared {num_done} of {self.num_items}"
        if pace:
            told += f", {pace:.3g} a second, {(self.num_items - num_done) / pace:.0f} s left"
        end = "\r" if sys.stderr.isatty() else "\n"
        print(f"{told}  ", file=sys.stderr, end=end, flush=True)


class StopRequest:
    """SIGTERM, Ctrl-C, or control/stop touched after this process began."""

    def __init__(self, out: Path):
        self.flag, self.began, self.signalled = out / "control" / "stop", time.time(), False
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._remember)

    @property
    def was_asked(self) -> bool:
        """Looked at after every item."""
        return self.signalled or (self.flag.exists() and self.flag.stat().st_mtime >= self.began)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self.signalled = True
