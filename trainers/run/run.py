"""A run in memory, as its parts are handed on together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from pipelines.catalog.entries import ModelEntry
from pipelines.catalog.registry import Registry
from trainers.algorithm import Algorithm
from trainers.networks.role import BuiltRole
from trainers.ranks.ranks import Ranks
from trainers.settings.roles import Ema
from trainers.settings.run import TrainConfig


@dataclass(frozen=True)
class Run:
    """A configuration with what was built of it: the method over its networks, their optimizers.

    `registry` knows the models that are here, and `entry` is the run's own.
    """

    config: TrainConfig[Any]
    registry: Registry
    entry: ModelEntry
    algorithm: Algorithm[Any]
    roles: Mapping[str, BuiltRole]
    optimizers: Mapping[str, Optimizer]
    ranks: Ranks

    @property
    def exported_role(self) -> BuiltRole:
        """What is sampled and exported: the student's moving average where one is kept, else it."""
        for role in self.roles.values():
            if isinstance(role.settings, Ema) and role.settings.of == "student":
                return role
        return self.roles["student"]
