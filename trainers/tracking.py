"""What a run writes about itself: metrics.jsonl (figures by step), events.jsonl (what happened)."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipelines.files import atomic_path
from pipelines.recipe import explain
from trainers.config import TrainConfig

WHAT_MAKES_A_RUN = (
    "method",
    "algorithm",
    "model",
    "adapters",
    "data",
    "seed",
    "precision",
    "reward",
)


class Tracker:
    """Appends to the run's two logs; one flushed line per record, so that a reader never waits."""

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir
        self.metrics_path = run_dir / "metrics.jsonl"
        self.events_path = run_dir / "events.jsonl"

    def metrics(self, step: int, figures: Mapping[str, float]) -> None:
        """One line of figures; `step` counts finished steps."""
        rounded = {name: float(f"{figure:.6g}") for name, figure in figures.items()}
        _append(self.metrics_path, {"step": step, "time": round(time.time(), 3), **rounded})

    def event(self, kind: str, **details: Any) -> None:
        """One line about something that happened."""
        _append(self.events_path, {"time": round(time.time(), 3), "event": kind, **details})

    def history(self, figure: str) -> list[tuple[int, float]]:
        """Step and value of a figure, of every line that has it."""
        if not self.metrics_path.is_file():
            return []
        lines = map(json.loads, self.metrics_path.read_text().splitlines())
        return [(line["step"], line[figure]) for line in lines if figure in line]

    def forget_after(self, step: int) -> None:
        """Drops figures past a step: a resumed run writes them again.

        In a new file, by which one that follows the old file notices it.
        """
        if not self.metrics_path.is_file():
            return
        lines = self.metrics_path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        with atomic_path(self.metrics_path) as partial:
            partial.write_text("".join(kept))


def _append(path: Path, record: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def refuse_other_run(run_dir: Path, config: TrainConfig[Any]) -> None:
    """ValueError where the directory holds a run that this configuration would not continue."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        return
    earlier, now = yaml.safe_load(path.read_text()), config.model_dump(mode="json")
    kept = {name: earlier[name] for name in WHAT_MAKES_A_RUN if name in earlier}
    changed = "method"
    if kept.get("method") == config.method:
        try:  # settings that the earlier version did not have get their defaults
            filled = type(config).model_validate(now | kept).model_dump(mode="json")
        except ValidationError as error:
            raise ValueError(
                f"run-dir: {run_dir} holds a run of another version ({explain(error)}); "
                "choose another --run-dir"
            ) from error
        changed = next((name for name in WHAT_MAKES_A_RUN if filled[name] != now[name]), "")
    if changed:
        raise ValueError(
            f"run-dir: {run_dir} holds a run with another {changed}; choose another --run-dir"
        )
