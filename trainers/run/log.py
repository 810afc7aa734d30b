"""What a run writes about itself: metrics.jsonl (figures by step), events.jsonl (what happened)."""

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from pipelines.files.disk import atomic_path
from pipelines.strict import explain
from trainers.ranks.ranks import Ranks, from_all_ranks
from trainers.settings.earlier import in_todays_words
from trainers.settings.run import TrainConfig

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


def require_same_run(run_dir: Path, config: TrainConfig[Any]) -> None:
    """ValueError where the directory holds a run that this configuration would not continue."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        return
    earlier = in_todays_words(yaml.safe_load(path.read_text()))
    now = config.model_dump(mode="json")
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


MAX_IN_A_ROW = 20


class SkippedSteps:
    """Counts the steps that each trained role skipped because its gradient was not finite."""

    def __init__(self, roles: Iterable[str], tracker: Tracker, ranks: Ranks):
        self.tracker, self.ranks = tracker, ranks
        self.num_skipped = dict.fromkeys(roles, 0)
        self.num_in_a_row = dict.fromkeys(roles, 0)

    def may_step(self, role: str, step: int, norm: Tensor, prompts: list[str]) -> bool:
        """Whether the gradient's norm is finite; where it is not, an event names the prompts.

        `prompts` are this rank's that made a loss that is not finite. ValueError after too many
        skipped steps of a role in a row.
        """
        if torch.isfinite(norm):
            self.num_in_a_row[role] = 0
            return True
        self.num_skipped[role] += 1
        self.num_in_a_row[role] += 1
        named = from_all_ranks(prompts, self.ranks)
        if self.ranks.is_main:
            reason = "loss not finite" if named else "gradient not finite"
            self.tracker.event("skipped", step=step, role=role, reason=reason, prompts=named)
        if self.num_in_a_row[role] >= MAX_IN_A_ROW:
            raise ValueError(
                f"algorithm.{role}.learning_rate: the gradient was not finite for "
                f"{MAX_IN_A_ROW} steps in a row; lower it or check the data"
            )
        return False
