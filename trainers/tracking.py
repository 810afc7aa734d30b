"""What a run writes about itself.

Metrics.jsonl (figures by step) and events.jsonl (what happened, when).
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Tracker:
    """Appends to the run's two logs; one flushed line per record, so that a reader never waits."""

    def __init__(self, run_dir: Path):
        self.metrics_path = run_dir / "metrics.jsonl"
        self.events_path = run_dir / "events.jsonl"

    def metrics(self, step: int, figures: Mapping[str, float]) -> None:
        """One line of figures; `step` counts finished steps."""
        rounded = {name: float(f"{figure:.6g}") for name, figure in figures.items()}
        _append(self.metrics_path, {"step": step, "time": round(time.time(), 3), **rounded})

    def event(self, kind: str, **details: Any) -> None:
        """One line about something that happened."""
        _append(self.events_path, {"time": round(time.time(), 3), "event": kind, **details})

    def forget_after(self, step: int) -> None:
        """Drops figures past a step: a resumed run writes them again."""
        if not self.metrics_path.is_file():
            return
        lines = self.metrics_path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        self.metrics_path.write_text("".join(kept))


def _append(path: Path, record: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
