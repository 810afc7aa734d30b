"""What a run will take, asked before it starts, and what experience says against its settings.

The figures are those of `python -m trainers CONFIG --dry-run`, run as a process of its own: it
imports torch and may need the memory of a large model's skeleton.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from studio.runs.files import ROOT

TIMEOUT_SEC = 600
SAFE_FULL_RATE = 1e-5
SMALL_BATCH = 8
REAL_WIDTH = 256  # pixels: Wan's own models are wider, TinyWan is not
ROW = re.compile(r"^\s+(?P<name>\S+(?: \S+)*?) {2,}(?P<value>\S.*)$")
SECONDS = re.compile(r"^\s+(?P<sec>[\d.e+-]+) s at .*, (?P<where>.*)$")


@dataclass(frozen=True)
class Plan:
    """A table of the dry run: headings with rows of name and figure. Seconds a step by machine."""

    groups: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    step_sec: tuple[tuple[str, float], ...]


def make_plan(tree: Mapping[str, Any], num_ranks: int) -> Plan:
    """Runs the dry run. ValueError with the trainer's own sentence where it refuses."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(spread(tree, num_ranks), file)
        file.flush()
        command = [sys.executable, "-m", "trainers", file.name, "--dry-run"]
        try:
            ended = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_SEC
            )
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"The plan took more than {TIMEOUT_SEC} s; start without") from error
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["the dry run died"])[-1]
        raise ValueError(last.removeprefix("error: "))
    return read_plan(ended.stdout)


def spread(tree: Mapping[str, Any], num_ranks: int) -> dict[str, Any]:
    """The tree with the number of ranks written out, as the dry run has no torchrun to ask."""
    parallel = dict(tree["parallel"])
    if parallel["shard"] is None:
        used = parallel["replicate"] * parallel["context"]
        parallel["shard"] = max(1, num_ranks // used)
    return {**tree, "parallel": parallel}


def read_plan(text: str) -> Plan:
    """The dry run's text, after the settings that it repeats."""
    lines = text[text.index("\nparameters\n") + 1 :].splitlines()
    groups: list[tuple[str, tuple[tuple[str, str], ...]]] = []
    seconds: list[tuple[str, float]] = []
    for line in lines:
        if found := SECONDS.match(line):
            seconds.append((found["where"], float(found["sec"])))
        elif row := ROW.match(line):
            heading, rows = groups.pop()
            groups.append((heading, (*rows, (row["name"], " ".join(row["value"].split())))))
        elif line:
            groups.append((line, ()))
    return Plan(tuple(groups), tuple(seconds))


def advice(tree: Mapping[str, Any], num_ranks: int, width: int) -> list[str]:
    """What others' runs say against these settings, each with its reason.

    `width` is that of the model's own videos in pixels. Forbids nothing.
    """
    algorithm, found = tree["algorithm"], []
    student, critic = algorithm["student"], algorithm.get("critic")
    rate, full = student["learning_rate"], student["lora"] is None
    if critic is not None and full and width >= REAL_WIDTH and rate > SAFE_FULL_RATE:
        found.append(
            f"Learning rate {rate:g} for all weights: published DMD runs of Wan use 2e-6, because "
            "above 1e-5 the student leaves the teacher's colours within some hundred steps."
        )
    batch = tree["data"].get("batch_size", 1) * tree["accumulation_steps"] * num_ranks
    if critic is not None and critic["lora"] is not None and batch < SMALL_BATCH:
        found.append(
            f"{batch} samples a step for a LoRA critic: with so few it lags behind the student and "
            "colours oversaturate; raise accumulation steps or batch size to 8 or more."
        )
    if algorithm.get("guidance_scale", 2) <= 1:
        found.append(
            "Guidance scale 1 asks the teacher without guidance; here it is negative + scale * "
            "(positive - negative), so a paper's w in positive + w * (...) is w + 1."
        )
    if tree["validation"] is None and "teacher" in algorithm:
        found.append(
            "No validation: nothing is drawn while training, so a student that burns out or loses "
            "motion is seen only at the end; switch validation on."
        )
    return found
