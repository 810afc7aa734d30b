"""Runs of a micro model in this process, and what they wrote."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.catalog.registry import Registry
from trainers.engine import Trainer
from trainers.ranks.ranks import Ranks
from trainers.settings.run import TrainConfig

ONE = Ranks(0, 1, torch.device("cpu"))


def trainer(config: TrainConfig[Any], run_dir: Path) -> Trainer:
    return Trainer(config, Registry(), run_dir, ONE)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def student_weights(run: Trainer) -> dict[str, Tensor]:
    network = run.roles["student"].network
    return {name: p.detach().clone() for name, p in network.named_parameters()}
