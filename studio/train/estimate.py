"""The estimate of a run before it starts, and advice against its settings from experience.

The figures are those of `python -m trainers CONFIG --estimate`, run as a process of its own: it
imports torch and may need the memory of a large model's skeleton.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import yaml

from studio.runs.files import ROOT

TIMEOUT_SEC = 600
SAFE_FULL_RATE = 1e-5
SMALL_BATCH = 8
REAL_WIDTH = 256  # pixels: Wan's own models are wider, TinyWan is not


def make_plan(tree: Mapping[str, Any], num_ranks: int) -> dict[str, Any]:
    """The fields of `trainers.estimate.estimate.Estimate` for these settings.

    ValueError with the trainer's own sentence where it refuses.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(spread(tree, num_ranks), file)
        file.flush()
        command = [sys.executable, "-m", "trainers", file.name, "--estimate"]
        try:
            ended = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_SEC
            )
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"The plan took more than {TIMEOUT_SEC} s; start without") from error
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["the estimate died"])[-1]
        raise ValueError(last.removeprefix("error: "))
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def spread(tree: Mapping[str, Any], num_ranks: int) -> dict[str, Any]:
    """The tree with the number of ranks written out, as an estimate has no torchrun to ask."""
    parallel = dict(tree["parallel"])
    if parallel["shard"] is None:
        used = parallel["replicate"] * parallel["context"]
        parallel["shard"] = max(1, num_ranks // used)
    return {**tree, "parallel": parallel}


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
